"""One disk of a frozen view: which of its clusters matter, and their content."""

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Final

import nbd

from vmreplica.capture.connection import Connection, Export
from vmreplica.capture.plan import READ_BYTES, READ_CLUSTERS, Run, cluster_runs, joined, walk_extents
from vmreplica.model.errors import HypervisorError
from vmreplica.model.units import CLUSTER, GiB
from vmreplica.qcow2.head import clusters_of

_BITMAP: Final = "qemu:dirty-bitmap:"
_ALLOCATION_STEP: Final = GiB
#: Bitmaps are in memory and quickly asked; a request must stay below 4 GiB.
_BITMAP_STEP: Final = 4 * GiB - CLUSTER
_DIRTY: Final = 1
#: So many changed runs are remembered from weighing: the map of an idle disk is asked for once.
_FEW_CHANGES: Final = 1024


class DiskView:
    """What is to be read of a disk; for one thread, except ``read``.

    Args:
        export: the disk.
        what: names disk and VM, for errors.
        size: the size that the point was opened with, in bytes.
        stopped: tells whether to give up.

    Every method that asks the server raises HypervisorError ``backup-export-lost`` or ``disk-resized``.
    """

    def __init__(self, export: Export, what: str, size: int, stopped: Callable[[], bool]) -> None:
        self._export = export
        self._what = what
        self._size = size
        self._stopped = stopped
        self._bitmap: Connection | None = None
        self._must: Sequence[tuple[int, int]] = ()
        self._clusters = clusters_of(size)
        self._allocation: Connection | None = None
        self._readers = threading.local()
        self._opening = threading.Lock()
        self._open: list[Connection] = []
        self._changes: list[Run] | None = None

    def go_by_bitmap(self, must: Sequence[tuple[int, int]] = ()) -> None:
        """Read only what the export's bitmap says has changed, not the whole disk.

        Args:
            must: clusters (first, end) that are read as well, ascending, apart, and within the disk.

        Raises:
            HypervisorError: ``backup-bitmap-missing``.
        """
        self._bitmap, self._must = self._connect_bitmap(), must

    def go_by_allocation(self) -> None:
        """Read all that is allocated: what the bitmap says is not believed."""
        self._bitmap, self._must = None, ()

    def clean(self, first: int, end: int) -> list[Run]:
        """Tell what the bitmap says to be unchanged between two clusters."""
        if self._bitmap is None:
            return []
        stop = min(end * CLUSTER, self._size)
        extents = walk_extents(self._bitmap.extents, first * CLUSTER, stop, step=_BITMAP_STEP, what=self._what)
        return [run for run in cluster_runs(extents, lambda flags: bool(flags & _DIRTY), first, end) if not run.wanted]

    def close(self) -> None:
        """Hang up all connections; nothing reads any more."""
        with self._opening:
            for connection in self._open:
                connection.close()
            self._open.clear()
        # Whoever holds the view holds no buffers any more.
        self._readers = threading.local()

    def runs(self, first: int) -> Iterator[Run]:
        """Tell from a cluster on what is data and what reads as zeroes, in order; clean clusters are left out."""
        if self._bitmap is None:
            yield from self._allocated(first, self._clusters)
            return
        for run in self._changed(first):
            # Asking costs a round trip: for a small run it is cheaper to read and to see the zeroes then.
            if run.length < READ_CLUSTERS:
                yield run
            else:
                yield from self._allocated(run.first, run.end)

    def weigh(self, first: int) -> tuple[int, int]:
        """Measure the work: guest bytes that matter before a cluster, and in all.

        For a delta these are the changed bytes, for a whole disk the allocated ones, so that equal steps take about
        equal time. It costs one walk through the map, in memory of QEMU.
        """
        before = total = 0
        changes: list[Run] = []
        for run in self._changed(0) if self._bitmap else self._allocated(0, self._clusters):
            if run.wanted:
                total += run.length
                before += max(0, min(run.end, first) - run.first)
                if len(changes) <= _FEW_CHANGES:
                    changes.append(run)
        if self._bitmap and len(changes) <= _FEW_CHANGES:
            self._changes = changes
        return before * CLUSTER, total * CLUSTER

    def weight(self, run: Run) -> int:
        """Tell what a run counts in the measure of ``weigh``."""
        return run.length * CLUSTER if self._bitmap or run.wanted else 0

    def read(self, run: Run) -> memoryview:
        """Read a run of at most READ_CLUSTERS; whole clusters, zeroes behind the disk's end. Any thread.

        The buffer is the thread's own: it holds until the thread reads again.
        """
        if not hasattr(self._readers, "connection"):
            self._readers.connection = self._connect()
            self._readers.buffer = memoryview(bytearray(READ_BYTES))
        offset = run.first * CLUSTER
        chunk: memoryview = self._readers.buffer[: run.length * CLUSTER]
        there = min(len(chunk), self._size - offset)
        self._readers.connection.read_into(chunk[:there], offset)
        chunk[there:] = bytes(len(chunk) - there)
        return chunk

    def _changed(self, first: int) -> Iterator[Run]:
        if self._changes is not None:
            return (
                Run(max(run.first, first), run.end - max(run.first, first), wanted=True)
                for run in self._changes
                if run.end > first
            )
        if self._bitmap is None:
            return iter([Run(first, self._clusters - first, wanted=True)])
        extents = walk_extents(self._bitmap.extents, first * CLUSTER, self._size, step=_BITMAP_STEP, what=self._what)
        runs = cluster_runs(extents, lambda flags: bool(flags & _DIRTY), first, self._clusters)
        return joined((run for run in runs if run.wanted), self._must, first)

    def _allocated(self, first: int, end: int) -> Iterator[Run]:
        if self._allocation is None:
            self._allocation = self._connect(nbd.CONTEXT_BASE_ALLOCATION)
        if not self._allocation.has_context():
            return iter([Run(first, end - first, wanted=True)])
        stop = min(end * CLUSTER, self._size)
        extents = walk_extents(self._allocation.extents, first * CLUSTER, stop, step=_ALLOCATION_STEP, what=self._what)
        return cluster_runs(extents, lambda flags: not flags & nbd.STATE_ZERO, first, end)

    def _connect_bitmap(self) -> Connection:
        connection = self._connect(f"{_BITMAP}{self._export.bitmap}")
        if not connection.has_context():
            raise HypervisorError(
                "backup-bitmap-missing",
                f"{self._what}: the frozen view has no dirty bitmap {self._export.bitmap}",
                hint="the next cycle checks the checkpoint and resynchronises if it is broken",
            )
        return connection

    def _connect(self, context: str | None = None) -> Connection:
        connection = Connection(self._export, self._what, self._stopped, context=context)
        with self._opening:
            self._open.append(connection)
        if connection.size != self._size:
            raise HypervisorError(
                "disk-resized",
                f"{self._what} has {connection.size} bytes now, the point was opened with {self._size}",
                hint="the next cycle begins a new point with the new size",
            )
        return connection
