"""Health of a relationship: a pure judgement of facts against the relationship's own interval."""

from dataclasses import dataclass
from enum import StrEnum

from vmreplica.model.health_catalogue import CATALOGUE
from vmreplica.model.proof import BootFacts, QuiesceFacts, ScrubFacts, SpaceFacts, VerifyFacts
from vmreplica.model.shape import Shape
from vmreplica.model.states import State
from vmreplica.model.units import format_duration, format_size


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
    #: What is known about the worth of its points; None: nothing, or this side does not know.
    scrub: ScrubFacts | None = None
    verify: VerifyFacts | None = None
    boot: BootFacts | None = None
    quiesce: QuiesceFacts | None = None
    space: SpaceFacts | None = None
    #: What the replica says of these, on the primary.
    told: tuple[Reason, ...] = ()


_LATE, _VERY_LATE = 2.0, 4.0
#: How many periods may pass: scrub is spread over its period, so there is always a point whose turn is about now.
_OVERDUE, _BOOT_OVERDUE = 1.25, 2.0
#: Seconds until the store is full.
_SPACE_LOW, _SPACE_VERY_LOW = 7 * 86400.0, 86400.0

_STATE_REASONS: dict[State, tuple[str, Level, str, str]] = {
    State.FENCED: (
        "failed-over-elsewhere",
        Level.CRITICAL,
        "the VM was failed over to the replica: this copy is stale",
        "",
    ),
    State.PREPARED: (
        "moving",
        Level.WARNING,
        "the VM is off and moving to its replica: a planned failover is under way",
        "",
    ),
    State.PAUSED: ("paused", Level.WARNING, "replication is paused", ""),
    State.FAILED_OVER: ("not-protected", Level.WARNING, "the VM runs on its replica and is not protected", ""),
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


_ORDER = (Level.NORMAL, Level.WARNING, Level.CRITICAL)


def worse(one: Level, other: Level) -> bool:
    """Tell whether one level is more urgent than another."""
    return _ORDER.index(one) > _ORDER.index(other)


def measures_of(facts: Facts) -> dict[str, float]:
    """Tell the figures behind a judgement, for metrics; seconds, bytes and counts. What is not known is not in it."""
    found: dict[str, float | None] = {"missed_cycles": facts.missed_in_a_row}
    if facts.scrub is not None:
        found |= {"scrub_oldest_seconds": facts.scrub.age, "scrub_period_seconds": facts.scrub.period}
        found["scrub_damaged"] = float(facts.scrub.damage is not None)
    if facts.verify is not None:
        found |= {"verify_age_seconds": facts.verify.age, "verify_same": float(facts.verify.same)}
    if facts.boot is not None:
        found |= {"boot_test_age_seconds": facts.boot.age, "boot_test_period_seconds": facts.boot.period}
        found["boot_test_failures"] = facts.boot.failures
    if facts.quiesce is not None:
        found |= {"quiesce_failures": facts.quiesce.failures, "guest_frozen": float(facts.quiesce.frozen)}
    if facts.space is not None:
        found |= {"store_free_bytes": facts.space.free, "store_min_free_bytes": facts.space.min_free}
        found["store_full_seconds"] = facts.space.full_in
    return {name: float(value) for name, value in found.items() if value is not None}


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
        *_of_turns(facts),
        *reasons_of_proof(facts),
        *facts.told,
    ]
    reasons += [_reason("replica-complains", Level.WARNING, text) for text in facts.complaints]
    level = max((reason.level for reason in reasons), key=_ORDER.index, default=Level.NORMAL)
    return Health(level=level, reasons=tuple(reasons))


def _reason(code: str, level: Level, text: str, hint: str = "") -> Reason:
    """Make a reason of the catalogue, with its remedy unless there is a better one."""
    return Reason(code=code, level=level, text=text, hint=hint or CATALOGUE[code].remedy)


def _of_state(facts: Facts) -> list[Reason]:
    return [_reason(*_STATE_REASONS[facts.state])] if facts.state in _STATE_REASONS else []


def _of_start(facts: Facts) -> list[Reason]:
    if facts.runs_stale:
        text = "the VM runs here AND on its replica: what it does here is not replicated and will be lost on one side"
        return [_reason("runs-twice", Level.CRITICAL, text)]
    if facts.start_waits is None or facts.state is State.FENCED:
        return []
    return [_reason("start-waits", Level.CRITICAL, f"the VM starts with its host, and waits: {facts.start_waits}")]


def _of_export(facts: Facts) -> list[Reason]:
    if not facts.awaited or facts.state is State.FENCED:
        return []
    text = "the first copy travels in an export: until it is imported no point can be used"
    return [_reason("base-awaited", Level.WARNING, text)]


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
    return [_reason("vm-off", Level.WARNING, "the VM is shut off, its last point is complete: nothing is lost")]


