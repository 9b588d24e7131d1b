"""What the replica of one VM is known to hold: its fingerprints, believed, fetched, compared with, kept true."""

import contextlib
import threading
from collections.abc import Iterator
from typing import Final

from vmreplica.fingerprint import Fingerprint, FingerprintStore, Hashes, blocks_of
from vmreplica.model.errors import Conflict
from vmreplica.model.ids import DiskTarget, PointId, VmId
from vmreplica.model.point import PointOpening, PointSummary
from vmreplica.peer.client import PeerClient
from vmreplica.spool import SpoolPoint

#: Blocks asked of the replica at once: 8 MiB of hashes, 4 GiB of disk.
_FETCH: Final = 1 << 20


class Holdings:
    """The fingerprints of one VM; for one cycle.

    Args:
        store: of this host.
        client: the replica.
        vm: whose disks.
    """

    def __init__(self, store: FingerprintStore, client: PeerClient, vm: VmId) -> None:
        self._store = store
        self._client = client
        self._vm = vm

    @property
    def key(self) -> int:
        """Key of the VM's hashes."""
        return self._store.key(self._vm)

    def good(self, target: DiskTarget, latest: PointSummary | None) -> bool:
        """Tell whether the fingerprint of a disk describes the replica's latest point."""
        sizes = {disk.target: disk.size for disk in latest.disks} if latest else {}
        found = self._store.open(self._vm, target) if target in sizes else None
        if found is None or latest is None:
            return False
        with found:
            return found.good_for(latest.point, sizes[target])

    def fetch(self, target: DiskTarget, size: int, point: PointId, halt: threading.Event) -> None:
        """Make the fingerprint of a disk anew from what the replica says about its latest point.

        Args:
            target: the disk.
            size: of the disk in that point, bytes.
            point: the replica's latest.
            halt: gives up between two requests.

        Raises:
            VmReplicaError: the replica cannot tell, or not now.
            Conflict: ``cycle-stopped``.
        """
        with self._store.create(self._vm, target, size) as made:
            made.merge(self._ask(target, size, point, halt), point)

    def _ask(
        self, target: DiskTarget, size: int, point: PointId, halt: threading.Event
    ) -> Iterator[tuple[int, Hashes]]:
        for first in range(0, blocks_of(size), _FETCH):
            if halt.is_set():
                raise Conflict("cycle-stopped", "the cycle was stopped", kind="transient")
            count = min(_FETCH, blocks_of(size) - first)
            yield first, self._client.fingerprint(self._vm, point, target, self.key, first, count)

    def follow_sizes(self, opening: PointOpening) -> None:
        """Let the fingerprints of grown disks grow before the disks are compared with them."""
        for disk in opening.disks:
            found = self._store.open(self._vm, disk.target) if opening.modes.get(disk.target) != "whole" else None
            if found is not None:
                with found:
                    found.resize(disk.size)

    @contextlib.contextmanager
    def opened(self, opening: PointOpening) -> Iterator[dict[DiskTarget, Fingerprint]]:
        """Open the fingerprints that a capture compares with: those of all disks that are not read whole."""
        with contextlib.ExitStack() as stack:
            found: dict[DiskTarget, Fingerprint] = {}
            for target, mode in opening.modes.items():
                fingerprint = self._store.open(self._vm, target) if mode != "whole" else None
                if fingerprint is not None:
                    found[target] = stack.enter_context(fingerprint)
            yield found

    def learn(self, point: SpoolPoint) -> None:
        """Take in what a point brought, once the replica has acknowledged it; again, after a crash, is harmless."""
        for disk in point.disks:
            whole = point.opening.modes.get(disk.target) == "whole"
            with self._to_learn(disk.target, disk.size, whole=whole) as found:
                if found.point in {point.opening.parent, point.opening.point} or whole:
                    found.merge(disk.staged(), point.opening.point)

    def _to_learn(self, target: DiskTarget, size: int, *, whole: bool) -> Fingerprint:
        found = None if whole else self._store.open(self._vm, target)
        return found or self._store.create(self._vm, target, size)
