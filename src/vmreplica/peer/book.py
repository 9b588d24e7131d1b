"""The paired hosts: names, addresses and CAs, on disk."""

import difflib
import json
import threading
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AwareDatetime, Field, ValidationError

from vmreplica.fsio import publish_bytes
from vmreplica.model.errors import Conflict, Corrupt, NotFound
from vmreplica.model.ids import HostId, HostName
from vmreplica.model.report import PeerReport
from vmreplica.model.shape import Shape
from vmreplica.peer.wire import MAX_PEM, Addresses


class Peer(Shape):
    """A paired host."""

    name: HostName
    host_id: HostId
    addresses: Addresses
    ca_pem: Annotated[str, Field(max_length=MAX_PEM)]
    paired: AwareDatetime

    def report(self) -> PeerReport:
        """Render for people and scripts."""
        return PeerReport(name=self.name, host_id=self.host_id, addresses=self.addresses, paired=self.paired)


class _Stored(Shape):
    format: Literal["vmreplica-peers-1"] = "vmreplica-peers-1"
    peers: tuple[Peer, ...] = ()


class PeerBook:
    """All paired hosts. Thread-safe; each change is durable before it is answered.

    Raises:
        Corrupt: the file is damaged.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._peers = {peer.host_id: peer for peer in _load(path).peers}
        self._generation = 0

    @property
    def generation(self) -> int:
        """A number that grows with each change: what was derived from the book before is out of date."""
        return self._generation

    def all(self) -> tuple[Peer, ...]:
        """List all peers by name."""
        with self._lock:
            return tuple(sorted(self._peers.values(), key=lambda peer: peer.name))

    def by_name(self, name: str) -> Peer:
        """Find a peer by what people call it.

        Raises:
            NotFound: no such peer; close names are in the hint.
        """
        peers = {peer.name: peer for peer in self.all()}
        if name not in peers:
            raise _unknown(name, tuple(peers))
        return peers[name]

    def by_id(self, host_id: str) -> Peer:
        """Find a peer by its id.

        Raises:
            NotFound: no such peer.
        """
        with self._lock:
            peer = self._peers.get(host_id)
        if peer is None:
            raise _unknown(host_id, ())
        return peer

    def require_free_name(self, name: str, host_id: HostId) -> None:
        """Check that a name is not another host's.

        Raises:
            Conflict: it is.
        """
        with self._lock:
            self._require_free_name(name, host_id)

    def add(self, peer: Peer) -> None:
        """Add a peer, or replace what is known of it.

        Raises:
            Conflict: another host has its name.
            NoSpace: the file system is full; nothing has changed.
        """
        with self._lock:
            self._require_free_name(peer.name, peer.host_id)
            self._store({**self._peers, peer.host_id: peer})

    def remove(self, name: str) -> Peer:
        """Forget a peer: it is refused from the next request on.

        Raises:
            NotFound: no such peer.
        """
        peer = self.by_name(name)
        with self._lock:
            self._store({host_id: other for host_id, other in self._peers.items() if host_id != peer.host_id})
        return peer

    def _require_free_name(self, name: str, host_id: HostId) -> None:
        if any(peer.name == name and peer.host_id != host_id for peer in self._peers.values()):
            raise name_taken(name)

    def _store(self, peers: dict[HostId, Peer]) -> None:
        stored = _Stored(peers=tuple(peers.values()))
        publish_bytes(self._path, json.dumps(stored.model_dump(mode="json"), indent=1).encode())
        self._peers = peers
        self._generation += 1


def name_taken(name: str) -> Conflict:
    """Say that a name is another host's."""
    return Conflict(
        "peer-name-taken",
        f"another host is known as {name} already",
        hint=f"set another name under [agent] on one of them, or: vmreplica peer remove {name}",
    )


def _unknown(wanted: str, names: tuple[str, ...]) -> NotFound:
    close = difflib.get_close_matches(wanted, names, n=3)
    if close:
        hint = f"did you mean {' or '.join(close)}? vmreplica peer list"
    elif names:
        hint = f"paired with this host: {', '.join(names)}"
    else:
        hint = f"pair the hosts first: vmreplica peer invite on {wanted}, vmreplica peer join TOKEN here"
    return NotFound("peer-unknown", f"no paired host is known as {wanted}", hint=hint)


def _load(path: Path) -> _Stored:
    try:
        return _Stored.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return _Stored()
    except ValidationError as error:
        raise Corrupt(
            "peer-book-damaged",
            f"{path}, the list of paired hosts, is damaged: {error.error_count()} faults",
            hint="restore it from a backup, or move it away and pair all peers again",
        ) from error
