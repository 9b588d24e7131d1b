"""What else works on a VM: jobs of libvirt and of its disks, beside which no backup job can begin."""

from collections.abc import Collection
from typing import Final

import libvirt

from vmreplica.model.errors import HypervisorError

_DISK_JOBS: Final = {
    libvirt.VIR_DOMAIN_BLOCK_JOB_TYPE_PULL: "pull",
    libvirt.VIR_DOMAIN_BLOCK_JOB_TYPE_COPY: "copy",
    libvirt.VIR_DOMAIN_BLOCK_JOB_TYPE_COMMIT: "commit",
    libvirt.VIR_DOMAIN_BLOCK_JOB_TYPE_ACTIVE_COMMIT: "commit",
}
_VM_JOBS: Final = {
    libvirt.VIR_DOMAIN_JOB_OPERATION_SAVE: "it is being saved",
    libvirt.VIR_DOMAIN_JOB_OPERATION_MIGRATION_IN: "it is arriving by migration",
    libvirt.VIR_DOMAIN_JOB_OPERATION_MIGRATION_OUT: "it is being migrated to another host",
    libvirt.VIR_DOMAIN_JOB_OPERATION_SNAPSHOT: "a snapshot of it is being taken",
    libvirt.VIR_DOMAIN_JOB_OPERATION_DUMP: "its memory is being dumped",
}


def require_idle(domain: libvirt.virDomain, name: str, targets: Collection[str]) -> None:
    """Look first: libvirt would wait 30 s for the other job before it refuses, and would not say whose it is.

    Args:
        domain: a running VM, on which no backup job runs.
        name: its name, for messages.
        targets: the disks that shall be read.

    Raises:
        HypervisorError: another job works on the VM or on one of the disks (``vm-busy``).
    """
    job = domain.jobStats()
    if job.get("type", libvirt.VIR_DOMAIN_JOB_NONE) != libvirt.VIR_DOMAIN_JOB_NONE:
        what = _VM_JOBS.get(job.get("operation", 0), "another job of libvirt works on it")
        raise _busy(name, what, f"virsh domjobinfo {name} shows it")
    for target in sorted(targets):
        found = domain.blockJobInfo(target)
        if found:
            kind = _DISK_JOBS.get(found["type"], "disk")
            raise _busy(name, f"a {kind} job works on its disk {target}", f"virsh blockjob {name} {target} shows it")


def _busy(name: str, what: str, look: str) -> HypervisorError:
    return HypervisorError(
        "vm-busy", f"{name} is busy: {what}", hint=f"it is tried again when that has ended; {look}", kind="transient"
    )
