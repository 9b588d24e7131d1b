"""How fast may be sent, by time of day: the shape, its spelling, and which rate is in force when. Pure.

Rules are wall-clock times of the host, so that "08:00" means eight in the morning on both sides of a change to or from
summer time. A window belongs to the day on which it begins. Where windows overlap, the one that stands first counts;
where there is none, the rate without a window does.
"""

import datetime as dt
import re
from collections.abc import Iterator, Sequence
from typing import Annotated, Final, NamedTuple

from pydantic import Field, model_validator

from vmreplica.model.shape import Shape
from vmreplica.model.units import KiB, format_size, parse_size

#: Below it a segment would take hours, and the other side would hear nothing for too long.
MIN_RATE: Final = 8 * KiB
MAX_RATE: Final = 1 << 40
MAX_WINDOWS: Final = 16

#: Bytes per second.
ByteRate = Annotated[int, Field(ge=MIN_RATE, le=MAX_RATE)]
#: Minutes since midnight.
_Minute = Annotated[int, Field(ge=0, le=1440)]
_Day = Annotated[int, Field(ge=0, le=6)]

_DAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_DAY_MINUTES: Final = 1440
_WEEK: Final = 7
_BITS: Final = re.compile(r"(\d{1,12})\s*([kmg]?)bit(?:/s)?", re.IGNORECASE)
_BIT_FACTORS: Final = {"": 1, "k": 1000, "m": 1000**2, "g": 1000**3}
_WINDOW: Final = re.compile(r"(?:(\S+)\s+)?(\d{1,2}):(\d{2})\s*-\s*(\d{1,2}):(\d{2})\s+(\S.*)")
#: Time zones differ by multiples of a quarter of an hour, and change their offset at such instants.
_TICK: Final = dt.timedelta(minutes=15)
_EXAMPLES: Final = "write for example 50M, 400Mbit, none, or 'mon-fri 08:00-18:00 20M'"


class Window(Shape):
    """A rate for certain hours of certain days; without a rate it is not limited then."""

    #: 0 is Monday; ascending.
    days: Annotated[tuple[_Day, ...], Field(min_length=1, max_length=_WEEK)]
    start: Annotated[int, Field(ge=0, lt=_DAY_MINUTES)]
    #: Not above ``start``: it ends on the following day.
    end: _Minute
    rate: ByteRate | None

    @model_validator(mode="after")
    def _coherent(self) -> "Window":
        if self.days != tuple(sorted(set(self.days))):
            raise ValueError("days are ascending, each once")
        if self.start == self.end:
            raise ValueError("a window begins and ends at different times; all day is 00:00-24:00")
        return self

    def covers(self, wall: dt.datetime) -> bool:
        """Tell whether a wall-clock time is within the window."""
        minute = wall.hour * 60 + wall.minute
        if self.start < self.end:
            return wall.weekday() in self.days and self.start <= minute < self.end
        if minute >= self.start:
            return wall.weekday() in self.days
        return minute < self.end and (wall.weekday() - 1) % _WEEK in self.days


class Limit(Shape):
    """A rate, and windows with others; without anything there is no limit."""

    rate: ByteRate | None = None
    windows: Annotated[tuple[Window, ...], Field(max_length=MAX_WINDOWS)] = ()

    @property
    def unlimited(self) -> bool:
        """Whether there is no limit at any time."""
        return self.rate is None and not self.windows


class InForce(NamedTuple):
    """The rate of a moment, and when another one follows; None: never."""

    rate: int | None
    until: dt.datetime | None


NO_LIMIT: Final = Limit()


def rate_at(limit: Limit, wall: dt.datetime) -> int | None:
    """Tell the rate at a wall-clock time in bytes per second; None without limit."""
    for window in limit.windows:
        if window.covers(wall):
            return window.rate
    return limit.rate


def in_force(limit: Limit, now: dt.datetime, zone: dt.tzinfo | None = None) -> InForce:
    """Tell the rate in force, and until when.

    Args:
        limit: the rules.
        now: an aware instant.
        zone: whose wall clock counts; None: this host's.
    """
    rate = rate_at(limit, now.astimezone(zone))
    if limit.windows:
        for moment in _turning_points(limit, now, zone):
            if rate_at(limit, moment.astimezone(zone)) != rate:
                return InForce(rate, moment)
    return InForce(rate, None)


