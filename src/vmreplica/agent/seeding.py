"""Reading one existing copy into its replica: the stages of every capture, with a wire that stays in the house."""

import contextlib
import datetime as dt
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from vmreplica.agent.meter import Meter
from vmreplica.agent.seed_source import SeedRules, opened, usable_size
from vmreplica.capture import capture_point
from vmreplica.model.body import Body, joined
from vmreplica.model.errors import Corrupt, HypervisorError, Internal, VmReplicaError
from vmreplica.model.ids import DiskTarget, PointId, VmId, point_instant
from vmreplica.model.point import (
    DiskSpec,
    IncomingPoint,
    PointClosing,
    PointOpening,
    PointSummary,
    Seeding,
)
from vmreplica.qcow2.foreign import ForeignImage, check_tables
from vmreplica.qcow2.serving import ImageServer, ServedImage
from vmreplica.repository import Replica, SeedRecord
from vmreplica.ship import ship_point
from vmreplica.spool import Spool, SpoolPoint

CHECKING: Final = "checking the existing copy"
READING: Final = "reading the existing copy"
_GLANCE: Final = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class SeedTools:
    """What reading of every copy on this host shares.

    Attributes:
        rules: where copies may stand.
        spool: between reading and the store; for seeds only.
        sockets: directory of short name for sockets.
        workers: reading and compressing threads.
        level: zstd level.
    """

    rules: SeedRules
    spool: Spool
    sockets: Path
    workers: int
    level: int


class LocalWire:
    """The way from the spool into a replica on the same host."""

    def __init__(self, replica: Replica) -> None:
        self._replica = replica

    def open_point(self, opening: PointOpening) -> IncomingPoint:
        """Begin the point, or find it again."""
        return self._replica.open_point(opening)

    def put_segment(self, _vm: VmId, point: PointId, target: DiskTarget, number: int, body: Body) -> None:
        """Make a segment durable."""
        self._replica.put_segment(point, target, number, memoryview(joined(body)))

    def complete(self, _vm: VmId, point: PointId, closing: PointClosing) -> PointSummary:
        """Publish the point."""
        return self._replica.complete(point, closing)


class SeedReading:
    """One reading for one replica; used once. Killed anywhere, the next one goes on where the spool stands.

    Args:
        replica: its record says what is read.
        seed: that part of the record.
        tools: see there.
        stopped: set from outside to give up; what was read is kept.
    """

    def __init__(self, replica: Replica, seed: SeedRecord, tools: SeedTools, stopped: threading.Event) -> None:
        self._replica = replica
        self._seed = seed
        self._tools = tools
        self._stopped = stopped
        self._meter = Meter()

    def run(self) -> None:
        """Read, and publish the point.

        Raises:
            VmReplicaError: a copy may not be read any more or cannot be, the store is full, or it was stopped.
        """
        with contextlib.ExitStack() as stack:
            images = {disk.target: stack.enter_context(opened(disk, self._tools.rules)) for disk in self._seed.disks}
            sizes = {disk.target: usable_size(disk, images[disk.target]) for disk in self._seed.disks}
            point = self._point(sizes)
            if point.closing is None:
                self._check(images)
            self._show(READING)
            exports = {
                target: stack.enter_context(ImageServer(image, sizes[target], self._socket(target))).export
                for target, image in images.items()
            }
            self._read_and_store(point, exports)

    def _check(self, images: dict[DiskTarget, ForeignImage]) -> None:
        self._show(CHECKING)
        for image in images.values():
            check_tables(image, self._stopped.is_set)

    def _point(self, sizes: dict[DiskTarget, int]) -> SpoolPoint:
        """Find what an earlier reading left in the spool, or begin."""
        opening = self._opening(sizes)
        point = self._tools.spool.point(opening.vm)
        if point is not None and (point.opening.point, point.opening.disks) != (opening.point, opening.disks):
            point.discard()
            point = None
        return point or self._tools.spool.create(opening)

    def _opening(self, sizes: dict[DiskTarget, int]) -> PointOpening:
        record = self._replica.record
        instant: dt.datetime = point_instant(self._seed.point)
        return PointOpening(
            vm=record.vm,
            name=record.name,
            point=self._seed.point,
            parent=None,
            kind="seed",
            instant=instant,
            epoch=record.epoch,
            checkpoint=None,
            disks=tuple(DiskSpec(target=target, size=size) for target, size in sorted(sizes.items())),
            modes=dict.fromkeys(sizes, "whole"),
            definition="",
            interval=record.interval,
            keep=record.keep,
        )

    def _read_and_store(self, point: SpoolPoint, exports: dict[DiskTarget, ServedImage]) -> None:
        """Read and store at the same time; the first error ends both."""
        halt = threading.Event()
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="seed-store") as pool, self._handed_on(halt):
            storing = pool.submit(ship_point, point, LocalWire(self._replica), workers=1, cancel=halt)
            storing.add_done_callback(lambda done: halt.set() if done.exception() else None)
            try:
                self._capture(point, exports, halt)
            except BaseException as error:
                halt.set()
                _raise_first(storing, error)
                raise
            storing.result()

    def _capture(self, point: SpoolPoint, exports: dict[DiskTarget, ServedImage], halt: threading.Event) -> None:
        try:
            capture_point(
                exports,
                point,
                workers=self._tools.workers,
                level=self._tools.level,
                cancel=halt,
                progress=self._progress,
            )
        except HypervisorError as error:
            names = ", ".join(disk.path for disk in self._seed.disks)
            raise Corrupt(
                "seed-unreadable",
                f"the existing copy cannot be read ({names}): {error.message}",
                hint="look at the kernel log of the replica's host; restore the copy again, or --seed network",
            ) from error

    @contextlib.contextmanager
    def _handed_on(self, halt: threading.Event) -> Iterator[None]:
        """Let a stop from outside end this reading too."""
        over = threading.Event()

        def watch() -> None:
            while not over.is_set():
                if self._stopped.wait(_GLANCE):
                    halt.set()
                    return

        watcher = threading.Thread(target=watch, name="seed-watch", daemon=True)
        watcher.start()
        try:
            yield
        finally:
            over.set()
            watcher.join()

    def _progress(self, done: int, total: int) -> None:
        self._meter.read(done, total)
        self._show(READING)

    def _show(self, phase: str) -> None:
        now = self._meter.progress()
        self._replica.seeding = Seeding(
            phase=phase, done_bytes=now.done_bytes, total_bytes=now.total_bytes, rate=now.rate
        )

    def _socket(self, target: DiskTarget) -> Path:
        return self._tools.sockets / f"seed-{self._seed.point[-8:]}-{target}.sock"


def _raise_first(storing: "Future[PointSummary]", error: BaseException) -> None:
    """Raise what ended the storing when reading was only stopped by it.

    Raises:
        VmReplicaError: that.
    """
    failure = storing.exception()
    stopped = isinstance(error, VmReplicaError) and error.code in {"cancelled", "point-discarded"}
    if stopped and isinstance(failure, VmReplicaError) and failure.code != "cancelled":
        raise failure from None


def as_problem(error: Exception) -> VmReplicaError:
    """Give any error a code, so that it can be written down and told to the primary."""
    if isinstance(error, VmReplicaError):
        return error
    return Internal("internal", f"{type(error).__name__}: {error}", hint="see the agent's log on the replica")
