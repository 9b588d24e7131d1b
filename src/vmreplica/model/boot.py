"""Boot tests: what counts as a sign of life, when one is due, what came of one, and what health makes of it. Pure."""

import datetime as dt
import re
from typing import Annotated, Any, Final, Literal, Self

from pydantic import AwareDatetime, BeforeValidator, Field, StringConstraints, model_validator

from vmreplica.model.ids import NetworkName, PointId
from vmreplica.model.proof import BootFacts
from vmreplica.model.shape import Shape
from vmreplica.model.units import format_duration

#: ``auto``: the guest agent answers, or the serial console shows a login prompt, whichever comes first.
SignKind = Literal["auto", "agent", "console", "tcp", "script"]
#: What came of a boot test. ``off``: the copy went off by itself; ``not-started``: this host could not start it.
BootVerdict = Literal["alive", "silent", "off", "not-started"]

MIN_LIMIT: Final = 5
MAX_LIMIT: Final = 86400
DEFAULT_LIMIT: Final = 300
MIN_EVERY: Final = 60
MAX_EVERY: Final = 90 * 86400
_DAY: Final = 86400
_PORT: Final = re.compile(r"[1-9][0-9]{0,4}")
_MAX_PORT: Final = 65535
_TEXT: Final = re.compile(r"[^\x00-\x1f\x7f]{1,200}")
_PATH: Final = re.compile(r"/[^\x00-\x1f\x7f]{1,1000}")


class BootSign(Shape):
    """What a guest has to do to count as alive; ``value`` is the console's text, the port, or the program's path."""

    kind: SignKind = "auto"
    value: Annotated[str, StringConstraints(max_length=1001)] = ""

    @model_validator(mode="after")
    def _coherent(self) -> Self:
        if self.kind == "tcp":
            good = _PORT.fullmatch(self.value) is not None and int(self.value) <= _MAX_PORT
        elif self.kind == "console":
            good = _TEXT.fullmatch(self.value) is not None
        elif self.kind == "script":
            good = _PATH.fullmatch(self.value) is not None
        else:
            good = not self.value
        if not good:
            raise ValueError(f"{self.value!r} is nothing that {self.kind} can look for")
        return self

    def text(self) -> str:
        """Spell it as a person does."""
        return f"{self.kind}:{self.value}" if self.value else self.kind

    def described(self) -> str:
        """Say what is waited for."""
        return {
            "auto": "the guest agent, or a login prompt on the serial console",
            "agent": "the guest agent",
            "console": f"{self.value!r} on the serial console",
            "tcp": f"a connection to TCP port {self.value}",
            "script": f"success of {self.value}",
        }[self.kind]


def parse_sign(text: str) -> BootSign:
    """Read ``auto``, ``agent``, ``console:TEXT``, ``tcp:PORT`` or ``script:PATH``.

    Raises:
        ValueError: it is none of them.
    """
    kind, _, value = text.partition(":")
    if kind not in {"auto", "agent", "console", "tcp", "script"}:
        raise ValueError(f"{text!r} is no sign of life: agent, console:TEXT, tcp:PORT, script:/PATH or auto")
    return BootSign.model_validate({"kind": kind, "value": value})


def _sign(value: Any) -> Any:
    return parse_sign(value) if isinstance(value, str) else value


class BootWish(Shape):
    """How a copy is booted."""

    sign: Annotated[BootSign, BeforeValidator(_sign)] = BootSign()
    #: Seconds that the guest has to show it.
    limit: Annotated[int, Field(ge=MIN_LIMIT, le=MAX_LIMIT)] = DEFAULT_LIMIT
    #: Of the replica's host, where all its interfaces are plugged in; None: they are unplugged.
    network: NetworkName | None = None

    @model_validator(mode="after")
    def _reachable(self) -> Self:
        if self.sign.kind == "tcp" and self.network is None:
            raise ValueError("a TCP port is reached over a network only: name an isolated one with --network NET")
        return self


class BootSchedule(Shape):
    """When boot tests run by themselves, and how."""

    #: Seconds between two of them.
    every: Annotated[int, Field(ge=MIN_EVERY, le=MAX_EVERY)]
    #: ``HH:MM`` of the replica's host.
    at: Annotated[str, StringConstraints(pattern=r"^([01][0-9]|2[0-3]):[0-5][0-9]$")] | None = None
    wish: BootWish = BootWish()
    #: When it was set.
    since: AwareDatetime

    @model_validator(mode="after")
    def _whole_days(self) -> Self:
        if self.at is not None and self.every < _DAY:
            raise ValueError("--at goes with an interval of a day or more: --every 1d --at 03:00")
        return self


