"""The replica's part in planned failovers: whether the VM can run here, starting it, and never starting it any more."""

import datetime as dt
import time
from collections.abc import Callable
from typing import Final

import structlog

from vmreplica.agent.clients import Clients
from vmreplica.agent.replica import ReplicaSide
from vmreplica.failover.execute import execute
from vmreplica.failover.layer import refuse_existing
from vmreplica.failover.machine import foresee_machine, parts_of
from vmreplica.failover.plan import StepHook, no_hook, plan_unplanned
from vmreplica.fsio import require_free
from vmreplica.hypervisor import Hypervisor
from vmreplica.hypervisor.definition import build
from vmreplica.hypervisor.definition_site import Site
from vmreplica.model.errors import Conflict, NotFound, Refused, Unreachable, VmReplicaError
from vmreplica.model.ids import HostId, VmId
from vmreplica.model.point import Position
from vmreplica.model.states import RECEIVING, State
from vmreplica.peer.planned import Readiness, ReadinessQuestion, StartedThere, StartWish, Withdrawal
from vmreplica.repository import Replica, Repository

_log: Final = structlog.get_logger(__name__)

#: The VM was started here, and that stands.
_RUNS: Final = frozenset({State.FAILED_OVER, State.COMMITTING, State.COMMITTED})


