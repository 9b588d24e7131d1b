"""The facade over libvirt: everything the agent asks of the local hypervisor."""

import contextlib
import difflib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import libvirt
import structlog

from vmreplica.hypervisor import backup, checkpoints, policies, stopped
from vmreplica.hypervisor.backup import BackupJob, Export, Instant
from vmreplica.hypervisor.backup_xml import checkpoint_disks
from vmreplica.hypervisor.bases import Plan
from vmreplica.hypervisor.blockjobs import BlockJobs
from vmreplica.hypervisor.checkpoints import CheckpointShelf
from vmreplica.hypervisor.connection import LONG_LIMIT
from vmreplica.hypervisor.domains import brief_of
from vmreplica.hypervisor.events import Watcher, Watchers
from vmreplica.hypervisor.examine import Examiner
from vmreplica.hypervisor.failovers import Failovers
from vmreplica.hypervisor.guest_shell import GuestShell
from vmreplica.hypervisor.inspection import inspect
from vmreplica.hypervisor.job_files import JobFiles
from vmreplica.hypervisor.life import Life
from vmreplica.hypervisor.quiesce import GuestFreezer
from vmreplica.hypervisor.shutdown import PowerSwitch
from vmreplica.hypervisor.stopped import StoppedView
from vmreplica.hypervisor.views import DomainBrief, DomainView
from vmreplica.model.errors import Corrupt, NotFound, TimedOut, Unreachable, VmReplicaError
from vmreplica.model.ids import VmId
from vmreplica.model.policy import Policy

_log = structlog.get_logger(__name__)


