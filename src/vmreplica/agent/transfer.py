"""Reading a frozen view into the spool and sending the spool to the replica, at the same time.

The network may fail while the view is being read: sending is tried again as long as reading goes on, so that an
initial replication of hours outlives a cut of minutes. The guest comes first: when the scratch space of the job runs
low, the job is given up. Stopped from outside, it leaves the job and the spool as they are: the next cycle goes on.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import structlog

from vmreplica.agent.holdings import Holdings
from vmreplica.agent.meter import Meter
from vmreplica.agent.repairs import repair_ranges
from vmreplica.agent.schedule import BACKOFF
from vmreplica.capture import DiskPlan, capture_point
from vmreplica.fsio import free_bytes
from vmreplica.hypervisor import Export
from vmreplica.model.damage import Repairs
from vmreplica.model.errors import Corrupt, NoSpace, VmReplicaError
from vmreplica.model.ids import DiskTarget
from vmreplica.model.point import PointSummary
from vmreplica.model.units import format_size
from vmreplica.peer.line import Halt, Line, Pace, stopped
from vmreplica.ship import Wire, ship_point
from vmreplica.spool import SpoolPoint

_log: Final = structlog.get_logger(__name__)

#: Seconds between looks at a job's scratch space.
WATCH: Final = 0.5
#: Answers of the replica after which a point has to be taken anew.
_HOPELESS: Final = frozenset(
    {
        "closing-differs",
        "disk-shrunk",
        "opening-differs",
        "parent-mismatch",
        "point-older",
        "replica-lost-segments",
        "segment-differs",
    }
)
#: Seconds that reading waits for the line: at the lowest rate, shared by others, a segment takes that long.
PATIENCE: Final = 3600.0
#: Part of the cap at which the job is given up, so that the guest never meets a full scratch file.
_SCRATCH_ALARM: Final = 0.7


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferLimits:
    """What a transfer may take: threads, compression level, and bytes of scratch space."""

    workers: int
    connections: int
    level: int
    scratch_dir: Path
    scratch_cap: int
    min_free: int


class FrozenView(Protocol):
    """Disks at one instant: a backup job of a running VM, or the images of one that is off."""

    @property
    def exports(self) -> Mapping[DiskTarget, Export]:
        """Where each disk is read."""
        ...

    def scratch_bytes(self) -> int:
        """Tell the bytes kept aside for it."""
        ...

    def require_undisturbed(self) -> None:
        """Raise when what was read is not of one instant."""
        ...

    def leave(self) -> None:
        """Let go of it in the middle; a backup job runs on."""
        ...

    def end(self) -> None:
        """End it."""
        ...


class Transfer:
    """One point on its way; used once.

    Args:
        point: its place in the spool.
        wire: makes the way to the replica, or to the directory that is carried there.
        pace: how fast may be sent.
        patience: seconds that reading waits for sending.
        limits: threads, level, scratch.
        halt: set from outside to stop, now.
        meter: fed with progress.
        holdings: what the replica is known to hold, for comparison.
        repairs: what it asks to be brought again.
        give_up: ends the job and discards the point, before the error is raised, when reading cannot be finished.
    """

    def __init__(
        self,
        *,
        point: SpoolPoint,
        wire: Callable[[Line], Wire],
        pace: Pace,
        patience: float,
        limits: TransferLimits,
        halt: Halt,
        meter: Meter,
        holdings: Holdings,
        repairs: Repairs,
        give_up: Callable[[], None],
    ) -> None:
        self._point = point
        self._patience = patience
        self._limits = limits
        self._outer_halt = halt
        #: Set for whatever reason the transfer ends early: sending hangs up at once.
        self._halt = Halt()
        self._wire = wire(Line(self._halt, pace))
        self._meter = meter
        self._holdings = holdings
        self._repairs = repairs
        self._give_up = give_up
        self._failure: VmReplicaError | None = None

    def ship_only(self) -> PointSummary:
        """Send a point that was read to its end before."""
        self._meter.waiting(self._point.waiting_bytes())
        with self._outer_halt.ending(self._stop_outside):
            try:
                return self._ship_once()
            except VmReplicaError as error:
                if _is_hopeless(error):
                    _log.warning("a spooled point is given up", point=self._point.opening.point, why=error.message)
                    self._give_up()
                raise self._failure or error from error

    def capture_and_ship(self, job: FrozenView) -> PointSummary:
        """Read the job's frozen view and send it; the job has ended when this returns.

        Raises:
            VmReplicaError: reading or sending failed. When reading had been finished the point stays in the spool.
            Conflict: ``cycle-stopped``: stopped from outside. If the replica holds some of a point that is not read to
                its end, the job runs on.
        """
        with (
            self._outer_halt.ending(self._stop_outside),
            ThreadPoolExecutor(max_workers=1, thread_name_prefix="ship") as pool,
        ):
            sending = pool.submit(self._ship_while_reading)
            try:
                with self._watched(job):
                    self._read(job)
                self._meter.waiting(self._point.waiting_bytes())
                job.end()
            except BaseException:
                self._halt.set()
                sending.exception()
                if self._stopped_outside() and self._worth_keeping():
                    job.leave()
                else:
                    self._end(job)
                raise
            return self._result_of(sending)

    def _end(self, job: FrozenView) -> None:
        try:
            job.end()
        finally:
            self._give_up()

    def _result_of(self, sending: Future[PointSummary]) -> PointSummary:
        try:
            return sending.result()
        except VmReplicaError as error:
            raise self._failure or error from error

    def _read(self, job: FrozenView) -> None:
        modes = self._point.opening.modes
        must = repair_ranges(self._repairs, modes)
        try:
            with self._holdings.opened(self._point.opening) as fingerprints:
                capture_point(
                    job.exports,
                    self._point,
                    plans={target: DiskPlan(mode, must.get(target, ())) for target, mode in modes.items()},
                    fingerprints=fingerprints,
                    workers=self._limits.workers,
                    level=self._limits.level,
                    cancel=self._halt,
                    progress=self._meter.read,
                    patience=self._patience,
                    settle=job.require_undisturbed,
                )
        except VmReplicaError:
            # What set the halt says more than "cancelled".
            if self._failure is not None:
                raise self._failure from None
            raise

    def _ship_while_reading(self) -> PointSummary:
        failures = 0
        while True:
            try:
                return self._ship_once()
            except VmReplicaError as error:
                if (
                    error.kind != "transient"
                    or _is_hopeless(error)
                    or self._point.closing is not None
                    or self._halt.is_set()
                ):
                    self._fail(error)
                    raise
                failures += 1
                self._meter.obstacle(error.message)
                wait = BACKOFF[min(failures, len(BACKOFF)) - 1]
                _log.warning("sending interrupted", point=self._point.opening.point, why=error.message, retry_in=wait)
                if self._halt.wait(wait):
                    raise

    def _ship_once(self) -> PointSummary:
        return ship_point(
            self._point,
            self._wire,
            workers=self._limits.connections,
            cancel=self._halt,
        )

    def _fail(self, error: VmReplicaError) -> None:
        if self._failure is None:
            self._failure = error
        if self._point.closing is None:
            self._halt.set()

    @contextlib.contextmanager
    def _watched(self, job: FrozenView) -> Iterator[None]:
        over = threading.Event()
        watcher = threading.Thread(target=self._watch, args=(job, over), name="watch", daemon=True)
        watcher.start()
        try:
            yield
        finally:
            over.set()
            watcher.join()

    def _watch(self, job: FrozenView, over: threading.Event) -> None:
        while not over.wait(WATCH):
            self._meter.waiting(self._point.waiting_bytes())
            failure = _disturbance(job) or scratch_trouble(job, self._limits)
            if failure is not None:
                self._stop(failure)

    def _stop_outside(self) -> None:
        self._stop(stopped())

    def _stopped_outside(self) -> bool:
        return self._failure is not None and self._failure.code == "cycle-stopped"

    def _worth_keeping(self) -> bool:
        return any(disk.next_segment > len(disk.waiting()) for disk in self._point.disks)

    def _stop(self, failure: VmReplicaError) -> None:
        if self._failure is None:
            self._failure = failure
        self._halt.set()


def _disturbance(job: FrozenView) -> VmReplicaError | None:
    try:
        job.require_undisturbed()
    except VmReplicaError as error:
        return error
    return None


def scratch_trouble(job: FrozenView, limits: TransferLimits) -> NoSpace | None:
    """Tell whether a job has to be given up, so that the guest never meets a full scratch file."""
    used = job.scratch_bytes()
    free = free_bytes(limits.scratch_dir)
    if used <= _SCRATCH_ALARM * limits.scratch_cap and free >= limits.min_free // 2:
        return None
    return NoSpace(
        "scratch-full",
        f"the scratch space in {limits.scratch_dir} runs low ({format_size(used)} used, "
        f"{format_size(free)} free): the backup job was given up to spare the guest",
        hint="make room there or raise limits.scratch_cap; replication goes on by itself",
    )


def _is_hopeless(error: VmReplicaError) -> bool:
    """Tell whether sending the same point again cannot help: its bytes or its place in the chain are wrong."""
    return isinstance(error, Corrupt) or error.code in _HOPELESS
