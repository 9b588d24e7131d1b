"""Carrying out a failover, undoing one that failed, and finishing or undoing one that a crash interrupted."""

import datetime as dt
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import structlog

from vmreplica.failover.layer import make_layer, refuse_existing, remove_vm
from vmreplica.failover.machine import place_machine, remarks
from vmreplica.failover.plan import PrimaryAnswer, StepHook, no_hook
from vmreplica.hypervisor import Hypervisor
from vmreplica.hypervisor.definition import BuiltDefinition, build
from vmreplica.hypervisor.definition_site import Site
from vmreplica.model.addresses import AddressingRecord
from vmreplica.model.errors import Conflict, VmReplicaError
from vmreplica.model.ids import PointId, checkpoint_name
from vmreplica.model.report import FailoverPlan
from vmreplica.model.states import Event, State, transition
from vmreplica.repository import FailoverRecord, Replica

_log: Final = structlog.get_logger(__name__)


def execute(
    replica: Replica,
    hypervisor: Hypervisor,
    plan: FailoverPlan,
    *,
    ask_primary: Callable[[], PrimaryAnswer],
    fenced: Callable[[], object] = lambda: None,
    before: StepHook = no_hook,
) -> tuple[str, ...]:
    """Start the VM on this host from the plan's point.

    Args:
        replica: the VM's part of the repository.
        hypervisor: this host's libvirt.
        plan: made by ``plan_unplanned`` just before.
        ask_primary: asked once more at the last moment before the guest's first instruction.
        fenced: called when the state says to everybody who asks that a failover is on its way: only what the primary
            is asked from then on counts.
        before: observer of steps.

    Returns:
        Notes on what the definition lost or changed on its way here.

    Raises:
        VmReplicaError: a step failed; everything done so far has been undone.
    """
    refuse_existing(hypervisor, plan.vm, plan.name)
    replica.verify_devices()
    before("fence")
    _fence(replica, plan)
    fenced()
    try:
        before("layer")
        disks = make_layer(replica, plan.point, replica.run_dir, "../points")
        before("define")
        built = _definition(replica, hypervisor, plan.point, disks)
        hypervisor.define(built.xml)
        before("start")
        hypervisor.start_paused(plan.vm)
        before("checkpoint")
        untracked = _track(replica, hypervisor, plan.point)
        # A dead primary takes its time not to answer; QEMU starts meanwhile, and its guest has not run yet.
        _refuse_running(plan.name, ask_primary())
        _decide(replica)
        before("resume")
        hypervisor.resume(plan.vm)
    except BaseException:
        undo(replica, hypervisor)
        raise
    before("started")
    _started(replica)
    return (*remarks(replica, plan.point), *built.told, *untracked)


def recover(replica: Replica, hypervisor: Hypervisor) -> None:
    """Finish or undo what a crash or a failure interrupted; called when no act is under way, until it succeeds.

    A guest that may have run is never thrown away by itself; one that went off meanwhile stays off, failed over.
    """
    record = replica.record
    state, decided = State(record.state), record.failover is not None and record.failover.started
    if state is State.FAILING_OVER and decided:
        if hypervisor.running(record.vm):
            hypervisor.resume(record.vm)
        _started(replica)
    elif state in {State.FAILING_OVER, State.CANCELLING}:
        undo(replica, hypervisor)


def undo(replica: Replica, hypervisor: Hypervisor) -> None:
    """Remove the VM and its layer from this host and go back to receiving.

    Raises:
        VmReplicaError: a step failed; it is still being taken back, and this can be called again.
    """
    replica.move(Event.CANCEL)
    record = replica.record
    remove_vm(hypervisor, record.vm)
    replica.remove_run_layer()
    if record.failover is not None:
        replica.release(record.failover.hold)
    # At once: as long as it is being taken back, its record tells what is taken back.
    replica.update(failover=None, state=transition(record.name, State.CANCELLING, Event.CANCELLED))
    _log.info("failover undone", vm=record.vm, name=record.name)


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
        now = dt.datetime.now(dt.UTC)
        wish = AddressingRecord(hold=hold, since=now) if replica.record.addresses else None
        failover = FailoverRecord(point=plan.point, hold=hold, started=False, since=now)
        replica.update(failover=failover, addressing=wish)
        replica.move(Event.FAIL_OVER)
    except BaseException:
        replica.release(hold)
        raise


def _definition(replica: Replica, hypervisor: Hypervisor, point: PointId, disks: Mapping[str, Path]) -> BuiltDefinition:
    parts = place_machine(replica, point, replica.record.vm)
    site = Site(disks=disks, network_map=replica.record.network_map, **parts, **hypervisor.abilities())
    return build(replica.definition(point), site)


def _track(replica: Replica, hypervisor: Hypervisor, point: PointId) -> tuple[str, ...]:
    """Note what the VM writes from its first instruction on: with the old primary's copy, that is all that differs.

    Without it the way back is longer, since disks are compared, but no less safe: so that is a note, not an error.
    """
    checkpoint = checkpoint_name(replica.record.owner, point)
    try:
        hypervisor.begin_tracking(replica.record.vm, checkpoint, [disk.target for disk in replica.point(point).disks])
    except VmReplicaError as error:
        _log.warning("no checkpoint for the way back", vm=replica.record.vm, code=error.code, why=error.message)
        return (f"its changes are not tracked ({error.message}): on the way back its disks are compared",)
    return ()


def _decide(replica: Replica) -> None:
    """Persist that the guest may have run from here on: what it writes is never thrown away by itself again."""
    record = replica.record
    if record.failover is None:
        raise VmReplicaError("failover-record-missing", f"{record.name} has no failover record")
    replica.update(epoch=record.epoch + 1, failover=record.failover.model_copy(update={"started": True}))


def _started(replica: Replica) -> None:
    replica.move(Event.STARTED)
    record = replica.record
    _log.info("failed over", vm=record.vm, name=record.name, epoch=record.epoch)
