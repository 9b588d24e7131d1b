"""Tables and sentences for people, from report shapes. Pure but for the local time zone."""

import datetime as dt
from collections.abc import Iterable
from typing import Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from vmreplica.cli.consistency import app_consistent_text, consistency_cell, consistency_notes, quiescence_text
from vmreplica.cli.limits import limit_text
from vmreplica.cli.output import printable
from vmreplica.cli.show_boot import boot_pairs, verdict_text
from vmreplica.cli.show_scrub import point_remark, scrub_pairs
from vmreplica.cli.show_verify import verified_cell, verified_pairs
from vmreplica.cli.tables import make_table as _table
from vmreplica.model.health import Level
from vmreplica.model.keep import describe_keep
from vmreplica.model.report import (
    CycleReport,
    FailoverTest,
    PeerReport,
    PeersReport,
    PeerTest,
    PointsReport,
    RelationshipReport,
    StatusReport,
)
from vmreplica.model.units import format_duration, format_size

_COLOURS: Final = {Level.NORMAL: "green", Level.WARNING: "yellow", Level.CRITICAL: "bold red"}
_STATUS_COLUMNS: Final = ("VM", "role", "peer", "state", "health", "newest point", "points", "last cycle", "next")

_POINT_COLUMNS: Final = (
    "point", "instant", "kind", "consistency", "disks", "guest", "sent", "stored", "boot test", "verified", "held by",
)  # fmt: skip


def status_view(report: StatusReport) -> RenderableType:
    """Show all relationships of a host, and below them what is wrong with them."""
    if not report.relationships:
        return Text(f"{report.host}: no VM is replicated from or to this host.\n  vmreplica enable VM --to PEER")
    table = _table(_STATUS_COLUMNS)
    for relation in report.relationships:
        table.add_row(*_status_row(relation, report.now))
    return Group(table, *_remarks(report.relationships))


def relation_view(report: StatusReport) -> RenderableType:
    """Show one VM's relationships in detail."""
    parts: list[RenderableType] = []
    for relation in report.relationships:
        parts += [pairs_view(_details(relation, report.now)), *_remarks((relation,)), Text("")]
    return Group(*parts[:-1])


def points_view(report: PointsReport) -> RenderableType:
    """Show recovery points, newest first."""
    if not report.points:
        return Text(f"{printable(report.name)}: no recovery point yet.")
    table = _table(_POINT_COLUMNS)
    for point in report.points:
        table.add_row(
            point.point,
            f"{point.instant.astimezone():%Y-%m-%d %H:%M:%S}",
            point.kind,
            consistency_cell(point),
            " ".join(disk.target for disk in point.disks),
            format_size(point.guest_bytes),
            format_size(point.wire_bytes),
            format_size(point.stored_bytes),
            verdict_text(point.boot_test),
            verified_cell(point.verified),
            point_remark(point),
        )
    return Group(table, *consistency_notes(report.points))


def peers_view(report: PeersReport) -> RenderableType:
    """Show paired hosts."""
    if not report.peers:
        return Text(
            "No host is paired with this one.\n  vmreplica peer invite (here), vmreplica peer join TOKEN (there)"
        )
    table = _table(("name", "addresses", "host id", "paired"))
    for peer in report.peers:
        table.add_row(peer.name, printable(", ".join(peer.addresses)), peer.host_id, clock_text(peer.paired))
    return table


def paired_view(peer: PeerReport) -> RenderableType:
    """Show a host that was just paired."""
    return Text(
        f"Paired with {peer.name} ({peer.host_id}) at {printable(', '.join(peer.addresses))}, in both directions.\n"
        f"  vmreplica peer test {peer.name}"
    )


def test_view(test: PeerTest) -> RenderableType:
    """Show what a connection test found."""
    pairs = [
        ("peer", test.name),
        ("host id", test.host_id),
        ("address", printable(test.address)),
        ("version", printable(test.version)),
        ("certificate until", clock_text(test.certificate_expires)),
        ("clock difference", f"{test.clock_difference_seconds:+.3f} s"),
        ("round trip", f"{test.round_trip_ms:.1f} ms"),
        ("throughput", f"{format_size(test.send_bytes_per_second)}/s"),
        ("free in its store", format_size(test.store_free_bytes)),
    ]
    findings = [Text(f"! {printable(finding)}", style="yellow") for finding in test.findings]
    return Group(pairs_view(pairs), *findings)


def cycle_text(vm: str, cycle: CycleReport) -> str:
    """Say in a line how a cycle went."""
    took = format_duration(cycle.seconds)
    if cycle.point is None:
        return f"{printable(vm)}: {cycle.outcome} ({cycle.kind}) after {took}"
    return (
        f"{printable(vm)}: point {cycle.point} {cycle.outcome} ({cycle.kind}): "
        f"{format_size(cycle.guest_bytes)} of the guest, {format_size(cycle.wire_bytes)} sent, {took}"
        f"{quiescence_text(cycle)}"
    )


