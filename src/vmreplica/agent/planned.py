"""Planned failovers from the primary: asked for, watched, taken back, and gone on with after the agent was killed."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import structlog

from vmreplica.agent.journal import Journal
from vmreplica.agent.meter import Meter
from vmreplica.agent.planned_checks import (
    goes_on,
    latest_of,
    nothing_to_cancel,
    require_adoptable,
    too_late,
    warnings_of,
)
from vmreplica.agent.planned_run import Run, Tools
from vmreplica.agent.power_off import require_quiet
from vmreplica.agent.protect import check_disks, paused
from vmreplica.agent.relationship import Relationship
from vmreplica.agent.tasks import Task, Tasks
from vmreplica.failover.planned import Parties, Wish, plan_planned, plan_return
from vmreplica.model.errors import Conflict, NotFound, TimedOut, Unreachable, VmReplicaError
from vmreplica.model.ids import HostId, HostName, VmId
from vmreplica.model.report import CancelReport, FailoverPlan, PlannedReport, StepTime
from vmreplica.peer.book import PeerBook
from vmreplica.peer.line import Halt
from vmreplica.peer.planned import PlannedWish, ReadinessQuestion
from vmreplica.repository import ReplicaRecord

_log: Final = structlog.get_logger(__name__)

#: Seconds that a running cycle may go on before it is stopped in favour of a planned failover.
_PATIENCE: Final = 30.0
#: Seconds between looks for what was begun and not ended.
_LOOK: Final = 5.0
#: Seconds for the roles to be swapped until nobody waits for it any more; it goes on by itself.
_SWAP_LIMIT: Final = 60.0
_SWAP_GLANCE: Final = 0.2
#: Seconds between reminders that the replica shall swap them.
_REMIND: Final = 5.0
#: Seconds for a run to end that was asked to.
_END_LIMIT: Final = 120.0


@dataclass(slots=True)
class _Active:
    """A run under way, or the last one."""

    task: Task
    #: Where the VM moves to.
    to: HostId
    halt: Halt = field(default_factory=Halt)
    #: It shall be taken back.
    cancelled: bool = False
    ended: threading.Event = field(default_factory=threading.Event)


class PlannedFailovers:
    """Thread-safe.

    Args:
        tools: what runs work with.
        book: paired hosts.
        tasks: where runs are registered.
        here: this host's name.
        past: tells what this host held of a VM as its replica, before it was failed over to here.
        journal: history.
    """

    def __init__(
        self,
        tools: Tools,
        *,
        book: PeerBook,
        tasks: Tasks,
        here: HostName,
        past: Callable[[VmId], ReplicaRecord | None],
        journal: Journal,
    ) -> None:
        self._journal = journal
        self._tools = tools
        self._hypervisor = tools.stages.hypervisor
        self._book = book
        self._tasks = tasks
        self._here = here
        self._past = past
        self._lock = threading.Lock()
        self._active: dict[VmId, _Active] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look_after, name="planned", daemon=True)

    def start(self) -> None:
        """Begin to go on with what was begun before this agent was started."""
        self._thread.start()

    def stop(self) -> None:
        """End all runs where they are; the next start goes on with them."""
        self._stop.set()
        with self._lock:
            active = tuple(self._active.values())
        for run in active:
            run.halt.set()
        for run in active:
            run.ended.wait(_END_LIMIT)
        self._thread.join()

    # ---- verbs

    def plan(self, rel: Relationship, wish: PlannedWish) -> FailoverPlan:
        """See on both sides whether it can be done, and tell what it will do; changes nothing.

        Raises:
            VmReplicaError: something stands against it.
        """
        policy = rel.policy
        if policy.paused:
            raise paused(rel.name)
        view = self._hypervisor.inspect(rel.vm)
        disks = check_disks(view, policy.excluded)
        require_adoptable(rel.name, disks, self._past(rel.vm))
        switch = self._hypervisor.power_switch()
        power = switch.look(rel.vm)
        require_quiet(rel.name, power, force=wish.force)
        switch.require_idle(rel.vm, rel.name)
        client = self._tools.clients.to(policy.replica)
        latest = latest_of(rel, client.position(rel.vm))
        question = ReadinessQuestion(definition=view.definition, disks=tuple(disk.target for disk in disks))
        notes = client.readiness(rel.vm, question).notes
        parties = Parties(
            name=rel.name,
            primary=self._here,
            replica=self._book.by_id(policy.replica).name,
            running=power.active,
            patience=wish.patience,
            force=wish.force,
        )
        return plan_planned(rel.vm, parties, latest, (*warnings_of(policy, wish, parties), *notes))

    def begin(self, rel: Relationship, wish: PlannedWish) -> Task:
        """Begin one, or go on with it; of one under way, its task.

        Raises:
            VmReplicaError: something stands against it; nothing was begun.
        """
        known = self._known(rel.vm)
        if known is not None and not known.ended.is_set():
            return known.task
        plan = None if rel.policy.planned is not None else self.plan(rel, wish)
        self._journal.event(rel.vm, "planned", "planned-begun", "its planned failover is begun, or gone on with")
        return self._launch(rel, wish, "forward", plan).task

    def task_for(self, peer: HostId, vm: VmId) -> Task:
        """Tell the last run of a VM to the host that it was, or is, moving to.

        Raises:
            NotFound: ``nothing-planned``.
        """
        known = self._known(vm)
        if known is None or known.to != peer:
            raise NotFound("nothing-planned", f"no failover of {vm} was planned since this agent was started",
                           hint="vmreplica status tells where the VM is")  # fmt: skip
        return known.task

    def plan_cancel(self, rel: Relationship) -> FailoverPlan:
        """Plan what ``cancel`` does; changes nothing.

        Raises:
            Conflict: ``nothing-to-cancel``.
        """
        planned, latest = rel.policy.planned, self._tools.clients.to(rel.policy.replica).position(rel.vm).latest
        if planned is None or latest is None:
            raise nothing_to_cancel(rel)
        return plan_return(rel.vm, rel.name, planned, latest)

    def cancel(self, rel: Relationship) -> CancelReport:
        """Take back what can be: the VM runs here again, if it did before.

        Raises:
            Conflict: ``nothing-to-cancel``; ``already-started``: the replica has it.
            Unreachable: ``planned-stuck``: the replica has to be asked first.
        """
        known = self._known(rel.vm)
        if known is not None and not known.ended.is_set():
            known.cancelled = True
            known.halt.set()
            known.ended.wait(_END_LIMIT)
            if known.task.planned is not None:
                raise too_late(rel)
        elif rel.policy.planned is None:
            raise nothing_to_cancel(rel)
        if rel.policy.planned is not None:
            run = self._launch(rel, PlannedWish(), "back", None)
            if not run.ended.wait(_END_LIMIT):
                raise goes_on(rel)
            run.task.raise_error()
        if rel.policy.planned is not None:
            raise too_late(rel)
        return CancelReport(vm=rel.vm, name=rel.name, kind="planned", removed=(), state=rel.state())

    # ---- runs

    def _known(self, vm: VmId) -> _Active | None:
        with self._lock:
            return self._active.get(vm)

    def _launch(self, rel: Relationship, wish: PlannedWish, way: Wish, plan: FailoverPlan | None) -> _Active:
        """Start a run, unless one is under way already: then that one is given."""
        with self._lock:
            known = self._active.get(rel.vm)
            if known is not None and not known.ended.is_set():
                return known
            run = _Active(self._tasks.start(f"planned failover of {rel.name}"), rel.policy.replica)
            self._active[rel.vm] = run
        threading.Thread(
            target=self._run, args=(rel, run, wish, way, plan), name="planned-failover", daemon=True
        ).start()
        return run

    def _run(self, rel: Relationship, run: _Active, wish: PlannedWish, way: Wish, plan: FailoverPlan | None) -> None:
        error: VmReplicaError | None = None
        try:
            run.task.planned = self._go(rel, run, wish, way, plan)
        except VmReplicaError as caught:
            error = caught
            _log.warning("planned failover", vm=rel.vm, name=rel.name, code=caught.code, why=caught.message)
        finally:
            self._write_down(rel, run.task.planned, way, error)
            run.task.finish(None, error)
            run.ended.set()

    def _write_down(
        self, rel: Relationship, report: PlannedReport | None, way: Wish, error: VmReplicaError | None
    ) -> None:
        if error is not None:
            text = f"the planned failover failed: {error.message}"
            self._journal.event(rel.vm, "planned", error.code, text, severity="warning", hint=error.hint)
        elif report is not None:
            text = f"moved to {report.runs_on}, nothing is lost"
            self._journal.event(
                rel.vm,
                "planned",
                "moved",
                text,
                point=report.plan.point,
                seconds=report.seconds,
                downtime=report.downtime,
                reversed=report.reversed,
            )
        elif way == "back":
            self._journal.event(rel.vm, "planned", "planned-cancelled", "its planned failover was taken back")

    def _write_down_late(self, rel: Relationship, *, reversed_: bool) -> None:
        """Of one that was gone on with, the figures went with the run that began it."""
        text = f"moved to {self._book.by_id(rel.policy.replica).name}, nothing is lost; it was gone on with on the way"
        self._journal.event(rel.vm, "planned", "moved", text, reversed=reversed_)

    def _go(
        self, rel: Relationship, run: _Active, wish: PlannedWish, way: Wish, plan: FailoverPlan | None
    ) -> PlannedReport | None:
        began = time.monotonic()
        self._make_room(rel)
        with self._tools.runner.turn(rel, "planned failover", _PATIENCE) as taken:
            if not taken or rel.meter is None:
                raise Conflict(
                    "cycle-running", f"a cycle of {rel.name} does not end", hint="try again", kind="transient"
                )
            run.task.meter = rel.meter
            journey = Run(self._tools, rel, rel.meter, run.halt, wish)
            if way == "forward":
                self._forward(rel, run, journey)
            else:
                journey.settle(way)
                self._warn_of_shutdown(rel, journey)
        account = journey.account
        if not account.there:
            self._tools.runner.change(rel, rel.policy)
            return None
        run.task.meter = Meter()
        run.task.meter.phase("reversing replication")
        swapped = self._await_swap(rel, run)
        account.steps.append(StepTime(name="reverse", seconds=swapped[1]))
        if plan is None:
            self._write_down_late(rel, reversed_=swapped[0])
            return None
        return self._report(rel, journey, plan, reversed_=swapped[0], seconds=time.monotonic() - began)

    def _make_room(self, rel: Relationship) -> None:
        """Let a running cycle end by itself for a while; one that takes long is stopped, its work is not lost."""
        if not rel.idle.wait(_PATIENCE):
            rel.halt.set()

    def _forward(self, rel: Relationship, run: _Active, journey: Run) -> None:
        if rel.policy.planned is not None:
            journey.settle("forward")
            if journey.account.there:
                return
        try:
            journey.prepare()
            journey.settle("forward")
        except VmReplicaError as error:
            self._take_back(rel, run, error)
            raise

    def _take_back(self, rel: Relationship, run: _Active, error: VmReplicaError) -> None:
        """Undo what was done before an error, as far as the facts allow."""
        planned = rel.policy.planned
        if planned is None or (run.halt.is_set() and not run.cancelled):
            return
        if planned.stage == "prepared" and isinstance(error, Unreachable | TimedOut):
            return  # whether the replica has started it is not known; it is asked again by itself
        if run.cancelled and planned.asked_until is not None:
            return  # its guest may still shut down: whoever cancelled goes on with that
        _log.info("taking a planned failover back", vm=rel.vm, why=error.message)
        journey = Run(self._tools, rel, rel.meter or Meter(), self._new_halt(run), PlannedWish())
        try:
            journey.settle("back")
        except VmReplicaError as second:
            error.hint = f"{error.hint}; it is not taken back yet: {second.message} ({second.hint})".removeprefix("; ")
            return
        error.hint = f"{error.hint}; {rel.name} is as it was before".removeprefix("; ")
        self._warn_of_shutdown(rel, journey)

    def _new_halt(self, run: _Active) -> Halt:
        """Give what ends the way back: the old one may have ended the way forward."""
        run.halt = Halt()
        if self._stop.is_set():
            run.halt.set()
        return run.halt

    def _warn_of_shutdown(self, rel: Relationship, journey: Run) -> None:
        """Write down that a guest that was asked to shut down, and runs, may still do so."""
        if journey.account.may_go_off:
            text = "its guest was asked to shut down, did not, and may still do so: nobody starts it again then"
            hint = f"if it goes off: vmreplica start {rel.name}"
            self._journal.event(rel.vm, "planned", "guest-may-shut-down", text, severity="warning", hint=hint)

    def _await_swap(self, rel: Relationship, run: _Active) -> tuple[bool, float]:
        """Wait until this host is the replica; the other one asks for it."""
        began = reminded = time.monotonic()
        while time.monotonic() - began < _SWAP_LIMIT:
            if self._is_swapped(rel):
                return True, time.monotonic() - began
            if run.halt.wait(_SWAP_GLANCE):
                break
            if time.monotonic() - reminded > _REMIND:
                reminded = time.monotonic()
                self._remind(rel)
        return False, time.monotonic() - began

    def _is_swapped(self, rel: Relationship) -> bool:
        try:
            return not self._hypervisor.exists(rel.vm)
        except VmReplicaError:
            return False

    def _remind(self, rel: Relationship) -> None:
        try:
            Run(self._tools, rel, Meter(), Halt(), PlannedWish()).remind()
        except VmReplicaError as error:
            _log.info("the replica does not swap the roles yet", vm=rel.vm, why=error.message)

    def _report(
        self, rel: Relationship, journey: Run, plan: FailoverPlan, *, reversed_: bool, seconds: float
    ) -> PlannedReport:
        account = journey.account
        final = plan if account.point is None else plan.model_copy(update={"point": account.point})
        return PlannedReport(
            plan=final,
            runs_on=self._book.by_id(rel.policy.replica).name,
            shutdown=account.manner,
            reversed=reversed_,
            steps=tuple(account.steps),
            downtime=account.downtime,
            seconds=seconds,
        )

    # ---- what was left

    def _look_after(self) -> None:
        while True:
            for rel in self._unfinished():
                self._launch(rel, PlannedWish(), "self", None)
            if self._stop.wait(_LOOK):
                return

    def _unfinished(self) -> list[Relationship]:
        planned = self._tools.runner.each(lambda rel, _clock: rel if rel.policy.planned is not None else None)
        with self._lock:
            busy = {vm for vm, run in self._active.items() if not run.ended.is_set()}
        return [rel for rel in planned if rel is not None and rel.vm not in busy]
