"""Scrub: what is written down about it, when a point's turn is, and what a run came to."""

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pydantic import AwareDatetime, Field

from vmreplica.model.damage import Damage
from vmreplica.model.ids import DiskTarget, PointId, VmId
from vmreplica.model.point import Manifest
from vmreplica.model.shape import Shape

#: The part of the period after which a point's turn has come: the rest is left to get it done.
_TURN = 0.75
#: Findings that a report lists.
MAX_LISTED = 200


class Checked(Shape):
    """A point that was read and checked, as it was then."""

    at: AwareDatetime
    #: Of its manifest: with another one it has other files.
    digest: str


class ScrubRecord(Shape):
    """``scrub.json``: when what was read and checked."""

    points: dict[PointId, Checked] = Field(default_factory=dict)
    #: The last whole pass over the folded images, which go from point to point.
    base_at: AwareDatetime | None = None
    #: Where a pass over them goes on: the L2 table that is next.
    tables: dict[DiskTarget, int] = Field(default_factory=dict)


class ScrubReport(Shape):
    """What a scrub came to."""

    vm: VmId
    name: str
    points: tuple[PointId, ...]
    read_bytes: int
    seconds: float
    #: What is wrong, the first ones of it, and how many there are.
    damages: tuple[Damage, ...] = ()
    damaged: int = 0
    #: What was wrong and could be put right from what else is known.
    repaired: tuple[Damage, ...] = ()
    #: What could not be checked.
    remarks: tuple[str, ...] = ()
    newest_good: PointId | None = None


class ScrubState(Shape):
    """Scrub of a relationship, for status."""

    #: Seconds; None: switched off.
    period: int | None
    #: Since when the point that waits longest is unchecked.
    oldest: AwareDatetime | None
    #: Points that have damage of their own or read that of others.
    damaged: tuple[PointId, ...] = ()
    newest_good: PointId | None = None


@dataclass(frozen=True, slots=True)
class Turn:
    """A point and since when all in it was checked, or came."""

    point: PointId
    since: dt.datetime


def turns(manifests: Sequence[Manifest], record: ScrubRecord, made: Mapping[PointId, dt.datetime]) -> list[Turn]:
    """Tell since when each point is unchecked, the one that waits longest first.

    What a point brought was checked when it came. What was merged into it came after its parent. What was folded is
    checked by passes of its own.

    Args:
        manifests: of all points, oldest first.
        record: what was checked when.
        made: when the files of a point were made.
    """
    published = {manifest.point: manifest.published for manifest in manifests}
    found = []
    for manifest in manifests:
        known = record.points.get(manifest.point)
        if manifest.folded:
            since = record.base_at or manifest.published
        elif known is not None and known.digest == manifest.digest:
            since = known.at
        else:
            parent = published.get(manifest.parent) if manifest.parent is not None else None
            since = parent if manifest.merged and parent is not None else manifest.published
            if manifest.merged:
                # Merged just now of what is old: its turn is soon, and it is not overdue yet.
                since = max(since, made.get(manifest.point, since))
        found.append(Turn(manifest.point, since))
    return sorted(found, key=lambda turn: turn.since)


def is_due(turn: Turn, period: float, now: dt.datetime) -> bool:
    """Tell whether a point's turn has come.

    Args:
        turn: the point's.
        period: seconds within which each point is checked.
        now: aware time.
    """
    return (now - turn.since).total_seconds() >= _TURN * period
