"""Carrying out a failover, undoing one that failed, and finishing or undoing one that a crash interrupted."""

from collections.abc import Callable
from typing import Final

import structlog

from vmreplica.failover.plan import PrimaryAnswer
from vmreplica.hypervisor import Hypervisor
from vmreplica.hypervisor.definition import BuiltDefinition, build
from vmreplica.model.errors import Conflict, VmReplicaError
from vmreplica.model.ids import PointId
from vmreplica.model.report import FailoverPlan
from vmreplica.model.states import Event, State
from vmreplica.qcow2.tools import create_overlay
from vmreplica.repository import FailoverRecord, Replica

_log: Final = structlog.get_logger(__name__)

#: Called with the name of each step before it is done; tests kill the agent there.
StepHook = Callable[[str], None]


def _no_hook(_step: str) -> None:
    return


def execute(
    replica: Replica,
    hypervisor: Hypervisor,
    plan: FailoverPlan,
    *,
    ask_primary: Callable[[], PrimaryAnswer],
    before: StepHook = _no_hook,
) -> tuple[str, ...]:
    """Start the VM on this host from the plan's point.

    Args:
        replica: the VM's part of the repository.
        hypervisor: this host's libvirt.
        plan: made by ``plan_unplanned`` just before.
        ask_primary: asked once more at the last moment before the start.
        before: observer of steps.

    Returns:
        Notes on what the definition lost or changed on its way here.

    Raises:
        VmReplicaError: a step failed; everything done so far has been undone.
    """
    _refuse_existing(replica, hypervisor)
    replica.verify_devices()
    before("fence")
    _fence(replica, plan)
    try:
        before("layer")
        _make_layer(replica, plan.point)
        before("define")
        built = _definition(replica, hypervisor, plan.point)
        hypervisor.define(built.xml)
        _refuse_running(plan.name, ask_primary())
        before("start")
        hypervisor.start(plan.vm)
    except BaseException:
        undo(replica, hypervisor)
        raise
    before("started")
    _started(replica)
    return built.notes


def recover(replica: Replica, hypervisor: Hypervisor) -> None:
    """Finish or undo what a crash interrupted; called at the agent's start for each replica."""
    state = State(replica.record.state)
    if state is State.FAILING_OVER and hypervisor.exists(replica.record.vm) and hypervisor.running(replica.record.vm):
        _started(replica)
    elif state in {State.FAILING_OVER, State.CANCELLING}:
        undo(replica, hypervisor)


def undo(replica: Replica, hypervisor: Hypervisor) -> None:
    """Remove the VM and its layer from this host and go back to receiving."""
    record = replica.record
    if State(record.state) is not State.CANCELLING:
        replica.move(Event.CANCEL)
    if hypervisor.exists(record.vm):
        if hypervisor.running(record.vm):
            hypervisor.stop(record.vm)
        hypervisor.undefine(record.vm)
    replica.remove_run_layer()
    if record.failover is not None:
        replica.release(record.failover.hold)
    replica.update(failover=None)
    replica.move(Event.CANCELLED)
    _log.info("failover undone", vm=record.vm, name=record.name)


def _refuse_existing(replica: Replica, hypervisor: Hypervisor) -> None:
    record = replica.record
    if hypervisor.exists(record.vm):
        raise Conflict(
            "vm-exists-here",
            f"a VM with the id of {record.name} is already defined on this host",
            hint=f"look at it with `virsh dominfo {record.vm}`; undefine it if it is a leftover",
        )


def _refuse_running(name: str, answer: PrimaryAnswer) -> None:
    if answer == "runs":
        raise Conflict(
            "primary-still-runs",
            f"{name} runs on its primary",
            hint="shut the VM down on the primary first",
        )


def _fence(replica: Replica, plan: FailoverPlan) -> None:
    """Hold the point, then persist the state in which nothing more is received."""
    hold = replica.hold(plan.point, "failover", f"{plan.name} runs from this point")
    try:
        replica.update(failover=FailoverRecord(point=plan.point, hold=hold, started=False))
        replica.move(Event.FAIL_OVER)
    except BaseException:
        replica.release(hold)
        raise


def _make_layer(replica: Replica, point: PointId) -> None:
    replica.remove_run_layer()
    replica.run_dir.mkdir(mode=0o711)
    for disk in replica.point(point).disks:
        create_overlay(
            replica.run_dir / f"{disk.target}.qcow2",
            backing=f"../points/{point}/{disk.target}.qcow2",
            size=disk.size,
        )


def _definition(replica: Replica, hypervisor: Hypervisor, point: PointId) -> BuiltDefinition:
    disks = {disk.target: replica.run_dir / f"{disk.target}.qcow2" for disk in replica.point(point).disks}
    return build(
        replica.definition(point),
        disks=disks,
        network_map=replica.record.network_map,
        **hypervisor.abilities(),
    )


def _started(replica: Replica) -> None:
    record = replica.record
    if record.failover is None:
        raise VmReplicaError("failover-record-missing", f"{record.name} has no failover record")
    # The epoch first: killed in between, the state still says that this must be finished.
    replica.update(epoch=record.epoch + 1, failover=record.failover.model_copy(update={"started": True}))
    replica.move(Event.STARTED)
    _log.info("failed over", vm=record.vm, name=record.name, point=record.failover.point, epoch=record.epoch + 1)
