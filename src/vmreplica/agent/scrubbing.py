"""Scrub on this host: every point is read and checked within a period, slowly, or at once when a person asks."""

import contextlib
import datetime as dt
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

import structlog

from vmreplica.agent.journal import Journal
from vmreplica.agent.meter import Meter
from vmreplica.agent.tasks import Task, Tasks
from vmreplica.model.damage import Damage
from vmreplica.model.errors import Conflict, Internal, NotFound, VmReplicaError
from vmreplica.model.ids import DiskTarget, PointId
from vmreplica.model.point import Manifest
from vmreplica.model.proof import ScrubFacts
from vmreplica.model.report import TaskReport
from vmreplica.model.scrubbing import MAX_LISTED, Checked, ScrubReport, ScrubState, Turn, is_due, turns
from vmreplica.qcow2.checking import FrameReader
from vmreplica.repository import Replica, Repository
from vmreplica.repository.damage import place_of
from vmreplica.repository.layout import Layout
from vmreplica.repository.scrub import Found, Moved, Tools, cost_of, made_at, scrub_point
from vmreplica.repository.scrub_record import read_record, write_record

_log: Final = structlog.get_logger(__name__)

#: Seconds between two looks whose turn it is.
_LOOK: Final = 30.0
#: Seconds between two notes of how far a pass over a folded image is.
_NOTE: Final = 30.0
#: A background scrub never sleeps longer than this at once: it is stopped quickly.
_NAP: Final = 0.25
#: Threads that decompress for a person who waits.
_THREADS: Final = 2
#: How often a point whose files change is begun again.
_ATTEMPTS: Final = 5
#: Seconds before a point that could not be checked has its turn again.
_AGAIN: Final = 600.0
#: Seconds that a scrub has to end with the agent.
_END: Final = 30.0


class _Stopped(Exception):
    """Somebody else's turn, or the agent ends."""


@dataclass(slots=True)
class _Pace:
    """Holds a rate; counts what was read."""

    #: Bytes per second; None: as fast as it goes.
    rate: int | None
    stopped: Callable[[], bool]
    read: int = 0
    began: float = field(default_factory=time.monotonic)
    told: Callable[[int], None] = lambda _read: None

    def __call__(self, size: int) -> None:
        self.read += size
        self.told(self.read)
        while True:
            if self.stopped():
                raise _Stopped
            ahead = self.began + self.read / self.rate - time.monotonic() if self.rate else 0.0
            if ahead <= 0:
                return
            time.sleep(min(ahead, _NAP))


