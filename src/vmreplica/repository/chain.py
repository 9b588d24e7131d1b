"""Published points: reading their manifests, and the pure decision what retention does next."""

import datetime as dt
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

from vmreplica.model.errors import Corrupt
from vmreplica.model.ids import DiskTarget, PointId, VmId
from vmreplica.model.point import DiskManifest, DiskSpec, Manifest, PointOpening, PointSummary
from vmreplica.repository.layout import Layout, allocated_bytes, read_shape
from vmreplica.repository.manifests import read_manifest
from vmreplica.repository.record import FoldRecord, LandingRecord, MergeRecord


@dataclass(frozen=True, slots=True)
class Point:
    """A published point and the space its files take, in bytes."""

    manifest: Manifest
    stored_bytes: int
    #: False of a base that travels in an export: only its manifest is known.
    here: bool = True

    @property
    def id(self) -> PointId:
        """Its id; sorts by time."""
        return self.manifest.point

    def summary(self, holds: tuple[str, ...], waits_for: PointId | None = None) -> PointSummary:
        """Describe it for lists; ``waits_for`` is the base that it stands on and that is not here."""
        manifest = self.manifest
        return PointSummary(
            point=manifest.point,
            parent=manifest.parent,
            kind=manifest.kind,
            consistency=manifest.consistency,
            instant=manifest.instant,
            published=manifest.published,
            checkpoint=manifest.checkpoint,
            disks=tuple(DiskSpec(target=disk.target, size=disk.size) for disk in manifest.disks),
            guest_bytes=manifest.guest_bytes,
            wire_bytes=manifest.wire_bytes,
            stored_bytes=self.stored_bytes,
            holds=holds,
            waits_for=waits_for,
            quiesce_failure=manifest.quiesce_failure,
            proofs={disk.target: disk.proof for disk in manifest.disks if disk.proof is not None},
        )


def manifest_of(
    opening: PointOpening, disks: tuple[DiskManifest, ...], *, guest_bytes: int, wire_bytes: int, published: dt.datetime
) -> Manifest:
    """Say of a point for good what its primary said when it opened it, and what is here of it.

    Args:
        opening: of the point.
        disks: its images.
        guest_bytes: read from the guest.
        wire_bytes: that came.
        published: aware time.
    """
    return Manifest(
        vm=opening.vm,
        name=opening.name,
        point=opening.point,
        parent=opening.parent,
        kind=opening.kind,
        consistency=opening.consistency,
        instant=opening.instant,
        published=published,
        epoch=opening.epoch,
        checkpoint=opening.checkpoint,
        disks=disks,
        machine=tuple(file.entry for file in opening.machine),
        machine_remarks=opening.machine_remarks,
        quiesce_failure=opening.quiesce_failure,
        definition_sha256=hashlib.sha256(opening.definition.encode()).hexdigest(),
        guest_bytes=guest_bytes,
        wire_bytes=wire_bytes,
    )


def backed_disks(base: Manifest, disks: Sequence[DiskSpec | DiskManifest]) -> frozenset[DiskTarget]:
    """Tell which disks of a point stand on those of its parent.

    A disk that became smaller stands alone: what lay behind its new end must not come back when it grows again. Where
    points were merged in between, sizes do not tell that any more: the manifest does.
    """
    sizes = {disk.target: disk.size for disk in base.disks}
    fitting = (disk for disk in disks if disk.target in sizes and disk.size >= sizes[disk.target])
    return frozenset(disk.target for disk in fitting if not (isinstance(disk, DiskManifest) and disk.alone))


def waiting_points(points: Sequence[Point]) -> set[PointId]:
    """Tell which points stand on a base that is not here, itself included.

    Args:
        points: oldest first.
    """
    waiting = {point.id for point in points if not point.here}
    for point in points:
        if point.manifest.parent in waiting:
            waiting.add(point.id)
    return waiting


def load_points(layout: Layout, vm: VmId, awaited: Point | None = None) -> tuple[list[Point], list[str]]:
    """Read all published points, oldest first, and complaints about those that are not readable.

    A base that is awaited counts as one of them unless it has come.

    While a fold is past its commit, the older of its points is gone and the other one is readable at every step,
    though its manifest does not yet describe its files. So is a point whose base is being moved to a device, and one
    that others are merged into.
    """
    fold = read_shape(layout.fold, FoldRecord) if layout.fold.exists() else None
    switching = fold if fold is not None and fold.stage == "commit" else None
    landing = read_shape(layout.landing, LandingRecord) if layout.landing.exists() else None
    merge = read_shape(layout.merge, MergeRecord) if layout.merge.exists() else None
    changing = {record.point for record in (switching, landing, merge) if record}
    points: dict[PointId, Point] = {awaited.id: awaited} if awaited else {}
    complaints: list[str] = []
    for directory in sorted(path for path in layout.points.iterdir() if not path.name.startswith(".")):
        name = directory.name
        if switching and name == switching.base:
            continue
        try:
            point = load_point(layout, vm, name, settled=name not in changing)
        except Corrupt as error:
            complaints.append(error.message)
            continue
        parent = point.manifest.parent
        points.pop(point.id, None)
        if parent is None or parent in points or (switching and parent == switching.base):
            points[point.id] = point
        else:
            complaints.append(f"point {name} stands on point {parent}, which is not readable")
    return list(points.values()), complaints


def load_point(layout: Layout, vm: VmId, name: str, *, settled: bool = True) -> Point:
    """Read one point's manifest and check it against its files.

    Args:
        layout: of the replica.
        vm: whose point it must be.
        name: of its directory.
        settled: False while a fold changes its files.

    Raises:
        Corrupt: ``record-damaged`` or ``point-damaged``.
    """
    manifest = read_manifest(layout.points / name / "manifest.json")
    if (manifest.vm, manifest.point) != (vm, name):
        raise Corrupt("point-damaged", f"the manifest in {layout.points / name} is of another point")
    for disk in manifest.disks:
        image = layout.image(manifest.point, disk.target)
        if disk.file != image.name:
            raise Corrupt("point-damaged", f"the manifest of point {name} names the file {disk.file!r}")
        if not image.is_file() or (settled and image.stat().st_size != disk.file_bytes):
            raise Corrupt("point-damaged", f"{image} is missing or has not {disk.file_bytes} bytes")
    return measured(layout, Point(manifest, 0))


def measured(layout: Layout, point: Point) -> Point:
    """Measure the space of a point's images."""
    images = [layout.image(point.id, disk.target) for disk in point.manifest.disks]
    return replace(point, stored_bytes=sum(allocated_bytes(image) for image in images))
