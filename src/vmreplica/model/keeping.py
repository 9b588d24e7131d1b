"""Which points stay by the rules of retention, and why: the pure judgement that retention and ``points --plan`` share.

The newest point of each hour, day, week or month stands for it; as many of the newest periods count as the rule says,
those without any point do not count. Wall-clock time is that of the replica's host: "daily" means what a person there
calls a day, and the hour that is shown twice when summer time ends is two hours.
"""

import datetime as dt
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from vmreplica.model.ids import PointId
from vmreplica.model.keep import Keep
from vmreplica.model.point import PointKind
from vmreplica.model.shape import Shape
from vmreplica.model.units import format_duration, format_size


@dataclass(frozen=True, slots=True)
class PointFacts:
    """What retention knows of a point."""

    id: PointId
    #: Aware.
    instant: dt.datetime
    kind: PointKind
    #: Space of its files.
    stored_bytes: int
    #: Who has its files open and why.
    holds: tuple[str, ...] = ()
    #: Why it is pinned, once per pin.
    pins: tuple[str, ...] = ()

    @property
    def pinned(self) -> bool:
        """Whether a person wants it to stay whatever the rules say."""
        return bool(self.pins)


class Verdict(Shape):
    """Whether a point stays, and which rules say so, or take it away."""

    keep: bool
    reasons: tuple[str, ...]
    #: It stays for longer than until a few more points have come: a period that is over, a pin, a hold. Merging waits
    #: for such a point, for what it writes for another one is written again soon.
    lasting: bool = False
    #: For about how many seconds it will stay, while points go on coming as they did: the longer, the better a place to
    #: merge others into.
    lasts: float = 0.0


@dataclass(slots=True)
class _Tally:
    """What speaks for a point so far."""

    reasons: list[str] = field(default_factory=list)
    lasting: bool = False
    lasts: float = 0.0
    #: Space does not take it away.
    firm: bool = False
    #: Why it goes although rules want it.
    against: str = ""


#: Seconds that stand for no end.
_FOR_EVER: Final = 1e9
#: What a period of the calendar is, by rule: its name, about so many seconds, a key that sorts and is shown, from a
#: local time.
_PERIODS: Final[dict[str, tuple[str, float, Callable[[dt.datetime], str]]]] = {
    "hourly": ("hour", 3600.0, lambda local: f"{local:%Y-%m-%d %H:00}"),
    "daily": ("day", 86400.0, lambda local: f"{local:%Y-%m-%d}"),
    "weekly": ("week", 7 * 86400.0, lambda local: f"{local:%G-W%V}"),
    "monthly": ("month", 30 * 86400.0, lambda local: f"{local:%Y-%m}"),
}
_NO_RULE: Final = "no rule keeps it"
_SEED: Final = "a copy to begin with is no recovery point"


def judge_points(
    points: Sequence[PointFacts], keep: Keep, *, now: dt.datetime, zone: dt.tzinfo | None
) -> dict[PointId, Verdict]:
    """Say of each point whether it stays, and why.

    Args:
        points: of one replica, in any order.
        keep: the rules.
        now: an aware instant; where it is earlier than the newest point it counts for ``within``.
        zone: whose wall clock counts; None: this host's.

    Returns:
        A verdict for each. The newest stays always, so do pinned and held ones; a seed stays only until there is
        something newer.
    """
    ordered = sorted(points, key=lambda point: (point.instant, point.id))
    if not ordered:
        return {}
    tallies = {point.id: _Tally() for point in ordered}
    recovery = [point for point in reversed(ordered) if point.kind != "seed"]
    _stand_firm(tallies, ordered, recovery[0] if recovery else ordered[-1])
    _judge_recent(tallies, recovery, keep, now)
    for rule, count in keep.periods.items():
        _judge_periods(tallies, recovery, rule, count, zone)
    if keep.space is not None:
        _judge_space(tallies, ordered, keep.space)
    return {point.id: _verdict(tallies[point.id], point) for point in ordered}


