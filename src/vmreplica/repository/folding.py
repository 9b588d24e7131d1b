"""Folding the oldest point into the next one, all its disks together, in steps that survive a crash.

``fold.json`` says where it stands. While everything new is written beside what is valid, its stage is ``prepare``, and
a crash or an error undoes it. From ``commit`` on it is rolled forward, and each step may be repeated:

1. the older point's manifest goes, with it the point from every list; its files stay, the next point stands on them;
2. each base image is switched over: now it has the content of the next point, which reads the same through its own
   image as before; then it is renamed over that image. A base on a device, or an old disk of the VM, takes what the
   next point's image holds and may be half of both meanwhile: nobody reads there what that image says itself, and
   whoever stood on it is gone;
3. space is given back, the manifest of the next point says that it stands alone;
4. the older point's directory and ``fold.json`` go.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import xxhash

from vmreplica.fsio import fsync_dir, remove_tree, require_free
from vmreplica.model.errors import Corrupt
from vmreplica.model.ids import DiskTarget, PointId
from vmreplica.model.point import DiskManifest, Manifest
from vmreplica.model.units import CLUSTER, MiB
from vmreplica.qcow2.flatten import apply_overlay
from vmreplica.qcow2.fold import Beside, prepare_fold, reclaim, switch, undo
from vmreplica.qcow2.frames import MAX_FRAME
from vmreplica.qcow2.index import read_heads
from vmreplica.qcow2.layout import REFCOUNTS
from vmreplica.qcow2.merge import stands_alone
from vmreplica.qcow2.reader import header_digest
from vmreplica.qcow2.reparent import tables_digest
from vmreplica.qcow2.shim import is_shim
from vmreplica.qcow2.table_sums import carry_table_sums
from vmreplica.repository.bases import check_base, on_base, put_shim, require_room, writable_base
from vmreplica.repository.layout import Layout, allocated_bytes, read_shape, store_errors, write_shape
from vmreplica.repository.manifests import read_manifest, write_manifest
from vmreplica.repository.record import FoldDisk, FoldRecord

#: Called with the name of each step before it is done; may raise to stop it.
StepHook = Callable[[str], None]

_SLACK: Final = 16 * MiB


class FoldStopped(Exception):
    """Work on images was asked to stop: nothing has changed, or it waits past its commit to be rolled forward later."""


@dataclass(frozen=True, slots=True)
class Guidance:
    """What goes with all work on images: when to stop, how fast to go, who watches."""

    #: Asked often; once true the work is undone, finished quickly, or left for later.
    stopped: Callable[[], bool] = lambda: False
    #: Told how many bytes were written; waits as long as the limit wants.
    pace: Callable[[int], None] = lambda _count: None
    #: Observer of steps.
    before: StepHook = lambda _step: None
    #: Tells whether the images of points, oldest first, may become one: False when damage would get into it. Damage may
    #: be found while they are merged, so it is asked again before the commit.
    may_merge: Callable[[Sequence[PointId]], bool] = lambda _points: True

    def require_good(self, points: Sequence[PointId]) -> None:
        """Go on to the commit, unless damage was found meanwhile in what was merged.

        Raises:
            FoldStopped: it was.
        """
        if not self.may_merge(points):
            raise FoldStopped

    def check(self) -> None:
        """Go on, unless it shall stop.

        Raises:
            FoldStopped: it shall.
        """
        if self.stopped():
            raise FoldStopped


def fold(layout: Layout, base: Manifest, point: Manifest, guide: Guidance) -> Manifest:
    """Fold ``base`` into ``point``, its only child.

    Args:
        layout: of the replica.
        base: the lowest point.
        point: the one that stands on it.
        guide: when to stop and how fast to go.

    Returns:
        The new manifest of ``point``.

    Raises:
        FoldStopped: nothing has changed, or the rest of it waits.
        NoSpace: nothing has changed.
        Corrupt: an image or index is damaged; nothing has changed.
    """
    shared = _shared(layout, point)
    _require_room(layout, base, point, shared)
    sizes = {target: layout.image(base.point, target).stat().st_size for target in shared}
    record = FoldRecord(
        base=base.point,
        point=point.point,
        stage="prepare",
        disks=tuple(
            FoldDisk(
                target=disk.target,
                base_bytes=sizes[disk.target],
                device=disk.device,
                adopted=disk.adopted,
                disk_bytes=disk.size,
            )
            for disk in base.disks
            if disk.target in shared
        ),
    )
    write_shape(layout.fold, record)
    try:
        with store_errors(layout.fold):
            record = _prepare(layout, record, point, guide)
        guide.before("commit")
        guide.require_good([base.point, point.point])
        write_shape(layout.fold, record)
    except Exception:
        _undo(layout, record)
        raise
    return _roll_forward(layout, record, guide, pause=guide.stopped)


def recover_fold(
    layout: Layout,
    *,
    pause: Callable[[], bool],
    held: Callable[[], bool] = lambda: True,
    pace: Callable[[int], None] = lambda _count: None,
) -> None:
    """Finish or undo a fold that was interrupted; nothing happens when none was.

    Args:
        layout: of the replica.
        pause: asked often while a device is written, which may take long; once true that waits again.
        held: tells whether anybody may have images open: a device may be written below them, an old disk not.
        pace: told how many bytes were written to a device; waits as long as the limit wants.

    Raises:
        FoldStopped: a device is not written yet; all listed points are readable.
        VmReplicaError: it cannot be done now; it may be tried again.
    """
    if not layout.fold.exists():
        return
    record = read_shape(layout.fold, FoldRecord)
    if record.stage == "prepare":
        _undo(layout, record)
    else:
        old = any(disk.adopted is not None for disk in record.disks)
        _roll_forward(layout, record, Guidance(pace=pace), pause=lambda: pause() or (old and held()))


def _check(stopped: Callable[[], bool]) -> None:
    if stopped():
        raise FoldStopped


def _shared(layout: Layout, point: Manifest) -> list[DiskTarget]:
    """List the disks that stand on those of the base; only the images tell: parents change when points are merged."""
    return [disk.target for disk in point.disks if not stands_alone(layout.image(point.point, disk.target))]


def _require_room(layout: Layout, base: Manifest, point: Manifest, shared: list[DiskTarget]) -> None:
    needed = _SLACK
    for target in shared:
        image = layout.image(base.point, target)
        if is_shim(image):
            continue
        needed += allocated_bytes(layout.image(point.point, target))
        # A patched cluster is written anew as a whole: about as much again as the base has of it.
        needed += min(_patches(layout.index(point.point, target)) * MAX_FRAME, allocated_bytes(image))
        needed += (image.stat().st_size // CLUSTER // REFCOUNTS + 2) * CLUSTER
    require_free(layout.root, needed, f"folding point {base.point} into {point.point}")


def _patches(index: Path) -> int:
    with index.open("rb") as fh:
        return sum(head.patch_count for head, _records in read_heads(fh))


def _prepare(layout: Layout, record: FoldRecord, point: Manifest, guide: Guidance) -> FoldRecord:
    base = {disk.target: disk for disk in read_manifest(layout.manifest(record.base)).disks}
    sizes = {disk.target: disk.size for disk in point.disks}
    disks = []
    for disk in record.disks:
        guide.before(f"prepare {disk.target}")
        index = layout.index(record.point, disk.target)
        if disk.outside:
            check_base(layout, base[disk.target], disk, sizes[disk.target])
            require_room(layout, disk, index)
            disks.append(disk)
            continue
        require_right_tables(layout, record.base, base[disk.target])
        sums, new_sums = (layout.table_sums(point, disk.target) for point in (record.base, record.point))
        if index.stat().st_size or base[disk.target].size != sizes[disk.target]:
            header = prepare_fold(
                layout.image(record.base, disk.target),
                layout.image(record.point, disk.target),
                Beside(index=index, dead=layout.dead(record.base, disk.target), sums=sums, new_sums=new_sums),
                size=sizes[disk.target],
                check=_paced(layout.image(record.base, disk.target), guide),
            )
            changes = {"header": header.hex(), "digest": xxhash.xxh3_128_hexdigest(header)}
        else:
            carry_table_sums(layout.image(record.base, disk.target), sums, new_sums)
            changes = {"digest": header_digest(layout.image(record.base, disk.target))}
        disks.append(disk.model_copy(update=changes))
    return record.model_copy(update={"stage": "commit", "disks": tuple(disks)})


def _paced(image: Path, guide: Guidance) -> Callable[[], None]:
    """Make the check of a fold into an image: it stops, or waits as long as what the image grew by wants."""
    known = allocated_bytes(image)

    def check() -> None:
        nonlocal known
        guide.check()
        grown, known = allocated_bytes(image) - known, allocated_bytes(image)
        guide.pace(max(0, grown))

    return check


def require_right_tables(layout: Layout, point: PointId, disk: DiskManifest) -> None:
    """See that an image that was never folded has the tables it came with: after the fold they count as right.

    Raises:
        Corrupt: ``image-damaged``.
    """
    image, index = layout.image(point, disk.target), layout.index(point, disk.target)
    if index.exists() and disk.tables_digest not in {"", tables_digest(image, index)}:
        raise Corrupt("image-damaged", f"the tables of {image} are not as they were written")


def _undo(layout: Layout, record: FoldRecord) -> None:
    with store_errors(layout.fold):
        for disk in record.disks:
            if disk.outside:
                continue
            undo(layout.image(record.base, disk.target), disk.base_bytes)
            layout.dead(record.base, disk.target).unlink(missing_ok=True)
            layout.table_sums(record.point, disk.target).unlink(missing_ok=True)
        layout.fold.unlink()
        fsync_dir(layout.root)


def _roll_forward(layout: Layout, record: FoldRecord, guide: Guidance, *, pause: Callable[[], bool]) -> Manifest:
    before = guide.before
    with store_errors(layout.fold):
        before("hide")
        if layout.point(record.base).is_dir():
            layout.manifest(record.base).unlink(missing_ok=True)
            fsync_dir(layout.point(record.base))
        for disk in record.disks:
            if disk.outside:
                _write_base(layout, record, disk, guide, pause)
            else:
                _switch(layout, record, disk, before)
        fsync_dir(layout.point(record.point))
        before("reclaim")
        for disk in record.disks:
            _reclaim(layout, record, disk, guide.stopped)
        before("manifest")
        manifest = write_manifest(layout.manifest(record.point), _standing_alone(layout, record))
        before("remove")
        remove_tree(layout.point(record.base))
        fsync_dir(layout.points)
        before("end")
        layout.fold.unlink(missing_ok=True)
        fsync_dir(layout.root)
    return manifest


def _switch(layout: Layout, record: FoldRecord, disk: FoldDisk, before: StepHook) -> None:
    image = layout.image(record.base, disk.target)
    if not image.exists():
        return  # it was renamed before a crash
    before(f"switch {disk.target}")
    if disk.header is not None:
        switch(image, bytes.fromhex(disk.header))
    before(f"rename {disk.target}")
    image.replace(layout.image(record.point, disk.target))


def _write_base(layout: Layout, record: FoldRecord, disk: FoldDisk, guide: Guidance, pause: Callable[[], bool]) -> None:
    image = layout.image(record.point, disk.target)
    if is_shim(image):
        return  # it was all done before a crash
    (size,) = (spec.size for spec in read_manifest(layout.manifest(record.point)).disks if spec.target == disk.target)
    _check(pause)
    guide.before(f"write {disk.target}")
    with writable_base(layout, disk, size) as base:
        base.pace = guide.pace
        base.zero(disk.disk_bytes, size - disk.disk_bytes)
        apply_overlay(image, layout.index(record.point, disk.target), base, lambda: _check(pause))
        guide.before(f"sync {disk.target}")
        base.sync()
    guide.before(f"shim {disk.target}")
    put_shim(image, disk, size)


def _reclaim(layout: Layout, record: FoldRecord, disk: FoldDisk, stopped: Callable[[], bool]) -> None:
    dead = layout.dead(record.base, disk.target)
    if dead.exists():
        reclaim(layout.image(record.point, disk.target), dead, stopped)


def _standing_alone(layout: Layout, record: FoldRecord) -> Manifest:
    manifest = read_manifest(layout.manifest(record.point))
    folded = {disk.target: disk for disk in record.disks}
    disks = tuple(
        _folded(layout, manifest, disk, folded[disk.target]) if disk.target in folded else disk
        for disk in manifest.disks
    )
    return manifest.model_copy(update={"parent": None, "folded": True, "disks": disks})


def _folded(layout: Layout, manifest: Manifest, disk: DiskManifest, folded: FoldDisk) -> DiskManifest:
    """Describe an image that is the base's file now; its index and its segments' digests are of the past."""
    layout.index(manifest.point, disk.target).unlink(missing_ok=True)
    layout.sums(manifest.point, disk.target).unlink(missing_ok=True)
    image = layout.image(manifest.point, disk.target)
    if folded.outside:
        return on_base(layout, disk, image, folded)
    summed = layout.table_sums(manifest.point, disk.target).exists()
    changes = {"file_bytes": image.stat().st_size, "tables_digest": folded.digest, "summed": summed}
    return disk.model_copy(update=changes)
