"""The examination of one VM: its disks, jobs, replica and definition, and a real backup job."""

import itertools
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Final

from vmreplica.agent.doctor.host_exam import Parts, peer_silent
from vmreplica.agent.doctor.judge_vm import (
    ScratchFacts,
    judge_checkpoints,
    judge_definition,
    judge_disks,
    judge_freezing,
    judge_guest_agent,
    judge_image,
    judge_quiescing,
    judge_replica,
    judge_scratch,
    judge_state,
    trial_fine,
)
from vmreplica.agent.doctor.probing import Probe, run_probes
from vmreplica.agent.doctor.vm_facts import image_facts
from vmreplica.agent.relationship import Relationship
from vmreplica.failover.machine import foresee_machine, parts_of, remarks
from vmreplica.fsio import free_bytes
from vmreplica.hypervisor import CheckpointBroken, DiskView, DomainView
from vmreplica.hypervisor.definition import build
from vmreplica.hypervisor.definition_site import Site
from vmreplica.hypervisor.examine import VmLook
from vmreplica.hypervisor.machine import MachineStore
from vmreplica.model.errors import Conflict, Corrupt, NotFound, VmReplicaError
from vmreplica.model.findings import Finding, found
from vmreplica.model.ids import DiskTarget, VmId, is_our_checkpoint
from vmreplica.model.policy import Policy
from vmreplica.model.report import CycleReport
from vmreplica.peer.client import PeerClient
from vmreplica.repository import Replica

#: Seconds for all looks at a VM together, and for its trial.
VM_LIMIT: Final = 40.0
_TRIAL_LIMIT: Final = 120.0
#: Seconds to wait for a running cycle before the trial is left out.
_PATIENCE: Final = 15.0
_CONNECT, _ANSWER = 4.0, 8.0
_CYCLES: Final = 50


