"""Making a point out of an incoming one: all checks, tables, manifest, one rename."""

import datetime as dt
import os
from pathlib import Path
from typing import Final

from vmreplica.fsio import publish_bytes, publish_dir, require_free
from vmreplica.model.errors import BadRequest, Corrupt
from vmreplica.model.ids import PointId
from vmreplica.model.point import DiskClosing, DiskManifest, Manifest, PointClosing, PointOpening
from vmreplica.model.units import CLUSTER
from vmreplica.qcow2.layout import REFCOUNTS, l1_entries_of, table_clusters
from vmreplica.qcow2.tables import TablesResult, write_tables
from vmreplica.repository.chain import backed_disks, manifest_of
from vmreplica.repository.incoming import DiskCheck, Incoming, IncomingDisk
from vmreplica.repository.incoming_sums import remove_journals
from vmreplica.repository.layout import FILE_MODE, Layout, store_errors
from vmreplica.repository.machine import store_machine
from vmreplica.repository.manifests import write_manifest

_SLACK_CLUSTERS: Final = 4


def publish(
    layout: Layout,
    incoming: Incoming,
    closing: PointClosing,
    *,
    parent: Manifest | None,
    now: dt.datetime,
    min_free: int,
) -> Manifest:
    """Publish an incoming point whose disks are closed. May be repeated after any failure.

    Args:
        layout: of the replica.
        incoming: the point.
        closing: what the primary says it sent.
        parent: the published point it stands on.
        now: aware time.
        min_free: bytes to leave free.

    Raises:
        BadRequest: ``closing-differs``: the closing is not about the disks of the opening.
        Conflict: ``point-incomplete``.
        Corrupt: ``point-damaged``, ``machine-file-damaged``.
        NoSpace: the store is full.
    """
    opening = incoming.opening
    closings = {disk.target: disk for disk in closing.disks}
    if set(closings) != set(incoming.disks) or len(closing.disks) != len(closings):
        raise BadRequest("closing-differs", f"the closing of point {opening.point} names other disks than its opening")
    checks = {target: disk.check(closings[target]) for target, disk in incoming.disks.items()}
    below = backed_disks(parent, opening.disks) if parent else frozenset()
    for target, check in checks.items():
        if check.patches and target not in below:
            raise Corrupt(
                "point-damaged",
                f"point {opening.point} has patches of disk {target}, which has no copy here yet to stand on",
                hint="the point is thrown away; the next cycle makes a new one",
            )
    needed = sum(_table_bytes(incoming.disks[target], check) for target, check in checks.items())
    require_free(incoming.directory, min_free + needed, f"publishing point {opening.point}")
    disks = tuple(
        _finish(disk, closings[target], opening.parent if target in below else None, checks[target])
        for target, disk in incoming.disks.items()
    )
    wire = sum(check.wire_bytes for check in checks.values())
    manifest = manifest_of(opening, disks, guest_bytes=closing.guest_bytes, wire_bytes=wire, published=now)
    return _commit(layout, incoming.directory, opening, manifest)


def _table_bytes(disk: IncomingDisk, check: DiskCheck) -> int:
    extended = check.patches > 0
    clusters = check.l2_tables * (2 if extended else 1) + _SLACK_CLUSTERS
    clusters += table_clusters(l1_entries_of(disk.spec.size, extended=extended))
    clusters += (disk.image.stat().st_size // CLUSTER + clusters) // REFCOUNTS
    return clusters * CLUSTER


def _finish(disk: IncomingDisk, closing: DiskClosing, parent: PointId | None, check: DiskCheck) -> DiskManifest:
    """Build a disk's tables and give it its final name."""
    name = f"{disk.spec.target}.qcow2"
    backing = f"../{parent}/{name}" if parent is not None else None
    with store_errors(disk.image):
        fd = os.open(disk.image, os.O_RDWR | os.O_CLOEXEC)
        try:
            tables = _tables(fd, disk, closing, backing, patched=check.patches > 0)
        finally:
            os.close(fd)
        disk.image.rename(disk.image.with_name(name))
    return DiskManifest(
        target=disk.spec.target,
        size=disk.spec.size,
        file=name,
        file_bytes=tables.file_bytes,
        tables_digest=tables.digest,
        segments=closing.segments,
        proof=closing.proof,
        summed=True,
    )


def _tables(fd: int, disk: IncomingDisk, closing: DiskClosing, backing: str | None, *, patched: bool) -> TablesResult:
    size, data_end = disk.spec.size, closing.data_end
    try:
        return write_tables(fd, size=size, data_end=data_end, records=disk.records(), backing=backing, patched=patched)
    except OSError:
        os.ftruncate(fd, closing.data_end)  # gives back what the half of the tables took
        raise


def _commit(layout: Layout, directory: Path, opening: PointOpening, manifest: Manifest) -> Manifest:
    with store_errors(directory):
        publish_bytes(directory / "definition.xml", opening.definition.encode(), mode=FILE_MODE)
        store_machine(directory, opening.machine)
        written = write_manifest(directory / "manifest.json", manifest)
        (directory / "opening.json").unlink(missing_ok=True)
        remove_journals(directory)
        publish_dir(directory, layout.point(opening.point))
    return written