def _status_row(relation: RelationshipReport, now: dt.datetime) -> tuple[str | Text, ...]:
    level = relation.health.level
    return (
        printable(relation.name),
        relation.role,
        _peer(relation),
        relation.state,
        Text(level, style=_COLOURS[level]),
        _age(relation),
        str(relation.points),
        _activity(relation),
        _due(relation, now),
    )


def _details(relation: RelationshipReport, now: dt.datetime) -> list[tuple[str, str | Text]]:
    level = relation.health.level
    cycle = relation.last_cycle
    pairs: list[tuple[str, str | Text]] = [
        ("VM", f"{printable(relation.name)} ({relation.vm})"),
        ("role", f"{relation.role}, with {_peer(relation)} ({relation.peer_id})"),
        ("state", relation.state),
        ("health", Text(level, style=_COLOURS[level])),
        ("interval", format_duration(relation.interval)),
        ("keeps", f"{describe_keep(relation.keep)} (--keep {relation.keep})"),
        ("newest point", relation.latest.point if relation.latest else "none"),
        ("its age", _age(relation)),
        ("points", str(relation.points)),
        ("epoch", str(relation.epoch)),
    ]
    if relation.role == "primary":
        pairs += [("next cycle", _due(relation, now)), ("rate limit", limit_text(relation))]
        pairs.append(("app-consistent", app_consistent_text(relation)))
    if relation.excluded:
        pairs.append(("not replicated", " ".join(relation.excluded)))
    if relation.stands_on:
        pairs.append(("stands on", _standing(relation)))
    pairs += [("boot test" if test.boot else "test failover", _test(test)) for test in relation.tests]
    pairs += [("mounted", f"point {mount.point} until {clock_text(mount.until)}") for mount in relation.mounts]
    pairs += verified_pairs(relation.verified)
    pairs += [*boot_pairs(relation.boot), *scrub_pairs(relation.scrub)]
    if relation.progress:
        pairs.append(("now", _activity(relation)))
    if cycle:
        pairs.append(("last cycle", f"{clock_text(cycle.started)}: {cycle_text(relation.name, cycle)}"))
    return pairs


def _standing(relation: RelationshipReport) -> str:
    """Say that a VM's disks are not on their own yet."""
    points = f"{relation.stands_on} recovery point{'s' * (relation.stands_on > 1)}"
    return f"{points} of before its failover (vmreplica commit {printable(relation.name)})"


def _test(test: FailoverTest) -> str:
    """Say in a line how a test stands."""
    life = {True: "runs", False: "is shut off", None: "is not told about by libvirt"}[test.running]
    place = f"on network {printable(test.network)}" if test.network else "unplugged"
    end = f", removed at {clock_text(test.until)}" if test.until else ""
    return f"{printable(test.name)} {life}, {place}, from point {test.point}{end}"


def _remarks(relations: Iterable[RelationshipReport]) -> list[Text]:
    remarks = []
    for relation in relations:
        for reason in relation.health.reasons:
            colour = _COLOURS[reason.level]
            remarks.append(Text(f"{printable(relation.name)}: {printable(reason.text)} ({reason.code})", style=colour))
            if reason.hint:
                remarks.append(Text(f"  {printable(reason.hint)}"))
    return remarks


def _peer(relation: RelationshipReport) -> str:
    return relation.peer or f"{relation.peer_id[:8]} (not paired)"


def _age(relation: RelationshipReport) -> str:
    if relation.point_age is None:
        return "none"
    return f"{format_duration(relation.point_age)} (of {format_duration(relation.interval)})"


def _activity(relation: RelationshipReport) -> str:
    if relation.progress:
        now = relation.progress
        share = f" {now.done_bytes * 100 // now.total_bytes}%" if now.total_bytes else ""
        left = "" if now.seconds_left is None else f", {format_duration(now.seconds_left)} left"
        return f"{printable(now.phase)}{share}, {format_size(now.rate)}/s{left}"
    cycle = relation.last_cycle
    if cycle is None:
        return ""
    if cycle.outcome != "published":
        return cycle.outcome
    return f"{format_size(cycle.wire_bytes)} in {format_duration(cycle.seconds)}"


def _due(relation: RelationshipReport, now: dt.datetime) -> str:
    if relation.begins_at is not None:
        return f"begins {relation.begins_at.astimezone():%Y-%m-%d %H:%M}"
    if relation.waits == "resync-queued":
        return "waiting for its turn to resynchronize"
    if relation.waits == "old-primary-away":
        return "waiting for its old primary"
    if relation.next_due is None:
        return ""
    wait = (relation.next_due - now).total_seconds()
    return f"in {format_duration(wait)}" if wait > 0 else "due"


def clock_text(instant: dt.datetime) -> str:
    """Say an instant in the time of this terminal."""
    return instant.astimezone().strftime("%Y-%m-%d %H:%M:%S %z")


def pairs_view(pairs: Iterable[tuple[str, str | Text]]) -> Table:
    """Show names with their values."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for key, value in pairs:
        table.add_row(key, value)
    return table
