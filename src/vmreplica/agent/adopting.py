"""The old primary's part when roles are swapped: its stale VM gives way to a replica on the old disks, in place.

The new primary asks, as often as it needs to. Nothing is given up here before the adoption is written down durably, and
from then on it is finished, by the next start of the agent if this one is killed.
"""

import datetime as dt
import secrets
import threading
from typing import Final

import structlog

from vmreplica.agent.facts import Stages, replicated_disks
from vmreplica.agent.journal import Journal
from vmreplica.agent.runner import Runner
from vmreplica.agent.sweeping import forget_primary, sweep_checkpoints
from vmreplica.hypervisor import DomainBrief, DomainView
from vmreplica.hypervisor.definition_nics import attachments
from vmreplica.hypervisor.fence import Fence
from vmreplica.hypervisor.machine import MachineStore
from vmreplica.model.adoption import AdoptedDisk, Adoption
from vmreplica.model.errors import Conflict, NotFound, Refused, VmReplicaError
from vmreplica.model.ids import HostId, PointId, VmId, checkpoint_name, new_point_id, point_instant
from vmreplica.model.networks import without_tags
from vmreplica.model.point import Position
from vmreplica.model.policy import Policy
from vmreplica.model.states import RECEIVING, State
from vmreplica.peer.wire import ReverseRequest
from vmreplica.repository import Replica, Repository

_log: Final = structlog.get_logger(__name__)

#: What an old disk may be so that later points can be folded into it.
_ADOPTABLE: Final = frozenset({"qcow2", "raw"})
_BRIDGE: Final = "bridge:"


class Adopting:
    """Thread-safe.

    Args:
        repository: where the replicas stand.
        stages: libvirt, spool, fingerprints.
        runner: looks after the VMs that are protected from here.
        fence: what keeps VMs of this host from being started.
        here: this host.
        journal: history.
    """

    def __init__(
        self, repository: Repository, stages: Stages, runner: Runner, fence: Fence, here: HostId, *, journal: Journal
    ) -> None:
        self._journal = journal
        self._repository = repository
        self._stages = stages
        self._hypervisor = stages.hypervisor
        self._runner = runner
        self._fence = fence
        self._here = here
        self._lock = threading.Lock()

    def recover(self) -> None:
        """Finish what a crash interrupted; called at the agent's start, before cycles begin."""
        for replica in self._repository.replicas():
            begun = replica.record.adoption
            if begun is None:
                continue
            try:
                self._finish(self._repository.adopt(begun.adoption))
            except VmReplicaError as error:
                _log.warning("roles are not swapped yet: asked again", vm=replica.record.vm, why=error.message)

    def accept(self, peer: HostId, request: ReverseRequest) -> Position:
        """Become the replica of a VM that was failed over to the caller; again, just answer.

        Raises:
            Refused: ``not-your-vm``: this host does not protect it to the caller.
            Conflict: ``vm-runs-there``, ``stale-epoch``, ``commit-first``.
            VmReplicaError: libvirt, or the store, refuses; everything stays as it is.
        """
        with self._lock:
            replica = self._held(peer, request.vm)
            if replica is not None and replica.record.adoption is not None:
                return self._finish(self._repository.adopt(replica.record.adoption.adoption)).position()
            policy = self._policy(request.vm)
            if policy is None or policy.replica != peer:
                return _known(replica, request).position()
            _require_newer(request, policy)
            return self._finish(self._adopt(peer, request, policy)).position()

    # ---- the steps

    def _adopt(self, peer: HostId, request: ReverseRequest, policy: Policy) -> Replica:
        view = self._hypervisor.inspect(request.vm)
        _require_off(view)
        brief = DomainBrief(view.vm, view.name, view.active)
        rel = self._runner.adopt(brief, policy)
        self._runner.retire(rel)
        try:
            adoption = self._adoption(peer, request, policy, view)
            return self._repository.adopt(adoption)
        except BaseException:
            self._runner.adopt(brief, policy)
            raise

    def _adoption(self, peer: HostId, request: ReverseRequest, policy: Policy, view: DomainView) -> Adoption:
        disks = replicated_disks(view, policy)
        adopted = tuple(_adopted(view.name, disk.target, disk.path, disk.format, disk.size) for disk in disks.values())
        proven = self._proven(request, tuple(disks))
        now = dt.datetime.now(dt.UTC)
        machine = MachineStore().read(view.vm, view.definition)
        expected = checkpoint_name(self._here, proven) if proven is not None else None
        return Adoption(
            vm=view.vm,
            name=view.name,
            owner=peer,
            interval=request.interval,
            keep=request.keep,
            epoch=request.epoch,
            network_map=_own_networks(request, view),
            point=proven or new_point_id(now, secrets.token_hex(4)),
            kind="final" if proven is not None else "adopted",
            instant=point_instant(proven) if proven is not None else now,
            checkpoint=expected if request.checkpoint == expected else None,
            definition=view.definition,
            disks=adopted,
            machine=machine.files,
            machine_remarks=machine.remarks,
        )

    def _proven(self, request: ReverseRequest, targets: tuple[str, ...]) -> PointId | None:
        """Tell the point that the disks are known to be: the last one was taken from just these stopped images."""
        images = self._hypervisor.image_identities(request.vm, targets)
        if request.point is None or not self._stages.rest.same_images(request.vm, request.point, images):
            return None
        return request.point

    def _finish(self, replica: Replica) -> Replica:
        """End the VM's life as a primary; every step may be repeated."""
        record = replica.record
        try:
            view = self._hypervisor.inspect(record.vm)
        except NotFound:
            view = None
        if view is not None:
            self._end_life(view, record.owner)
        forget_primary(self._stages, record.vm)
        self._fence.allow(record.vm)  # there is nothing left that could be started
        replica.finish_adoption()
        text = "this host, its old primary, is its replica now"
        self._journal.event(record.vm, "reverse", "became-replica", text, name=record.name)
        _log.info("the old primary is the replica now", vm=record.vm, name=record.name, owner=record.owner)
        return replica

    def _end_life(self, view: DomainView, replica: HostId) -> None:
        """Take the stale VM away; what tracked its changes is taken out of its images before."""
        _require_off(view)
        rel = self._runner.find(view.vm)
        if rel is not None:
            self._runner.retire(rel)
        sweep_checkpoints(self._stages, view.vm, replica)
        self._hypervisor.undefine(view.vm, keep_files=True)

    # ---- questions

    def _held(self, peer: HostId, vm: VmId) -> Replica | None:
        """Give the replica of a VM if the caller sends it."""
        try:
            replica = self._repository.replica(vm)
        except NotFound:
            return None
        return replica if replica.record.owner == peer else None

    def _policy(self, vm: VmId) -> Policy | None:
        try:
            return self._hypervisor.policy(vm)
        except NotFound:
            return None


