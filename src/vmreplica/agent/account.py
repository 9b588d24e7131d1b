"""How a run of a cycle went, in words: for the journal, and for who waits for its point. Pure but for the clock."""

import datetime as dt
from typing import Final

import structlog

from vmreplica.agent.decide import BASE_AWAITED, Capture
from vmreplica.agent.exporting import base_awaited
from vmreplica.agent.journal import Journal
from vmreplica.agent.meter import Meter
from vmreplica.agent.outcome import Earlier, Outcome
from vmreplica.agent.protect import differed, vm_off
from vmreplica.agent.relationship import Relationship
from vmreplica.agent.swap import OLD_PRIMARY_AWAY, old_primary_away
from vmreplica.model.errors import VmReplicaError
from vmreplica.model.events import EventSeverity
from vmreplica.model.point import PointKind, PointSummary
from vmreplica.model.report import CycleReport, Waiting
from vmreplica.model.units import format_duration, format_size

_log: Final = structlog.get_logger(__name__)

#: What ended a cycle without anything being wrong.
_INTERRUPTIONS: Final = frozenset({"cycle-stopped", "vm-started"})


def report_of(
    rel: Relationship, meter: Meter, outcome: Outcome, *, started: dt.datetime, seconds: float
) -> CycleReport | None:
    """Describe a run for the journal; a run that only found the VM off is no event."""
    published, step, error = outcome.published, outcome.step, outcome.error
    if error is None and published is None:
        return None
    wire = meter.wire_bytes() - sum(earlier.sent for earlier in outcome.earlier)
    stopped = error is not None and error.code in _INTERRUPTIONS
    kind = published.kind if published else (step.kind if step else _kind_expected(rel))
    return CycleReport(
        kind=kind,
        point=published.point if published else None,
        reason=_reason(rel, step, published),
        started=started,
        seconds=seconds,
        outcome="published" if error is None else ("cancelled" if stopped else "failed"),
        guest_bytes=outcome.guest_bytes,
        wire_bytes=wire,
        rate=wire / seconds if seconds > 0 else 0.0,
        waiting=Waiting(queue=rel.queued_seconds, limit=meter.held_seconds(), base=rel.base_seconds),
        error_code=error.code if error else None,
        error=error.message if error else None,
        hint=error.hint if error else "",
        quiescence=outcome.quiescence,
    )


def late_reports(outcome: Outcome) -> tuple[CycleReport, ...]:
    """Describe the runs whose points were published, and which could not tell of it themselves; oldest first."""
    return tuple(_late(earlier) for earlier in outcome.earlier)


def _late(earlier: Earlier) -> CycleReport:
    point = earlier.point
    seconds = max(0.0, (point.published - point.instant).total_seconds())
    return CycleReport(
        kind=point.kind,
        point=point.point,
        reason="continued",
        started=point.instant,
        seconds=seconds,
        outcome="published",
        guest_bytes=point.guest_bytes,
        wire_bytes=point.wire_bytes,
        rate=point.wire_bytes / seconds if seconds > 0 else 0.0,
    )


def keep_report(journal: Journal, rel: Relationship, report: CycleReport) -> None:
    """Log and journal a run; of a failure that repeats itself only the 1st, 2nd, 4th, 8th... time."""
    last = rel.last
    repeats = last is not None and report.outcome == "failed" and last.error_code == report.error_code
    if repeats and rel.failures & (rel.failures + 1):
        journal.totals.add(rel.vm, report)
        return
    journal.record(rel.vm, report)
    figures = report.model_dump(mode="json", exclude_none=True)
    failed = report.outcome == "failed"
    code = (report.error_code or "cycle-failed") if failed else f"cycle-{report.outcome}"
    severity: EventSeverity = "warning" if failed else "info"
    journal.event(rel.vm, "cycle", code, _told(report), name=rel.name, severity=severity, cycle=figures)
    _log.info("cycle", vm=rel.vm, name=rel.name, failures_in_a_row=rel.failures, **figures)


def _told(report: CycleReport) -> str:
    if report.outcome == "failed":
        return f"a cycle failed: {report.error}"
    if report.outcome == "cancelled":
        return f"a cycle was cancelled: {report.error}"
    sent = f"{format_size(report.wire_bytes)} for {format_size(report.guest_bytes)} of the guest"
    return f"point {report.point} ({report.kind}) sent: {sent}, in {format_duration(report.seconds)}"


def _kind_expected(rel: Relationship) -> PointKind:
    latest = rel.position.latest if rel.position is not None else None
    return "delta" if latest is not None and latest.bootable else "initial"


def _reason(rel: Relationship, step: Capture | None, published: PointSummary | None) -> str:
    if step is None:
        return "continued"
    latest = rel.position.latest if rel.position is not None else None
    seeded = published is not None and latest is not None and not latest.bootable
    return f"{step.reason} ({differed(published)})" if published is not None and seeded else step.reason


def waiting_error(rel: Relationship, outcome: Outcome) -> VmReplicaError | None:
    """Tell whoever waits for a point why there is none, when nothing failed."""
    if outcome.waits is None or outcome.published is not None:
        return None
    if outcome.waits == BASE_AWAITED:
        return base_awaited(rel.name)
    if outcome.waits == OLD_PRIMARY_AWAY:
        return old_primary_away(rel.name)
    return vm_off(rel.name, dt.datetime.now(dt.UTC))