def _turning_points(limit: Limit, now: dt.datetime, zone: dt.tzinfo | None) -> Iterator[dt.datetime]:
    """List, ascending, every instant of the coming eight days at which the rate could change."""
    start = now.astimezone(dt.UTC)
    ticks = start.replace(minute=0, second=0, microsecond=0)
    moments = {ticks + step * _TICK for step in range((_WEEK + 1) * 96)}
    minutes = {minute for window in limit.windows for minute in (window.start, window.end)}
    today = now.astimezone(zone).date()
    for day in range(-1, _WEEK + 1):
        midnight = dt.datetime.combine(today + dt.timedelta(days=day), dt.time())
        for minute in minutes:
            wall = midnight + dt.timedelta(minutes=minute)
            moments.update(instant_of(wall.replace(fold=fold), zone) for fold in (0, 1))
    yield from sorted(moment for moment in moments if moment > start)


def instant_of(wall: dt.datetime, zone: dt.tzinfo | None) -> dt.datetime:
    """Tell when a clock shows a time; one that is skipped comes as much later as was skipped.

    Args:
        wall: without a time zone; its fold chooses among two instants.
        zone: whose clock; None: this host's.
    """
    aware = wall.astimezone() if zone is None else wall.replace(tzinfo=zone)
    return aware.astimezone(dt.UTC)


# ---- spelling


def parse_rate(text: str) -> int | None:
    """Read a rate into bytes per second: ``50M`` (bytes, powers of 1024), ``400Mbit`` (bits, powers of 1000), ``none``.

    Raises:
        ValueError: it is none, or out of bounds.
    """
    plain = text.strip()
    if plain.lower() == "none":
        return None
    bits = _BITS.fullmatch(plain)
    try:
        rate = int(bits[1]) * _BIT_FACTORS[bits[2].lower()] // 8 if bits else parse_size(plain.removesuffix("/s"))
    except ValueError:
        raise ValueError(f"{text!r} is not a rate; {_EXAMPLES}") from None
    if not MIN_RATE <= rate <= MAX_RATE:
        raise ValueError(f"{text!r} is not between {format_rate(MIN_RATE)} and {format_rate(MAX_RATE)}")
    return rate


def parse_limit(texts: Sequence[str]) -> Limit:
    """Read rates with and without windows, in the order in which they count.

    Raises:
        ValueError: one is neither, or two have no window.
    """
    windows: list[Window] = []
    plain: list[int | None] = []
    for text in texts:
        match = _WINDOW.fullmatch(text.strip())
        if match is None:
            plain.append(parse_rate(text))
        else:
            windows.append(_window(text, match))
    if len(plain) > 1:
        raise ValueError("only one rate may stand without a window")
    if len(windows) > MAX_WINDOWS:
        raise ValueError(f"there are more than {MAX_WINDOWS} windows")
    return Limit(rate=plain[0] if plain else None, windows=tuple(windows))


def _window(text: str, match: re.Match[str]) -> Window:
    days = tuple(range(_WEEK)) if match[1] is None else _parse_days(match[1])
    start, end = _minute(match[2], match[3]), _minute(match[4], match[5])
    if days is None or start is None or end is None or start == _DAY_MINUTES:
        raise ValueError(f"{text!r} is no window of time; {_EXAMPLES}")
    if start == end:
        raise ValueError(f"{text!r} begins when it ends; all day is 00:00-24:00")
    return Window(days=days, start=start, end=end, rate=parse_rate(match[6]))


def _parse_days(text: str) -> tuple[int, ...] | None:
    found: set[int] = set()
    for part in text.lower().split(","):
        first, dash, last = part.partition("-")
        if first not in _DAYS or (dash and last not in _DAYS):
            return None
        low, high = _DAYS.index(first), _DAYS.index(last if dash else first)
        found.update(day % _WEEK for day in range(low, (high if high >= low else high + _WEEK) + 1))
    return tuple(sorted(found))


def _minute(hours: str, minutes: str) -> int | None:
    minute = int(hours) * 60 + int(minutes)
    return minute if int(minutes) < 60 and minute <= _DAY_MINUTES else None  # noqa: PLR2004 - minutes of an hour


def format_rate(rate: float | None) -> str:
    """Spell a rate for people: ``20.0 MiB/s``."""
    return "no limit" if rate is None else f"{format_size(rate)}/s"


def format_limit(limit: Limit) -> list[str]:
    """Spell the rules for people, in the order in which they count."""
    windows = [f"{_format_days(w.days)} {_clock(w.start)}-{_clock(w.end)} {format_rate(w.rate)}" for w in limit.windows]
    return windows if limit.rate is None and windows else [*windows, format_rate(limit.rate)]


def _format_days(days: tuple[int, ...]) -> str:
    if days == tuple(range(days[0], days[-1] + 1)) and len(days) > 2:  # noqa: PLR2004 - two are named one by one
        return f"{_DAYS[days[0]]}-{_DAYS[days[-1]]}"
    return ",".join(_DAYS[day] for day in days)


def _clock(minute: int) -> str:
    return f"{minute // 60:02d}:{minute % 60:02d}"
