"""Which recovery points stay: the rules, and their spelling on the command line. Pure."""

from typing import Annotated, Any, Final, Self

from pydantic import Field, model_validator

from vmreplica.model.shape import Shape
from vmreplica.model.units import MiB, format_duration, format_size, parse_duration, parse_size

#: More points than that are of no use to anybody, and listing them would take long.
MAX_POINTS: Final = 1000
MIN_SPACE: Final = MiB
MAX_SPACE: Final = 1 << 60
MAX_WITHIN: Final = 366 * 86400

#: Rules that keep one point per period of the calendar, the shortest period first.
PERIODS: Final = ("hourly", "daily", "weekly", "monthly")
_EXAMPLES: Final = "write for example 24, or within=1h,hourly=24,daily=7,space=100G"

_Periods = Annotated[int, Field(ge=0, le=MAX_POINTS)]


class Keep(Shape):
    """Rules of retention: a point stays when any of them wants it, and ``space`` then takes the oldest away.

    The newest point always stays. A plain number, as policies had it before, means so many of the newest.
    """

    #: So many of the newest.
    last: Annotated[int, Field(ge=1, le=MAX_POINTS)] | None = None
    #: All that are younger than so many seconds, seen from the newest.
    within: Annotated[int, Field(ge=1, le=MAX_WITHIN)] | None = None
    #: The newest of each of so many hours, days, ISO weeks or months that have any, in the replica's local time.
    hourly: _Periods = 0
    daily: _Periods = 0
    weekly: _Periods = 0
    monthly: _Periods = 0
    #: So many bytes in the store for all points together; the newest stays even if it alone needs more.
    space: Annotated[int, Field(ge=MIN_SPACE, le=MAX_SPACE)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _of_number(cls, value: Any) -> Any:
        return {"last": value} if isinstance(value, int) and not isinstance(value, bool) else value

    @model_validator(mode="after")
    def _coherent(self) -> Self:
        counted = (self.last or 0) + sum(self.periods.values())
        if counted == 0 and self.within is None:
            raise ValueError(f"these rules would keep nothing; {_EXAMPLES}")
        if counted > MAX_POINTS:
            raise ValueError(f"these rules would keep {counted} points, at most {MAX_POINTS} can be kept")
        return self

    @property
    def periods(self) -> dict[str, int]:
        """How many periods of each kind, the shortest kind first."""
        return {name: getattr(self, name) for name in PERIODS}

    def most(self, interval: int) -> int:
        """Tell how many points can be kept at most, one coming every ``interval`` seconds; pinned ones not counted."""
        recent = 0 if self.within is None else self.within // interval + 1
        return max(1, max(self.last or 0, recent) + sum(self.periods.values()))

    def __str__(self) -> str:
        return format_keep(self)


DEFAULT_KEEP: Final = Keep(within=3600, hourly=24, daily=7)


def require_few(keep: Keep, interval: int) -> None:
    """Refuse rules that would keep too many points at an interval of so many seconds.

    Raises:
        ValueError: they would.
    """
    if (most := keep.most(interval)) > MAX_POINTS:
        raise ValueError(
            f"{keep} would keep up to {most} points, one coming every {format_duration(interval)}; at most "
            f"{MAX_POINTS} can be kept: keep all of a shorter time, and one per hour or day of the rest"
        )


def parse_keep(text: str) -> Keep:
    """Read rules such as ``24`` (the last 24) or ``within=1h,hourly=24,daily=7,space=100G``.

    Raises:
        ValueError: they are none, contradict each other, or would keep nothing.
    """
    plain = text.strip().lower()
    fields: dict[str, int] = {}
    for part in [f"last={plain}"] if plain.isascii() and plain.isdigit() else plain.split(","):
        name, _, value = (word.strip() for word in part.partition("="))
        if name not in Keep.model_fields:
            raise ValueError(f"{part.strip()!r} is no rule of retention; {_EXAMPLES}")
        if name in fields:
            raise ValueError(f"{name} is said twice")
        fields[name] = _value(name, value)
    return _keep(fields)


def format_keep(keep: Keep) -> str:
    """Spell rules as ``parse_keep`` reads them: ``within=1h,hourly=24,daily=7``."""
    parts = []
    for name, value in keep:
        if value:
            parts.append(f"{name}={_spelled(name, value)}")
    return ",".join(parts)


def describe_keep(keep: Keep) -> str:
    """Say rules in words: ``all of the last 1h, 24 hourly, 7 daily``."""
    parts = [f"the last {keep.last}"] if keep.last else []
    parts += [f"all of the last {format_duration(keep.within)}"] if keep.within else []
    parts += [f"{count} {name}" for name, count in keep.periods.items() if count]
    parts += [f"at most {format_size(keep.space)}"] if keep.space else []
    return ", ".join(parts)


def _value(name: str, text: str) -> int:
    if name == "within":
        return parse_duration(text)
    if name == "space":
        return parse_size(text)
    if not (text.isascii() and text.isdigit() and len(text) < 10):  # noqa: PLR2004 - no number of points has more
        raise ValueError(f"{name}={text} is not a number of points; {_EXAMPLES}")
    return int(text)


def _keep(fields: dict[str, int]) -> Keep:
    """Make rules; what is out of bounds is said as a person would."""
    for name, value in fields.items():
        low, high = _BOUNDS.get(name, (0, MAX_POINTS))
        if not low <= value <= high:
            raise ValueError(
                f"{name}={_spelled(name, value)} is not between {_spelled(name, low)} and {_spelled(name, high)}"
            )
    try:
        return Keep(**fields)
    except ValueError as error:
        # Bounds are checked: what is left is what Keep says itself, below pydantic's words.
        raise ValueError(str(error).splitlines()[1].strip().removeprefix("Value error, ").split(" [type=")[0]) from None


_BOUNDS: Final = {"last": (1, MAX_POINTS), "within": (1, MAX_WITHIN), "space": (MIN_SPACE, MAX_SPACE)}


def _spelled(name: str, value: int) -> str:
    if name == "within":
        return _exact(value, {"d": 86400, "h": 3600, "m": 60, "s": 1})
    if name == "space":
        return _exact(value, {"T": 1 << 40, "G": 1 << 30, "M": 1 << 20, "K": 1 << 10, "": 1})
    return str(value)


def _exact(value: int, units: dict[str, int]) -> str:
    """Spell a value with the largest unit that loses nothing."""
    unit = next(unit for unit, size in units.items() if (value % size == 0 and value >= size) or size == 1)
    return f"{value // units[unit]}{unit}"
