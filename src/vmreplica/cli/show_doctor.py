"""A doctor's report for people. Pure."""

from typing import Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from vmreplica.cli.output import printable
from vmreplica.model.findings import Finding, Severity
from vmreplica.model.report import DoctorReport

_STYLES: Final = {
    Severity.OK: "green",
    Severity.INFO: "",
    Severity.WARNING: "yellow",
    Severity.PROBLEM: "bold red",
}


def doctor_view(report: DoctorReport) -> RenderableType:
    """Show all findings by group, then, where the eye rests, what has to be done, problems last."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("group", "", "looked at", "found"):
        table.add_column(column, overflow="fold", no_wrap=column in {"group", ""})
    group = ""
    for finding in report.findings:
        style = _STYLES[finding.severity]
        shown = "" if finding.group == group else finding.group
        group = finding.group
        table.add_row(shown, Text(finding.severity, style=style), printable(finding.subject), printable(finding.text))
    return Group(table, Text(""), *_acts(report), _verdict(report))


def _acts(report: DoctorReport) -> list[Text]:
    lines = []
    for severity in (Severity.WARNING, Severity.PROBLEM):
        for finding in report.findings:
            if finding.severity is severity:
                lines += _act(finding)
    return lines


def _act(finding: Finding) -> list[Text]:
    style = _STYLES[finding.severity]
    text = f"{finding.severity}: {finding.subject}: {finding.text} ({finding.code})"
    remedy = [Text(f"  {printable(finding.remedy)}")] if finding.remedy else []
    return [Text(printable(text), style=style), *remedy]


def _verdict(report: DoctorReport) -> Text:
    counts = dict.fromkeys(Severity, 0)
    for finding in report.findings:
        counts[finding.severity] += 1
    what = printable(report.vm or report.host or "this host")
    told = ", ".join(f"{counts[severity]} {severity}" for severity in reversed(Severity) if counts[severity])
    return Text(f"{what}: {told}; looked for {report.seconds:.1f} s.", style=_STYLES[report.worst])
