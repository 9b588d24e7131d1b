"""One connection pool per paired host, made when needed and forgotten when the host's entry changes."""

import threading
from typing import Final

from vmreplica.model.ids import HostId
from vmreplica.peer.book import Peer, PeerBook
from vmreplica.peer.client import PeerClient
from vmreplica.peer.identity import Identity

#: Seconds for connecting to one address, and for an answer, of who must not be kept waiting.
_QUICK_CONNECT: Final = 2.0
_QUICK_ANSWER: Final = 3.0


class Clients:
    """Thread-safe cache of clients by host id."""

    def __init__(self, identity: Identity, book: PeerBook) -> None:
        self._identity = identity
        self._book = book
        self._lock = threading.Lock()
        self._known: dict[HostId, tuple[Peer, PeerClient]] = {}

    @property
    def here(self) -> HostId:
        """This host."""
        return self._identity.host_id

    def to(self, host: HostId) -> PeerClient:
        """Get the client for a paired host.

        Raises:
            NotFound: no such host is paired (``peer-unknown``).
        """
        peer = self._book.by_id(host)
        with self._lock:
            known = self._known.get(host)
            if known is not None and known[0] == peer:
                return known[1]
            client = PeerClient(self._identity, peer)
            self._known[host] = (peer, client)
        if known is not None:
            known[1].close()
        return client

    def quick(self, host: HostId) -> PeerClient:
        """Make a client for questions that cannot wait: one of its own, with short limits; close it when done.

        Raises:
            NotFound: no such host is paired (``peer-unknown``).
        """
        peer = self._book.by_id(host)
        return PeerClient(self._identity, peer, connect_timeout=_QUICK_CONNECT, read_timeout=_QUICK_ANSWER)

    def close(self) -> None:
        """Close every connection."""
        with self._lock:
            known, self._known = self._known, {}
        for _, client in known.values():
            client.close()
