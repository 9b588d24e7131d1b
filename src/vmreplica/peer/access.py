"""Who is calling: told by the CA that issued the client certificate, never by what the certificate says."""

import ssl

import structlog
from aiohttp import web
from cryptography import x509

from vmreplica.model.errors import Refused
from vmreplica.peer.book import Peer, PeerBook
from vmreplica.peer.certificates import issued_by

_log = structlog.get_logger(__name__)

_MAX_CACHED = 256


class Access:
    """Finds the paired host behind a connection. Used by the event loop's thread only.

    What was found is remembered until the book changes, so a removed peer is refused from its next request on.
    """

    def __init__(self, book: PeerBook) -> None:
        self._book = book
        self._generation = book.generation
        self._found: dict[bytes, Peer | None] = {}

    def caller(self, request: web.Request) -> Peer:
        """Tell which peer sent a request.

        Raises:
            Refused: no client certificate, or one of a host that is not paired.
        """
        shown = _client_certificate(request)
        if shown is None:
            raise Refused(
                "client-certificate-required",
                "this request needs the certificate of a paired host",
                hint="pair the hosts: vmreplica peer invite here, vmreplica peer join there",
            )
        peer = self._look_up(shown)
        if peer is None:
            raise Refused(
                "peer-unknown",
                f"the host at {request.remote} is not paired with this one, or no longer",
                hint="pair again: vmreplica peer invite on one host, vmreplica peer join on the other",
            )
        return peer

    def _look_up(self, shown: bytes) -> Peer | None:
        generation = self._book.generation
        if generation != self._generation or len(self._found) >= _MAX_CACHED:
            self._found.clear()
            self._generation = generation
        if shown not in self._found:
            self._found[shown] = next((peer for peer in self._book.all() if _issued(shown, peer)), None)
        return self._found[shown]


class Trust:
    """Keeps a live TLS context trusting the CAs of all peers, so that a new one is accepted without a restart.

    A context cannot be told to trust less; that a removed peer is refused is the work of ``Access``.
    """

    def __init__(self, book: PeerBook) -> None:
        self._book = book
        self._generation = -1
        self._loaded: set[str] = set()

    def attach(self, context: ssl.SSLContext) -> None:
        """Look for new peers in each handshake, before the client's certificate is checked."""
        context.sni_callback = self._on_hello

    def _on_hello(self, _connection: object, _name: str | None, context: ssl.SSLContext) -> None:
        generation = self._book.generation
        if generation == self._generation:
            return
        for peer in self._book.all():
            if peer.ca_pem not in self._loaded:
                self._load(peer, context)
        self._generation = generation

    def _load(self, peer: Peer, context: ssl.SSLContext) -> None:
        try:
            context.load_verify_locations(cadata=peer.ca_pem)
        except (ssl.SSLError, ValueError) as error:
            _log.warning("stored certificate unusable", peer=peer.name, error=str(error))
        self._loaded.add(peer.ca_pem)


def _client_certificate(request: web.Request) -> bytes | None:
    connection = request.transport.get_extra_info("ssl_object") if request.transport else None
    return connection.getpeercert(True) if connection else None


def _issued(shown: bytes, peer: Peer) -> bool:
    try:
        ca = x509.load_pem_x509_certificate(peer.ca_pem.encode())
    except ValueError:
        return False
    return issued_by(shown, ca)
