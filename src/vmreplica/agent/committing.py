"""Commits on this host: each in a thread of its own until it is done, however often it is stopped on the way."""

import threading
from typing import Final

import structlog

from vmreplica.agent.journal import Journal
from vmreplica.agent.meter import Meter
from vmreplica.agent.tasks import Task
from vmreplica.failover.commit import SLACK, fold_disks, needed_bytes, plan_commit, require_running
from vmreplica.failover.plan import StepHook, no_hook
from vmreplica.fsio import require_free
from vmreplica.hypervisor import Hypervisor
from vmreplica.model.errors import Internal, VmReplicaError
from vmreplica.model.ids import DiskTarget, VmId
from vmreplica.model.report import CommitReport, FailoverPlan, Progress
from vmreplica.model.states import Event, State, transition
from vmreplica.model.units import format_size
from vmreplica.repository import Replica

_log: Final = structlog.get_logger(__name__)

#: Seconds between two looks at a running job, after an obstacle that goes away by itself, and after another one.
_LOOK, _AGAIN, _LATER = 0.25, 2.0, 60.0
#: Obstacles that go away by themselves, or by what a person does with the VM.
_PASSING: Final = frozenset({"vm-not-running", "vm-busy", "libvirt-gone", "libvirt-timeout"})


class _Stopped(Exception):
    """The agent ends; the job goes on in QEMU and is found again."""


class Commits:
    """Thread-safe.

    Args:
        hypervisor: this host's libvirt.
        min_free: bytes that stay free on the store.
        journal: history.
        before: observer of steps; tests kill the agent there.
    """

    def __init__(self, hypervisor: Hypervisor, min_free: int, journal: Journal, before: StepHook = no_hook) -> None:
        self._hypervisor = hypervisor
        self._journal = journal
        self._min_free = min_free
        self._before = before
        self._lock = threading.Lock()
        self._runs: dict[VmId, _Run] = {}

    def plan(self, replica: Replica) -> FailoverPlan:
        """Plan a commit; changes nothing.

        Raises:
            Conflict: ``state-forbids``, ``vm-not-running``.
            HypervisorError, TimedOut: an image cannot be read.
        """
        record = replica.record
        transition(record.name, State(record.state), Event.COMMIT)
        running = self._hypervisor.running(record.vm)
        return plan_commit(record, replica.points(), running=running, needed=needed_bytes(replica))

    def begin(self, replica: Replica, task: Task | None) -> None:
        """Begin a commit, or join the one that is under way; the task ends with it, or at once when all is done.

        Whoever calls sees to it that the failover is not taken back at the same time.

        Raises:
            Conflict: ``state-forbids``, ``vm-not-running``, ``points-held``.
            NoSpace: the store has not the room; nothing has changed.
        """
        record = replica.record
        if State(record.state) is State.COMMITTED:
            if task is not None:
                task.committed = _report(replica, freed=0)
                task.finish(None, None)
            return
        if State(record.state) is not State.COMMITTING:
            transition(record.name, State(record.state), Event.COMMIT)
            require_running(record, running=self._hypervisor.running(record.vm))
            needed = needed_bytes(replica) + SLACK + self._min_free
            require_free(replica.dir, needed, f"folding the images of {record.name}")
            self._before("give-up")
            replica.committing.begin()
            text = "its failover is kept for good: its images are being folded"
            self._journal.event(record.vm, "commit", "commit-begun", text, name=record.name)
            _log.info("committing a failover", vm=record.vm, name=record.name, into=dict(replica.record.live))
        self._run(replica).join(task)

    def recover(self, replica: Replica) -> None:
        """At the agent's start: go on with what was begun."""
        if State(replica.record.state) is State.COMMITTING:
            self._run(replica)

    def give_up(self, replica: Replica) -> None:
        """Leave off a commit whose VM is gone; its files are not removed."""
        with self._lock:
            run = self._runs.pop(replica.record.vm, None)
        if run is not None:
            run.stop()
        if State(replica.record.state) is State.COMMITTING:
            replica.move(Event.COMMITTED)

    def progress(self, vm: VmId) -> Progress | None:
        """Tell how a commit is getting on; None when there is none."""
        with self._lock:
            run = self._runs.get(vm)
        return run.meter.progress() if run is not None and run.alive() else None

    def complaints(self, vm: VmId) -> tuple[str, ...]:
        """Tell what a commit cannot get over by itself."""
        with self._lock:
            run = self._runs.get(vm)
        return () if run is None or run.complaint is None or not run.alive() else (run.complaint,)

    def stop(self) -> None:
        """Stop looking on; jobs go on in QEMU."""
        with self._lock:
            runs, self._runs = list(self._runs.values()), {}
        for run in runs:
            run.stop()

    def _run(self, replica: Replica) -> "_Run":
        with self._lock:
            run = self._runs.get(replica.record.vm)
            if run is None or not run.alive():
                run = self._runs[replica.record.vm] = _Run(replica, self._hypervisor, self._journal, self._before)
            return run


