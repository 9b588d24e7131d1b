"""The part of the agent that tells which side of a VM's replication this host is."""

from vmreplica.agent.clients import Clients
from vmreplica.agent.journal import Journal
from vmreplica.agent.primary import PrimarySide
from vmreplica.agent.replica import ReplicaSide
from vmreplica.agent.tasks import Tasks
from vmreplica.hypervisor import Hypervisor
from vmreplica.model.errors import NotFound
from vmreplica.model.ids import VmId
from vmreplica.model.report import PointsReport, TaskReport
from vmreplica.repository import Replica


class Relations:
    """The part of ``Agent`` that finds relationships, and what is asked of either side."""

    _clients: Clients
    _hypervisor: Hypervisor
    _journal: Journal
    _primaries: PrimarySide
    _replicas: ReplicaSide
    _tasks: Tasks

    def points(self, vm: str, *, plan: bool = False) -> PointsReport:
        """List recovery points, held here or on the VM's replica; ``plan``: with what merging will do, if held here."""
        replica = self._held(vm)
        if replica is not None:
            listed = replica.listing()
            return listed.model_copy(update={"merges": replica.merge_plan()}) if plan else listed
        rel = self._primaries.find(vm)
        if rel is None:
            self._explain_missing(vm)
            raise NotFound("not-protected", f"{vm} is not protected on this host", hint=f"vmreplica enable {vm}")
        return self._clients.to(rel.policy.replica).points(rel.vm)

    def task(self, task_id: str, /) -> TaskReport:
        """Tell how a long act is doing."""
        return self._tasks.get(task_id).report()

    def cancel_task(self, task_id: str, /) -> TaskReport:
        """Stop a long act that can be stopped."""
        return self._tasks.cancel(task_id).report()

    # ---- helpers

    def _held(self, vm: str) -> Replica | None:
        """Find what this host holds of a VM for another one: nothing, when the VM is protected from here."""
        return self._replicas.find(vm) if self._primaries.find(vm) is None else None

    def held_or_elsewhere(self, vm: str) -> Replica:
        """Find what this host holds of a VM for another one, or say which host has it.

        Raises:
            NotFound: ``points-elsewhere``, ``replica-unknown``.
        """
        replica, rel = self._held(vm), self._primaries.find(vm)
        if replica is None and rel is not None:
            peer = self._replicas.peer_name(rel.policy.replica) or "its replica's host"
            what = f"the recovery points of {rel.name} are on {peer}"
            raise NotFound("points-elsewhere", what, hint=f"run the same command on {peer}")
        return replica or self._replicas.get(vm)

    def _resolve(self, vm: str) -> VmId:
        """Find the id of a VM that is here, that a copy is held of, or that the journal knows from before.

        Raises:
            NotFound: ``vm-unknown``.
        """
        rel, replica = self._primaries.find(vm), self._replicas.find(vm)
        if rel is not None:
            return rel.vm
        known = replica.record.vm if replica is not None else self._journal.named(vm)[0]
        return known or self._hypervisor.find(vm).vm

    def _require_primary(self, vm: str) -> None:
        """Refuse what only the primary of a VM can do, when this is its replica.

        Raises:
            NotFound: ``not-protected``.
        """
        replica = self._held(vm)
        if replica is not None:
            raise self._replicas.copy_only(replica)

    def _explain_missing(self, vm: str) -> None:
        """Raise the most telling error for a VM that has no relationship here.

        Raises:
            NotFound: ``vm-unknown``, or ``not-protected`` when the VM exists.
        """
        brief = self._hypervisor.find(vm)
        raise NotFound(
            "not-protected",
            f"{brief.name} is not protected on this host",
            hint=f"vmreplica enable {brief.name} --to PEER",
        )