def _known(replica: Replica | None, request: ReverseRequest) -> Replica:
    """Give the replica of a VM whose roles were swapped before.

    Raises:
        Refused: ``not-your-vm``: the same for a VM of another host as for one that nobody knows.
    """
    taking = RECEIVING | {State.PAUSED}
    if replica is not None and replica.record.epoch == request.epoch and replica.record.state in taking:
        return replica
    raise Refused(
        "not-your-vm",
        f"this host does not protect {request.vm} to the calling host",
        hint="to protect the VM afresh: vmreplica disable VM, then vmreplica enable VM --to PEER",
    )


def _require_newer(request: ReverseRequest, policy: Policy) -> None:
    if request.epoch <= policy.epoch:
        raise Conflict(
            "stale-epoch",
            f"{request.name}: the caller is at epoch {request.epoch}, its old primary at {policy.epoch}: no failover",
            hint="vmreplica status on both hosts tells which one is ahead",
        )


def _require_off(view: DomainView) -> None:
    if view.active:
        raise Conflict(
            "vm-runs-there",
            f"a stale copy of {view.name} runs on its old primary",
            hint=f"decide which copy survives; to give that one up, on the old primary: virsh destroy {view.name}",
        )


def _adopted(name: str, target: str, path: str | None, form: str, size: int) -> AdoptedDisk:
    if path is None or form not in _ADOPTABLE:
        raise Conflict(
            "disk-not-adoptable",
            f"disk {target} of {name} on its old primary has the format {form}: it cannot be the base of a replica",
            hint=f"protect it afresh: vmreplica disable {name}, then vmreplica enable {name} --to PEER",
        )
    return AdoptedDisk(target=target, path=path, format="qcow2" if form == "qcow2" else "raw", size=size)


def _own_networks(request: ReverseRequest, view: DomainView) -> dict[str, str]:
    """Take of the peer's network map what leads to networks that the VM was in here: it may name no others."""
    own = attachments(view.definition)
    wanted = request.network_map.items()
    return {theirs: ours for theirs, ours in wanted if without_tags(ours).removeprefix(_BRIDGE) in own}
