"""Points for people: what retention does with each, what was exported, how a mounted one is read."""

from collections.abc import Iterable
from typing import Final

from rich.console import Group, RenderableType
from rich.text import Text

from vmreplica.cli.output import printable
from vmreplica.cli.show import clock_text, pairs_view
from vmreplica.cli.tables import make_table
from vmreplica.model.keep import describe_keep
from vmreplica.model.merging import MergePlan
from vmreplica.model.report import PointsReport
from vmreplica.model.taking import PointExportReport, PointMount
from vmreplica.model.units import format_size

#: Steps of merging that are shown.
_STEPS: Final = 10


def plan_view(report: PointsReport) -> RenderableType:
    """Show which points stay and which go, and why."""
    name = printable(report.name)
    if not report.points:
        return Text(f"{name}: no recovery point yet.")
    rules = "" if report.keep is None else f"{name} keeps {describe_keep(report.keep)} (--keep {report.keep}).\n"
    waiting = report.merges.waiting if report.merges is not None else {}
    table = make_table(("point", "instant", "stored", "", "why", "until then"))
    for point in report.points:
        verdict = report.verdicts.get(point.point)
        if verdict is None:
            continue
        table.add_row(
            point.point,
            f"{point.instant.astimezone():%Y-%m-%d %H:%M:%S}",
            format_size(point.stored_bytes),
            Text("keep", style="green") if verdict.keep else Text("drop", style="yellow"),
            printable(", ".join(verdict.reasons)),
            printable(waiting.get(point.point, "")),
        )
    drops = sum(not verdict.keep for verdict in report.verdicts.values())
    total = format_size(sum(point.stored_bytes for point in report.points))
    kept = len(report.verdicts) - drops
    told = f"\n{kept} stay, {drops} go; all together take {total}."
    return Group(Text(rules), table, Text(told), *_merges(report.merges))


def _merges(plan: MergePlan | None) -> Iterable[Text]:
    """Say what merging does next, and how long the chains are."""
    if plan is None:
        return
    yield Text(f"The longest chain has {plan.chain_depth} images; more than {plan.bound} are merged.")
    for step in plan.steps[:_STEPS]:
        yield Text(f"  {step.point}: {printable(step.text)}")
    if len(plan.steps) > _STEPS:
        yield Text(f"  and {len(plan.steps) - _STEPS} more steps")


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
