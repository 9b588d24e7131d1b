"""Pull-mode backup jobs: a frozen view of all disks at one instant, served over a unix socket."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Protocol, Self

import libvirt
from defusedxml.ElementTree import fromstring

from vmreplica.hypervisor import checkpoints
from vmreplica.hypervisor.backup_xml import (
    BackupDisk,
    RunningBackup,
    parse_backup,
    render_backup,
    render_checkpoint,
)
from vmreplica.hypervisor.checkpoints import CheckpointShelf
from vmreplica.hypervisor.disks import parse_disks
from vmreplica.hypervisor.faults import said
from vmreplica.hypervisor.job_files import JobFiles
from vmreplica.model.errors import BadRequest, Conflict, HypervisorError, TimedOut
from vmreplica.model.ids import VmId

_END_LIMIT: Final = 60.0
_END_STEP: Final = 0.002
_END_LONGEST_STEP: Final = 0.05
#: With the one being made, two of a relationship: the base and its successor.
_MAX_EARLIER: Final = 1


@dataclass(frozen=True, slots=True)
class Export:
    """One disk of a running job over NBD: ``size`` in bytes; ``bitmap`` names what changed since the base.

    The NBD meta context is ``qemu:dirty-bitmap:`` followed by ``bitmap``; None means the whole disk is wanted.
    """

    socket: Path
    name: str
    size: int
    bitmap: str | None


class JobControl(Protocol):
    """What a job needs from the hypervisor that began it."""

    def end_job(self, vm: VmId, checkpoint: str) -> None:
        """End the job if it still runs, and remove its files."""

    def job_alive(self, vm: VmId, checkpoint: str) -> bool:
        """Tell whether this very job runs."""


class BackupJob:
    """A running backup job of ours; leaving its ``with`` block ends it."""

    def __init__(
        self, vm: VmId, checkpoint: str, exports: dict[str, Export], control: JobControl, files: JobFiles
    ) -> None:
        self.vm = vm
        self.checkpoint = checkpoint
        #: By disk target.
        self.exports = exports
        self._control = control
        self._files = files

    def scratch_bytes(self) -> int:
        """Tell the bytes of old blocks kept aside so far; asks the file system, not libvirt."""
        return self._files.scratch_bytes(self.vm, self.checkpoint, self.exports)

    def alive(self) -> bool:
        """Tell whether the job still runs; it does not after the guest went off.

        Raises:
            Unreachable: libvirt is away, so nobody knows; QEMU may still serve the export.
        """
        return self._control.job_alive(self.vm, self.checkpoint)

    def end(self) -> None:
        """End the job and remove its scratch and socket; nothing happens when it is over already."""
        self._control.end_job(self.vm, self.checkpoint)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()


@dataclass(frozen=True, slots=True)
class Plan:
    """A job to begin: the base of each disk by target, None for a whole copy."""

    vm: VmId
    name: str
    checkpoint: str
    bases: Mapping[str, str | None]


def begin(domain: libvirt.virDomain, plan: Plan, shelf: CheckpointShelf, files: JobFiles) -> dict[str, Export]:
    """Freeze the view and create the checkpoint in one instant.

    Raises:
        Conflict: the VM is off (``vm-not-running``), a foreign job runs (``backup-job-running``), or there are two
            checkpoints of this relationship already (``too-many-checkpoints``).
        BadRequest: a disk is not there (``disk-unknown``).
        HypervisorError: a base cannot be used (``checkpoint-broken``).
        NoSpace: no room for scratch.
    """
    live = _live_definition(domain, plan)
    _require_no_job(domain, plan, files)
    _require_bases(domain, plan, shelf)
    files.prepare(plan.vm, plan.checkpoint, _qemu_owner(live))
    disks = [
        BackupDisk(target, files.scratch(plan.vm, plan.checkpoint, target), base) for target, base in plan.bases.items()
    ]
    socket = files.socket(plan.vm, plan.checkpoint)
    try:
        domain.backupBegin(render_backup(socket, disks), render_checkpoint(plan.checkpoint, list(plan.bases)))
    except libvirt.libvirtError as error:
        raise _refusal(domain, plan, shelf, files, error) from error
    shelf.keep(plan.vm, plan.checkpoint, domain.checkpointLookupByName(plan.checkpoint).getXMLDesc())
    return exports_of(domain, socket, {disk.target: disk.bitmap for disk in disks})


def exports_of(domain: libvirt.virDomain, socket: Path, bitmaps: Mapping[str, str | None]) -> dict[str, Export]:
    """Describe the exports of a running job; a disk cannot be resized while it runs."""
    return {target: Export(socket, target, domain.blockInfo(target)[0], bitmap) for target, bitmap in bitmaps.items()}


def running(domain: libvirt.virDomain) -> RunningBackup | None:
    """Describe the backup job that runs on a domain, whoever began it; None without one."""
    try:
        return parse_backup(domain.backupGetXMLDesc())
    except libvirt.libvirtError as error:
        gone = {libvirt.VIR_ERR_NO_DOMAIN_BACKUP, libvirt.VIR_ERR_NO_DOMAIN, libvirt.VIR_ERR_OPERATION_INVALID}
        if error.get_error_code() not in gone:
            raise
        return None


def abort(domain: libvirt.virDomain, name: str) -> None:
    """End the running backup job and wait until libvirt has put everything away.

    Raises:
        TimedOut: QEMU does not let go of the job.
    """
    domain.abortJob()
    deadline, step = time.monotonic() + _END_LIMIT, _END_STEP
    while running(domain) is not None:
        if time.monotonic() > deadline:
            raise TimedOut(
                "backup-job-stuck",
                f"the backup job of {name} did not end within {_END_LIMIT:.0f} s",
                hint=f"virsh domjobabort {name}",
            )
        time.sleep(step)
        step = min(step * 1.5, _END_LONGEST_STEP)


def _live_definition(domain: libvirt.virDomain, plan: Plan) -> str:
    if not domain.isActive():
        raise vm_not_running(plan.name)
    live = domain.XMLDesc()
    missing = sorted(set(plan.bases) - {disk.target for disk in parse_disks(live)})
    if missing or not plan.bases:
        raise BadRequest(
            "disk-unknown",
            f"{plan.name} has no disk {', '.join(missing) or 'to back up'}",
            hint=f"virsh domblklist {plan.name} names its disks",
        )
    return live


def _require_no_job(domain: libvirt.virDomain, plan: Plan, files: JobFiles) -> None:
    """Look first: libvirt would wait 30 s for the other job before it refuses."""
    job = running(domain)
    if job is None:
        return
    whose = "left by an earlier cycle" if files.is_ours(plan.vm, job) else "of another program"
    raise Conflict(
        "backup-job-running",
        f"a backup job {whose} runs on {plan.name}",
        hint=f"it is tried again when that job has ended; virsh domjobinfo {plan.name} shows it",
        kind="transient",
    )


def vm_not_running(name: str) -> Conflict:
    """Build the error for an act that needs a running VM."""
    return Conflict(
        "vm-not-running",
        f"{name} is not running: a checkpoint needs a running VM",
        hint=f"virsh start {name}; replication goes on by itself",
    )


def _require_bases(domain: libvirt.virDomain, plan: Plan, shelf: CheckpointShelf) -> None:
    checkpoints.require_ours(plan.checkpoint)
    known = checkpoints.names(domain)
    earlier = checkpoints.relatives(plan.checkpoint, known)
    if len(earlier) > _MAX_EARLIER:
        raise Conflict(
            "too-many-checkpoints",
            f"{plan.name} has {len(earlier)} checkpoints of this relationship: {', '.join(sorted(earlier))}",
            hint="all but the base must be deleted first",
        )
    for base in {base for base in plan.bases.values() if base is not None} - set(known):
        reason = checkpoints.why_unusable(domain, shelf, plan.vm, base, frozenset())
        if reason is not None:
            raise checkpoint_broken(plan.name, reason)


def checkpoint_broken(name: str, reason: str) -> HypervisorError:
    """Build the error for a base that changes cannot be asked for any more."""
    return HypervisorError(
        "checkpoint-broken",
        f"change tracking of {name} is lost: {reason}",
        hint="the next cycle makes a whole copy by itself",
    )


def _qemu_owner(live: str) -> tuple[int, int] | None:
    """Find the uid and gid of a running domain's QEMU: the DAC label ``+uid:+gid``."""
    for label in fromstring(live, forbid_dtd=True).iterfind("seclabel[@model='dac']/label"):
        uid, _, gid = (label.text or "").replace("+", "").partition(":")
        if uid.isdecimal() and gid.isdecimal():
            return int(uid), int(gid)
    return None


def _refusal(
    domain: libvirt.virDomain, plan: Plan, shelf: CheckpointShelf, files: JobFiles, error: libvirt.libvirtError
) -> Exception:
    """Clean up after a refused begin and say why: libvirt may have made the checkpoint although the export failed."""
    try:
        files.remove(plan.vm, plan.checkpoint)
        if plan.checkpoint in checkpoints.names(domain):
            checkpoints.delete(domain, shelf, plan.vm, plan.checkpoint)
        if not domain.isActive():
            return vm_not_running(plan.name)
    except libvirt.libvirtError as second:
        return second
    broken = {libvirt.VIR_ERR_CHECKPOINT_INCONSISTENT, libvirt.VIR_ERR_NO_DOMAIN_CHECKPOINT}
    return checkpoint_broken(plan.name, said(error)) if error.get_error_code() in broken else error
