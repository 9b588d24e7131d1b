"""Sentences for people about failovers: plans, what was done, what was taken back. Pure but for the local time zone."""

from collections.abc import Mapping
from typing import Final

from rich.console import Group, RenderableType
from rich.text import Text

from vmreplica.cli.output import printable
from vmreplica.cli.show import clock_text
from vmreplica.model.report import (
    CancelReport,
    CommitReport,
    FailoverPlan,
    FailoverReport,
    PlanKind,
    StartedTest,
    TaskReport,
)
from vmreplica.model.units import format_duration, format_size

_TITLES: Final[Mapping[PlanKind, str]] = {
    "unplanned": "Unplanned failover of {vm} from point {point}",
    "test": "Test failover of {vm} from point {point}",
    "boot-test": "Boot test of {vm} from point {point}",
    "planned": "Planned failover of {vm}",
    "cancel": "Taking back the failover of {vm} from point {point}",
    "commit": "Committing the failover of {vm} from point {point}",
    "reverse": "Reversing the replication of {vm}",
}


def plan_view(plan: FailoverPlan) -> RenderableType:
    """Show what a verb of failover will do and lose, and what each side looks like afterwards."""
    lines = [Text(_TITLES[plan.kind].format(vm=printable(plan.name), point=plan.point), style="bold")]
    lines += [Text(f"  {number}. {printable(step.text)}") for number, step in enumerate(plan.steps, start=1)]
    if plan.after:
        lines += [Text("Afterwards:"), *(Text(f"  {printable(side)}") for side in plan.after)]
    lines.append(Text(loss_text(plan), style="yellow" if loses(plan) or plan.kind == "commit" else ""))
    return Group(*lines, *_warnings(plan))


def loses(plan: FailoverPlan) -> bool:
    """Tell whether anything is lost for good, as far as known."""
    return plan.loses_seconds > 0 or bool(plan.loses_bytes)


def loss_text(plan: FailoverPlan) -> str:
    """Say what a verb of failover loses."""
    name = printable(plan.name)
    if plan.kind in {"test", "boot-test"}:
        return f"Nothing is lost: {name} is replicated as before."
    if plan.kind == "commit":
        return f"Lost: the recovery points of {name} here, and the way back to them. What {name} wrote is kept."
    if not loses(plan):
        return "Nothing is lost."
    if plan.kind == "unplanned":
        return f"Lost: everything the guest wrote after {clock_text(plan.instant)} {_until_now(plan)}."
    span, size = format_duration(plan.loses_seconds), plan.loses_bytes
    since = f" since its failover, {span} ago" if plan.kind == "cancel" else f" in {span}"
    return f"Lost: everything {name} wrote{since}{'' if size is None else f' (at most {format_size(size)})'}."


def _until_now(plan: FailoverPlan) -> str:
    text = f"({format_duration(plan.loses_seconds)} until now)"
    if plan.newer_points:
        size = "" if plan.loses_bytes is None else f", with {format_size(plan.loses_bytes)},"
        text += (
            f", though {plan.newer_points} newer recovery point{'s' * (plan.newer_points > 1)}{size} would lose less"
        )
    return text


def failover_view(report: FailoverReport) -> RenderableType:
    """Show what a failover did."""
    plan = report.plan
    verb = "runs here" if report.started else "is defined here but not started"
    return Group(
        Text(
            f"{printable(plan.name)} {verb} from point {plan.point} after {report.seconds:.1f} s; "
            f"it is now {report.state}."
        ),
        Text(loss_text(plan), style="yellow"),
        *_warnings(plan),
    )


def moved_view(task: TaskReport, vm: str) -> RenderableType:
    """Show what a planned failover did, and how long each step took."""
    report = task.planned
    if report is None:
        return Text(f"{printable(vm)}: {printable(task.what)} is over; `vmreplica status` shows where it is.")
    plan, name = report.plan, printable(report.plan.name)
    way = "replication goes the other way already" if report.reversed else "replication will go the other way by itself"
    spent = ", ".join(f"{step.name} {step.seconds:.1f} s" for step in report.steps)
    lines = [Text(f"{name} runs on {report.runs_on} after {report.seconds:.1f} s; nothing is lost; {way}.")]
    if report.downtime is not None:
        lines.append(Text(f"  off for {report.downtime:.1f} s between its shutdown and its start"))
    return Group(*lines, Text(f"  {spent}"), *_warnings(plan))


def test_view(started: StartedTest) -> RenderableType:
    """Show what a test failover did."""
    test, name = started.test, printable(started.plan.name)
    place = f"plugged in to {printable(test.network)}" if test.network else "with all its network cables unplugged"
    until = f", until {clock_text(test.until)}" if test.until else ""
    return Group(
        Text(
            f"{printable(test.name)} runs here from point {test.point} after {started.seconds:.1f} s, {place}{until}."
        ),
        Text(f"  virsh console {printable(test.name)}   (look at it; replication of {name} goes on)"),
        Text(f"  vmreplica failover {name} --test --cancel   (remove it with every trace)"),
        *_warnings(started.plan),
    )


def commit_view(report: CommitReport) -> RenderableType:
    """Show what keeping a failover for good did."""
    name = printable(report.name)
    hint = f"  vmreplica reverse {name}   (protect it, with its old primary as the replica)"
    return Group(
        Text(f"{name} no longer stands on recovery points; {format_size(report.freed_bytes)} were given back."),
        *(Text(f"  it runs on {printable(image)}") for image in report.images),
        *(() if report.protected else (Text(hint),)),
    )


def cancel_view(report: CancelReport) -> RenderableType:
    """Show what was taken back."""
    if report.kind == "planned":
        return Text(f"{printable(report.name)}: the planned failover was taken back; it is now {report.state}.")
    gone = ", ".join(printable(name) for name in report.removed)
    what = "the failover was taken back" if report.kind == "unplanned" else "the test failovers were removed"
    return Text(f"{printable(report.name)}: {what}: {gone} gone from this host; it is now {report.state}.")


def _warnings(plan: FailoverPlan) -> list[Text]:
    notes = [Text("Other than on the primary:"), *(Text(f"  {printable(note)}") for note in plan.notes)]
    warnings = [Text(f"! {printable(warning)}", style="yellow") for warning in plan.warnings]
    return [*(notes if plan.notes else ()), *warnings]
