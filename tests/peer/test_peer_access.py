"""Who is let in: certificates, real and forged, over real connections."""

import asyncio
import contextlib
import datetime as dt
import json
import ssl
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from peer_kit import OFFER, POINT, Host, code_of, raw_connection
from point_kit import OTHER_VM, VM

from vmreplica.model.body import Buffers
from vmreplica.peer import certificates
from vmreplica.peer.book import Peer
from vmreplica.peer.identity import Identity, trusting_only, utc_now
from vmreplica.peer.listening import _renew

pytestmark = pytest.mark.main_job


def _ask(host: Host, path: str, context: ssl.SSLContext | None = None, *, named: bool = True) -> tuple[int, str]:
    connection = raw_connection(host, context, named=named)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        body = response.read().decode()
    finally:
        connection.close()
    return response.status, json.loads(body)["code"] if body.startswith("{") else body


def _forge(host: Host, ca: x509.Certificate, host_id: str, path: Path) -> None:
    """Make a leaf with the key of one host's CA that bears the names of another."""
    key, _ = certificates.unbundle((host.state / "pki/ca.pem").read_bytes())
    path.write_bytes(certificates.bundle(*certificates.make_leaf(key, ca, host_id, utc_now())))


def _ca(host: Host) -> x509.Certificate:
    return x509.load_pem_x509_certificate(host.identity.ca_pem.encode())


def test_without_a_certificate_only_the_ca_and_pairing_are_open(alpha: Host) -> None:
    assert _ask(alpha, "/peer/v1/ca") == (200, alpha.identity.ca_pem)
    for path in ("/peer/v1/hello", f"/peer/v1/replicas/{VM}", "/peer/v1/nothing", "/", "/peer/v1/ca/../hello"):
        assert _ask(alpha, path) == (403, "client-certificate-required"), path


def test_a_certificate_of_a_foreign_ca_is_refused_with_a_remedy(alpha: Host, tmp_path: Path) -> None:
    gamma = Host(tmp_path / "gamma", "gamma")
    gamma.book.add(
        Peer(
            name="alpha",
            host_id=alpha.identity.host_id,
            addresses=(alpha.address,),
            ca_pem=alpha.identity.ca_pem,
            paired=utc_now(),
        )
    )
    with gamma.client_of(alpha) as client:
        assert code_of(client.hello) == "peer-certificate-refused"
        assert code_of(client.put_segment, VM, POINT, "vda", 0, Buffers(bytes(8 << 20))) == "peer-certificate-refused"
    assert alpha.service.segments == {}


def test_a_paired_host_sees_what_is_its_own_only(alpha: Host, beta: Host, tmp_path: Path) -> None:
    gamma = Host(tmp_path / "gamma", "gamma")
    gamma.joins(alpha)
    with beta.client_of(alpha) as of_beta, gamma.client_of(alpha) as of_gamma:
        of_beta.offer(VM, OFFER)
        assert code_of(of_beta.position, VM) == "no error"
        assert code_of(of_gamma.position, VM) == code_of(of_gamma.position, OTHER_VM) == "replica-unknown"
    assert list(alpha.service.offers) == [(beta.identity.host_id, VM)]


def test_a_peer_that_forges_a_leaf_with_another_s_id_is_taken_for_itself(
    alpha: Host, beta: Host, tmp_path: Path
) -> None:
    gamma = Host(tmp_path / "gamma", "gamma")
    gamma.joins(alpha)
    with beta.client_of(alpha) as client:
        client.offer(VM, OFFER)
    _forge(gamma, _ca(gamma), beta.identity.host_id, gamma.state / "pki/host.pem")
    with gamma.client_of(alpha) as client:
        assert code_of(client.position, VM) == "replica-unknown"
        client.offer(OTHER_VM, OFFER)
    assert (gamma.identity.host_id, OTHER_VM) in alpha.service.offers


def test_a_leaf_that_claims_another_peer_s_ca_as_its_issuer_is_refused(alpha: Host, beta: Host, tmp_path: Path) -> None:
    gamma = Host(tmp_path / "gamma", "gamma")
    gamma.joins(alpha)
    _forge(gamma, _ca(beta), beta.identity.host_id, gamma.state / "pki/host.pem")
    with gamma.client_of(alpha) as client:
        assert code_of(client.hello) == "peer-certificate-refused"


