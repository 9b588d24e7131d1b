"""Certificates of hosts: a CA per host, one leaf issued by it. Pure: bytes in, bytes out, "now" is given."""

import base64
import datetime as dt
import hashlib
import secrets
from collections.abc import Iterable
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from vmreplica.model.errors import BadRequest, Refused
from vmreplica.model.ids import HostId

CA_LIFE: Final = dt.timedelta(days=20 * 365)
LEAF_LIFE: Final = dt.timedelta(days=365)
#: A leaf with less than this left is replaced.
LEAF_RENEWAL: Final = dt.timedelta(days=60)
#: Clocks of two hosts differ; a certificate is valid from a day before it was made.
_CLOCK_SLACK: Final = dt.timedelta(days=1)

#: What reading or checking a certificate raises when something is wrong with it.
_BROKEN: Final = (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm)

Key = ec.EllipticCurvePrivateKey


def host_id_of(ca: x509.Certificate) -> HostId:
    """Tell the host id that a CA certificate stands for."""
    return hashlib.sha256(ca.public_bytes(serialization.Encoding.DER)).hexdigest()[:32]


def make_ca(name: str, now: dt.datetime) -> tuple[Key, x509.Certificate]:
    """Make a host's CA. Its subject is unique, so that two hosts of one name are not confused by OpenSSL."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = _name(f"vmreplica {secrets.token_hex(8)} {name}"[:64])
    usage = x509.KeyUsage(
        digital_signature=False, content_commitment=False, key_encipherment=False, data_encipherment=False,
        key_agreement=False, key_cert_sign=True, crl_sign=True, encipher_only=False, decipher_only=False,
    )  # fmt: skip
    builder = (
        _builder(subject, subject, key.public_key(), now, CA_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    return key, builder.sign(key, hashes.SHA256())


def make_leaf(ca_key: Key, ca: x509.Certificate, host_id: HostId, now: dt.datetime) -> tuple[Key, x509.Certificate]:
    """Issue the certificate a host shows on its connections: for server and client, named after a host id."""
    key = ec.generate_private_key(ec.SECP256R1())
    usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    builder = (
        _builder(_name(host_id), ca.subject, key.public_key(), now, LEAF_LIFE)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host_id)]), critical=False)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(_authority(ca), critical=False)
    )
    return key, builder.sign(ca_key, hashes.SHA256())


def pem_of(certificate: x509.Certificate) -> str:
    """Render a certificate."""
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def bundle(key: Key, certificate: x509.Certificate) -> bytes:
    """Render key and certificate as one file, so that one rename publishes both."""
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return private + pem_of(certificate).encode()


def unbundle(data: bytes) -> tuple[Key, x509.Certificate]:
    """Read what ``bundle`` wrote.

    Raises:
        ValueError: it is damaged, or key and certificate do not belong together.
    """
    key = serialization.load_pem_private_key(data, password=None)
    certificate = x509.load_pem_x509_certificate(data)
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
        raise ValueError("key and certificate do not belong together")
    return key, certificate


def read_ca(pem: str, now: dt.datetime) -> x509.Certificate:
    """Read a CA certificate that another host sent.

    Raises:
        BadRequest: it is not one valid, self-signed CA certificate.
    """
    try:
        (found,) = x509.load_pem_x509_certificates(pem.encode())
        _require_ca(found, now)
    except (*_BROKEN, x509.ExtensionNotFound, x509.DuplicateExtension) as error:
        raise BadRequest(
            "ca-unusable",
            f"the other host's CA certificate cannot be used: {str(error) or 'its signature is wrong'}",
            hint="check the clocks of both hosts, then pair again: vmreplica peer invite",
        ) from error
    return found


def issued_by(leaf_der: bytes, ca: x509.Certificate) -> bool:
    """Tell whether a CA itself issued a leaf. What the leaf says about itself counts for nothing."""
    try:
        x509.load_der_x509_certificate(leaf_der).verify_directly_issued_by(ca)
    except _BROKEN:
        return False
    return True


def sign(key: Key, data: bytes) -> str:
    """Sign bytes; base64."""
    return base64.b64encode(key.sign(data, ec.ECDSA(hashes.SHA256()))).decode()


def require_signature(ca: x509.Certificate, data: bytes, signature: str) -> None:
    """Check that bytes were signed with the key of a CA.

    Raises:
        Refused: they were not.
    """
    key = ca.public_key()
    try:
        if not isinstance(key, ec.EllipticCurvePublicKey):
            raise TypeError("only EC keys are used")
        key.verify(base64.b64decode(signature, validate=True), data, ec.ECDSA(hashes.SHA256()))
    except _BROKEN as error:
        raise Refused(
            "ca-not-owned",
            "the joining host has not proved that the CA certificate it shows is its own",
            hint="pair again: vmreplica peer invite",
        ) from error


def require_unlike(ca: x509.Certificate, others: Iterable[str]) -> None:
    """Check that a CA does not bear another one's subject: OpenSSL would take the one for the other.

    Raises:
        Refused: it does.
    """
    if any(x509.load_pem_x509_certificate(pem.encode()).subject == ca.subject for pem in others):
        raise Refused("ca-not-owned", "the joining host shows a CA certificate with the subject of another host's")


def expiry_of(leaf_der: bytes) -> dt.datetime:
    """Tell when a certificate ends.

    Raises:
        Refused: it is not a certificate.
    """
    try:
        return x509.load_der_x509_certificate(leaf_der).not_valid_after_utc
    except ValueError as error:
        raise Refused("peer-certificate-unexpected", f"the peer's certificate is damaged: {error}") from error


def ca_expiry(pem: str) -> dt.datetime:
    """Tell when a CA certificate that was read before ends.

    Raises:
        Refused: it is damaged since.
    """
    try:
        return x509.load_pem_x509_certificate(pem.encode()).not_valid_after_utc
    except ValueError as error:
        raise Refused("peer-certificate-unexpected", f"a stored CA certificate is damaged: {error}") from error


def _require_ca(certificate: x509.Certificate, now: dt.datetime) -> None:
    if not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca:
        raise ValueError("it is no CA")
    if not certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc:
        raise ValueError(f"it is valid from {certificate.not_valid_before_utc} on, not now ({now})")
    certificate.verify_directly_issued_by(certificate)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: dt.datetime, life: dt.timedelta
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCK_SLACK)
        .not_valid_after(now + life)
    )


def _authority(ca: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    own = ca.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(own)


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])
