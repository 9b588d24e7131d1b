"""Merging images of points into one, and giving a point another parent: all its disks, in steps that survive a crash.

``merge.json`` says where it stands (docs/design/retention.md). While the new images are written into ``merging/`` of
the point's directory its stage is ``prepare``: nothing that counts has changed, a crash or an error undoes it. From
``commit`` on it is rolled forward, and each step may be repeated:

1. each new image takes the place of the old one, its index and its sums before it; both read the same, over what each
   stands on, so it does not matter which disks have been switched;
2. the manifest names the new parent and describes the new files;
3. ``merging/`` and ``merge.json`` go.

What the point stood on before is not touched. A point that only gets another parent has nothing to prepare: its new
headers are in ``merge.json``.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from vmreplica.fsio import fsync_dir, remove_tree, require_free
from vmreplica.model.ids import DiskTarget, PointId
from vmreplica.model.point import DiskManifest, Manifest
from vmreplica.model.units import MiB
from vmreplica.qcow2.fold import switch
from vmreplica.qcow2.merge import ImageFiles, merge_images, stands_alone
from vmreplica.qcow2.reparent import reparented
from vmreplica.repository.folding import Guidance, StepHook, require_right_tables
from vmreplica.repository.layout import Layout, allocated_bytes, make_dir, read_shape, store_errors, write_shape
from vmreplica.repository.manifests import read_manifest, write_manifest
from vmreplica.repository.record import MergeDisk, MergeRecord

_SLACK: Final = 4 * MiB


def rebase(layout: Layout, point: Manifest, onto: PointId, past: Sequence[PointId], guide: Guidance) -> Manifest:
    """Let a point stand on an earlier one, by merging the images in between into its own.

    Args:
        layout: of the replica.
        point: the point.
        onto: what the oldest of ``past`` stands on.
        past: the points in between, oldest first, each standing on the one before; they stay as they are.
        guide: when to stop and how fast to go.

    Returns:
        The new manifest of the point.

    Raises:
        FoldStopped: nothing has changed.
        NoSpace: nothing has changed.
        Corrupt: an image or index is damaged; nothing has changed.
    """
    record = MergeRecord(point=point.point, onto=onto, stage="prepare")
    _require_room(layout, point, past)
    write_shape(layout.merge, record)
    try:
        with store_errors(layout.merging(point.point)):
            disks, alone = _prepare(layout, point, onto, past, guide)
        record = record.model_copy(update={"stage": "commit", "disks": disks, "alone": alone})
        guide.before("merge commit")
        guide.require_good([*past, point.point])
        write_shape(layout.merge, record)
    except Exception:
        _undo(layout, record)
        raise
    return _roll_forward(layout, record, guide.before)


def reparent(layout: Layout, point: Manifest, onto: PointId, guide: Guidance) -> Manifest:
    """Let a point stand on a later one than before: what its images say covers what that one says.

    Args:
        layout: of the replica.
        point: the point.
        onto: stands, directly or not, on what the point stands on, and is older than the point.
        guide: observer of steps.

    Returns:
        The new manifest of the point.

    Raises:
        NoSpace: nothing has changed.
        Corrupt: an image or index is damaged; nothing has changed.
    """
    disks, lone = [], []
    with store_errors(layout.point(point.point)):
        for disk in point.disks:
            image = layout.image(point.point, disk.target)
            if stands_alone(image):
                lone.append(disk.target)
                continue
            require_right_tables(layout, point.point, disk)
            new = reparented(image, layout.index(point.point, disk.target), _backing(onto, disk.target))
            disks.append(
                MergeDisk(
                    target=disk.target,
                    file_bytes=image.stat().st_size,
                    digest=new.tables_digest,
                    header=new.header.hex(),
                )
            )
    record = MergeRecord(point=point.point, onto=onto, stage="commit", disks=tuple(disks), alone=tuple(lone))
    guide.before("reparent")
    write_shape(layout.merge, record)
    return _roll_forward(layout, record, guide.before)


def recover_merge(layout: Layout) -> bool:
    """Finish or undo a merge that was interrupted; tells whether there was one.

    Raises:
        VmReplicaError: it cannot be done now; it may be tried again.
    """
    if not layout.merge.exists():
        return False
    record = read_shape(layout.merge, MergeRecord)
    if record.stage == "prepare":
        _undo(layout, record)
    else:
        _roll_forward(layout, record, lambda _step: None)
    return True


def _backing(onto: PointId, target: DiskTarget) -> str:
    return f"../{onto}/{target}.qcow2"


def _require_room(layout: Layout, point: Manifest, past: Sequence[PointId]) -> None:
    needed = _SLACK * len(point.disks)
    for each in (*past, point.point):
        for disk in point.disks:
            image = layout.image(each, disk.target)
            needed += allocated_bytes(image) if image.exists() else 0
    require_free(layout.root, needed, f"merging {len(past)} points into {point.point}")


def _prepare(
    layout: Layout, point: Manifest, onto: PointId, past: Sequence[PointId], guide: Guidance
) -> tuple[tuple[MergeDisk, ...], tuple[DiskTarget, ...]]:
    building = layout.merging(point.point)
    remove_tree(building)
    make_dir(building)
    disks, lone = [], []
    for disk in point.disks:
        sources, alone = _sources(layout, disk.target, [*past, point.point])
        if alone:
            lone.append(disk.target)
        if len(sources) == 1:
            continue  # it stands alone: nothing below it concerns it
        guide.before(f"merge {disk.target}")
        merged = merge_images(
            sources,
            _new_files(layout, point.point, disk.target),
            point=point.point,
            target=disk.target,
            size=disk.size,
            backing=None if alone else _backing(onto, disk.target),
            check=guide.check,
            pace=guide.pace,
        )
        disks.append(
            MergeDisk(
                target=disk.target,
                file_bytes=merged.file_bytes,
                digest=merged.tables_digest,
                summed=merged.summed,
                segments=merged.segments,
                sums=_new_files(layout, point.point, disk.target).sums.exists(),
            )
        )
    fsync_dir(building)
    fsync_dir(building.parent)
    return tuple(disks), tuple(lone)


def _sources(layout: Layout, target: DiskTarget, points: Sequence[PointId]) -> tuple[list[ImageFiles], bool]:
    """List the images of a disk that are merged, oldest first, and tell whether the first of them stands alone."""
    found: list[ImageFiles] = []
    for point in reversed(points):
        image = layout.image(point, target)
        found.insert(0, ImageFiles(image, layout.index(point, target), layout.sums(point, target)))
        if stands_alone(image):
            return found, True
    return found, False


def _new_files(layout: Layout, point: PointId, target: DiskTarget) -> ImageFiles:
    building = layout.merging(point)
    return ImageFiles(*(building / f"{target}.{kind}" for kind in ("qcow2", "index", "sums")))


def _undo(layout: Layout, record: MergeRecord) -> None:
    with store_errors(layout.merge):
        remove_tree(layout.merging(record.point))
        layout.merge.unlink()
        fsync_dir(layout.root)


def _roll_forward(layout: Layout, record: MergeRecord, before: StepHook) -> Manifest:
    with store_errors(layout.merge):
        for disk in record.disks:
            before(f"place {disk.target}")
            if disk.header is not None:
                switch(layout.image(record.point, disk.target), bytes.fromhex(disk.header))
            else:
                _place(layout, record.point, disk, before)
        fsync_dir(layout.point(record.point))
        before("merge manifest")
        manifest = write_manifest(layout.manifest(record.point), _described(layout, record))
        before("merge end")
        remove_tree(layout.merging(record.point))
        layout.merge.unlink(missing_ok=True)
        fsync_dir(layout.root)
    return manifest


def _place(layout: Layout, point: PointId, disk: MergeDisk, before: StepHook) -> None:
    """Let the new files of a disk take the names of the old ones, as far as that was not done before a crash."""
    new = _new_files(layout, point, disk.target)
    _rename(new.index, layout.index(point, disk.target))
    if disk.sums:
        _rename(new.sums, layout.sums(point, disk.target))
    else:
        layout.sums(point, disk.target).unlink(missing_ok=True)
    before(f"switch image {disk.target}")
    _rename(new.image, layout.image(point, disk.target))


def _rename(new: Path, old: Path) -> None:
    if new.exists():
        new.replace(old)


def _described(layout: Layout, record: MergeRecord) -> Manifest:
    manifest = read_manifest(layout.manifest(record.point))
    changed = {disk.target: disk for disk in record.disks}
    disks = tuple(
        _changed(disk, changed.get(disk.target), alone=disk.target in record.alone) for disk in manifest.disks
    )
    merged = manifest.merged or any(disk.header is None for disk in record.disks)
    return manifest.model_copy(update={"parent": record.onto, "merged": merged, "disks": disks})


def _changed(disk: DiskManifest, new: MergeDisk | None, *, alone: bool) -> DiskManifest:
    changes: dict[str, object] = {"alone": alone}
    if new is not None:
        changes |= {"file_bytes": new.file_bytes, "tables_digest": new.digest}
        if new.header is None:
            changes |= {"summed": new.summed, "segments": new.segments}
    return disk.model_copy(update=changes)
