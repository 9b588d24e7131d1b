"""Bases that are not in their image files: on a device of the replica, or the VM's own old disk."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from vmreplica.fsio import require_free
from vmreplica.fsio.blockdev import opened_alone
from vmreplica.model.point import AdoptedBase, DiskManifest, Manifest
from vmreplica.model.units import CLUSTER
from vmreplica.qcow2.flatten import RawDisk, TargetDisk
from vmreplica.qcow2.index import read_heads
from vmreplica.qcow2.inplace import served
from vmreplica.qcow2.shim import write_shim
from vmreplica.repository import adopted, devices
from vmreplica.repository.layout import Layout, allocated_bytes
from vmreplica.repository.record import FoldDisk, ReplicaRecord


def check_base(layout: Layout, base: DiskManifest, disk: FoldDisk, size: int) -> None:
    """Make sure that a base can be written, before the older point goes.

    Args:
        layout: of the replica.
        base: the disk in the point that goes.
        disk: likewise, in the fold.
        size: of the disk in bytes in the point that stays.

    Raises:
        VmReplicaError: see ``devices.verify`` and ``adopted.verify_content``.
    """
    if disk.device is not None:
        devices.verify(disk.device, size)
    if disk.adopted is not None:
        adopted.verify_content(layout, base, disk.adopted)
        adopted.verify(layout, disk.adopted, size)


def require_room(layout: Layout, disk: FoldDisk, index: Path) -> None:
    """See that the file system of an old disk has room for what is written to it; more than needed is never asked.

    Raises:
        NoSpace: nothing has changed.
    """
    if disk.adopted is None:
        return
    path = adopted.path_of(layout, disk.adopted)
    if path.is_block_device():
        return
    with index.open("rb") as fh:
        said = sum(len(records) for _head, records in read_heads(fh)) * CLUSTER
    missing = max(0, disk.disk_bytes + CLUSTER - allocated_bytes(path))
    require_free(path.parent, min(said, missing), f"folding a point into {path}")


@contextmanager
def writable_base(layout: Layout, disk: FoldDisk, size: int) -> Iterator[TargetDisk]:
    """Open a base for writing; nobody else can use it meanwhile.

    Raises:
        VmReplicaError: see ``devices.writable``, ``adopted.verify`` and ``inplace.served``.
    """
    if disk.adopted is not None:
        with _old_disk(layout, disk.adopted, size) as target:
            yield target
    elif disk.device is not None:
        with devices.writable(disk.device, size) as fd:
            yield RawDisk(fd, size)


@contextmanager
def _old_disk(layout: Layout, base: AdoptedBase, size: int) -> Iterator[TargetDisk]:
    adopted.verify(layout, base, size)
    path = adopted.path_of(layout, base)
    if not path.is_block_device():
        with served(path, base.format, size) as target:
            yield target
        return
    with opened_alone(str(path)), served(path, base.format, size) as target:
        yield target


def put_shim(image: Path, disk: FoldDisk, size: int) -> None:
    """Let an image of a point be an empty overlay over its base.

    Raises:
        OSError: the old image stays.
    """
    if disk.adopted is not None:
        write_shim(image, adopted.backing_name(disk.adopted), size, raw=disk.adopted.format == "raw")
    elif disk.device is not None:
        write_shim(image, disk.device.path, size)


def on_base(layout: Layout, manifest: DiskManifest, image: Path, disk: FoldDisk) -> DiskManifest:
    """Describe a disk whose image is a shim over its base, which has just been written.

    Raises:
        OSError: the image or the base cannot be read.
    """
    if disk.adopted is not None:
        return adopted.described(layout, manifest, image, disk.adopted)
    return devices.on_device(manifest, image, disk.device) if disk.device is not None else manifest


def verify_contents(layout: Layout, manifests: Iterable[Manifest]) -> None:
    """Make sure that the bases outside of image files are those that were written, and nobody else wrote there.

    Raises:
        Corrupt: ``base-device-changed``, ``adopted-base-changed``.
        VmReplicaError: see ``devices.verify`` and ``adopted.verify``.
    """
    for manifest in manifests:
        for disk in manifest.disks:
            if disk.device is not None:
                devices.verify_content(disk, disk.device)
            if disk.adopted is not None:
                adopted.verify_content(layout, disk, disk.adopted)


def complaints(layout: Layout, record: ReplicaRecord, manifests: Sequence[Manifest]) -> list[str]:
    """Tell what is wrong with the bases outside of image files, for people."""
    newest = manifests[-1] if manifests else None
    # Of disks that are being adopted the seal is not the last word.
    old = adopted.complaints(layout, manifests) if record.adoption is None else []
    return devices.complaints(record, newest) + old


def adopted_bases(manifests: Iterable[Manifest]) -> list[AdoptedBase]:
    """List the old disks that points stand on."""
    return [disk.adopted for manifest in manifests for disk in manifest.disks if disk.adopted is not None]
