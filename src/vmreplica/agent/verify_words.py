"""What verifications come to, in words: for the journal, for health, and for who asked. Pure."""

import datetime as dt
from typing import Any, Final, NamedTuple

from vmreplica.model.errors import Conflict, VmReplicaError
from vmreplica.model.events import EventSeverity
from vmreplica.model.point import Position
from vmreplica.model.proof import VerifyFacts
from vmreplica.model.units import format_duration, format_size
from vmreplica.model.verified import DiskVerdict, Verdict, Verified, VerifyReport

_SEVERITIES: Final[dict[Verdict, EventSeverity]] = {
    "equal": "info",
    "repaired": "warning",
    "unproven": "warning",
    "wrong": "critical",
}


class VerifyEvent(NamedTuple):
    """An event for the journal."""

    code: str
    text: str
    severity: EventSeverity
    details: dict[str, Any]


def event_of(report: VerifyReport | None, error: VmReplicaError | None) -> VerifyEvent:
    """Say what a verification came to, or why it came to nothing."""
    if report is None or (error is not None and report.verified.verdict == "equal"):
        why, hint = (error.message, error.hint) if error else ("", "")
        return VerifyEvent(
            error.code if error else "verify-failed", f"verification failed: {why}", "warning", {"hint": hint}
        )
    verified = report.verified
    details: dict[str, Any] = {
        "point": verified.point,
        "seconds": round(report.seconds, 1),
        "read_bytes": sum(disk.read_bytes for disk in verified.disks),
        "wrong_bytes": sum(disk.wrong_bytes for disk in verified.disks),
    }
    text = f"point {verified.point}: {verdict_text(verified)}"
    if report.repaired is not None:
        details |= {"repaired_by": report.repaired.point, "repair_wire_bytes": report.repair_wire_bytes}
        text += f"; point {report.repaired.point}: {verdict_text(report.repaired)}"
    elif error is not None:
        text += f"; it was not repaired: {error.message}"
    last = report.repaired or verified
    return VerifyEvent(f"verified-{last.verdict}", text, _SEVERITIES[last.verdict], details)


def verdict_text(verified: Verified) -> str:
    """Say in a sentence what was found."""
    if verified.verdict == "wrong":
        return "; ".join(_wrong(disk) for disk in verified.disks if disk.verdict == "wrong")
    if verified.verdict == "unproven":
        told = [f"disk {disk.target}: {disk.why}" for disk in verified.disks if disk.verdict == "unproven"]
        return f"it cannot be proven: {'; '.join(told) or 'it has no disk'}"
    if verified.verdict == "repaired":
        return "what was wrong was brought again and is right"
    return f"its disks are what those of the VM were, {format_size(sum(d.read_bytes for d in verified.disks))} read"


def _wrong(disk: DiskVerdict) -> str:
    if not disk.wrong:
        return f"disk {disk.target} is not what that of the VM was: {disk.why}"
    first = disk.wrong[0]
    more = f" and {len(disk.wrong) - 1} more places" if len(disk.wrong) > 1 else ""
    where = f"from byte {first.offset} on for {first.length} bytes{more}"
    return f"disk {disk.target} is not what that of the VM was: {format_size(disk.wrong_bytes)}, {where}"


def no_fingerprint(name: str) -> str:
    """Say why nothing can be said of a disk."""
    return (
        "this host has no sound fingerprint of it at this point, and the point carries no sum; newer points carry one: "
        f"vmreplica sync {name}, then verify, or compare with the VM's own disk now: vmreplica verify {name} --repair"
    )


def repair_failed(name: str, why: str) -> Conflict:
    """Say why nothing was repaired."""
    return Conflict(
        "repair-not-possible",
        f"{name} cannot be repaired: {why}",
        hint=f"vmreplica verify {name} --repair repairs the newest point; older points stay as they are until they go",
    )


def verify_facts(position: Position | None, now: dt.datetime) -> VerifyFacts | None:
    """Tell health what comparing points came to; None: none was, and the newest is not known to be wrong."""
    latest, last = (position.latest, position.verified) if position is not None else (None, None)
    age = max(0.0, (now - last.when).total_seconds()) if last is not None else 0.0
    if latest is not None and latest.verified is not None and latest.verified.verdict == "wrong":
        text = f"point {latest.point}, verified {format_duration(age)} ago: {verdict_text(latest.verified)}"
        return VerifyFacts(age=age, same=False, text=text)
    if latest is not None and latest.damaged:
        return VerifyFacts(age=age, same=False, text=f"point {latest.point}: {latest.damaged[0]}")
    return VerifyFacts(age=age, same=True) if last is not None else None