class BootResult(Shape):
    """What came of one boot test; kept with its point."""

    point: PointId
    started: AwareDatetime
    verdict: BootVerdict
    #: The sign that came, or what was waited for.
    sign: Annotated[str, StringConstraints(max_length=1100)]
    #: Seconds from the start to the sign of life.
    seconds: float | None = None
    #: Seconds that the guest had.
    limit: int = DEFAULT_LIMIT
    #: Seconds from the beginning of the test to its verdict.
    took: float = 0.0
    network: NetworkName | None = None
    #: Whether there is a screenshot.
    picture: bool = False
    #: Why there is none, why it did not start, and other things a person should know.
    told: Annotated[str, StringConstraints(max_length=600)] = ""

    @property
    def good(self) -> bool:
        """Tell whether the guest came to life."""
        return self.verdict == "alive"

    def sentence(self) -> str:
        """Say it in a few words."""
        if self.verdict == "alive":
            return f"came to life after {self.seconds or 0.0:.1f} s ({self.sign})"
        if self.verdict == "silent":
            return f"showed no sign of life within {format_duration(self.limit)}: {self.sign}"
        if self.verdict == "off":
            return f"went off by itself after {self.took:.1f} s"
        return "could not be started here"


class BootSkip(Shape):
    """Why a boot test that was due did not run."""

    at: AwareDatetime
    why: Annotated[str, StringConstraints(max_length=600)]


class BootRecord(Shape):
    """What the replica keeps about the boot tests of a VM, whatever becomes of the points."""

    schedule: BootSchedule | None = None
    last: BootResult | None = None
    #: Failed ones in a row.
    failures: Annotated[int, Field(ge=0)] = 0
    #: When the last one was begun, whatever came of it: persisted before, so that one that kills its host waits.
    attempted: AwareDatetime | None = None
    skipped: BootSkip | None = None


class BootState(Shape):
    """The boot tests of a VM, for reports."""

    schedule: BootSchedule | None
    last: BootResult | None
    failures: int
    #: When the next one is due.
    due: AwareDatetime | None
    skipped: BootSkip | None


def interrupted(record: BootRecord) -> bool:
    """Tell whether the last attempt has come to nothing that was written down: the agent ended on the way."""
    known = [record.last.started] if record.last is not None else []
    known += [record.skipped.at] if record.skipped is not None else []
    return record.attempted is not None and all(moment < record.attempted for moment in known)


def after(record: BootRecord, result: BootResult) -> BootRecord:
    """Add a result."""
    failures = 0 if result.good else record.failures + 1
    return record.model_copy(update={"last": result, "failures": failures, "skipped": None})


def next_boot(record: BootRecord, zone: dt.tzinfo) -> dt.datetime | None:
    """Tell when the next boot test is due; None: there is no schedule.

    Args:
        record: schedule and last attempt.
        zone: in which ``at`` is meant.

    Returns:
        The interval after the last attempt, or at once when there was none. With a time of day the one nearest to that,
        but never one that the last attempt was already for.
    """
    schedule = record.schedule
    if schedule is None:
        return None
    last = record.attempted
    due = schedule.since if last is None else last + dt.timedelta(seconds=schedule.every)
    if schedule.at is None:
        return due
    return _time_of_day(due if last is None else due - dt.timedelta(seconds=_DAY / 2), schedule.at, zone)


def _time_of_day(earliest: dt.datetime, at: str, zone: dt.tzinfo) -> dt.datetime:
    hour, minute = map(int, at.split(":"))
    day = earliest.astimezone(zone).date()
    while True:
        found = dt.datetime.combine(day, dt.time(hour, minute), tzinfo=zone)
        if found >= earliest:
            return found.astimezone(dt.UTC)
        day += dt.timedelta(days=1)


def boot_state(record: BootRecord, zone: dt.tzinfo) -> BootState | None:
    """Describe it for reports; None: nobody has asked for any test yet."""
    if record.schedule is None and record.last is None and record.skipped is None:
        return None
    return BootState(
        schedule=record.schedule,
        last=record.last,
        failures=record.failures,
        due=next_boot(record, zone),
        skipped=record.skipped,
    )


def boot_facts(record: BootRecord, now: dt.datetime) -> BootFacts | None:
    """Tell what health is judged by; None: nobody has asked for any test yet."""
    schedule, last = record.schedule, record.last
    if schedule is None and last is None:
        return None
    # A test of long before a schedule was made says nothing about whether that is kept.
    moments = [last.started] if last is not None else []
    moments += [schedule.since] if schedule is not None else []
    return BootFacts(
        period=float(schedule.every) if schedule is not None else None,
        age=(now - max(moments)).total_seconds(),
        failures=record.failures,
        text=f"point {last.point} {last.sentence()}" if last is not None and record.failures else "",
    )
