"""The writable layer over a recovery point that a failed-over VM runs on; the point itself is never written."""

from pathlib import Path
from typing import Final

from vmreplica.fsio import remove_tree
from vmreplica.hypervisor import Hypervisor
from vmreplica.hypervisor.machine import MachineStore
from vmreplica.model.errors import Conflict
from vmreplica.model.ids import PointId, VmId
from vmreplica.qcow2.tools import create_overlay
from vmreplica.repository import Replica

#: QEMU, running as another user, must be able to pass through.
_DIR_MODE: Final = 0o711
#: What ``st_blocks`` counts in, whatever the file system's own blocks are.
_BLOCK: Final = 512


def make_layer(replica: Replica, point: PointId, directory: Path, points: str) -> dict[str, Path]:
    """Make a fresh overlay for each disk of a point.

    Args:
        replica: whose point.
        point: what the overlays stand on; has to be held.
        directory: made anew for them.
        points: the way from there to the points' directory, relative, so that a store can be moved.

    Returns:
        The overlay of each disk target.
    """
    remove_tree(directory)
    directory.mkdir(mode=_DIR_MODE, parents=True)
    made: dict[str, Path] = {}
    for disk in replica.point(point).disks:
        made[disk.target] = directory / f"{disk.target}.qcow2"
        create_overlay(made[disk.target], backing=f"{points}/{point}/{disk.target}.qcow2", size=disk.size)
    return made


def written_bytes(directory: Path) -> int | None:
    """Tell how much the writable layers in a directory hold at most: what they take on their file system.

    None: they cannot be looked at, or are being removed.
    """
    try:
        return sum(layer.stat().st_blocks * _BLOCK for layer in directory.glob("*.qcow2"))
    except OSError:
        return None


def remove_vm(hypervisor: Hypervisor, vm: VmId) -> None:
    """Pull a VM's plug and remove its definition with its nvram and TPM; one that is gone already is no error."""
    if hypervisor.exists(vm):
        if hypervisor.running(vm):
            hypervisor.stop(vm)
        hypervisor.undefine(vm)
    MachineStore().remove(vm)


def refuse_existing(hypervisor: Hypervisor, vm: VmId, name: str) -> None:
    """See that nothing here has a VM's id.

    Raises:
        Conflict: ``vm-exists-here``.
    """
    if hypervisor.exists(vm):
        raise Conflict(
            "vm-exists-here",
            f"a VM with the id of {name} is already defined on this host",
            hint=f"look at it with `virsh dominfo {vm}`; undefine it if it is a leftover",
        )
