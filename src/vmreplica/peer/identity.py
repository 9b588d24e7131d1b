"""Who this host is: its CA and its certificate, on disk, renewed in time."""

import datetime as dt
import ssl
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final, Self

import structlog
from cryptography import x509
from cryptography.exceptions import InvalidSignature

from vmreplica.fsio import publish_bytes
from vmreplica.model.errors import Corrupt
from vmreplica.model.ids import HostId, HostName
from vmreplica.peer import certificates

_CA_FILE: Final = "ca.pem"
_LEAF_FILE: Final = "host.pem"

_log = structlog.get_logger(__name__)

Clock = Callable[[], dt.datetime]


def utc_now() -> dt.datetime:
    """Tell the present time, aware of its zone."""
    return dt.datetime.now(dt.UTC)


class Identity:
    """A host's CA and leaf certificate. Thread-safe.

    ``ca.pem`` and ``host.pem`` hold key and certificate together, so each is replaced by one rename. Losing ``ca.pem``
    means losing the identity (all peers must be paired again), so it is never replaced; the leaf is whenever needed.
    """

    def __init__(self, pki_dir: Path, name: HostName, clock: Clock) -> None:
        self.name = name
        self._dir = pki_dir
        self._clock = clock
        self._lock = threading.Lock()
        self._generation = 0
        self._ca_key, self._ca = _load_or_make_ca(pki_dir / _CA_FILE, name, clock())
        self.host_id: HostId = certificates.host_id_of(self._ca)
        self.ca_pem = certificates.pem_of(self._ca)
        self._leaf_ends = self._load_leaf_end()
        self.refresh()

    @classmethod
    def load_or_create(cls, pki_dir: Path, name: HostName, *, clock: Clock = utc_now) -> Self:
        """Load the identity of this host, or make one when the directory holds none.

        Raises:
            Corrupt: the CA file is damaged.
            NoSpace: the file system is full.
        """
        pki_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        return cls(pki_dir, name, clock)

    @property
    def generation(self) -> int:
        """A number that grows with each new leaf: connections made before still show the old one."""
        return self._generation

    @property
    def leaf_ends(self) -> dt.datetime:
        """When the leaf certificate expires."""
        return self._leaf_ends

    @property
    def ca_ends(self) -> dt.datetime:
        """When the CA expires, and with it this host's identity."""
        return self._ca.not_valid_after_utc

    def refresh(self) -> bool:
        """Replace the leaf when less than 60 days of it are left; tell whether it was."""
        with self._lock:
            now = self._clock()
            if self._leaf_ends - now >= certificates.LEAF_RENEWAL:
                return False
            key, leaf = certificates.make_leaf(self._ca_key, self._ca, self.host_id, now)
            publish_bytes(self._dir / _LEAF_FILE, certificates.bundle(key, leaf))
            self._leaf_ends = leaf.not_valid_after_utc
            self._generation += 1
        _log.info("certificate issued", host=self.name, expires=self._leaf_ends.isoformat())
        return True

    def sign(self, data: bytes) -> str:
        """Prove with the CA's key that this host is the one it says it is."""
        return certificates.sign(self._ca_key, data)

    def show_in(self, context: ssl.SSLContext) -> None:
        """Make a TLS context show the present leaf; works on a live context too."""
        with self._lock:
            context.load_cert_chain(self._dir / _LEAF_FILE)

    def server_context(self) -> ssl.SSLContext:
        """Make a TLS 1.3 context that shows our leaf, asks for a client certificate, and trusts nobody yet."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.verify_mode = ssl.CERT_OPTIONAL
        # Connections are kept alive. Without tickets no session outlives the trust it was made under.
        context.num_tickets = 0
        self.show_in(context)
        return context

    def client_context(self, peer_ca_pem: str) -> ssl.SSLContext:
        """Make a TLS 1.3 context that shows our leaf and trusts just the CA of one peer.

        Raises:
            Corrupt: the peer's CA certificate is damaged.
        """
        context = trusting_only(peer_ca_pem)
        self.show_in(context)
        return context

    def _load_leaf_end(self) -> dt.datetime:
        try:
            _, leaf = certificates.unbundle((self._dir / _LEAF_FILE).read_bytes())
            leaf.verify_directly_issued_by(self._ca)
        except FileNotFoundError:
            return dt.datetime.min.replace(tzinfo=dt.UTC)
        except (ValueError, TypeError, InvalidSignature) as error:
            _log.warning("certificate unusable, issuing another", file=_LEAF_FILE, error=str(error))
            return dt.datetime.min.replace(tzinfo=dt.UTC)
        return leaf.not_valid_after_utc


def trusting_only(ca_pem: str) -> ssl.SSLContext:
    """Make a TLS 1.3 client context that trusts one CA, checks host names, and shows no certificate.

    Raises:
        Corrupt: the CA certificate is damaged.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        context.load_verify_locations(cadata=ca_pem)
    except (ssl.SSLError, ValueError) as error:
        raise Corrupt(
            "peer-book-damaged",
            f"the stored CA certificate of the peer cannot be read: {error}",
            hint="pair again: vmreplica peer invite on the other host",
        ) from error
    return context


def _load_or_make_ca(path: Path, name: HostName, now: dt.datetime) -> tuple[certificates.Key, x509.Certificate]:
    try:
        return certificates.unbundle(path.read_bytes())
    except FileNotFoundError:
        key, ca = certificates.make_ca(name, now)
        publish_bytes(path, certificates.bundle(key, ca))
        return key, ca
    except (ValueError, TypeError) as error:
        raise Corrupt(
            "identity-damaged",
            f"{path}, the identity of this host, is damaged: {error}",
            hint="restore it from a backup, or move it away and pair all peers again",
        ) from error
