"""Boot tests of this host: asked for, or by schedule; one at a time, and never in the way of a failover."""

import contextlib
import datetime as dt
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import structlog

from vmreplica.agent.journal import Journal
from vmreplica.agent.meter import Meter
from vmreplica.agent.tasks import Task, Tasks
from vmreplica.failover.booting import BootTest, GivenWay, plan_boot, require_memory
from vmreplica.failover.plan import StepHook, no_hook
from vmreplica.failover.preview import with_notes
from vmreplica.failover.signs import require_usable
from vmreplica.failover.tests import FailoverTests
from vmreplica.hypervisor import Hypervisor
from vmreplica.hypervisor.host_memory import host_memory, vm_memory
from vmreplica.model.boot import (
    BootRecord,
    BootSchedule,
    BootSkip,
    BootState,
    BootWish,
    after,
    boot_state,
    interrupted,
    next_boot,
)
from vmreplica.model.errors import Conflict, Internal, VmReplicaError
from vmreplica.model.events import EventSeverity
from vmreplica.model.ids import PointChoice, PointId, VmId
from vmreplica.model.report import BootReport, FailoverPlan, TaskReport
from vmreplica.model.states import State
from vmreplica.repository import Replica, ReplicaRecord, Repository

_log: Final = structlog.get_logger(__name__)

#: Seconds between two looks whether a test is due.
_LOOK: Final = 15.0
#: Seconds before a test that was skipped is tried again.
_AGAIN: Final = 600.0
#: Seconds that a failover waits for a copy to be gone: it has all the memory then, but it is not kept longer.
_GIVE_WAY: Final = 5.0
#: Seconds that a test has to be gone when the agent ends; what is left is removed at its next start.
_END: Final = 30.0
#: States in which a schedule goes on: the replica takes points, or its primary rests.
_SCHEDULED: Final = frozenset({State.REPLICATING, State.RESYNC, State.PAUSED})


def local_zone() -> dt.tzinfo:
    """Tell this host's time zone, as it is now."""
    return dt.datetime.now().astimezone().tzinfo or dt.UTC


@dataclass(slots=True)
class _Job:
    """A test that was begun; also its ``Watch``."""

    replica: Replica
    wish: BootWish
    plan: FailoverPlan
    task: Task | None = None
    #: When the last one before this was begun.
    attempted: dt.datetime | None = None
    meter: Meter = field(default_factory=Meter)
    #: Why it shall end before its time.
    why: str = ""
    ending: threading.Event = field(default_factory=threading.Event)
    #: Nothing of it is left.
    over: threading.Event = field(default_factory=threading.Event)

    def phase(self, text: str) -> None:
        self.meter.phase(text)

    def wait(self, seconds: float) -> None:
        if self.ending.wait(seconds):
            raise GivenWay(self.why)

    def end(self, why: str) -> None:
        self.why = self.why or why
        self.ending.set()

    def finish(self, report: BootReport | None, error: VmReplicaError | None) -> None:
        if self.task is not None:
            self.task.booted = report
            self.task.finish(None, error)
        self.over.set()


