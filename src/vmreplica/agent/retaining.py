"""The rules of retention that a person asks for, as far as the primary can judge them."""

import datetime as dt

from vmreplica.model.errors import BadRequest, Conflict
from vmreplica.model.keep import DEFAULT_KEEP, Keep, require_few
from vmreplica.model.keeping import PointFacts, judge_points
from vmreplica.model.point import PointSummary
from vmreplica.model.report import PointsReport


def wanted_keep(asked: Keep | None, known: Keep | None, interval: int) -> Keep:
    """Tell which rules are in force from now on.

    Args:
        asked: by a person; None: nothing was said, so they stay as they are.
        known: the rules so far, of the policy or of a copy that the replica still holds.
        interval: seconds between cycles from now on.

    Raises:
        BadRequest: ``keep-invalid``: they would keep too many points at this interval.
    """
    keep = asked or known or DEFAULT_KEEP
    try:
        require_few(keep, interval)
    except ValueError as error:
        raise BadRequest("keep-invalid", str(error), hint="for example --keep within=1h,hourly=24,daily=7") from error
    return keep


def require_kept(held: PointsReport | None, keep: Keep, now: dt.datetime) -> None:
    """Refuse rules that take recovery points away which the present ones keep.

    Args:
        held: what the replica has, and what the present rules say of each point; None: nothing.
        keep: the other rules.
        now: aware.

    Raises:
        Conflict: ``points-would-go``: a person has to agree.
    """
    lost = points_lost(held, keep, now) if held is not None else []
    if held is None or not lost:
        return
    oldest = f"{lost[-1].instant.astimezone():%Y-%m-%d %H:%M}"
    raise Conflict(
        "points-would-go",
        f"by these rules {len(lost)} of {len(held.points)} recovery points of {held.name} go, the oldest of {oldest}; "
        "they cannot be had back",
        hint=f"`vmreplica points {held.name}` lists them; --keep with rules that keep them, or --yes",
    )


def points_lost(held: PointsReport, keep: Keep, now: dt.datetime) -> list[PointSummary]:
    """Tell which points other rules would take away, newest first. Pure but for this host's time zone."""
    facts = [
        PointFacts(point.point, point.instant, point.kind, point.stored_bytes, holds=point.holds)
        for point in held.points
    ]
    wanted = judge_points(facts, keep, now=now, zone=None)
    return [
        point
        for point in held.points
        if not wanted[point.point].keep
        and (point.point not in held.verdicts or held.verdicts[point.point].keep)
        and point.kind != "seed"
    ]
