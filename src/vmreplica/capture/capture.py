"""Capture of a point: workers read and compress, the calling thread puts segments together in the order of the disk."""

import contextlib
import threading
from collections.abc import Callable, Mapping
from typing import Final

from vmreplica.capture.build import SegmentBuilder
from vmreplica.capture.connection import Export
from vmreplica.capture.ordered import in_order
from vmreplica.capture.plan import DiskPlan
from vmreplica.capture.reader import DiskReader
from vmreplica.capture.view import DiskView
from vmreplica.fingerprint import Fingerprint
from vmreplica.model.errors import HypervisorError
from vmreplica.model.ids import DiskTarget
from vmreplica.spool import SpoolDisk, SpoolPoint, cancelled
from vmreplica.spool.disk import PATIENCE

#: Told after each step: guest bytes done, and in all, both in the measure of ``DiskView.weigh``.
Progress = Callable[[int, int], None]

DEFAULT_WORKERS: Final = 2
DEFAULT_LEVEL: Final = 1


def capture_point(
    exports: Mapping[DiskTarget, Export],
    point: SpoolPoint,
    *,
    plans: Mapping[DiskTarget, DiskPlan] | None = None,
    fingerprints: Mapping[DiskTarget, Fingerprint] | None = None,
    workers: int = DEFAULT_WORKERS,
    level: int = DEFAULT_LEVEL,
    cancel: threading.Event,
    progress: Progress = lambda _done, _total: None,
    patience: float = PATIENCE,
    settle: Callable[[], None] = lambda: None,
) -> None:
    """Read what is missing of a point from its frozen view into the spool, and finish the point.

    Goes on exactly where an earlier call (or a killed process) stopped, as long as the view is the same one. Memory
    is bounded by workers and segment size, whatever the size of the disks. The hashes of what is carried are staged in
    the spool; a disk may be gone on with by another plan.

    Args:
        exports: the frozen view of each disk.
        point: where it goes.
        plans: how each disk is read. One without a plan is read as a delta if its export has a bitmap and the point a
            parent, else whole.
        fingerprints: what the replica holds of each disk, at the point's parent. Of a whole disk only the key counts;
            a disk without one has no hashes staged, and its delta carries whole clusters.
        workers: threads that read and compress, each with its own connection.
        level: zstd level.
        cancel: ends the capture within a second.
        progress: called from this thread.
        patience: seconds to wait for room in the spool.
        settle: called when all is read, before the point is finished; what it raises leaves the point unfinished.

    Raises:
        HypervisorError: ``backup-export-lost`` and others, naming the disk; transient.
        NoSpace: the spool is full and nothing left it.
        TimedOut: ``backup-read-timeout``; the view stands still.
        Conflict: ``cancelled``, or ``point-discarded``.
    """
    if point.closing is None:
        capture = _Capture(point, workers=workers, cancel=cancel, progress=progress, patience=patience)
        with contextlib.ExitStack() as open_views:
            for disk in point.disks:
                view = capture.view(disk, exports)
                open_views.callback(view.close)
                plan = (plans or {}).get(disk.target) or _usual_plan(point, exports[disk.target])
                capture.add(DiskReader(disk, view, plan, (fingerprints or {}).get(disk.target), level))
            capture.run(settle)


def _usual_plan(point: SpoolPoint, export: Export) -> DiskPlan:
    return DiskPlan("delta" if point.opening.parent is not None and export.bitmap is not None else "whole")


class _Capture:
    def __init__(
        self,
        point: SpoolPoint,
        *,
        workers: int,
        cancel: threading.Event,
        progress: Progress,
        patience: float,
    ) -> None:
        self._point = point
        self._workers = workers
        self._cancel = cancel
        self._progress = progress
        self._patience = patience
        self._failed = failed = threading.Event()
        # Not a method of this object: a circle through the views would keep their buffers until a collection.
        self._stopped = lambda: cancel.is_set() or failed.is_set()
        self._readers: list[DiskReader] = []
        self._done = self._total = 0

    def view(self, disk: SpoolDisk, exports: Mapping[DiskTarget, Export]) -> DiskView:
        what = self._what(disk)
        export = exports.get(disk.target)
        if export is None:
            raise HypervisorError("backup-export-lost", f"{what} is not in the frozen view")
        return DiskView(export, what, disk.size, self._stopped)

    def add(self, reader: DiskReader) -> None:
        self._readers.append(reader)

    def run(self, settle: Callable[[], None]) -> None:
        for reader in self._readers:
            done, total = reader.view.weigh(reader.disk.next_cluster)
            self._done += total if reader.disk.closing else done
            self._total += total
        for reader in self._readers:
            if reader.disk.closing is None:
                self._read(reader)
            reader.view.close()
        settle()
        self._point.finish(self._point.guest_bytes)

    def _read(self, reader: DiskReader) -> None:
        builder = SegmentBuilder(
            reader.disk,
            keep_zeroes=self._point.opening.parent is not None,
            cancel=self._cancel,
            patience=self._patience,
        )
        reader.begin()
        with contextlib.closing(in_order(reader.runs(), reader.piece, self._workers, self._failed)) as results:
            for run, piece in results:
                if self._cancel.is_set():
                    raise cancelled(self._what(reader.disk))
                reader.add(run, piece, builder)
                self._done += reader.view.weight(run)
                self._progress(self._done, self._total)
        builder.flush()
        reader.disk.finish(reader.proof)

    def _what(self, disk: SpoolDisk) -> str:
        return f"disk {disk.target} of {self._point.opening.name}"