def _of_age(facts: Facts) -> list[Reason]:
    if facts.state not in {State.REPLICATING, State.RESYNC} or facts.point_age is None or facts.vm_off:
        return []
    if facts.point_age <= _LATE * facts.interval:
        return []
    level = Level.CRITICAL if facts.point_age > _VERY_LATE * facts.interval else Level.WARNING
    text = (
        f"the newest point is {format_duration(facts.point_age)} old, the interval is {format_duration(facts.interval)}"
    )
    return [_reason("rpo-exceeded", level, text)]


def _of_pace(facts: Facts) -> list[Reason]:
    if facts.last_duration is None or facts.last_duration <= facts.interval or facts.state != State.REPLICATING:
        return []
    text = (
        f"a cycle takes {format_duration(facts.last_duration)}, longer than the interval of "
        f"{format_duration(facts.interval)}: the interval cannot be kept"
    )
    return [_reason("interval-not-kept", Level.WARNING, text)]


def _of_turns(facts: Facts) -> list[Reason]:
    reasons = []
    if facts.missed_in_a_row and facts.state in {State.REPLICATING, State.RESYNC}:
        turns = "a turn was" if facts.missed_in_a_row == 1 else f"{facts.missed_in_a_row} turns were"
        reasons.append(_reason("cycles-missed", Level.WARNING, f"{turns} missed before the last cycle ended"))
    if facts.state is State.RESYNC:
        text = "its disks are compared as a whole: changes since the last point could not be told"
        reasons.append(_reason("resync-needed", Level.WARNING, text))
    return reasons


# ---- the worth of the points


def reasons_of_proof(facts: Facts) -> list[Reason]:
    """Judge the worth of the points and the room for them; the replica tells these to its primary, too."""
    reasons: list[Reason] = []
    if facts.scrub is not None:
        reasons += _of_scrub(facts.scrub)
    if facts.verify is not None and not facts.verify.same:
        reasons.append(_reason("verify-differs", Level.CRITICAL, facts.verify.text or "a verified point is wrong"))
    if facts.boot is not None:
        reasons += _of_boot(facts.boot)
    if facts.quiesce is not None:
        reasons += _of_quiesce(facts.quiesce)
    if facts.space is not None:
        reasons += _of_space(facts.space)
    return reasons


def _of_scrub(scrub: ScrubFacts) -> list[Reason]:
    reasons = []
    if scrub.damage is not None:
        level = Level.WARNING if scrub.newest_good else Level.CRITICAL
        reasons.append(_reason("scrub-damage", level, scrub.damage))
    if scrub.period is not None and scrub.age is not None and scrub.age > _OVERDUE * scrub.period:
        text = f"a point was not checked for {format_duration(scrub.age)}, scrub is {format_duration(scrub.period)}"
        reasons.append(_reason("scrub-overdue", Level.WARNING, text))
    return reasons


def _of_boot(boot: BootFacts) -> list[Reason]:
    reasons = []
    if boot.failures:
        level = Level.CRITICAL if boot.failures > 1 else Level.WARNING
        times = f", as did {boot.failures - 1} before it" if boot.failures > 1 else ""
        reasons.append(_reason("boot-test-failed", level, f"the last boot test failed{times}: {boot.text}"))
    if boot.period is not None and boot.age is not None and boot.age > _BOOT_OVERDUE * boot.period:
        text = f"no boot test for {format_duration(boot.age)}, one is due every {format_duration(boot.period)}"
        reasons.append(_reason("boot-test-overdue", Level.WARNING, text))
    return reasons


def _of_quiesce(quiesce: QuiesceFacts) -> list[Reason]:
    reasons = []
    if quiesce.frozen:
        reasons.append(_reason("guest-frozen", Level.CRITICAL, "the guest's file systems are frozen still"))
    if quiesce.failures:
        often = "the last time" if quiesce.failures == 1 else f"{quiesce.failures} times in a row"
        text = f"points are only crash-consistent: quiescing the guest failed {often}: {quiesce.text}"
        reasons.append(_reason("quiesce-failing", Level.WARNING, text))
    return reasons


def _of_space(space: SpaceFacts) -> list[Reason]:
    free = f"{format_size(space.free)} free on {space.place}"
    if space.free < space.min_free:
        text = f"{free}, {format_size(space.min_free)} must stay free: no point is taken in"
        return [_reason("space-out", Level.CRITICAL, text)]
    if space.full_in is None or space.full_in >= _SPACE_LOW:
        return []
    level = Level.CRITICAL if space.full_in < _SPACE_VERY_LOW else Level.WARNING
    return [_reason("space-low", level, f"{free}: full in about {_about(space.full_in)}, as it went lately")]


def _about(seconds: float) -> str:
    """Spell a forecast, no finer than it is."""
    for unit, word in ((86400.0, "day"), (3600.0, "hour"), (60.0, "minute")):
        if seconds >= unit:
            count = round(seconds / unit)
            return f"{count} {word}{'s' if count > 1 else ''}"
    return "a minute"
