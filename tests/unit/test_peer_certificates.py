"""Certificates: who issued what."""

import datetime as dt

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from hypothesis import given
from hypothesis import strategies as st

from vmreplica.model.errors import BadRequest
from vmreplica.peer import certificates

pytestmark = pytest.mark.main_job

_NOW = dt.datetime(2026, 11, 22, 10, 0, tzinfo=dt.UTC)
_KEY, _CA = certificates.make_ca("alpha", _NOW)
_OTHER_KEY, _OTHER_CA = certificates.make_ca("alpha", _NOW)
_ID = certificates.host_id_of(_CA)


def _der(leaf: x509.Certificate) -> bytes:
    return leaf.public_bytes(serialization.Encoding.DER)


def test_a_leaf_counts_for_the_ca_that_issued_it_and_for_no_other() -> None:
    leaf = _der(certificates.make_leaf(_KEY, _CA, _ID, _NOW)[1])
    assert certificates.issued_by(leaf, _CA)
    assert not certificates.issued_by(leaf, _OTHER_CA)


def test_a_leaf_that_bears_another_ca_s_name_and_host_id_is_not_issued_by_it() -> None:
    forged = _der(certificates.make_leaf(_OTHER_KEY, _CA, _ID, _NOW)[1])
    assert not certificates.issued_by(forged, _CA)


def test_two_cas_of_hosts_with_one_name_have_different_subjects_and_ids() -> None:
    assert _CA.subject != _OTHER_CA.subject
    assert certificates.host_id_of(_OTHER_CA) != _ID


@given(st.binary(max_size=400))
def test_bytes_that_are_no_certificate_are_issued_by_nobody(data: bytes) -> None:
    assert not certificates.issued_by(data, _CA)


def test_a_ca_is_read_back_as_it_was_sent() -> None:
    assert certificates.read_ca(certificates.pem_of(_CA), _NOW) == _CA


@pytest.mark.parametrize(
    ("pem", "why"),
    [
        ("", "nothing"),
        ("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "garbage"),
        (certificates.pem_of(_CA) * 2, "two"),
        (certificates.pem_of(certificates.make_leaf(_KEY, _CA, _ID, _NOW)[1]), "a leaf"),
        (certificates.pem_of(certificates.make_ca("a", _NOW - dt.timedelta(days=8000))[1]), "expired"),
        (certificates.pem_of(certificates.make_ca("a", _NOW + dt.timedelta(days=3))[1]), "not yet valid"),
    ],
    ids=lambda value: value if len(value) < 20 else "",
)
def test_what_is_not_one_valid_ca_is_refused(pem: str, why: str) -> None:
    with pytest.raises(BadRequest) as refusal:
        certificates.read_ca(pem, _NOW)
    assert refusal.value.code == "ca-unusable", why


def test_a_ca_that_another_key_signed_is_refused() -> None:
    builder = (
        x509.CertificateBuilder()
        .subject_name(_CA.subject)
        .issuer_name(_CA.subject)
        .public_key(_CA.public_key())
        .serial_number(7)
        .not_valid_before(_NOW)
        .not_valid_after(_NOW + dt.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    )
    forged = builder.sign(_OTHER_KEY, hashes.SHA256())
    with pytest.raises(BadRequest, match="signature is wrong"):
        certificates.read_ca(certificates.pem_of(forged), _NOW)


def test_key_and_certificate_of_different_hosts_do_not_make_a_bundle() -> None:
    with pytest.raises(ValueError, match="do not belong together"):
        certificates.unbundle(certificates.bundle(_OTHER_KEY, _CA))
