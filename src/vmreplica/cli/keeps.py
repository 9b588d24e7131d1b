"""The option that says which recovery points are kept."""

import datetime as dt
from typing import TYPE_CHECKING, Annotated

import typer

from vmreplica.cli.client import AgentClient, vm_path
from vmreplica.cli.output import confirm, read_report

if TYPE_CHECKING:
    from vmreplica.model.keep import Keep
    from vmreplica.model.point import PointSummary
    from vmreplica.model.report import PointsReport

KeepOption = Annotated[
    str | None,
    typer.Option(
        "--keep",
        metavar="RULES",
        help="Which recovery points are kept: 24 (so many of the newest), or any of last=, within=, hourly=, daily=, "
        "weekly=, monthly= and space= with commas between, as within=1h,hourly=24,daily=7,space=100G. Not given: as "
        "before, at first within=1h,hourly=24,daily=7.",
    ),
]


def read_keep(text: str | None) -> "Keep | None":
    """Read rules as typed; None when there are none.

    Raises:
        BadRequest: ``keep-invalid``.
    """
    from vmreplica.model.errors import BadRequest  # noqa: PLC0415 - slow to import
    from vmreplica.model.keep import parse_keep  # noqa: PLC0415 - slow to import

    if text is None:
        return None
    try:
        return parse_keep(text)
    except ValueError as error:
        raise BadRequest(
            "keep-invalid", f"--keep: {error}", hint="--keep 24, --keep within=1h,hourly=24,daily=7"
        ) from error


def confirm_fewer(client: AgentClient, vm: str, keep: "Keep | None", *, yes: bool, as_json: bool) -> None:
    """Ask before other rules take recovery points away that the present ones keep; a new VM has none.

    Raises:
        BadRequest: there is nobody to ask.
        Refused: the answer is no.
    """
    from vmreplica.model.errors import VmReplicaError  # noqa: PLC0415 - slow to import
    from vmreplica.model.report import PointsReport  # noqa: PLC0415 - slow to import

    if keep is None or yes:
        return
    try:
        report = read_report(PointsReport, client.get(vm_path(vm, "points")))
    except VmReplicaError:
        return  # not protected yet; or its replica is silent, and then no rules will be changed either
    lost = points_lost(report, keep, dt.datetime.now(dt.UTC))
    if lost:
        oldest = f"{lost[-1].instant.astimezone():%Y-%m-%d %H:%M}"
        what = f"By these rules {len(lost)} of {len(report.points)} recovery points of {vm} go, the oldest of {oldest}"
        confirm(f"{what}. They cannot be had back. Go on?", yes=False, as_json=as_json)


def points_lost(report: "PointsReport", keep: "Keep", now: dt.datetime) -> "list[PointSummary]":
    """Tell which points other rules would take away, newest first. Pure but for this host's wall clock.

    Args:
        report: what the present rules say of each point.
        keep: the other rules.
        now: aware.
    """
    from vmreplica.model.keeping import PointFacts, judge_points  # noqa: PLC0415 - slow to import

    facts = [
        PointFacts(point.point, point.instant, point.kind, point.stored_bytes, holds=point.holds)
        for point in report.points
    ]
    wanted = judge_points(facts, keep, now=now, zone=None)
    return [
        point
        for point in report.points
        if not wanted[point.point].keep
        and (point.point not in report.verdicts or report.verdicts[point.point].keep)
        and point.kind != "seed"
    ]
