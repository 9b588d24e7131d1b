"""Capture of a point: workers read and compress, the calling thread puts segments together in the order of the disk."""

import contextlib
import threading
from collections.abc import Callable, Mapping
from typing import Final

from vmreplica.capture.build import SegmentBuilder
from vmreplica.capture.connection import Export
from vmreplica.capture.ordered import in_order
from vmreplica.capture.plan import Run, reads
from vmreplica.capture.view import DiskView
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
    workers: int = DEFAULT_WORKERS,
    level: int = DEFAULT_LEVEL,
    cancel: threading.Event,
    progress: Progress = lambda _done, _total: None,
    patience: float = PATIENCE,
) -> None:
    """Read what is missing of a point from its frozen view into the spool, and finish the point.

    Goes on exactly where an earlier call (or a killed process) stopped, as long as the view is the same one. Memory
    is bounded by workers and segment size, whatever the size of the disks.

    Args:
        exports: the frozen view of each disk. A disk with a bitmap is read as a delta when the point has a parent.
        point: where it goes.
        workers: threads that read and compress, each with its own connection.
        level: zstd level.
        cancel: ends the capture within a second.
        progress: called from this thread.
        patience: seconds to wait for room in the spool.

    Raises:
        HypervisorError: ``backup-export-lost`` and others, naming the disk; transient.
        NoSpace: the spool is full and nothing left it.
        TimedOut: ``backup-read-timeout``; the view stands still.
        Conflict: ``cancelled``, or ``point-discarded``.
    """
    if point.closing is None:
        capture = _Capture(point, workers=workers, level=level, cancel=cancel, progress=progress, patience=patience)
        capture.run(exports)


class _Capture:
    def __init__(
        self,
        point: SpoolPoint,
        *,
        workers: int,
        level: int,
        cancel: threading.Event,
        progress: Progress,
        patience: float,
    ) -> None:
        self._point = point
        self._workers = workers
        self._level = level
        self._cancel = cancel
        self._progress = progress
        self._patience = patience
        self._failed = threading.Event()
        self._done = self._total = 0

    def run(self, exports: Mapping[DiskTarget, Export]) -> None:
        with contextlib.ExitStack() as views:
            self._read_all({disk.target: self._view(exports, disk, views) for disk in self._point.disks})
        self._point.finish(self._point.guest_bytes)

    def _read_all(self, views: dict[DiskTarget, DiskView]) -> None:
        for disk in self._point.disks:
            done, total = views[disk.target].weigh(disk.next_cluster)
            self._done += total if disk.closing else done
            self._total += total
        for disk in self._point.disks:
            if disk.closing is None:
                self._read(disk, views[disk.target])
            views[disk.target].close()

    def _view(self, exports: Mapping[DiskTarget, Export], disk: SpoolDisk, views: contextlib.ExitStack) -> DiskView:
        what = self._what(disk)
        export = exports.get(disk.target)
        if export is None:
            raise HypervisorError("backup-export-lost", f"{what} is not in the frozen view")
        delta = self._point.opening.parent is not None and export.bitmap is not None
        view = DiskView(export, what, disk.size, self._stopped)
        views.callback(view.close)
        if delta:
            view.go_by_bitmap()
        return view

    def _read(self, disk: SpoolDisk, view: DiskView) -> None:
        builder = SegmentBuilder(
            disk,
            keep_zeroes=self._point.opening.parent is not None,
            cancel=self._cancel,
            patience=self._patience,
        )

        def frames(run: Run) -> list[bytes | None] | None:
            return view.frames(run, self._level) if run.wanted else None

        runs = reads(view.runs(disk.next_cluster))
        with contextlib.closing(in_order(runs, frames, self._workers, self._failed)) as results:
            for run, found in results:
                if self._cancel.is_set():
                    raise cancelled(self._what(disk))
                if found is None:
                    builder.zeroes(run.first, run.length)
                else:
                    builder.clusters(run.first, found)
                self._done += view.weight(run)
                self._progress(self._done, self._total)
        builder.flush()
        disk.finish()

    def _stopped(self) -> bool:
        return self._cancel.is_set() or self._failed.is_set()

    def _what(self, disk: SpoolDisk) -> str:
        return f"disk {disk.target} of {self._point.opening.name}"