class Scrubbing:
    """Thread-safe; its public methods are part of the agent's facade.

    Args:
        repository: of this host.
        journal: history.
        tasks: of this agent.
        find: gives the replica of a VM, by name or UUID, or says that there is none.
        period: seconds within which each point is checked; None: only when somebody asks.
        rate: bytes per second that this reads by itself; None: no limit.
    """

    def __init__(
        self,
        repository: Repository,
        journal: Journal,
        tasks: Tasks,
        *,
        find: Callable[[str], Replica],
        period: int | None,
        rate: int | None,
    ) -> None:
        self._repository = repository
        self._journal = journal
        self._tasks = tasks
        self._find = find
        self._period = period
        self._rate = rate
        self._stop = threading.Event()
        #: Held by whoever scrubs; a person who asks comes first.
        self._turn = threading.Lock()
        self._asked = threading.Event()
        #: Points that wait, because they could not be checked; monotonic seconds.
        self._again: dict[PointId, float] = {}
        self._lock = threading.Lock()
        self._running: threading.Thread | None = None
        self._thread = threading.Thread(target=self._work, name="scrub", daemon=True)

    def start(self) -> None:
        """Begin to look whose turn it is."""
        if self._period is not None:
            self._thread.start()

    def stop(self) -> None:
        """End; what is under way goes on at the next start, or is to be asked for again."""
        self._stop.set()
        for thread in (self._thread, self._running):
            if thread is not None and thread.is_alive():
                thread.join(_END)

    # ---- for people

    def begin(self, vm: str, point: PointId | None) -> TaskReport:
        """Scrub a VM's points now, as fast as it goes; the task is the work.

        Raises:
            NotFound: ``replica-unknown``, ``point-unknown``, ``no-points``.
            Conflict: ``scrub-runs``: somebody else's is under way.
        """
        replica = self._find(vm)
        chosen = [replica.point(point).point] if point is not None else [m.point for m in _here(replica)]
        if not chosen:
            raise NotFound("no-points", f"{replica.record.name} has no recovery point here yet")
        with self._lock:
            if self._running is not None and self._running.is_alive():
                raise Conflict(
                    "scrub-runs", "a scrub that somebody asked for is under way here", hint="wait for its end"
                )
            task = self._tasks.start(f"scrub of {replica.record.name}")
            task.meter = Meter()
            self._running = threading.Thread(target=self._run, args=(replica, chosen, task), name="scrub", daemon=True)
            self._running.start()
        return task.report()

    def state(self, replica: Replica) -> ScrubState | None:
        """Tell how scrub of a replica's points stands; None: it has none."""
        manifests = _here(replica)
        if not manifests:
            return None
        oldest = self._turns(replica, manifests)[0].since
        bad = tuple(sorted(replica.damages.quarantined()))
        return ScrubState(period=self._period, oldest=oldest, damaged=bad, newest_good=replica.damages.newest_good())

    def facts(self, replica: Replica, now: dt.datetime) -> ScrubFacts | None:
        """Tell what health is judged by."""
        state = self.state(replica)
        if state is None or state.oldest is None:
            return None
        texts, newest = replica.damages.complaints(), replica.manifests()[-1].point
        return ScrubFacts(
            period=self._period,
            age=max(0.0, (now - state.oldest).total_seconds()),
            damage="; ".join(texts[:3]) or None,
            newest_good=newest not in state.damaged,
        )

    # ---- working

    def _run(self, replica: Replica, points: Sequence[PointId], task: Task) -> None:
        self._asked.set()
        try:
            with self._turn:
                self._asked.clear()
                task.scrubbed = self._now(replica, points, task)
            task.finish(None, None)
        except _Stopped:
            error = Conflict("scrub-stopped", "the agent ended meanwhile", hint="vmreplica scrub VM begins it again")
            task.finish(None, error)
        except VmReplicaError as error:
            task.finish(None, error)
        except Exception as error:
            task.finish(None, Internal("scrub-failed", f"the scrub failed: {error}"))
            raise
        finally:
            self._asked.clear()

    def _now(self, replica: Replica, points: Sequence[PointId], task: Task) -> ScrubReport:
        listed = {manifest.point: manifest for manifest in replica.manifests()}
        total = sum(cost_of(replica.dir, listed[point]) for point in points if point in listed)
        meter, began = task.meter or Meter(), time.monotonic()
        meter.phase("reading and checking")
        pace = _Pace(None, self._stop.is_set, told=lambda read: meter.read(min(read, total), total))
        frames = FrameReader(_THREADS)
        all_found, done = Found((), (), ()), []
        try:
            for point in points:
                found = self._scrub(replica, point, pace, frames)
                if found is not None:
                    done.append(point)
                    all_found = all_found.with_these(found)
        finally:
            frames.close()
        return ScrubReport(
            vm=replica.record.vm,
            name=replica.record.name,
            points=tuple(done),
            read_bytes=pace.read,
            seconds=time.monotonic() - began,
            damages=all_found.damages[:MAX_LISTED],
            damaged=len(all_found.damages),
            repaired=all_found.repaired[:MAX_LISTED],
            remarks=tuple(dict.fromkeys(all_found.remarks)),
            newest_good=replica.damages.newest_good(),
        )

    def _work(self) -> None:
        while not self._stop.wait(_LOOK):
            try:
                while not self._stop.is_set() and self._next():
                    pass
            except _Stopped:
                continue
            except Exception:  # noqa: BLE001 - one VM's trouble must not end the scrub of others
                _log.exception("scrub failed")

    def _next(self) -> bool:
        """Scrub the point that waits longest, if its turn has come."""
        period, now = self._period or 0, dt.datetime.now(dt.UTC)
        waiting = []
        for replica in self._repository.replicas():
            found = self._turns(replica, _here(replica))
            waiting += [(turn, replica) for turn in found if is_due(turn, period, now) and self._may(turn.point)]
        if not waiting or self._asked.is_set():
            return False
        turn, replica = min(waiting, key=lambda pair: pair[0].since)
        # Until it is done; whatever keeps it from being done must not keep the others.
        self._again[turn.point] = time.monotonic() + _AGAIN
        frames = FrameReader(1)
        with self._turn:
            pace = _Pace(self._rate, lambda: self._stop.is_set() or self._asked.is_set())
            try:
                self._scrub(replica, turn.point, pace, frames)
            except _Stopped:
                self._again.pop(turn.point, None)
                raise
            except VmReplicaError as error:
                _log.warning("scrub failed", vm=replica.record.vm, point=turn.point, why=error.message)
        return True

    def _may(self, point: PointId) -> bool:
        now = time.monotonic()
        self._again = {known: until for known, until in self._again.items() if until > now}
        return point not in self._again

    def _turns(self, replica: Replica, manifests: Sequence[Manifest]) -> list[Turn]:
        back = dt.timedelta(seconds=self._period or 0)
        # What was merged has its turn at once: that is by when its files are due.
        made = {m.point: made_at(replica.dir, m) - back for m in manifests if m.merged}
        return turns(manifests, read_record(replica.dir), made)

    def _scrub(self, replica: Replica, point: PointId, pace: _Pace, frames: FrameReader) -> Found | None:
        """Scrub a point and write down what was found; None: it is gone, or its files change all the time."""
        for _attempt in range(_ATTEMPTS):
            listed = {manifest.point: manifest for manifest in replica.manifests()}
            manifest = listed.get(point)
            if manifest is None:
                return None
            passing = _Pass(replica, manifest, afresh=pace.rate is None)
            tools = Tools(
                frames=frames,
                pace=pace,
                reached=passing.reached,
                begin=passing.begin,
                found=passing.found,
                still=replica.still,
            )
            with contextlib.suppress(Moved):
                found = scrub_point(Layout(replica.dir), manifest, tools)
                self._keep(replica, manifest, found, passing)
                return found
            # What is committed stands in the point's manifest a moment before it does in the list.
            self._stop.wait(_NAP)
        return None

    def _keep(self, replica: Replica, manifest: Manifest, found: Found, passing: "_Pass") -> None:
        now = dt.datetime.now(dt.UTC)
        if not passing.went_on:
            # Of a pass that went on, the first part is not in here.
            replica.damages.record(manifest.point, found.damages, now)
        record = read_record(replica.dir)
        points = {m.point: record.points[m.point] for m in replica.manifests() if m.point in record.points}
        points[manifest.point] = Checked(at=now, digest=manifest.digest)
        write_record(
            replica.dir,
            record.model_copy(update={"points": points, "base_at": now if manifest.folded else record.base_at}),
        )
        self._tell(replica, manifest.point, found, passing.before)

    def _tell(self, replica: Replica, point: PointId, found: Found, before: Sequence[Damage]) -> None:
        vm = replica.record.vm
        for damage in found.repaired[:MAX_LISTED]:
            text = f"point {point} was put right: {place_of(damage)}"
            self._journal.event(vm, "scrub", "scrub-repaired", text, severity="warning", point=point)
        fresh = [damage for damage in found.damages if damage not in before]
        if fresh:
            more = f" and {len(fresh) - 1} more" if len(fresh) > 1 else ""
            text = f"point {point} is damaged: {place_of(fresh[0])}{more}"
            _log.error("damage found", vm=vm, point=point, what=text)
            self._journal.event(
                vm, "scrub", "scrub-damage", text, severity="critical", point=point, findings=len(fresh)
            )
        elif before and not found.damages:
            self._journal.event(vm, "scrub", "scrub-good-again", f"point {point} is good again", point=point)
        else:
            self._journal.event(vm, "scrub", "scrubbed", f"point {point} was read and is good", point=point)