class Hypervisor(Failovers, BlockJobs):
    """The local libvirt. Thread-safe; every call has a time limit, and a restarted libvirtd is found again.

    Every method may raise TimedOut (``libvirt-timeout``), Unreachable (``libvirt-gone``), HypervisorError
    (``libvirt-refused``, ``vm-busy``) and, when it is given a VM, NotFound (``vm-unknown``).

    Args:
        uri: libvirt URI.
        runtime_dir: for sockets and scratch images of backup jobs; QEMU's user must be able to pass through it.
        state_dir: for kept checkpoint documents; ``runtime_dir`` when None.
    """

    def __init__(self, uri: str, runtime_dir: Path, state_dir: Path | None = None) -> None:
        super().__init__(uri, self._register)
        self._files = JobFiles(runtime_dir)
        self._shelf = CheckpointShelf(state_dir or runtime_dir)
        self._watchers = Watchers()

    def close(self) -> None:
        """Let the connection go."""
        self._connection.close()

    # -- domains -----------------------------------------------------------------------------------------------

    def domains(self) -> list[DomainBrief]:
        """List all domains, by name."""
        briefs = self._connection.call(
            "list the VMs", lambda raw: [brief_of(domain) for domain in raw.listAllDomains()], repeatable=True
        )
        self._names = {brief.vm: brief.name for brief in briefs}
        return sorted(briefs, key=lambda brief: brief.name)

    def find(self, name_or_uuid: str) -> DomainBrief:
        """Find a domain by its name or UUID.

        Raises:
            NotFound: there is none; the hint has close names (``vm-unknown``).
        """
        known = self.domains()
        for brief in known:
            if name_or_uuid in (brief.name, brief.vm):
                return brief
        near = difflib.get_close_matches(name_or_uuid, [brief.name for brief in known])
        hint = f"did you mean {', '.join(near)}?" if near else "virsh list --all names the VMs of this host"
        raise NotFound("vm-unknown", f"there is no VM {name_or_uuid} on this host", hint=hint)

    def inspect(self, vm: VmId) -> DomainView:
        """Look at a domain's definition and disks."""
        return self._connection.call(
            f"inspect {self._label(vm)}", lambda raw: inspect(raw.lookupByUUIDString(vm)), repeatable=True
        )

    def examiner(self) -> Examiner:
        """Give the means of a doctor's look at libvirt and its VMs."""
        return Examiner(self._connection, self._files)

    def power_switch(self) -> PowerSwitch:
        """Give the means to shut VMs down as their guests wish."""
        return PowerSwitch(self._connection, self._files)

    def guest_shell(self, vm: VmId) -> GuestShell:
        """Give the means to run programs in a guest by its agent."""
        return GuestShell(self._connection, vm)

    def guest_freezer(self, vm: VmId, name: str) -> GuestFreezer:
        """Give the means to freeze and thaw a guest's file systems by its agent."""
        return GuestFreezer(self._connection, vm, name)

    def life(self, vm: VmId) -> Life:
        """Give the means to look at a VM for signs of life."""
        return Life(self._connection, vm)

    def exists(self, vm: VmId) -> bool:
        """Tell whether a domain is known here."""
        return any(brief.vm == vm for brief in self.domains())

    def running(self, vm: VmId) -> bool:
        """Tell whether a domain has a running QEMU; False for an unknown one."""
        return any(brief.vm == vm and brief.active for brief in self.domains())

    def watch(self, callback: Watcher) -> Callable[[], None]:
        """Call ``callback(vm, event)`` on lifecycle events: started, stopped, shutdown, undefined and so on.

        It runs in a thread of its own and may call back. Events are lost while libvirtd is away, and until the next
        call connects again; an absent libvirtd is no error here.

        Returns:
            a function that ends it.
        """
        end = self._watchers.add(callback)
        with contextlib.suppress(Unreachable, TimedOut):
            self._connection.call("listen for events", lambda _raw: None, repeatable=True)
        return end

    # -- policy ------------------------------------------------------------------------------------------------

    def policy(self, vm: VmId) -> Policy | None:
        """Read a VM's policy from its metadata.

        Raises:
            Corrupt: the metadata makes no sense (``policy-unreadable``).
        """
        return self._with(vm, "read the policy of", policies.read_policy)

    def set_policy(self, vm: VmId, policy: Policy | None) -> None:
        """Write or remove a VM's policy, for now and for its next start."""
        self._with(vm, "write the policy of", lambda domain: policies.write_policy(domain, policy))

    def policies(self) -> dict[VmId, Policy]:
        """Read the policies of all VMs; unreadable ones are logged and left out."""
        found, broken = self.policy_survey()
        for vm, error in broken.items():
            _log.warning("a policy is unreadable", vm=vm, code=error.code, error=error.message, hint=error.hint)
        return found

    def policy_survey(self) -> tuple[dict[VmId, Policy], dict[VmId, Corrupt]]:
        """Read the policies of all VMs, and what is wrong with those that cannot be read."""
        return self._connection.call("read all policies", policies.survey, repeatable=True)

    # -- checkpoints -------------------------------------------------------------------------------------------

    def checkpoints(self, vm: VmId) -> list[str]:
        """List the names of all checkpoints: foreign ones that libvirt knows, and ours, also while they are hidden."""
        return self._with(vm, "list the checkpoints of", lambda domain: checkpoints.known(domain, self._shelf, vm))

    def hide_checkpoints(self, vm: VmId) -> None:
        """Make libvirt forget our checkpoints, unless a backup job runs; what uses them makes them known again."""

        def hide(domain: libvirt.virDomain) -> None:
            if backup.running(domain) is None:
                checkpoints.hide(domain, self._shelf, vm)

        self._with(vm, "put away the checkpoints of", hide)

    def checkpoint_disks(self, vm: VmId, name: str) -> frozenset[str]:
        """Tell which disks had a bitmap when a checkpoint of ours was made, as far as that is kept here."""
        xml = self._shelf.read(vm, name)
        return frozenset() if xml is None else checkpoint_disks(xml)

    def delete_checkpoint(self, vm: VmId, name: str) -> None:
        """Delete a checkpoint of ours with its bitmaps, in whatever half state it is; nothing left is fine.

        Raises:
            BadRequest: the checkpoint is foreign (``checkpoint-foreign``).
        """
        self._with(
            vm,
            f"delete checkpoint {name} of",
            lambda domain: checkpoints.delete(domain, self._shelf, vm, name),
            limit=LONG_LIMIT,
        )

    def checkpoint_usable(self, vm: VmId, name: str, targets: Sequence[str]) -> str | None:
        """Say why changes since a checkpoint cannot be asked for these disks; None when they can.

        A checkpoint that libvirt lost is redefined on the way. A bitmap broken by a crash shows in begin_backup.
        """
        lost = self._with(
            vm, f"look at checkpoint {name} of", lambda domain: checkpoints.lost(domain, self._shelf, vm, name, targets)
        )
        return "; ".join(dict.fromkeys(lost.values())) or None

    # -- backup jobs -------------------------------------------------------------------------------------------

    def begin_backup(
        self,
        vm: VmId,
        *,
        checkpoint: str,
        base: str | None = None,
        targets: Sequence[str] = (),
        bases: Mapping[str, str | None] | None = None,
        around: Instant = contextlib.nullcontext,
    ) -> BackupJob:
        """Freeze a view of the disks at one instant and serve it over NBD; makes the checkpoint of that instant.

        Disks that cannot hold a bitmap (``DiskView.tracked`` is False) take part without one and are not in the
        checkpoint. When no disk is tracked, no checkpoint is made, and its name merely names the job.

        Args:
            vm: a running or paused VM.
            checkpoint: a new name of ours.
            base: earlier checkpoint of ours since which changes are asked; None for whole disks.
            targets: the disks.
            bases: instead of ``base`` and ``targets``: each disk with its own base, None for a whole copy; always
                None for untracked disks.
            around: entered just before the instant, when all else is ready, and left just after it.

        Raises:
            Conflict: ``vm-not-running``, ``backup-job-running``, ``too-many-checkpoints``.
            BadRequest: ``disk-unknown``, ``checkpoint-foreign``.
            CheckpointBroken: ``checkpoint-broken``: a base's bitmap is lost on ``error.disks`` (empty: nobody knows
                on which); ask again with no base for these. Nothing is left of the attempt.
            NoSpace: no room for scratch.
        """
        wanted = dict.fromkeys(targets, base) if bases is None else dict(bases)

        def begin(raw: libvirt.virConnect) -> dict[str, Export]:
            domain = raw.lookupByUUIDString(vm)
            plan = Plan(vm, domain.name(), checkpoint, wanted)
            return backup.begin(domain, plan, self._shelf, self._files, around)

        def undo(_exports: dict[str, Export]) -> None:
            _log.warning("a backup job began too late: ended again", vm=vm, checkpoint=checkpoint)
            try:
                self.end_job(vm, checkpoint)
                self.delete_checkpoint(vm, checkpoint)
            except VmReplicaError as error:
                _log.warning("could not end it", vm=vm, checkpoint=checkpoint, code=error.code, error=error.message)

        exports = self._connection.call(f"begin the backup of {self._label(vm)}", begin, limit=LONG_LIMIT, if_late=undo)
        return BackupJob(vm, checkpoint, exports, self, self._files)

    def open_stopped(self, vm: VmId, *, checkpoint: str, bases: Mapping[str, str | None]) -> StoppedView:
        """Serve the disks of a VM that is off, as ``begin_backup`` does of one that runs; the same arguments.

        The VM may be started at any moment: what was read counts only if ``require_undisturbed`` says so in the end.

        Raises:
            Conflict: ``vm-started``, ``vm-moved-away``, ``image-in-use``.
            CheckpointBroken: as ``begin_backup``.
        """

        def begin(raw: libvirt.virConnect) -> StoppedView:
            domain = raw.lookupByUUIDString(vm)
            plan = Plan(vm, domain.name(), checkpoint, bases)
            return stopped.begin(domain, plan, self._shelf, self._files, lambda: self._active(vm))

        return self._connection.call(
            f"open the disks of {self._label(vm)}", begin, limit=LONG_LIMIT, if_late=StoppedView.end
        )

    def image_identities(self, vm: VmId, targets: Sequence[str]) -> dict[str, str] | None:
        """Tell for each disk of a VM that is off what its images are: it changes with them. None when it runs."""
        wanted = frozenset(targets)
        return self._with(vm, "look at the images of", lambda domain: stopped.identities(domain, wanted))

    def _active(self, vm: VmId) -> bool:
        return self._with(vm, "look at", lambda domain: bool(domain.isActive()))

    def attach_backup(self, vm: VmId, checkpoint: str) -> BackupJob | None:
        """Find our still-running job of a checkpoint again, after the agent was restarted."""

        def attach(domain: libvirt.virDomain) -> dict[str, Export] | None:
            job = backup.running(domain)
            if job is None or job.socket != self._files.socket(vm, checkpoint):
                return None
            return backup.exports_of(domain, job.socket, job.bitmaps)

        exports = self._with(vm, "find the backup job of", attach)
        return None if exports is None else BackupJob(vm, checkpoint, exports, self, self._files)

    def end_backup(self, vm: VmId) -> None:
        """End the running backup job if it is ours, and remove all leftovers of our jobs on this VM."""

        def end(domain: libvirt.virDomain) -> None:
            job = backup.running(domain)
            if job is not None and self._files.is_ours(vm, job):
                backup.abort(domain, domain.name())
            self._files.sweep(vm)

        self._with(vm, "end the backup job of", end, limit=LONG_LIMIT)

    def end_job(self, vm: VmId, checkpoint: str) -> None:
        """End one job of ours, known by its checkpoint; for BackupJob."""

        def end(domain: libvirt.virDomain) -> None:
            job = backup.running(domain)
            if job is not None and job.socket == self._files.socket(vm, checkpoint):
                backup.abort(domain, domain.name())

        try:
            self._with(vm, "end the backup job of", end, limit=LONG_LIMIT)
        except NotFound:
            _log.info("the VM of an ended backup job is gone", vm=vm)
        self._files.remove(vm, checkpoint)

    def job_alive(self, vm: VmId, checkpoint: str) -> bool:
        """Tell whether this very job of ours runs; for BackupJob."""

        def alive(domain: libvirt.virDomain) -> bool:
            job = backup.running(domain)
            return job is not None and job.socket == self._files.socket(vm, checkpoint)

        try:
            return self._with(vm, "look at the backup job of", alive)
        except NotFound:
            return False

    # -- inside ------------------------------------------------------------------------------------------------

    def _register(self, raw: libvirt.virConnect) -> None:
        def on_event(
            _raw: libvirt.virConnect, domain: libvirt.virDomain, event: int, _detail: int, _opaque: object
        ) -> None:
            if self._connection.is_current(raw):
                self._watchers.tell(domain.UUIDString(), event)

        raw.domainEventRegisterAny(None, libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, on_event, None)