def _stand_firm(tallies: dict[PointId, _Tally], points: Sequence[PointFacts], newest: PointFacts) -> None:
    _speak(tallies[newest.id], "newest", firm=True)
    for point in points:
        for reason in point.pins:
            _speak(tallies[point.id], f"pinned: {reason}", firm=True, lasting=True, lasts=_FOR_EVER)
        for reason in point.holds:
            _speak(tallies[point.id], f"held: {reason}", firm=True, lasting=True, lasts=_FOR_EVER)


def _judge_recent(
    tallies: dict[PointId, _Tally], newest_first: Sequence[PointFacts], keep: Keep, now: dt.datetime
) -> None:
    if keep.last is not None:
        spacing = _spacing(newest_first[: keep.last])
        for rank, point in enumerate(newest_first[: keep.last], 1):
            left = keep.last - rank + 1
            _speak(tallies[point.id], f"last {rank} of {keep.last}", lasts=left * spacing)
    if keep.within is not None and newest_first:
        # From the newest, not from now: when the primary is dead nothing newer comes, and what is there is needed.
        since = min(now, newest_first[0].instant) - dt.timedelta(seconds=keep.within)
        for point in newest_first:
            if point.instant >= since:
                lasts = (point.instant - since).total_seconds()
                _speak(tallies[point.id], f"within {format_duration(keep.within)}", lasts=lasts)


def _spacing(newest_first: Sequence[PointFacts]) -> float:
    """Tell how many seconds are between two points on average."""
    if not newest_first:
        return 0.0
    span = (newest_first[0].instant - newest_first[-1].instant).total_seconds()
    return span / max(1, len(newest_first) - 1)


def _judge_periods(
    tallies: dict[PointId, _Tally], newest_first: Sequence[PointFacts], rule: str, count: int, zone: dt.tzinfo | None
) -> None:
    if count == 0:
        return
    word, seconds, _key = _PERIODS[rule]
    for nth, (period, point) in enumerate(_newest_of_each(newest_first, rule, zone)):
        if nth == count:
            return
        # Of the period that is not over yet another point will be the newest.
        lasts = (count - nth) * seconds if nth else 0.0
        _speak(tallies[point.id], f"{word} {period}", lasting=nth > 0, lasts=lasts)


def _newest_of_each(
    newest_first: Sequence[PointFacts], rule: str, zone: dt.tzinfo | None
) -> Iterator[tuple[str, PointFacts]]:
    _word, _seconds, key = _PERIODS[rule]
    seen = None
    for point in newest_first:
        local = point.instant.astimezone(zone)
        period = (key(local), local.utcoffset() if rule == "hourly" else None)
        if period != seen:
            yield period[0], point
        seen = period


def _judge_space(tallies: dict[PointId, _Tally], oldest_first: Sequence[PointFacts], space: int) -> None:
    """Take the oldest away until the rest fits, as far as can be known before they are merged.

    The base stays whatever goes: the oldest of those that stay is merged into it. How much that adds shows then, and
    the next judgement goes by it.
    """
    kept = [point for point in oldest_first if tallies[point.id].reasons]
    total = oldest_first[0].stored_bytes + sum(point.stored_bytes for point in kept[1:])
    firm_before = None
    for at, point in enumerate(kept):
        if total <= space:
            return
        if tallies[point.id].firm:
            firm_before = firm_before or point
            continue
        tallies[point.id].against = f"space: more than {format_size(space)} with it"
        freed = point if firm_before else kept[at + 1] if at + 1 < len(kept) else point
        total -= freed.stored_bytes


def _speak(tally: _Tally, reason: str, *, firm: bool = False, lasting: bool = False, lasts: float = 0.0) -> None:
    tally.reasons.append(reason)
    tally.firm |= firm
    tally.lasting |= lasting
    tally.lasts = max(tally.lasts, lasts)


def _verdict(tally: _Tally, point: PointFacts) -> Verdict:
    if tally.against:
        return Verdict(keep=False, reasons=(tally.against,))
    if not tally.reasons:
        return Verdict(keep=False, reasons=(_SEED if point.kind == "seed" else _NO_RULE,))
    return Verdict(keep=True, reasons=tuple(tally.reasons), lasting=tally.lasting, lasts=tally.lasts)