def _here(replica: Replica) -> list[Manifest]:
    """List what can be read: not a base that travels in an export."""
    layout = Layout(replica.dir)
    return [manifest for manifest in replica.manifests() if layout.manifest(manifest.point).exists()]


class _Pass:
    """One scrub of a point: what was known before, and how far its folded images are, written down now and then."""

    def __init__(self, replica: Replica, manifest: Manifest, *, afresh: bool) -> None:
        self._replica = replica
        self._point = manifest.point
        self._noted = time.monotonic()
        self._tables = {} if afresh else dict(read_record(replica.dir).tables)
        self.before = replica.damages.own(manifest.point)
        #: Whether it goes on where an earlier one ended.
        self.went_on = manifest.folded and any(self._tables.values())

    def begin(self, target: DiskTarget) -> int:
        """Tell the table to go on with."""
        return self._tables.get(target, 0)

    def reached(self, target: DiskTarget, table: int) -> None:
        """Take note of it; 0: the pass is over."""
        if table == 0 or time.monotonic() - self._noted > _NOTE:
            self._noted = time.monotonic()
            record = read_record(self._replica.dir)
            write_record(self._replica.dir, record.model_copy(update={"tables": {**record.tables, target: table}}))

    def found(self, damage: Damage) -> None:
        """Take note of damage at once: the rest may take hours."""
        known = self._replica.damages.own(self._point)
        if damage not in known:
            self._replica.damages.record(self._point, (*known, damage), dt.datetime.now(dt.UTC))
