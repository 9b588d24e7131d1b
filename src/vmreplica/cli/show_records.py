"""How runs, events and tests of health messages look to people."""

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from vmreplica.cli.output import printable
from vmreplica.cli.tables import make_table
from vmreplica.model.events import JournalEvent
from vmreplica.model.report import CycleReport, HistoryReport
from vmreplica.model.telling import HealthTestReport
from vmreplica.model.units import format_duration, format_size

_STYLES = {"info": "", "warning": "yellow", "critical": "bold red"}
#: Seconds of waiting that are worth showing.
_WORTH = 1.0


def history_view(report: HistoryReport) -> RenderableType:
    """Show the last runs, and what else happened, each newest first."""
    parts: list[RenderableType] = []
    runs = sorted((*report.cycles, *report.received), key=lambda run: run.started, reverse=True)
    if runs:
        parts.append(_runs(runs))
    if report.events:
        table = make_table(("when", "what", "code", "text"))
        for event in report.events:
            code = Text(printable(event.code), style=_STYLES[event.severity])
            table.add_row(f"{event.at.astimezone():%Y-%m-%d %H:%M:%S}", event.kind, code, printable(event.text))
        parts += [Text(), table] if parts else [table]
    return Group(*parts) if parts else Text(f"{printable(report.vm)}: no cycle has run yet, nothing is known.")


def _runs(runs: Sequence[CycleReport]) -> RenderableType:
    head = ("started", "kind", "why", "outcome", "time", "guest", "sent", "rate", "waited", "point or error")
    table = make_table(head)
    for run in runs:
        outcome = Text(run.outcome, style="green" if run.outcome == "published" else "yellow")
        table.add_row(
            f"{run.started.astimezone():%Y-%m-%d %H:%M:%S}",
            run.kind,
            printable(run.reason),
            outcome,
            format_duration(run.seconds),
            format_size(run.guest_bytes),
            format_size(run.wire_bytes),
            f"{format_size(run.rate)}/s" if run.rate else "",
            ", ".join(f"{what} {format_duration(seconds)}" for what, seconds in run.waiting if seconds >= _WORTH),
            printable(run.error or run.point or ""),
        )
    return table


def event_text(event: JournalEvent) -> str:
    """Spell an event in one line."""
    about = event.name or event.vm or "this host"
    urgency = "" if event.severity == "info" else f" {event.severity.upper()}"
    line = f"{event.at.astimezone():%Y-%m-%d %H:%M:%S} {about}: [{event.kind}]{urgency} {event.text} ({event.code})"
    return printable(line).replace("\n", " ")


def test_view(report: HealthTestReport) -> RenderableType:
    """Show who was told and how that went."""
    lines = []
    for what, result in (("hook", report.hook), ("webhook", report.webhook)):
        if result is None:
            lines.append(f"{what}: none is configured")
        else:
            verdict = "told" if result.ok else f"FAILED, {result.text}"
            lines.append(f"{what} {result.to}: {verdict} ({result.seconds:.1f} s)")
    return Text(printable("\n".join(lines)))
