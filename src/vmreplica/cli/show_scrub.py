"""Sentences for people about scrub and damage. Pure but for the local time zone."""

import datetime as dt

from rich.console import Group, RenderableType
from rich.text import Text

from vmreplica.cli.output import printable
from vmreplica.model.damage import Damage
from vmreplica.model.point import PointSummary
from vmreplica.model.scrubbing import ScrubReport, ScrubState
from vmreplica.model.units import format_duration, format_size

_SHOWN = 20


def scrub_view(report: ScrubReport) -> RenderableType:
    """Show what a scrub came to."""
    name = printable(report.name)
    points = f"{len(report.points)} point{'s' if len(report.points) != 1 else ''}"
    read = f"{points}, {format_size(report.read_bytes)} read in {format_duration(report.seconds)}"
    lines = [Text(f"{name}: nothing is wrong ({read}).", style="green")]
    if report.damaged:
        lines = [Text(f"{name}: {report.damaged} stretches are damaged ({read}).", style="bold red")]
        lines += [Text(f"  {_line(damage)}") for damage in report.damages[:_SHOWN]]
        good = report.newest_good
        lines.append(Text(f"The newest good point is {good}." if good else "No point is good.", style="yellow"))
        lines.append(Text("The primary brings again what the newest point lacks: vmreplica status shows it."))
    lines += [Text(f"put right: {_line(damage)}", style="yellow") for damage in report.repaired[:_SHOWN]]
    lines += [Text(f"not checked: {printable(remark)}") for remark in report.remarks[:_SHOWN]]
    return Group(*lines)


def scrub_pairs(scrub: ScrubState | None) -> list[tuple[str, str]]:
    """Say in status how scrub stands."""
    if scrub is None:
        return []
    if scrub.period is None or scrub.oldest is None:
        told = "off"
    else:
        told = f"all within {format_duration(scrub.period)}; checked up to {_time(scrub.oldest)}"
    if scrub.damaged:
        good = f"the newest good one is {scrub.newest_good}" if scrub.newest_good else "none is good"
        told += f"; {len(scrub.damaged)} damaged points, {good}"
    return [("scrub", told)]


def point_remark(point: PointSummary) -> str:
    """Say in a list what there is to know of a point before it is used."""
    if point.damaged:
        return f"DAMAGED: {printable(point.damaged[0])}"
    return "waits for its base" if point.waits_for else printable(", ".join(point.holds))


def _line(damage: Damage) -> str:
    where = f"point {damage.point}"
    if damage.disk is not None:
        where += f", disk {damage.disk}"
        if damage.length:
            where += f", bytes {damage.guest_offset} to {damage.guest_offset + damage.length}"
    return printable(f"{where}: {damage.what} in {damage.file}: {damage.text}")


def _time(instant: dt.datetime) -> str:
    return f"{instant.astimezone():%Y-%m-%d %H:%M}"
