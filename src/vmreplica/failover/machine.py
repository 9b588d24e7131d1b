"""The rest of a machine at a failover: its UEFI variables and TPM state come to where libvirt keeps them, as copies."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final, TypedDict

from vmreplica.hypervisor.firmware import Firmware, installed_firmware
from vmreplica.hypervisor.machine import MachineStore
from vmreplica.model.ids import PointId, VmId
from vmreplica.model.machine import NVRAM, MachineEntry
from vmreplica.repository import Replica
from vmreplica.repository.machine import machine_files

_TPM_VERSIONS: Final = {"tpm2/": "2.0", "tpm1.2/": "1.2"}


class Parts(TypedDict):
    """Keyword arguments for ``definition_site.Site``."""

    nvram: Path | None
    nvram_size: int
    firmwares: tuple[Firmware, ...]
    tpm: str | None


def place_machine(replica: Replica, point: PointId, vm: VmId, store: MachineStore | None = None) -> Parts:
    """Put copies of the machine's files at a point where a VM that is about to be defined finds them.

    Args:
        replica: whose point.
        point: the point; its own files are only read.
        vm: the id that the VM will have here.
        store: libvirt's directories; this host's usual ones if not told.

    Raises:
        Corrupt: ``machine-file-damaged``.
        NoSpace: there is no room.
    """
    files = machine_files(replica.dir, replica.point(point))
    (store or MachineStore()).place(vm, files)
    return foresee_machine(replica, point, vm, store)


def foresee_machine(replica: Replica, point: PointId, vm: VmId, store: MachineStore | None = None) -> Parts:
    """Tell what ``place_machine`` would come to; writes nothing."""
    return parts_of(vm, replica.point(point).machine, store)


def parts_of(vm: VmId, entries: Sequence[MachineEntry], store: MachineStore | None = None) -> Parts:
    """Tell what files of a machine mean for its definition, placed or not."""
    variables = next((entry for entry in entries if entry.name == NVRAM), None)
    return Parts(
        nvram=(store or MachineStore()).nvram(vm) if variables is not None else None,
        nvram_size=variables.size if variables is not None else 0,
        firmwares=installed_firmware() if variables is not None else (),
        tpm=_tpm_version(entries),
    )


def remarks(replica: Replica, point: PointId) -> tuple[str, ...]:
    """Tell what the primary could not read of its machine for a point."""
    return tuple(
        f"not in the point: {''.join(c if c.isprintable() else '?' for c in remark)}"
        for remark in replica.point(point).machine_remarks
    )


def _tpm_version(entries: Sequence[MachineEntry]) -> str | None:
    names = [entry.name for entry in entries]
    return next((tpm for prefix, tpm in _TPM_VERSIONS.items() if any(n.startswith(prefix) for n in names)), None)
