"""A protected VM in the agent's memory: what its last cycles came to, and its report. Nothing here is persistent."""

import datetime as dt
import threading
from dataclasses import dataclass, field

from vmreplica.agent.meter import Meter
from vmreplica.agent.schedule import begin_due, missed_turns
from vmreplica.agent.tasks import Task
from vmreplica.agent.verify_words import verify_facts
from vmreplica.model.health import Facts, judge, measures_of
from vmreplica.model.ids import HostName, VmId, VmName
from vmreplica.model.point import PointKind, PointSummary, Position
from vmreplica.model.policy import Policy
from vmreplica.model.proof import QuiesceFacts
from vmreplica.model.rates import InForce
from vmreplica.model.report import CycleReport, Progress, RelationshipReport
from vmreplica.model.states import State
from vmreplica.peer.line import Halt


@dataclass(slots=True, kw_only=True)
class Relationship:
    """Guarded by the primary side's lock; times are monotonic seconds unless said otherwise."""

    vm: VmId
    name: VmName
    policy: Policy
    due: float
    failures: int = 0
    #: Turns that passed before the running cycle, or the last one, began.
    missed: int = 0
    position: Position | None = None
    last: CycleReport | None = None
    waits: str | None = None
    #: The VM went off or came back while its cycle ran: another one is due at once.
    news: bool = False
    #: The VM lives on its replica.
    fenced: bool = False
    #: And runs here as well.
    runs_stale: bool = False
    #: Why it was not started with its host yet.
    start_waits: str | None = None
    #: Set while a cycle runs.
    meter: Meter | None = None
    #: Kind of the point on its way, while one is.
    sending: PointKind | None = None
    #: The running cycle reads whole disks; the next one would, and waits for a slot.
    long: bool = False
    queued: bool = False
    #: Seconds that the running cycle, or the last one, waited for its turn, and since when its base is waited for.
    queued_seconds: float = 0.0
    base_awaited: float | None = None
    base_seconds: float = 0.0
    halt: Halt = field(default_factory=Halt)
    idle: threading.Event = field(default_factory=threading.Event)
    #: Held while the policy is read, changed and written.
    amending: threading.Lock = field(default_factory=threading.Lock)
    #: Tasks that the next cycle, or the running one, answers.
    waiting: list[Task] = field(default_factory=list)
    answering: list[Task] = field(default_factory=list)

    @property
    def running(self) -> bool:
        """Tell whether a cycle runs."""
        return self.meter is not None

    @property
    def rests(self) -> bool:
        """Tell whether no cycle begins by itself: a person, or a planned failover, has the VM."""
        return self.policy.paused or self.policy.planned is not None

    @property
    def begins(self) -> dt.datetime | None:
        """Tell when initial replication begins, as far as it was set and there is no point yet."""
        begun = self.position is not None and self.position.latest is not None
        return None if begun else self.policy.begin_at

    def due_at(self, clock: float, now: dt.datetime) -> float:
        """Tell the monotonic time at which the next cycle is due.

        Args:
            clock: the present monotonic time.
            now: the same instant, aware.
        """
        begins = self.begins
        return self.due if begins is None else begin_due(self.due, clock, (begins - now).total_seconds())

    def count_waiting(self, clock: float, now: dt.datetime) -> None:
        """At the begin of a cycle, tell how long it waited for that."""
        due = self.due_at(clock, now)
        self.queued_seconds = max(0.0, clock - due)
        begun = self.position is not None and self.position.latest is not None
        self.missed = missed_turns(due, clock, float(self.policy.interval)) if begun else 0
        self.base_seconds = 0.0 if self.base_awaited is None else clock - self.base_awaited

    def await_base(self, *, since: float | None) -> None:
        """At the end of a cycle, take note of whether it only found that its base is not there; since when."""
        self.base_awaited = since if self.base_awaited is None or since is None else self.base_awaited

    def fence(self, *, fenced: bool, runs: bool | None, clock: float) -> None:
        """Take note of whether it lives on its replica; one that does so no more has a cycle due.

        Args:
            fenced: whether it does.
            runs: whether it runs here as well; None: as before.
            clock: the present monotonic time.
        """
        if self.fenced and not fenced:
            self.due = clock
        self.fenced = fenced
        self.runs_stale = fenced and (self.runs_stale if runs is None else runs)

    def takes_notice(self, event: str) -> bool:
        """Tell whether a cycle is due at once: a VM that went off has a last point, one that is back has news."""
        if event in {"stopped", "crashed"}:
            return True
        return event in {"started", "resumed"} and (self.waits is not None or (self.running and event == "started"))

    def show_seeding(self) -> None:
        """Show what the replica does in place of the cycle's own progress."""
        progress = seed_progress(self.position)
        if self.meter is not None and progress is not None:
            self.meter.show(progress)

    def _decreed(self) -> State | None:
        """Tell the state as far as it does not depend on what the replica holds."""
        if self.policy.planned is not None:
            return State.PREPARING if self.policy.planned.stage == "preparing" else State.PREPARED
        if self.fenced:
            return State.FENCED
        if self.policy.paused:
            return State.PAUSED
        return State.REVERSING if self.policy.reverse is not None else None

    def state(self) -> State:
        """Derive the state from facts."""
        decreed = self._decreed()
        if decreed is not None:
            return decreed
        if self.position is None:
            return State.READY
        if self.position.awaited is not None:
            return State.WAITING
        if self.position.latest is None or not self.position.latest.bootable:
            return State.INITIAL if self.running or self.position.seeding else State.READY
        return State.RESYNC if self.sending == "resync" else State.REPLICATING