def test_a_ca_between_a_peer_s_ca_and_the_leaf_is_refused(alpha: Host, beta: Host, tmp_path: Path) -> None:
    key, ca = certificates.unbundle((beta.state / "pki/ca.pem").read_bytes())
    middle_key, middle = certificates.make_leaf(key, ca, "middle", utc_now())
    leaf = certificates.make_leaf(middle_key, middle, beta.identity.host_id, utc_now())
    file = tmp_path / "chain.pem"
    file.write_bytes(certificates.bundle(*leaf) + middle.public_bytes(serialization.Encoding.PEM))
    context = trusting_only(alpha.identity.ca_pem)
    context.load_cert_chain(file)
    with pytest.raises((ssl.SSLError, ConnectionError)):
        _ask(alpha, "/peer/v1/hello", context)


def test_a_removed_peer_is_refused_at_once_even_on_an_open_connection(alpha: Host, beta: Host) -> None:
    with beta.client_of(alpha) as open_before:
        assert open_before.hello().name == "alpha"
        alpha.book.remove("beta")
        assert code_of(open_before.hello) == "peer-unknown"
        with beta.client_of(alpha) as fresh:
            assert code_of(fresh.hello) == "peer-unknown"
    assert alpha.service.segments == {}


def test_a_removed_peer_that_is_paired_again_is_let_in(alpha: Host, beta: Host) -> None:
    alpha.book.remove("beta")
    beta.joins(alpha)
    with beta.client_of(alpha) as client:
        assert client.hello().name == "alpha"


def test_a_peer_paired_from_the_other_side_is_let_in_without_a_restart(alpha: Host, tmp_path: Path) -> None:
    with Host(tmp_path / "gamma", "gamma").serve() as gamma:
        alpha.joins(gamma)
        gamma.book.add(gamma.book.by_name("alpha").model_copy(update={"addresses": (alpha.address,)}))
        with gamma.client_of(alpha) as client:
            assert client.hello().name == "alpha"


def test_another_host_at_the_peer_s_address_is_not_talked_to(alpha: Host, beta: Host, tmp_path: Path) -> None:
    with Host(tmp_path / "gamma", "gamma").serve() as gamma:
        beta.book.add(beta.book.by_name("alpha").model_copy(update={"addresses": (gamma.address,)}))
        with beta.client_of(alpha) as client:
            assert code_of(client.hello) == "peer-certificate-unexpected"


def test_a_renewed_certificate_is_shown_by_a_server_that_goes_on(tmp_path: Path) -> None:
    ahead = [dt.timedelta()]
    identity = Identity.load_or_create(tmp_path, "alpha", clock=lambda: utc_now() + ahead[0])

    async def run() -> tuple[bytes, bytes]:
        context = identity.server_context()
        before = _shown_by(context)
        renewal = asyncio.create_task(_renew(identity, context, 0.01))
        ahead[0] = dt.timedelta(days=320)
        async with asyncio.timeout(10):
            while _shown_by(context) == before:  # noqa: ASYNC110 - the renewal tells nobody
                await asyncio.sleep(0.01)
        renewal.cancel()
        return before, _shown_by(context)

    before, after = asyncio.run(run())
    assert certificates.expiry_of(after) - certificates.expiry_of(before) > dt.timedelta(days=300)


def _shown_by(context: ssl.SSLContext) -> bytes:
    """Shake hands with a server's context in memory and tell the certificate that it shows."""
    anyone = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    anyone.check_hostname = False
    anyone.verify_mode = ssl.CERT_NONE
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = anyone.wrap_bio(to_client, to_server)
    server = context.wrap_bio(to_server, to_client, server_side=True)
    for side in (client, server, client):
        with contextlib.suppress(ssl.SSLWantReadError):
            side.do_handshake()
    return client.getpeercert(True) or b""


def test_a_new_peer_that_names_no_server_in_its_handshake_is_let_in(alpha: Host, tmp_path: Path) -> None:
    gamma = Host(tmp_path / "gamma", "gamma")
    alpha.book.add(
        Peer(name="gamma", host_id=gamma.identity.host_id, addresses=(), ca_pem=gamma.identity.ca_pem, paired=utc_now())
    )
    context = gamma.identity.client_context(alpha.identity.ca_pem)
    context.check_hostname = False
    assert _ask(alpha, "/peer/v1/nothing", context, named=False) == (404, "request-unknown")


def test_tls_1_2_is_refused(alpha: Host) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(ssl.SSLError):
        raw_connection(alpha, context)
