"""Sentences for people about boot tests. Pure but for the local time zone."""

from rich.console import Group, RenderableType
from rich.text import Text

from vmreplica.cli.output import printable
from vmreplica.model.boot import BootResult, BootSchedule, BootState
from vmreplica.model.report import BootReport
from vmreplica.model.units import format_duration


def boot_view(report: BootReport) -> RenderableType:
    """Show what a boot test came to."""
    name, result = printable(report.name), report.result
    lines = [
        Text(
            f"{name} {printable(result.sentence())}, from point {result.point}; its copy is gone.",
            style="green" if result.good else "bold red",
        )
    ]
    if result.told:
        lines.append(Text(f"  {printable(result.told)}"))
    if result.picture:
        lines.append(Text(f"  vmreplica boot-test {name} --picture {name}.png   (its screen)"))
    if not result.good:
        lines.append(Text(f"  vmreplica failover {name} --test --point {result.point}   (start one to look at)"))
    notes = [Text(f"  {printable(note)}") for note in report.notes]
    return Group(*lines, *([Text("Other than on the primary:"), *notes] if notes else ()))


def schedule_view(vm: str, boot: BootState | None) -> RenderableType:
    """Show when boot tests run."""
    if boot is None or boot.schedule is None:
        return Text(f"{printable(vm)}: no boot tests run by themselves.")
    due = f"; the next one {boot.due.astimezone():%Y-%m-%d %H:%M}" if boot.due is not None else ""
    return Text(f"{printable(vm)}: boot tests run {schedule_text(boot.schedule)}{due}.")


def schedule_text(schedule: BootSchedule) -> str:
    """Say in a few words when boot tests run, and what is waited for."""
    at = f" at {schedule.at}" if schedule.at else ""
    wish = schedule.wish
    place = f" on network {printable(wish.network)}" if wish.network else ""
    return (
        f"every {format_duration(schedule.every)}{at}{place}, "
        f"at most {format_duration(wish.limit)} for {printable(wish.sign.described())}"
    )


def verdict_text(result: BootResult | None) -> str:
    """Say in a word or two what came of a boot test, for a list of points."""
    if result is None:
        return ""
    return f"alive {result.seconds or 0.0:.0f}s" if result.good else result.verdict


def boot_pairs(boot: BootState | None) -> list[tuple[str, str | Text]]:
    """Show boot tests among a VM's details."""
    pairs: list[tuple[str, str | Text]] = []
    if boot is None:
        return pairs
    last = boot.last
    if last is not None:
        text = f"{last.started.astimezone():%Y-%m-%d %H:%M}: point {last.point} {printable(last.sentence())}"
        pairs.append(("boot test", Text(text, style="green" if last.good else "bold red")))
        if last.told:
            pairs.append(("", printable(last.told)))
    if boot.skipped is not None:
        pairs.append(("no boot test", f"{boot.skipped.at.astimezone():%Y-%m-%d %H:%M}: {printable(boot.skipped.why)}"))
    if boot.schedule is not None:
        due = f"; next {boot.due.astimezone():%Y-%m-%d %H:%M}" if boot.due is not None else ""
        pairs.append(("boot tests", f"{schedule_text(boot.schedule)}{due}"))
    return pairs
