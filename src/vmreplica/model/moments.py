"""When something is to begin, as people write it: read into an instant. Pure."""

import contextlib
import datetime as dt
import re
from typing import Final

from vmreplica.model.rates import instant_of
from vmreplica.model.units import parse_duration

#: How far ahead a beginning may be set.
LONGEST_AHEAD: Final = dt.timedelta(days=7)

_MOMENT: Final = re.compile(r"(?:(\d{4}-\d{2}-\d{2})[T ]|(today|tomorrow) +)?(\d{1,2}):(\d{2})", re.IGNORECASE)
_EXAMPLES: Final = "write for example 22:00, 'tomorrow 02:30' or 2026-11-25T22:00"


def parse_moment(text: str, now: dt.datetime, zone: dt.tzinfo | None = None) -> dt.datetime:
    """Read a moment such as ``22:00`` (the next time it is), ``tomorrow 02:30`` or ``2026-11-25T22:00``.

    A time that the clocks skip is the one that they show instead; of one that they show twice it is the first.

    Args:
        text: what was written.
        now: an aware instant.
        zone: whose wall clock counts; None: this host's.

    Raises:
        ValueError: it is no moment, is past, or more than seven days ahead.
    """
    match = _MOMENT.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a moment; {_EXAMPLES}")
    today = now.astimezone(zone).date()
    try:
        time = dt.time(int(match[3]), int(match[4]))
        day = dt.date.fromisoformat(match[1]) if match[1] else today
    except ValueError:
        raise ValueError(f"{text!r} is not a moment; {_EXAMPLES}") from None
    following = dt.timedelta(days=1)
    if (match[2] or "").lower() == "tomorrow":
        day += following
    moment = instant_of(dt.datetime.combine(day, time), zone)
    if moment <= now and not match[1] and not match[2]:
        moment = instant_of(dt.datetime.combine(day + following, time), zone)
    require_ahead(moment, now)
    return moment


def parse_since(text: str, now: dt.datetime, zone: dt.tzinfo | None = None) -> dt.datetime:
    """Read since when something is asked for: ``7d`` ago, or a moment such as ``2026-11-25`` or ``2026-11-25 14:00``.

    Args:
        text: what was written.
        now: an aware instant.
        zone: whose wall clock counts; None: this host's.

    Raises:
        ValueError: it is neither.
    """
    with contextlib.suppress(ValueError, OverflowError):
        return now - dt.timedelta(seconds=parse_duration(text))
    try:
        moment = dt.datetime.fromisoformat(text.strip())
    except ValueError:
        example = "write for example 12h, 7d, 2026-11-25 or '2026-11-25 14:00'"
        raise ValueError(f"{text!r} is no time before now; {example}") from None
    return moment if moment.tzinfo else instant_of(moment, zone)


def require_ahead(moment: dt.datetime, now: dt.datetime) -> None:
    """Refuse a moment that is past or too far ahead.

    Raises:
        ValueError: it is.
    """
    if moment <= now:
        raise ValueError(f"{moment.astimezone():%Y-%m-%d %H:%M} is past")
    if moment > now + LONGEST_AHEAD:
        raise ValueError(f"{moment.astimezone():%Y-%m-%d %H:%M} is more than {LONGEST_AHEAD.days} days ahead")