class _Run:
    """One commit under way; begins at once."""

    def __init__(self, replica: Replica, hypervisor: Hypervisor, journal: Journal, before: StepHook) -> None:
        self._journal = journal
        self.meter = Meter()
        self.complaint: str | None = None
        self._replica = replica
        self._hypervisor = hypervisor
        self._before = before
        self._tasks: list[Task] = []
        self._report: CommitReport | None = None
        self._lock = threading.Lock()
        #: Set to end, or only to try again now.
        self._stopping, self._wake = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._work, name="commit", daemon=True)
        self._thread.start()

    def alive(self) -> bool:
        """Tell whether it is not over yet."""
        return self._thread.is_alive()

    def join(self, task: Task | None) -> None:
        """Let a task show the progress and end with the commit; after an obstacle it is tried again now."""
        if task is None:
            return
        task.meter = self.meter
        with self._lock:
            if self._report is not None:
                task.committed = self._report
                task.finish(None, None)
                return
            self._tasks.append(task)
        self._wake.set()

    def stop(self) -> None:
        """End it within a moment."""
        self._stopping.set()
        self._wake.set()
        self._thread.join()

    def progress(self, target: DiskTarget, done: int, total: int) -> None:
        """Show a disk's progress."""
        self.complaint = None
        self.meter.phase(f"folding {target}")
        self.meter.read(done, total)

    def wait(self) -> None:
        """Wait until the next look at the job."""
        if self._stopping.wait(_LOOK):
            raise _Stopped

    def _work(self) -> None:
        while not self._stopping.is_set():
            self._wake.clear()
            try:
                freed = fold_disks(self._replica, self._hypervisor, self, self._before)
            except _Stopped:
                return
            except VmReplicaError as error:
                self._hindered(error)
            except Exception as error:  # noqa: BLE001 - a defect must not leave somebody waiting for ever
                _log.exception("a commit failed unexpectedly", vm=self._replica.record.vm)
                self._hindered(Internal("internal", f"the commit failed: {error}", hint="see the agent's log"))
            else:
                self._done(freed)
                return

    def _hindered(self, error: VmReplicaError) -> None:
        if error.code in _PASSING:
            self.meter.phase(f"waiting: {error.message}")
            self._wake.wait(_AGAIN)
            return
        _log.warning("a commit waits", vm=self._replica.record.vm, code=error.code, why=error.message)
        self.complaint = f"the failover is not committed yet: {error.message} ({error.hint})"
        self._finish(None, error)
        self._wake.wait(_LATER)

    def _done(self, freed: int) -> None:
        _log.info("failover committed", vm=self._replica.record.vm, name=self._replica.record.name, freed=freed)
        text = f"its images are folded, {format_size(freed)} were given back"
        self._journal.event(self._replica.record.vm, "commit", "committed", text, freed_bytes=freed)
        self._finish(_report(self._replica, freed), None)

    def _finish(self, report: CommitReport | None, error: VmReplicaError | None) -> None:
        with self._lock:
            self._report = report
            tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.committed = report
            task.finish(None, error)


def _report(replica: Replica, freed: int) -> CommitReport:
    record = replica.record
    images = tuple(str(replica.dir / name) for _target, name in sorted(record.live.items()))
    return CommitReport(
        vm=record.vm,
        name=record.name,
        state=record.state,
        images=images,
        freed_bytes=freed,
        protected=record.swapped,
    )