class VmExam:
    """One VM of this host, looked at once.

    Args:
        parts: of the agent.
        vm: the VM.

    Raises:
        VmReplicaError: libvirt does not tell about it.
    """

    def __init__(self, parts: Parts, vm: VmId) -> None:
        self._parts = parts
        self._vm = vm
        self._look: VmLook = parts.hypervisor.examiner().vm(vm)
        self._view: DomainView = self._look.view
        self._policy: Policy | None = None
        self._unreadable: list[Finding] = []
        try:
            self._policy = parts.hypervisor.policy(vm)
        except Corrupt as error:
            self._unreadable = [found("policy-unreadable", self._view.name, error.message, hint=error.hint)]
        self._rel: Relationship | None = parts.runner.find(vm)

    def findings(self, *, trial: bool) -> list[Finding]:
        """Look at everything; the trial comes last, when all else is known.

        Args:
            trial: begin and end a real backup job.
        """
        seen = [*self._unreadable, *run_probes(self._probes(), limit=VM_LIMIT)]
        if not trial:
            return [*seen, self._no_trial("it was not wanted", f"vmreplica doctor {self._view.name}")]
        return [*seen, *run_probes({f"trial on {self._view.name}": self._trial}, limit=_TRIAL_LIMIT)]

    def _probes(self) -> dict[str, Probe]:
        name, policy = self._view.name, self._policy
        excluded = policy.excluded if policy else ()
        probes: dict[str, Probe] = {
            "state": lambda: judge_state(self._look, policy, self._rel.last if self._rel else None),
            "disks": lambda: judge_disks(name, self._view.disks, excluded),
            "checkpoints": lambda: judge_checkpoints(self._look),
            "definition": self._definition,
            "scratch": self._scratch,
        }
        for disk in self._wanted():
            probes[f"image of {disk.target}"] = partial(self._image, disk)
        if self._view.active:
            probes["guest agent"] = self._guest_agent
        if policy is not None:
            probes["replica"] = partial(self._replica, policy)
        return probes

    def _wanted(self) -> list[DiskView]:
        excluded = self._policy.excluded if self._policy else ()
        return [d for d in self._view.disks if d.reason_ineligible is None and d.target not in excluded]

    # ---- looks

    def _image(self, disk: DiskView) -> list[Finding]:
        least = self._parts.config.limits.min_free
        return judge_image(self._view.name, image_facts(disk), active=self._view.active, min_free=least)

    def _guest_agent(self) -> list[Finding]:
        seen = self._agent_in_guest()
        if self._policy is None:
            return seen
        return [*seen, *judge_quiescing(self._view.name, self._parts.quiescer.facts(self._vm, self._policy))]

    def _agent_in_guest(self) -> list[Finding]:
        name, wanted = self._view.name, self._policy is not None and self._policy.app_consistent.wanted
        answer = self._parts.hypervisor.examiner().guest_agent(self._vm) if self._look.guest_agent else "absent"
        judged = [judge_guest_agent(name, answer, wanted=wanted)]
        if not wanted or answer != "answers":
            return judged
        try:
            look = self._parts.hypervisor.guest_freezer(self._vm, name).look()
        except VmReplicaError as error:
            return [*judged, found("check-failed", name, error.message, hint=error.hint)]
        return [*judged, *judge_freezing(name, look)]

    def _scratch(self) -> list[Finding]:
        path, limits = self._parts.config.agent.runtime_dir, self._parts.config.limits
        facts = ScratchFacts(
            path=path,
            free=free_bytes(path),
            min_free=limits.min_free,
            largest_delta=largest_delta(self._parts.journal.history(self._vm, _CYCLES)),
        )
        return judge_scratch(facts)

    def _definition(self) -> list[Finding]:
        """Judge by this host, as the replica's own abilities are not known here."""
        disks = {disk.target: Path(disk.path or "") for disk in self._wanted()}
        try:
            machine = MachineStore().read(self._vm, self._view.definition)
            parts = parts_of(self._vm, machine.files)
            site = Site(disks=disks, network_map={}, **parts, **self._parts.hypervisor.abilities())
            built = build(self._view.definition, site)
        except VmReplicaError as error:
            return [found("definition-refused", self._view.name, error.message, hint=error.hint)]
        return judge_definition(self._view.name, (*machine.remarks, *built.notes))

    def _replica(self, policy: Policy) -> list[Finding]:
        name = self._view.name
        try:
            peer = self._parts.book.by_id(policy.replica)
        except NotFound as error:
            return [found("replica-refuses", name, "its replica is no longer paired", hint=error.hint)]
        try:
            with PeerClient(self._parts.identity, peer, connect_timeout=_CONNECT, read_timeout=_ANSWER) as client:
                position = client.position(self._vm)
        except NotFound as error:
            return [found("replica-refuses", name, error.message, hint=error.hint)]
        except VmReplicaError as error:
            return [peer_silent(peer.name, error)]
        first_copy = sum(min(disk.size, _allocated(disk)) for disk in self._wanted())
        return judge_replica(name, peer.name, policy, position, first_copy)

    # ---- trial

    def _trial(self) -> list[Finding]:
        """Begin and end a job in the VM's turn."""
        obstacle = self._obstacle()
        if obstacle is not None:
            return [self._no_trial(*obstacle)]
        if self._rel is None:
            return self._try()
        with self._parts.runner.turn(self._rel, "doctor tries a backup job", _PATIENCE) as free:
            if free:
                return self._try()
        return [self._no_trial("a cycle of it runs", f"again when it has ended: vmreplica doctor {self._view.name}")]

    def _obstacle(self) -> tuple[str, str] | None:
        """Say why no job may be begun now, and what to do."""
        name, look = self._view.name, self._look
        again = f"then again: vmreplica doctor {name}"
        if not self._view.active:
            return "the VM is shut off", f"virsh start {name}, {again}"
        if look.job == "foreign" or look.busy is not None:
            return (
                look.busy or "a backup job of another program runs",
                f"wait for it (virsh domjobinfo {name}), {again}",
            )
        if not self._wanted():
            return "no disk can be replicated", "see the findings about its disks"
        return None

    def _try(self) -> list[Finding]:
        """Try with the bitmaps that the next cycle needs; broken ones are named, and left out of a second try."""
        name, bases = self._view.name, self._bases()
        owner = self._policy.replica if self._policy else self._parts.identity.host_id
        run: Callable[..., float] = partial(self._parts.trials.run, self._vm, owner)
        broken: list[Finding] = []
        try:
            try:
                seconds = run(bases)
            except CheckpointBroken as error:
                broken = _broken(error, [target for target, base in bases.items() if base is not None])
                seconds = run(dict.fromkeys(bases))
        except Conflict as error:
            return [*broken, self._no_trial(error.message, error.hint or f"again: vmreplica doctor {name}")]
        except VmReplicaError as error:
            return [*broken, found("trial-failed", name, f"{error.message} ({error.code})", hint=error.hint)]
        return [*broken, trial_fine(name, list(bases), seconds)]

    def _bases(self) -> dict[DiskTarget, str | None]:
        """Choose the checkpoint that the next cycle builds on; the latest, should there be two."""
        names = self._parts.hypervisor.checkpoints(self._vm)
        policy = self._policy
        ours = sorted(name for name in names if policy is not None and is_our_checkpoint(name, policy.replica))
        base = ours[-1] if ours else None
        return {disk.target: base if disk.tracked else None for disk in self._wanted()}

    def _no_trial(self, text: str, remedy: str) -> Finding:
        return found("trial-skipped", self._view.name, text, remedy=remedy)


def _broken(error: CheckpointBroken, asked: Sequence[DiskTarget]) -> list[Finding]:
    return [found("bitmap-broken", target, error.message) for target in sorted(error.disks) or asked]


def _allocated(disk: DiskView) -> int:
    try:
        return Path(disk.path or "").stat().st_blocks * 512 or disk.size
    except OSError:
        return disk.size


def largest_delta(cycles: Sequence[CycleReport]) -> int | None:
    """Tell the most that a delta read, in bytes; None when no delta was published."""
    deltas = (cycle for cycle in cycles if cycle.kind == "delta" and cycle.outcome == "published")
    return max((cycle.guest_bytes for cycle in deltas), default=None)


def replica_findings(parts: Parts, replica: Replica) -> list[Finding]:
    """Look at a VM whose replica is here: whether this host would accept its definition."""
    name, points = replica.record.name, replica.points()
    complaints = [found("replica-complains", name, text, vm=name) for text in replica.position().complaints]
    if not points:
        return [*complaints, found("check-skipped", name, "it has no recovery point here yet")]
    newest = points[0].point
    disks = {disk.target: replica.run_dir / f"{disk.target}.qcow2" for disk in replica.point(newest).disks}
    try:
        machine, mapping = foresee_machine(replica, newest, replica.record.vm), replica.record.network_map
        site = Site(disks=disks, network_map=mapping, **machine, **parts.hypervisor.abilities())
        built = build(replica.definition(newest), site)
    except VmReplicaError as error:
        return [*complaints, found("definition-refused", name, error.message, hint=error.hint)]
    notes = (*remarks(replica, newest), *built.notes)
    return list(itertools.chain(complaints, judge_definition(name, notes)))
