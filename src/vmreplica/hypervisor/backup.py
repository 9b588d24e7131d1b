"""Pull-mode backup jobs: a frozen view of all disks at one instant, served over a unix socket."""

import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
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
from vmreplica.hypervisor.bases import Plan, require_bases, tracking_lost
from vmreplica.hypervisor.busy import require_idle
from vmreplica.hypervisor.checkpoints import CheckpointShelf
from vmreplica.hypervisor.disks import parse_disks
from vmreplica.hypervisor.faults import named_disks, said
from vmreplica.hypervisor.inspection import disks_of, guest_size, untracked_disks
from vmreplica.hypervisor.job_files import JobFiles
from vmreplica.hypervisor.room import require_room
from vmreplica.model.errors import BadRequest, Conflict, TimedOut
from vmreplica.model.ids import VmId

_END_LIMIT: Final = 60.0
_END_STEP: Final = 0.002
_END_LONGEST_STEP: Final = 0.05
_BROKEN: Final = frozenset({libvirt.VIR_ERR_CHECKPOINT_INCONSISTENT, libvirt.VIR_ERR_NO_DOMAIN_CHECKPOINT})


@dataclass(frozen=True, slots=True)
class Export:
    """One disk of a running job over NBD: ``size`` in bytes; ``bitmap`` names what changed since the base.

    The NBD meta context is ``qemu:dirty-bitmap:`` followed by ``bitmap``; None means the whole disk is wanted.
    """

    socket: Path
    name: str
    size: int
    bitmap: str | None


#: Makes what is entered just before the instant of a backup job and left just after it.
Instant = Callable[[], AbstractContextManager[object]]


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

    def require_undisturbed(self) -> None:
        """Nothing can happen to a frozen view but its end, and whoever reads it notices that."""

    def leave(self) -> None:
        """Let it run on: it is found again by ``Hypervisor.attach_backup``."""

    def end(self) -> None:
        """End the job and remove its scratch and socket; nothing happens when it is over already."""
        self._control.end_job(self.vm, self.checkpoint)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()


def begin(
    domain: libvirt.virDomain, plan: Plan, shelf: CheckpointShelf, files: JobFiles, around: Instant
) -> dict[str, Export]:
    """Freeze the view and create the checkpoint in one instant.

    Disks that cannot hold a bitmap are in the job, but not in the checkpoint; without other disks there is none.
    The guest may be quiesced ``around`` the instant, so nothing but libvirt's own call happens there.

    Raises:
        Conflict: the VM is off (``vm-not-running``), a foreign job runs (``backup-job-running``), or there are two
            checkpoints of this relationship already (``too-many-checkpoints``).
        BadRequest: a disk is not there (``disk-unknown``).
        HypervisorError: a migration or a job on a disk is under way (``vm-busy``).
        CheckpointBroken: a base cannot be used on some disks (``checkpoint-broken``).
        NoSpace: no room for scratch, or for a bitmap beside an image.
    """
    live = _live_definition(domain, plan)
    _require_no_job(domain, plan, files)
    require_idle(domain, plan.name, plan.bases)
    untracked = untracked_disks(domain, live)
    require_bases(domain, shelf, plan, untracked)
    tracked = [target for target in plan.bases if target not in untracked]
    require_room(plan.name, [disk for disk in disks_of(domain, live) if disk.target in tracked])
    files.prepare(plan.vm, plan.checkpoint, _qemu_owner(live))
    disks = _job_disks(plan, files, plan.bases)
    socket = files.socket(plan.vm, plan.checkpoint)
    job, checkpoint = render_backup(socket, disks), render_checkpoint(plan.checkpoint, tracked) if tracked else None
    try:
        with around():
            domain.backupBegin(job, checkpoint)
    except libvirt.libvirtError as error:
        raise _refusal(domain, plan, shelf, files, error) from error
    if tracked:
        shelf.keep(plan.vm, plan.checkpoint, domain.checkpointLookupByName(plan.checkpoint).getXMLDesc())
    return exports_of(domain, socket, {disk.target: disk.bitmap for disk in disks})


def _job_disks(plan: Plan, files: JobFiles, targets: Iterable[str]) -> list[BackupDisk]:
    return [
        BackupDisk(target, files.scratch(plan.vm, plan.checkpoint, target), plan.bases[target]) for target in targets
    ]


def exports_of(domain: libvirt.virDomain, socket: Path, bitmaps: Mapping[str, str | None]) -> dict[str, Export]:
    """Describe the exports of a running job; a disk cannot be resized while it runs."""
    return {target: Export(socket, target, guest_size(domain, target), bitmap) for target, bitmap in bitmaps.items()}


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
    broken: frozenset[str] | None = None
    try:
        if error.get_error_code() in _BROKEN:
            broken = _broken_disks(domain, plan, files, error)
        files.remove(plan.vm, plan.checkpoint)
        if plan.checkpoint in checkpoints.names(domain):
            checkpoints.delete(domain, shelf, plan.vm, plan.checkpoint)
        if not domain.isActive():
            return vm_not_running(plan.name)
    except libvirt.libvirtError as second:
        return second
    return error if broken is None else tracking_lost(plan.name, said(error), broken)


def _broken_disks(
    domain: libvirt.virDomain, plan: Plan, files: JobFiles, error: libvirt.libvirtError
) -> frozenset[str]:
    """Find every disk whose base is broken, as libvirt names only the first that it meets.

    Jobs are asked for that cannot begin: the disk already named comes last, until libvirt names no other.
    """
    based = frozenset(target for target, base in plan.bases.items() if base is not None)
    broken = named = named_disks(error, based)
    socket = files.socket(plan.vm, plan.checkpoint)
    while named:
        order = [*sorted(based - broken), *sorted(broken)]
        try:
            domain.backupBegin(render_backup(socket, _job_disks(plan, files, order)), None)
        except libvirt.libvirtError as again:
            named = named_disks(again, based) - broken
            broken |= named
        else:
            abort(domain, plan.name)
            break
    return broken
