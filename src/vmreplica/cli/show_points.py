"""Points for people: what retention does with each, what was exported, how a mounted one is read."""

from collections.abc import Iterable

from rich.console import Group, RenderableType
from rich.text import Text

from vmreplica.cli.output import printable
from vmreplica.cli.show import clock_text, pairs_view
from vmreplica.cli.tables import make_table
from vmreplica.model.ids import PointId
from vmreplica.model.keep import describe_keep
from vmreplica.model.report import PointsReport
from vmreplica.model.taking import PointExportReport, PointMount
from vmreplica.model.units import format_size


def plan_view(report: PointsReport) -> RenderableType:
    """Show which points stay and which go, and why."""
    name = printable(report.name)
    if not report.points:
        return Text(f"{name}: no recovery point yet.")
    rules = "" if report.keep is None else f"{name} keeps {describe_keep(report.keep)} (--keep {report.keep}).\n"
    table = make_table(("point", "instant", "stored", "", "why"))
    for point in report.points:
        verdict = report.verdicts.get(point.point)
        if verdict is None:
            continue
        table.add_row(
            point.point,
            f"{point.instant.astimezone():%Y-%m-%d %H:%M:%S}",
            format_size(point.stored_bytes),
            Text("keep", style="green") if verdict.keep else Text("drop", style="yellow"),
            printable("; ".join([", ".join(verdict.reasons), *_fate(report, point.point)])),
        )
    drops = sum(not verdict.keep for verdict in report.verdicts.values())
    total = format_size(sum(point.stored_bytes for point in report.points))
    kept = len(report.verdicts) - drops
    end = f"\n{kept} stay, {drops} go; all together take {total}.{_chains(report)}"
    return Group(Text(rules), table, Text(end))


def _fate(report: PointsReport, point: PointId) -> list[str]:
    """Say what is done with the images of a point, or why they wait."""
    if report.merging is None:
        return []
    waits = report.merging.waiting.get(point)
    return [step.text for step in report.merging.steps if step.point == point] + ([waits] if waits else [])


def _chains(report: PointsReport) -> str:
    plan = report.merging
    if plan is None:
        return ""
    waiting = len(plan.waiting)
    wait = f" {waiting} of them wait until merging them writes less." if waiting else ""
    return f"{wait} The longest chain has {plan.chain_depth} of at most {plan.bound} images."


def export_view(report: PointExportReport, *, done: bool) -> RenderableType:
    """Show which files an export wrote, or would write."""
    lines = [_warning(text) for text in report.warnings]
    for disk in report.disks:
        size = f"disk of {format_size(disk.size)}, {'' if done else 'about '}{format_size(disk.file_bytes)} of it data"
        lines.append(Text(f"{printable(disk.path)}: {disk.target} ({report.format}, {size})"))
    name = printable(report.name)
    if not done:
        text = f"Nothing is written: this is what exporting point {report.point} of {name} would write."
    else:
        text = f"Point {report.point} of {name} is exported"
        text += ", and the same in the files." if report.checked else "; --check would have compared the files with it."
    return Group(*lines, Text(text))


def mount_view(mount: PointMount) -> RenderableType:
    """Show how a mounted point is read."""
    name = printable(mount.name)
    head = [_warning(text) for text in mount.warnings]
    head.append(Text(f"Point {mount.point} of {name} can be read on this host until {clock_text(mount.until)}:"))
    pairs = [(disk.target, f"{printable(disk.uri)} ({format_size(disk.size)})") for disk in mount.disks]
    return Group(*head, pairs_view(pairs), Text(""), *_how(mount))


def _how(mount: PointMount) -> Iterable[Text]:
    disk = mount.disks[0]
    name = printable(mount.name)
    yield Text("Look into it and take files out, read-only:")
    yield Text(f"  guestfish --ro --format=raw -a 'nbd:///{disk.target}?socket={printable(disk.socket)}' -i")
    yield Text(f"  nbdfuse DIRECTORY/{disk.target}.img '{printable(disk.uri)}'")
    yield Text(f"Until then no point below it is merged: vmreplica points unmount {name} {mount.point}")


def _warning(text: str) -> Text:
    return Text(f"! {printable(text)}", style="yellow")
