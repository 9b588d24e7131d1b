"""Room beside live images: QEMU writes bitmaps into them, and without room it may leave an image that cannot open."""

from collections.abc import Iterable
from pathlib import Path
from typing import Final

from vmreplica.fsio import require_free
from vmreplica.hypervisor.disks import DiskElement, qcow2_head
from vmreplica.model.units import CLUSTER, MiB

#: What the guest itself may need before anybody notices, and the tables of the bitmaps.
_LEAST: Final = 32 * MiB
#: The base's and its successor's; each has one bit per cluster.
_BITMAPS: Final = 2


def require_room(name: str, disks: Iterable[DiskElement]) -> None:
    """Refuse to begin a bitmap in an image whose file system is nearly full.

    Args:
        name: the VM's.
        disks: those that shall have a bitmap; of one on a block device nobody can tell.

    Raises:
        NoSpace: ``no-space``; nothing was written.
    """
    for disk in disks:
        image = Path(disk.path or "")
        if disk.kind == "file" and image.is_file():
            head = qcow2_head(str(image))
            bits = 0 if head is None else head.size // CLUSTER
            require_free(image.parent, _LEAST + _BITMAPS * bits // 8, f"a bitmap in disk {disk.target} of {name}")