class BootTesting:
    """Thread-safe; its public methods are part of the agent's facade.

    Args:
        repository: of this host.
        hypervisor: its libvirt.
        tests: its test failovers.
        journal: history.
        find: gives the replica of a VM, by name or UUID, or says that there is none.
        tasks: of this agent.
        started: is told of each copy that was started.
        before: observer of steps; tests kill the agent there.
    """

    def __init__(
        self,
        repository: Repository,
        hypervisor: Hypervisor,
        tests: FailoverTests,
        journal: Journal,
        *,
        find: Callable[[str], Replica],
        tasks: Tasks,
        started: Callable[[Replica, VmId], None] = lambda _replica, _vm: None,
        before: StepHook = no_hook,
    ) -> None:
        self._repository = repository
        self._hypervisor = hypervisor
        self._tests = tests
        self._find = find
        self._before = before
        self._tasks = tasks
        self._started = started
        self._journal = journal
        #: Of the three below, and of changes to records.
        self._lock = threading.Lock()
        self._job: _Job | None = None
        self._failovers = 0
        self._stopped = False
        self._wake = threading.Event()
        #: When a VM whose test was skipped is tried again; monotonic seconds.
        self._again: dict[VmId, float] = {}
        self._thread = threading.Thread(target=self._work, name="boot-tests", daemon=True)

    def start(self) -> None:
        """Begin to look after the schedules."""
        self._thread.start()

    def stop(self) -> None:
        """End, with the test that is under way."""
        with self._lock:
            self._stopped = True
            job = self._job
        if job is not None:
            job.end("the agent ends")
            job.over.wait(_END)
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join()

    def recover(self, replica: Replica) -> None:
        """At the agent's start: take note of a test that a crash ended, or of what it had come to already.

        Raises:
            NoSpace: the store is full.
        """
        record = replica.record.boot
        if record.attempted is None or not interrupted(record):
            return
        kept = (point.boot_test for point in replica.points())
        known = next((test for test in kept if test is not None and test.started >= record.attempted), None)
        if known is not None:
            replica.update(boot=after(record, known))
        else:
            text = f"the agent ended while a boot test of {replica.record.name} ran"
            self._missed(replica, Conflict("boot-test-ended", text, kind="transient"))

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """Give way to a failover in the block: what runs is ended, nothing begins."""
        with self._lock:
            self._failovers += 1
            job = self._job
        if job is not None:
            job.end("a failover takes precedence")
            job.over.wait(_GIVE_WAY)
        try:
            yield
        finally:
            with self._lock:
                self._failovers -= 1

    # ---- verbs

    def plan(self, vm: str, point: PointChoice | None, wish: BootWish) -> FailoverPlan:
        """Plan a boot test; changes nothing.

        Raises:
            VmReplicaError: it would be refused.
        """
        replica = self._find(vm)
        plan = self._plan(replica, point, wish)
        self._require_memory(replica, plan.point)
        return with_notes(plan, replica, self._hypervisor, wish.network)

    def begin(self, vm: str, point: PointChoice | None, wish: BootWish) -> TaskReport:
        """Begin a boot test; the task ends with it.

        Raises:
            Conflict: another one is under way (``boot-test-running``), or a failover (``failover-running``).
            VmReplicaError: it was refused; nothing has been done.
        """
        replica = self._find(vm)
        plan = self._plan(replica, point, wish)
        self._require_memory(replica, plan.point)
        task = self._tasks.start(f"boot test of {replica.record.name}")
        job = _Job(replica, wish, plan, task)
        task.meter = job.meter
        self._claim(job)
        threading.Thread(target=self._run, args=(job,), name="boot-test", daemon=True).start()
        return task.report()

    def schedule(self, vm: str, *, every: int | None, at: str | None, wish: BootWish) -> BootState | None:
        """Set when a VM's boot tests run by themselves; ``every`` None: no longer.

        Raises:
            NotFound: ``replica-unknown``, ``network-unknown``.
            BadRequest: ``boot-script-unusable``.
        """
        replica = self._find(vm)
        schedule = None
        if every is not None:
            require_usable(wish.sign)
            if wish.network is not None:
                self._hypervisor.network_leads_out(wish.network)
            schedule = BootSchedule(every=every, at=at, wish=wish, since=dt.datetime.now(dt.UTC))
        changed = self._change(replica, schedule=schedule, skipped=None)
        self._again.pop(replica.record.vm, None)
        self._wake.set()
        return boot_state(changed, local_zone())

    def picture(self, vm: str, point: PointId | None) -> bytes:
        """Give the picture of a point's last boot test, a PNG; without a point that of the last test of all.

        Raises:
            NotFound: ``replica-unknown``, ``point-unknown``, ``no-picture``.
        """
        replica = self._find(vm)
        if point is not None:
            replica.point(point)
        return replica.boots.picture(point)

    # ---- one test

    def _plan(self, replica: Replica, point: PointChoice | None, wish: BootWish) -> FailoverPlan:
        require_usable(wish.sign)
        leads_out = wish.network is not None and self._hypervisor.network_leads_out(wish.network)
        return plan_boot(replica.record, replica.points(), point, wish, leads_out=leads_out)

    def _require_memory(self, replica: Replica, point: PointId) -> None:
        total, available = host_memory()
        wanted = vm_memory(replica.definition(point))
        require_memory(replica.record.name, wanted, total=total, available=available)

    def _claim(self, job: _Job) -> None:
        """Make a job the one that runs, and write down that it was tried.

        Raises:
            Conflict: ``boot-test-running``, ``failover-running``.
        """
        with self._lock:
            if self._failovers or self._stopped:
                text = f"no boot test of {job.replica.record.name} begins while a failover runs on this host"
                raise Conflict(
                    "failover-running", text, hint="try again afterwards: vmreplica status", kind="transient"
                )
            if self._job is not None:
                other = self._job.replica.record.name
                text = f"a boot test of {other} runs on this host, and only one runs at a time"
                raise Conflict(
                    "boot-test-running", text, hint=f"wait for it: vmreplica status {other}", kind="transient"
                )
            self._job = job
            job.attempted = job.replica.record.boot.attempted
        try:
            self._change(job.replica, attempted=dt.datetime.now(dt.UTC))
        except BaseException:
            self._leave(job)
            raise

    def _leave(self, job: _Job) -> None:
        with self._lock:
            if self._job is job:
                self._job = None

    def _run(self, job: _Job) -> None:
        """Carry a claimed job out."""
        report: BootReport | None = None
        failure: VmReplicaError | None = None
        try:
            report = self._tested(job)
        except GivenWay as given:
            failure = Conflict(
                "boot-test-ended",
                f"the boot test of {job.replica.record.name} was ended: {given}",
                hint=f"vmreplica boot-test {job.replica.record.name} begins another one",
                kind="transient",
            )
        except VmReplicaError as error:
            failure = error
        except Exception as error:  # noqa: BLE001 - a defect must not leave somebody waiting for ever
            _log.exception("a boot test failed unexpectedly", vm=job.replica.record.vm)
            failure = Internal("internal", f"the boot test failed: {error}", hint="see the agent's log")
        self._leave(job)
        if failure is not None:
            self._missed(job.replica, failure, attempted=job.attempted)
        job.finish(report, failure)

    def _tested(self, job: _Job) -> BootReport:
        replica = job.replica
        started = partial(self._started, replica)
        test = BootTest(
            replica, self._hypervisor, self._tests, job.wish, watch=job, started=started, before=self._before
        )
        result = test.run(job.plan)
        with self._lock:
            replica.update(boot=after(replica.record.boot, result))
        record = replica.record
        severity: EventSeverity = "info" if result.good else "warning"
        _log.info("boot test", vm=record.vm, point=result.point, verdict=result.verdict, seconds=result.seconds)
        text = f"point {result.point} {result.sentence()}"
        code = "boot-test-passed" if result.good else "boot-test-failed"
        details = {"point": result.point, "verdict": result.verdict, "seconds": result.seconds, "told": result.told}
        self._tell(record, code, text, severity=severity, **details)
        return BootReport(vm=record.vm, name=record.name, result=result, notes=test.notes)

    # ---- schedules

    def _work(self) -> None:
        while not self._stopped:
            self._wake.wait(_LOOK)
            self._wake.clear()
            if self._stopped:
                return
            try:
                self._run_due()
            except Exception:  # noqa: BLE001 - one VM must not end the schedules of the others
                _log.exception("boot tests are not looked after")

    def _run_due(self) -> None:
        now, zone = dt.datetime.now(dt.UTC), local_zone()
        due = []
        for replica in self._repository.replicas():
            record = replica.record
            moment = next_boot(record.boot, zone) if State(record.state) in _SCHEDULED else None
            if moment is not None and moment <= now and self._again.get(record.vm, 0.0) <= time.monotonic():
                due.append((moment, record.vm, replica))
        if due:
            self._run_scheduled(min(due, key=lambda turn: turn[:2])[2])

    def _run_scheduled(self, replica: Replica) -> None:
        schedule = replica.record.boot.schedule
        if schedule is None:
            return
        try:
            plan = self._plan(replica, None, schedule.wish)
            self._require_memory(replica, plan.point)
            job = _Job(replica, schedule.wish, plan)
            self._claim(job)
        except VmReplicaError as error:
            self._missed(replica, error)
            return
        self._run(job)

    def _missed(self, replica: Replica, error: VmReplicaError, **changes: object) -> None:
        """Write down why a test came to no verdict; it is due again before long."""
        record = replica.record
        self._again[record.vm] = time.monotonic() + _AGAIN
        why, known = error.message[:600], record.boot.skipped
        skipped = known if known is not None and known.why == why else BootSkip(at=dt.datetime.now(dt.UTC), why=why)
        try:
            self._change(replica, skipped=skipped, **changes)
        except VmReplicaError as failure:
            _log.warning("a boot test's end is not written down", vm=record.vm, why=failure.message)
        if skipped is not known:
            # A host that is short of memory for a night says so once.
            _log.info("no verdict of a boot test", vm=record.vm, code=error.code, why=error.message)
            self._tell(record, "boot-test-skipped", error.message, severity="warning", reason=error.code)

    def _tell(self, record: ReplicaRecord, code: str, text: str, *, severity: EventSeverity, **details: object) -> None:
        self._journal.event(record.vm, "boot-test", code, text, severity=severity, name=record.name, **details)

    def _change(self, replica: Replica, **changes: object) -> BootRecord:
        with self._lock:
            changed = BootRecord.model_validate({**replica.record.boot.model_dump(), **changes})
            replica.update(boot=changed)
        return changed
