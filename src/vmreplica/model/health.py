"""Health of a relationship: a pure judgement of facts against the relationship's own interval."""

from dataclasses import dataclass
from enum import StrEnum

from vmreplica.model.shape import Shape
from vmreplica.model.states import State
from vmreplica.model.units import format_duration


class Level(StrEnum):
    """How urgent it is."""

    NORMAL = "normal"
    WARNING = "warning"
    CRITICAL = "critical"


class Reason(Shape):
    """One finding, with a stable code and a remedy."""

    code: str
    level: Level
    text: str
    hint: str = ""


class Health(Shape):
    """The worst level of all reasons; Normal has none."""

    level: Level
    reasons: tuple[Reason, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class QuiesceFacts:
    """How quiescing the guest for application-consistent points goes."""

    #: In a row, and the code and reason of the last one.
    failures: int = 0
    code: str = ""
    failure: str = ""
    #: Seconds for which it is, or may be, frozen although it should have been thawed; None: it is not.
    frozen_for: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What health is judged by; ages and durations in seconds."""

    state: State
    interval: int
    point_age: float | None
    last_error: str | None = None
    last_error_code: str | None = None
    last_error_hint: str = ""
    last_duration: float | None = None
    missed_in_a_row: int = 0
    vm_off: bool = False
    #: The first copy travels in an export.
    awaited: bool = False
    complaints: tuple[str, ...] = ()
    #: It lives on its replica, and runs on its old primary too.
    runs_stale: bool = False
    #: Why a VM that starts with its host was not started yet.
    start_waits: str | None = None
    quiesce: QuiesceFacts | None = None


_LATE, _VERY_LATE = 2.0, 4.0

_STATE_REASONS: dict[State, tuple[str, Level, str, str]] = {
    State.FENCED: (
        "failed-over-elsewhere",
        Level.CRITICAL,
        "the VM was failed over to the replica: this copy is stale",
        "decide which side survives before you start the VM here",
    ),
    State.PREPARED: (
        "moving",
        Level.WARNING,
        "the VM is off and moving to its replica: a planned failover is under way",
        "vmreplica failover VM --planned goes on with it, --cancel takes it back",
    ),
    State.PAUSED: ("paused", Level.WARNING, "replication is paused", "vmreplica resume VM"),
    State.FAILED_OVER: (
        "not-protected",
        Level.WARNING,
        "the VM runs on its replica and is not protected",
        "vmreplica reverse VM makes its old primary the replica; the old primary must not start the VM",
    ),
    State.REVERSING: (
        "not-protected",
        Level.WARNING,
        "the VM is not protected until its old primary has become its replica",
        "it is asked again until it answers: vmreplica status VM tells what it said; its stale copy must be off",
    ),
    State.COMMITTING: (
        "not-protected",
        Level.WARNING,
        "the VM runs on its replica, its images are being folded, and it is not protected",
        "vmreplica status VM shows how that is getting on",
    ),
    State.COMMITTED: (
        "not-protected",
        Level.WARNING,
        "the VM runs on its replica and is not protected",
        "vmreplica reverse VM makes its old primary the replica",
    ),
}


def judge(facts: Facts) -> Health:
    """Derive health from facts."""
    reasons = [
        *_of_state(facts),
        *_of_start(facts),
        *_of_export(facts),
        *_of_error(facts),
        *_of_power(facts),
        *_of_age(facts),
        *_of_pace(facts),
        *_of_quiescing(facts.quiesce),
    ]
    reasons += [Reason(code="replica-complains", level=Level.WARNING, text=text) for text in facts.complaints]
    order = (Level.NORMAL, Level.WARNING, Level.CRITICAL)
    level = max((reason.level for reason in reasons), key=order.index, default=Level.NORMAL)
    return Health(level=level, reasons=tuple(reasons))


def _of_state(facts: Facts) -> list[Reason]:
    if facts.state not in _STATE_REASONS:
        return []
    code, level, text, hint = _STATE_REASONS[facts.state]
    return [Reason(code=code, level=level, text=text, hint=hint)]


def _of_start(facts: Facts) -> list[Reason]:
    if facts.runs_stale:
        text = "the VM runs here AND on its replica: what it does here is not replicated and will be lost on one side"
        hint = "shut it down here: virsh shutdown VM; then docs/runbooks/failed-over-elsewhere.md"
        return [Reason(code="runs-twice", level=Level.CRITICAL, text=text, hint=hint)]
    if facts.start_waits is None or facts.state is State.FENCED:
        return []
    text = f"the VM starts with its host, and waits: {facts.start_waits}"
    hint = "make its replica answer, or, if you know that it runs nowhere else: vmreplica start VM --i-am-sure"
    return [Reason(code="start-waits", level=Level.CRITICAL, text=text, hint=hint)]


def _of_export(facts: Facts) -> list[Reason]:
    if not facts.awaited or facts.state is State.FENCED:
        return []
    text = "the first copy travels in an export: until it is imported no point can be used"
    hint = "on the replica: vmreplica import DIR"
    return [Reason(code="base-awaited", level=Level.WARNING, text=text, hint=hint)]


def _of_error(facts: Facts) -> list[Reason]:
    if facts.last_error is None or facts.state is State.FENCED:
        # What ended the last cycle of a fenced relationship is what its state says already.
        return []
    return [
        Reason(
            code=facts.last_error_code or "cycle-failed",
            level=Level.WARNING,
            text=f"the last cycle failed: {facts.last_error}",
            hint=facts.last_error_hint,
        )
    ]


def _of_power(facts: Facts) -> list[Reason]:
    if not facts.vm_off or facts.state is State.FENCED:
        return []
    text = "the VM is shut off, its last point is complete: nothing is lost"
    return [Reason(code="vm-off", level=Level.WARNING, text=text, hint="start the VM; replication goes on by itself")]


def _of_age(facts: Facts) -> list[Reason]:
    if facts.state not in {State.REPLICATING, State.RESYNC} or facts.point_age is None or facts.vm_off:
        return []
    if facts.point_age <= _LATE * facts.interval:
        return []
    level = Level.CRITICAL if facts.point_age > _VERY_LATE * facts.interval else Level.WARNING
    text = (
        f"the newest point is {format_duration(facts.point_age)} old, the interval is {format_duration(facts.interval)}"
    )
    hint = "on the primary, vmreplica status VM names the last error"
    return [Reason(code="rpo-exceeded", level=level, text=text, hint=hint)]


def _of_pace(facts: Facts) -> list[Reason]:
    if facts.last_duration is None or facts.last_duration <= facts.interval or facts.state != State.REPLICATING:
        return []
    text = (
        f"a cycle takes {format_duration(facts.last_duration)}, longer than the interval of "
        f"{format_duration(facts.interval)}: the interval cannot be kept"
    )
    return [
        Reason(
            code="interval-not-kept",
            level=Level.WARNING,
            text=text,
            hint="use a longer --every or a faster line",
        )
    ]


def _of_quiescing(facts: QuiesceFacts | None) -> list[Reason]:
    reasons = []
    if facts is not None and facts.frozen_for is not None:
        text = f"the guest may be frozen since {format_duration(facts.frozen_for)}: it is thawed again and again"
        hint = "virsh domfsthaw VM; if its agent does not answer, in the guest: fsfreeze -u, or reset the VM"
        reasons.append(Reason(code="guest-frozen", level=Level.CRITICAL, text=text, hint=hint))
    if facts is not None and facts.failures:
        text = f"the last {facts.failures} points" if facts.failures > 1 else "the last point"
        text += f" that should have been application-consistent could only be crash-consistent: {facts.failure}"
        hint = "vmreplica doctor VM looks at the guest agent; docs/howto/application-consistent-points.md"
        reasons.append(Reason(code="quiesce-failing", level=Level.WARNING, text=text, hint=hint))
    return reasons