class PlannedThere:
    """Thread-safe; answers for VMs whose points the calling host sends.

    Args:
        repository: what is held here.
        replicas: keeps failovers of one VM apart.
        hypervisor: this host's libvirt.
        clients: connections to the primaries.
        reverse: begins to swap the roles of this host and of the primary; asking again changes nothing.
        before: observer of steps; tests kill the agent there.
    """

    def __init__(
        self,
        *,
        repository: Repository,
        replicas: ReplicaSide,
        hypervisor: Hypervisor,
        clients: Clients,
        reverse: Callable[[Replica], object] = lambda _replica: None,
        before: StepHook = no_hook,
    ) -> None:
        self._repository = repository
        self._replicas = replicas
        self._hypervisor = hypervisor
        self._clients = clients
        self._reverse = reverse
        self._before = before

    def readiness(self, peer: HostId, vm: VmId, question: ReadinessQuestion) -> Readiness:
        """See whether a VM can run here, and the way back is open; changes nothing.

        Raises:
            Refused: ``not-your-replica``, or this host cannot run it (``definition-...``).
            Conflict: ``replica-not-receiving``, ``vm-exists-here``.
            BadRequest: ``definition-...``.
            NoSpace: the store's reserve is used up.
            Unreachable: ``no-way-back``.
            HypervisorError: libvirt does not accept the definition.
        """
        replica = self._own(peer, vm)
        _require_receiving(replica)
        refuse_existing(self._hypervisor, vm, replica.record.name)
        require_free(self._repository.store, self._repository.min_free, "the layer that the VM writes to")
        replica.verify_devices()
        notes = self._rehearse(replica, question)
        self._require_way_back(peer, replica)
        return Readiness(notes=notes)

    def start(self, peer: HostId, vm: VmId, wish: StartWish) -> StartedThere:
        """Start a VM from its last point, and begin to swap the roles; of one that was started, just the latter.

        Raises:
            Refused: ``not-your-replica``.
            Conflict: ``stale-epoch``: it was taken back; ``failed-over-from-another-point``; ``point-not-latest``.
            VmReplicaError: a step failed, and everything was undone.
        """
        replica, began = self._own(peer, vm), time.monotonic()
        with self._replicas.no_failover():
            began_before = _started(replica, wish)
            notes = () if began_before else self._execute(replica, wish)
            if not began_before:
                text = f"moved here: started from its last point {wish.point}, nothing is lost"
                self._replicas.journal.event(vm, "planned", "moved-here", text, point=wish.point)
        self._before("reverse")
        self._begin_reversal(replica)
        return StartedThere(epoch=replica.record.epoch, seconds=time.monotonic() - began, notes=notes)

    def withdraw(self, peer: HostId, vm: VmId, withdrawal: Withdrawal) -> Position:
        """Let no wish of an epoch before start the VM any more.

        Raises:
            Refused: ``not-your-replica``.
            Conflict: ``already-started``: it is too late.
        """
        replica = self._own(peer, vm)
        with self._replicas.no_failover():
            record = replica.record
            if State(record.state) not in RECEIVING | {State.PAUSED}:
                raise Conflict(
                    "already-started",
                    f"{record.name} is {record.state} on its replica: its planned failover cannot be taken back",
                    hint=f"vmreplica failover {record.name} --planned goes forward",
                )
            replica.update(epoch=max(record.epoch, withdrawal.epoch))
        self._replicas.journal.event(vm, "planned", "planned-withdrawn", "its planned failover to here was taken back")
        _log.info("planned failover taken back", vm=vm, name=record.name, epoch=withdrawal.epoch)
        return replica.position()

    # ---- helpers

    def _own(self, peer: HostId, vm: VmId) -> Replica:
        try:
            replica = self._repository.replica(vm)
        except NotFound:
            replica = None
        if replica is None or replica.record.owner != peer:
            raise Refused(
                "not-your-replica",
                f"this host holds no replica of {vm} that the calling host sends",
                hint="vmreplica status on both hosts shows who sends to whom",
            )
        return replica

    def _rehearse(self, replica: Replica, question: ReadinessQuestion) -> tuple[str, ...]:
        record = replica.record
        disks = {target: replica.run_dir / f"{target}.qcow2" for target in question.disks}
        points = replica.points()
        parts = foresee_machine(replica, points[0].point, record.vm) if points else parts_of(record.vm, ())
        site = Site(disks=disks, network_map=record.network_map, **parts, **self._hypervisor.abilities())
        built = build(question.definition, site)
        if built.vm != record.vm:
            raise Refused("definition-of-another-vm", f"the definition is of {built.vm}, not of {record.name}")
        self._hypervisor.power_switch().require_acceptable(record.name, built.xml)
        return built.told

    def _require_way_back(self, peer: HostId, replica: Replica) -> None:
        try:
            self._clients.to(peer).hello()
        except VmReplicaError as error:
            raise Unreachable(
                "no-way-back",
                f"the replica's host does not reach the primary of {replica.record.name}: {error.message}",
                hint="afterwards points go the other way: vmreplica peer test, on the replica",
                kind="operator",
            ) from error

    def _execute(self, replica: Replica, wish: StartWish) -> tuple[str, ...]:
        record, points = replica.record, replica.points()
        if wish.epoch < record.epoch:
            raise Conflict(
                "stale-epoch",
                f"the planned failover of {record.name} was taken back, or another one came before",
                hint=f"vmreplica status {record.name}",
            )
        if not points or points[0].point != wish.point:
            raise Conflict(
                "point-not-latest",
                f"{record.name} has a newer point than {wish.point}, from which it was to be started",
                hint=f"on the primary: vmreplica failover {record.name} --cancel",
            )
        now = dt.datetime.now(dt.UTC)
        plan = plan_unplanned(record, points, wish.point, now=now, primary="stopped")
        with self._replicas.boots.aside():
            return execute(replica, self._hypervisor, plan, ask_primary=lambda: "stopped", before=self._before)

    def _begin_reversal(self, replica: Replica) -> None:
        try:
            self._reverse(replica)
        except VmReplicaError as error:
            # The VM runs, which is what counts; the primary asks again, or a person does.
            _log.warning("roles are not swapped yet", vm=replica.record.vm, why=error.message)


def _started(replica: Replica, wish: StartWish) -> bool:
    """Tell whether the VM was started from this very point.

    Raises:
        Conflict: ``failed-over-from-another-point``.
    """
    record = replica.record
    if record.failover is None or State(record.state) not in _RUNS:
        return False
    if record.failover.point != wish.point:
        raise Conflict(
            "failed-over-from-another-point",
            f"{record.name} runs on its replica from point {record.failover.point}, not from its last one",
            hint=f"decide there: vmreplica failover {record.name} --cancel, or vmreplica reverse {record.name}",
        )
    return True


def _require_receiving(replica: Replica) -> None:
    record = replica.record
    if State(record.state) is not State.REPLICATING:
        raise Conflict(
            "replica-not-receiving",
            f"the replica of {record.name} is {record.state}",
            hint=f"vmreplica status {record.name}, on the replica",
        )
