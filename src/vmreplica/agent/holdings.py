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
            made.merge(self._ask(target, size, point, halt), point, own=False)

    def _ask(
        self, target: DiskTarget, size: int, point: PointId, halt: threading.Event
    ) -> Iterator[tuple[int, Hashes]]:
        key = self._store.key(self._vm)
        for first in range(0, blocks_of(size), _FETCH):
            if halt.is_set():
                raise Conflict("cycle-stopped", "the cycle was stopped", kind="transient")
            count = min(_FETCH, blocks_of(size) - first)
            yield first, self._client.fingerprint(self._vm, point, target, key, first, count)

    @contextlib.contextmanager
    def opened(self, opening: PointOpening) -> Iterator[dict[DiskTarget, Fingerprint]]:
        """Open the fingerprints that a capture compares with; a disk that is read whole begins a new one.

        Raises:
            Conflict: ``fingerprint-doubtful``: one does not describe the point's parent (any more).
        """
        with contextlib.ExitStack() as stack:
            found: dict[DiskTarget, Fingerprint] = {}
            for disk in opening.disks:
                if opening.modes.get(disk.target) == "whole":
                    fingerprint = self._store.create(self._vm, disk.target, disk.size)
                else:
                    fingerprint = self._believed(disk.target, disk.size, opening)
                found[disk.target] = stack.enter_context(fingerprint)
            yield found

    def _believed(self, target: DiskTarget, size: int, opening: PointOpening) -> Fingerprint:
        found = self._store.open(self._vm, target)
        # Of a disk that grew, the fingerprint still has the old size: what is new was zero at the parent.
        if found is not None and found.clean and found.point == opening.parent and found.size <= size:
            return found
        if found is not None:
            found.close()
        raise Conflict(
            "fingerprint-doubtful",
            f"the fingerprint of disk {target} of {opening.name} does not describe point {opening.parent}",
            hint="the next cycle asks the replica for it",
            kind="transient",
        )

    def learn(self, point: SpoolPoint) -> None:
        """Take in what a point brought, once the replica has acknowledged it; again, after a crash, is harmless.

        A fingerprint that does not describe the point's parent cannot be brought forward: it stays in doubt.
        """
        opening = point.opening
        for disk in point.disks:
            found = self._store.open(self._vm, disk.target)
            if found is None:
                continue
            with found:
                fresh = opening.modes.get(disk.target) == "whole" and found.point is None
                if fresh or found.point in {opening.parent, opening.point}:
                    found.resize(disk.size)
                    # All of it was read from the VM's disk, or only what has changed.
                    own = True if opening.modes.get(disk.target) in {"whole", "compare"} else None
                    found.merge(disk.staged(), opening.point, own=own)