def seed_progress(position: Position | None, *, prefix: str = "on the replica: ") -> Progress | None:
    """Tell how the replica gets on with an existing copy, if it reads one."""
    seeding = position.seeding if position is not None else None
    if seeding is None or seeding.failed is not None:
        return None
    left = seeding.total_bytes - seeding.done_bytes
    return Progress(
        phase=f"{prefix}{seeding.phase}",
        done_bytes=seeding.done_bytes,
        total_bytes=seeding.total_bytes,
        wire_bytes=0,
        rate=seeding.rate,
        seconds_left=left / seeding.rate if seeding.rate > 0 else None,
    )


def _facts(rel: Relationship, state: State, age: float | None, quiesce: QuiesceFacts) -> Facts:
    failed = rel.last is not None and rel.last.outcome == "failed"
    return Facts(
        state=state,
        interval=rel.policy.interval,
        point_age=age,
        vm_off=rel.waits == "vm-off",
        last_error=rel.last.error if rel.last and failed else None,
        last_error_code=rel.last.error_code if rel.last and failed else None,
        last_error_hint=rel.last.hint if rel.last and failed else "",
        last_duration=rel.last.seconds if rel.last and rel.last.kind == "delta" else None,
        missed_in_a_row=rel.missed,
        awaited=rel.position is not None and rel.position.awaited is not None,
        complaints=rel.position.complaints if rel.position else (),
        told=rel.position.reasons if rel.position and not rel.fenced else (),
        runs_stale=rel.runs_stale,
        start_waits=rel.start_waits,
        quiesce=quiesce,
        verify=verify_facts(rel.position, dt.datetime.now(dt.UTC)),
    )


def _next_due(rel: Relationship, now: dt.datetime, clock: float) -> dt.datetime | None:
    if rel.running or rel.rests:
        return None
    return now + dt.timedelta(seconds=max(0.0, rel.due_at(clock, now) - clock))


def _begins(rel: Relationship, now: dt.datetime) -> dt.datetime | None:
    return begins if (begins := rel.begins) is not None and begins > now else None


def _newest(position: Position | None, now: dt.datetime) -> tuple[PointSummary | None, float | None]:
    """Give the replica's newest recovery point and its age in seconds."""
    latest = position.latest if position and position.latest and position.latest.bootable else None
    return latest, max(0.0, (now - latest.instant).total_seconds()) if latest else None


def describe(
    rel: Relationship,
    *,
    peer: HostName | None,
    points: int,
    rate: InForce,
    quiesce: QuiesceFacts,
    now: dt.datetime,
    clock: float,
) -> RelationshipReport:
    """Report a relationship from its primary.

    Args:
        rel: the relationship.
        peer: the replica's name, when it is still paired.
        points: how many points the replica had when last seen.
        rate: how fast its points may be sent now, and until when.
        quiesce: how quiescing its guest goes.
        now: aware wall-clock time.
        clock: the monotonic time that ``rel.due`` is measured by.
    """
    latest, age = _newest(rel.position, now)
    facts = _facts(rel, rel.state(), age, quiesce)
    return RelationshipReport(
        vm=rel.vm,
        name=rel.name,
        role="primary",
        peer=peer,
        peer_id=rel.policy.replica,
        state=facts.state,
        health=judge(facts),
        measures=measures_of(facts),
        interval=rel.policy.interval,
        keep=rel.policy.keep,
        epoch=rel.policy.epoch,
        latest=latest,
        point_age=age,
        points=points,
        next_due=_next_due(rel, now, clock),
        begins_at=_begins(rel, now),
        waits=None if rel.running else rel.waits,
        limit=rel.policy.limit,
        rate=rate.rate,
        rate_until=rate.until,
        progress=rel.meter.progress() if rel.meter else seed_progress(rel.position),
        last_cycle=rel.last,
        excluded=rel.policy.excluded,
        autostart=rel.policy.autostart,
        verified=rel.position.verified if rel.position else None,
        app_consistent=rel.policy.app_consistent,
    )
