"""Application-consistent points: how often they are wanted, when one is due, and how quiescing a guest went. Pure."""

import datetime as dt
import re
from typing import Annotated, Final

from pydantic import AwareDatetime, Field, StringConstraints, model_validator

from vmreplica.model.shape import Shape
from vmreplica.model.units import parse_duration

#: Seconds between two application-consistent points: databases stop writing for each of them.
MIN_EVERY: Final = 60
MAX_EVERY: Final = 30 * 86400
MAX_CYCLES: Final = 1000
#: Seconds until the next try at most, after one that disturbed the guest and failed.
_REST: Final = 900.0
_RULE: Final = re.compile(r"(every|cycles)=(\S+)")
_UNITS: Final = (("d", 86400), ("h", 3600), ("m", 60), ("s", 1))
EXAMPLES: Final = "every=1h, cycles=12, or off"

#: What a guest agent, or we, say about a failure; bounded, as it travels with the point.
Remark = Annotated[str, StringConstraints(max_length=500)]


class AppConsistent(Shape):
    """How often a point is application-consistent: by time or by cycles; neither: never."""

    #: Seconds.
    every: Annotated[int, Field(ge=MIN_EVERY, le=MAX_EVERY)] | None = None
    cycles: Annotated[int, Field(ge=1, le=MAX_CYCLES)] | None = None

    @model_validator(mode="after")
    def _coherent(self) -> "AppConsistent":
        if self.every is not None and self.cycles is not None:
            raise ValueError("either a time or a number of cycles, not both")
        return self

    @property
    def wanted(self) -> bool:
        """Whether there shall be such points at all."""
        return self.every is not None or self.cycles is not None

    def period(self, interval: int) -> float:
        """Tell about how many seconds lie between two such points, at so many seconds between cycles."""
        return float(self.every if self.every is not None else (self.cycles or 0) * interval)


NEVER: Final = AppConsistent()


def parse_app_consistent(text: str) -> AppConsistent:
    """Read ``every=1h``, ``cycles=12`` or ``off``.

    Raises:
        ValueError: it is none of these, or out of bounds.
    """
    if text.strip() == "off":
        return NEVER
    match = _RULE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} says no rule; write for example {EXAMPLES}")
    if match[1] == "every":
        every = parse_duration(match[2])
        if not MIN_EVERY <= every <= MAX_EVERY:
            raise ValueError(f"every={match[2]}: from {MIN_EVERY}s to {MAX_EVERY // 86400}d")
        return AppConsistent(every=every)
    if not match[2].isdecimal() or not 1 <= int(match[2]) <= MAX_CYCLES:
        raise ValueError(f"cycles={match[2]}: a number from 1 to {MAX_CYCLES}")
    return AppConsistent(cycles=int(match[2]))


def format_app_consistent(rule: AppConsistent) -> str:
    """Spell a rule as it is typed."""
    if rule.every is not None:
        unit, seconds = next((unit, seconds) for unit, seconds in _UNITS if rule.every % seconds == 0)
        return f"every={rule.every // seconds}{unit}"
    return "off" if rule.cycles is None else f"cycles={rule.cycles}"


class Quiescence(Shape):
    """How quiescing a guest for a point went, for the report and the history."""

    #: Why the point is crash-consistent instead; None: it is application-consistent.
    failure: Remark | None = None
    code: str = ""
    #: How many file systems the guest says that it froze.
    file_systems: int = 0
    #: Seconds from when the guest was asked to freeze until it said that it had thawed; None: nothing was frozen.
    frozen: float | None = None
    #: Seconds of these from the agent's answer that it froze on: before it, file systems are still being flushed.
    held: float | None = None
    #: Seconds of these for which libvirt began the backup job.
    begin: float | None = None


class QuiesceRecord(Shape):
    """What is remembered of a VM between cycles; losing it costs one more application-consistent point."""

    #: Instant of the newest application-consistent point that the replica has, and how many points came after it.
    good: AwareDatetime | None = None
    since: Annotated[int, Field(ge=0)] = 0
    #: When the guest was disturbed in vain for the last time.
    tried: AwareDatetime | None = None
    #: In a row, and the reason of the last one.
    failures: Annotated[int, Field(ge=0)] = 0
    code: str = ""
    failure: Remark = ""


def is_due(rule: AppConsistent, record: QuiesceRecord, *, interval: int, now: dt.datetime) -> bool:
    """Tell whether the point that is about to be taken shall be application-consistent.

    A failure is followed by a try with the next point; one that disturbed the guest, by a rest of a period, at most a
    quarter of an hour.

    Args:
        rule: how often.
        record: how it went so far.
        interval: seconds between cycles; one that begins less than half of it too early counts as in time.
        now: aware time.
    """
    if not rule.wanted:
        return False
    if record.tried is not None and 0 <= (now - record.tried).total_seconds() < _rest(rule, interval):
        return False
    if record.good is None or now < record.good:
        return True
    if rule.cycles is not None:
        return record.since + 1 >= rule.cycles
    return (now - record.good).total_seconds() >= rule.period(interval) - interval / 2


def _rest(rule: AppConsistent, interval: int) -> float:
    return min(rule.period(interval), _REST) - interval / 2
