"""Moving the base of a disk from its image file to the device it shall stand on, once, in steps that survive a crash.

``landing.json`` says where it stands. While its stage is ``copy`` the image is what counts, and the device, of which
nobody reads anything, becomes equal to it. From ``switch`` on it is rolled forward, and each step may be repeated: an
empty overlay over the device takes the image's name, the manifest names the device, ``landing.json`` goes. Whoever
reads the point meanwhile reads the same bytes.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from vmreplica.fsio import fsync_dir
from vmreplica.model.ids import DiskTarget, PointId
from vmreplica.model.point import BaseDevice, DiskManifest, Manifest
from vmreplica.qcow2.flatten import RawDisk, copy_base
from vmreplica.qcow2.shim import write_shim
from vmreplica.repository.devices import on_device, writable
from vmreplica.repository.folding import FoldStopped, Guidance, StepHook, recover_fold
from vmreplica.repository.layout import Layout, read_shape, store_errors, write_shape
from vmreplica.repository.manifests import read_manifest, write_manifest
from vmreplica.repository.record import LandingRecord


def next_landing(
    manifests: Sequence[Manifest], devices: Mapping[DiskTarget, BaseDevice], held: Callable[[PointId], bool]
) -> tuple[DiskTarget, BaseDevice] | None:
    """Choose the next disk whose base goes to its device; None: nothing to do, or not now.

    Args:
        manifests: of all points, oldest first.
        devices: where the bases of disks shall stand.
        held: tells whether a point must stay with everything it stands on.
    """
    if not manifests or manifests[0].parent is not None or any(held(manifest.point) for manifest in manifests):
        return None
    used = {disk.target for manifest in manifests for disk in manifest.disks if disk.device is not None}
    # An old disk of the VM is a base where it is.
    for disk in manifests[0].disks:
        if disk.target in devices and disk.target not in used and disk.adopted is None:
            return disk.target, devices[disk.target]
    return None


def land_all(
    layout: Layout,
    manifests: Callable[[], Sequence[Manifest]],
    devices: Mapping[DiskTarget, BaseDevice],
    held: Callable[[PointId], bool],
    guide: Guidance,
) -> Iterator[Manifest]:
    """Move all bases to their devices that can be moved now; one that was stopped goes on the next time.

    Yields:
        The new manifest of a point; it is listed before the next one is asked for.

    Raises:
        VmReplicaError: see ``land``.
    """
    while not guide.stopped() and not layout.fold.exists():
        known = manifests()
        wanted = next_landing(known, devices, held)
        if wanted is None:
            return
        try:
            manifest = land(layout, known[0], *wanted, guide)
        except FoldStopped:
            return
        yield manifest


def settle(layout: Layout, *, pause: Callable[[], bool], held: Callable[[], bool], pace: Callable[[int], None]) -> bool:
    """Finish or undo the fold or landing that was interrupted, as far as it need not wait.

    Args:
        layout: of the replica.
        pause: as for ``recover_fold``.
        held: likewise.
        pace: likewise.

    Returns:
        Whether anything may have changed.

    Raises:
        VmReplicaError: it cannot be done now; it may be tried again.
    """
    if not layout.fold.exists() and not layout.landing.exists():
        return False
    recover_landing(layout)
    with contextlib.suppress(FoldStopped):
        recover_fold(layout, pause=pause, held=held, pace=pace)
    return True


def land(layout: Layout, base: Manifest, target: DiskTarget, device: BaseDevice, guide: Guidance) -> Manifest:
    """Move the base of a disk to its device, or go on with it.

    Args:
        layout: of the replica.
        base: the oldest point; stands alone.
        target: of the disk.
        device: where its base shall stand.
        guide: when to stop and how fast to go; what is stopped waits.

    Returns:
        The new manifest of the point.

    Raises:
        FoldStopped: it goes on where it stopped when it is called again.
        Corrupt: the image is damaged, or the device is another one; the point stays as it is.
        Conflict: ``device-in-use``.
        NoSpace: the device is too small, or the store has no room for the overlay.
        NotFound: ``device-missing``.
        Internal: ``store-failed``: the device failed.
    """
    (disk,) = (disk for disk in base.disks if disk.target == target)
    record = _begun(layout, base.point, target, device)
    if record.stage == "copy":
        guide.before(f"land {target}")
        with store_errors(Path(device.path)), writable(device, disk.size) as fd:
            raw = RawDisk(fd, disk.size)
            record = _copy(layout, record, raw, guide)
        guide.before(f"landed {target}")
        write_shape(layout.landing, record.model_copy(update={"stage": "switch"}))
    return _roll_forward(layout, record, guide.before)


def recover_landing(layout: Layout) -> None:
    """Finish a landing that was interrupted while it switched over; one that still copied waits.

    Raises:
        VmReplicaError: it cannot be done now; it may be tried again.
    """
    if layout.landing.exists():
        record = read_shape(layout.landing, LandingRecord)
        if record.stage == "switch":
            _roll_forward(layout, record, lambda _step: None)


def _begun(layout: Layout, point: PointId, target: DiskTarget, device: BaseDevice) -> LandingRecord:
    """Find the record of this very landing, or begin it: what the device holds of another one is of no use."""
    if layout.landing.exists():
        known = read_shape(layout.landing, LandingRecord)
        if (known.point, known.target, known.device) == (point, target, device):
            return known
    record = LandingRecord(point=point, target=target, device=device, stage="copy")
    write_shape(layout.landing, record)
    return record


def _copy(layout: Layout, record: LandingRecord, raw: RawDisk, guide: Guidance) -> LandingRecord:
    """Copy table by table; when stopped, what has been copied is kept."""
    raw.pace = guide.pace
    try:
        for table in copy_base(layout.image(record.point, record.target), raw, first=record.table, check=guide.check):
            raw.sync()
            record = record.model_copy(update={"table": table})
            guide.before(f"landed table {table}")
    except FoldStopped:
        write_shape(layout.landing, record)
        raise
    return record


def _roll_forward(layout: Layout, record: LandingRecord, before: StepHook) -> Manifest:
    path = layout.manifest(record.point)
    manifest = read_manifest(path)
    disks = tuple(
        _landed(layout, record, disk, before) if disk.target == record.target else disk for disk in manifest.disks
    )
    manifest = manifest.model_copy(update={"folded": True, "disks": disks})
    with store_errors(path):
        before("land manifest")
        manifest = write_manifest(path, manifest)
        before("land end")
        layout.landing.unlink(missing_ok=True)
        fsync_dir(layout.root)
    return manifest


def _landed(layout: Layout, record: LandingRecord, disk: DiskManifest, before: StepHook) -> DiskManifest:
    image = layout.image(record.point, record.target)
    with store_errors(image):
        before(f"land shim {record.target}")
        write_shim(image, record.device.path, disk.size)
        layout.index(record.point, record.target).unlink(missing_ok=True)
        layout.sums(record.point, record.target).unlink(missing_ok=True)
        fsync_dir(image.parent)
        return on_device(disk, image, record.device)
