"""Verification of a VM's points at its replica, asked for on the primary; and bringing again what is wrong.

It works on copies of the fingerprints, so cycles go on meanwhile; nothing of it survives the agent, and there is
nothing to resume: a verification that was killed is asked for again. What it found stands at the replica.
"""

import contextlib
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final

import structlog

from vmreplica.agent.clients import Clients
from vmreplica.agent.comparing import Comparison, again_possible, cancelled, summed_up, unproven
from vmreplica.agent.facts import Stages
from vmreplica.agent.journal import Journal
from vmreplica.agent.meter import Meter
from vmreplica.agent.protect import not_protected, paused, require_not_planned
from vmreplica.agent.relationship import Relationship
from vmreplica.agent.runner import Runner
from vmreplica.agent.sweeping import delete_checkpoints
from vmreplica.agent.tasks import Task, Tasks
from vmreplica.agent.verify_words import event_of, no_fingerprint, repair_failed, verdict_text
from vmreplica.fingerprint import Fingerprint
from vmreplica.model.errors import Conflict, Internal, NotFound, VmReplicaError
from vmreplica.model.ids import DiskTarget, PointId, VmId
from vmreplica.model.point import PointSummary
from vmreplica.model.verified import DiskVerdict, Verified, VerifyReport
from vmreplica.peer.client import PeerClient
from vmreplica.peer.line import Halt, Line

_log: Final = structlog.get_logger(__name__)

#: Verifications at once; others wait their turn.
_AT_ONCE: Final = 2
#: Seconds to wait for the fingerprints of all disks to describe one point: a merge is a matter of moments.
_SETTLING: Final = 10.0
_LOOK: Final = 0.25
#: Cycles that a repair may take: each brings what one message can ask for.
_ROUNDS: Final = 20
#: Seconds to wait for a running cycle before its bitmaps are dropped.
_PATIENCE: Final = 600.0
_TURN: Final = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What is asked for."""

    #: None: the newest.
    point: PointId | None = None
    repair: bool = False
    #: Guest bytes that the replica shall read per second; None: as fast as it can.
    rate: int | None = None


@dataclass(slots=True)
class _Job:
    rel: Relationship
    wish: Wish
    client: PeerClient
    task: Task
    halt: Halt
    meter: Meter = field(default_factory=Meter)
    began: float = field(default_factory=time.monotonic)

    @property
    def vm(self) -> VmId:
        return self.rel.vm


class Verifying:
    """Thread-safe.

    Args:
        stages: fingerprints and libvirt of this host.
        runner: the scheduler of cycles.
        clients: connections to replicas.
        tasks: where verifications are registered.
        journal: history.
    """

    def __init__(self, *, stages: Stages, runner: Runner, clients: Clients, tasks: Tasks, journal: Journal) -> None:
        self._stages = stages
        self._runner = runner
        self._clients = clients
        self._tasks = tasks
        self._journal = journal
        self._lock = threading.Lock()
        self._jobs: dict[VmId, _Job] = {}
        self._pool = ThreadPoolExecutor(max_workers=_AT_ONCE, thread_name_prefix="verify")

    def begin(self, rel: Relationship, wish: Wish) -> Task:
        """Verify a point of a VM that is protected here.

        Raises:
            Conflict: ``verify-running``; or, when it shall be repaired, ``paused`` or ``planned-under-way``.
        """
        if wish.repair:
            require_not_planned(rel.name, rel.policy)
            if rel.policy.paused:
                raise paused(rel.name)
        halt = Halt()
        client = self._clients.to(rel.policy.replica).on(Line(halt))
        task = self._tasks.start(f"verification of {rel.name}")
        job = _Job(rel, wish, client, task, halt)
        task.meter = job.meter
        job.meter.phase("waiting for another verification")
        with self._lock:
            if rel.vm in self._jobs:
                raise Conflict(
                    "verify-running",
                    f"{rel.name} is being verified already",
                    hint=f"wait for it, or end it: vmreplica verify {rel.name} --cancel",
                )
            self._jobs[rel.vm] = job
        self._pool.submit(self._run, job)
        return task

    def cancel(self, rel: Relationship) -> None:
        """End the verification of a VM.

        Raises:
            NotFound: ``verify-not-running``.
        """
        with self._lock:
            job = self._jobs.get(rel.vm)
        if job is None:
            hint = f"vmreplica points {rel.name} shows what verifications came to"
            raise NotFound("verify-not-running", f"{rel.name} is not being verified", hint=hint)
        job.halt.set()

    def stop(self) -> None:
        """End all verifications."""
        with self._lock:
            for job in self._jobs.values():
                job.halt.set()
        self._pool.shutdown(wait=True, cancel_futures=True)

    # ---- one verification

    def _run(self, job: _Job) -> None:
        error: VmReplicaError | None = None
        try:
            job.task.verified = self._verify(job)
        except VmReplicaError as caught:
            error = cancelled() if job.halt.is_set() else caught
        except Exception as caught:  # noqa: BLE001 - whoever waits is told, the log has the details
            _log.exception("verification failed unexpectedly", vm=job.vm)
            what = f"{job.rel.name}: {type(caught).__name__}: {caught}"
            error = Internal("internal", what, hint="see the agent's log")
        with self._lock:
            self._jobs.pop(job.vm, None)
        event = event_of(job.task.verified, error)
        self._journal.event(job.vm, "verify", event.code, event.text, severity=event.severity, **event.details)
        job.task.finish(None, error)

    def _verify(self, job: _Job) -> VerifyReport:
        job.meter.phase("asking the replica for its points")
        self._require_ours(job)
        point, verified = self._compare(job, job.wish.point)
        self._runner.saw(job.rel, job.client.position(job.vm))
        report = VerifyReport(
            vm=job.vm,
            name=job.rel.name,
            instant=point.instant,
            verified=verified,
            seconds=time.monotonic() - job.began,
        )
        job.task.verified = report
        if not job.wish.repair or verified.verdict == "equal":
            return report
        repaired, wire = self._repair(job, verified)
        self._runner.saw(job.rel, job.client.position(job.vm))
        seconds = time.monotonic() - job.began
        return report.model_copy(update={"repaired": repaired, "repair_wire_bytes": wire, "seconds": seconds})

    def _require_ours(self, job: _Job) -> None:
        position = job.client.position(job.vm)
        if position.epoch > job.rel.policy.epoch:
            raise Conflict(
                "failed-over-elsewhere",
                f"{job.rel.name} was failed over to its replica (epoch {position.epoch}, here {job.rel.policy.epoch})",
                hint="its points belong to the other side now; docs/runbooks/failed-over-elsewhere.md",
            )

    def _compare(self, job: _Job, wanted: PointId | None) -> tuple[PointSummary, Verified]:
        """Compare a point, and let the replica keep what came of it."""
        with self._known(job, wanted) as (point, known), self._still(job, point.point):
            job.meter.phase("comparing")
            total = sum(disk.size for disk in point.disks)
            comparison = self._comparison(job, point.point, total)
            disks = [_disk(comparison, job, point, disk.target, known) for disk in point.disks]
            verified = summed_up(point.point, disks)
            self._renew_rotten(job, known, verified)
            job.client.keep_verdict(job.vm, verified)
        return point, verified

    def _comparison(self, job: _Job, point: PointId, total: int) -> Comparison:
        return Comparison(job.client, job.vm, point, job.meter, total, job.halt, job.wish.rate)

    @contextlib.contextmanager
    def _still(self, job: _Job, point: PointId) -> Iterator[None]:
        job.client.keep_still(job.vm, point)
        try:
            yield
        finally:
            # Without the halt: a cancelled verification lets go at once. Else the replica does so in minutes.
            with contextlib.suppress(VmReplicaError):
                self._clients.to(job.rel.policy.replica).let_go(job.vm, point)

    @contextlib.contextmanager
    def _known(
        self, job: _Job, wanted: PointId | None
    ) -> Iterator[tuple[PointSummary, Mapping[DiskTarget, Fingerprint]]]:
        """Choose the point, and give copies of the fingerprints that describe it: none for an older one."""
        deadline = time.monotonic() + _SETTLING
        with contextlib.ExitStack() as stack:
            while True:
                point = self._choose(job, wanted)
                known = self._copies(job, point)
                for copy in known.values():
                    stack.callback(copy.close)
                newest = point.point == self._newest(job)
                if not newest or len(known) == len(point.disks) or time.monotonic() > deadline:
                    yield point, known
                    return
                if job.halt.wait(_LOOK):
                    raise cancelled()

    def _choose(self, job: _Job, wanted: PointId | None) -> PointSummary:
        listed = job.client.points(job.vm).points
        usable = [point for point in listed if not point.waits_for]
        if wanted is None and usable:
            return usable[0]
        found = next((point for point in usable if point.point == wanted), None)
        if found is not None:
            return found
        name = job.rel.name
        if any(point.point == wanted for point in listed) or (wanted is None and listed):
            raise Conflict(
                "base-awaited",
                f"no point of {name} can be read before the export that they stand on is imported",
                hint="on the replica: vmreplica import DIR",
            )
        what = f"{name} has no point {wanted}" if wanted else f"{name} has no recovery point yet"
        raise NotFound("point-unknown", what, hint=f"vmreplica points {name}")

    def _newest(self, job: _Job) -> PointId | None:
        latest = job.client.position(job.vm).latest
        return latest.point if latest is not None else None

    def _copies(self, job: _Job, point: PointSummary) -> dict[DiskTarget, Fingerprint]:
        found: dict[DiskTarget, Fingerprint] = {}
        for disk in point.disks:
            fingerprint = self._stages.fingerprints.open(job.vm, disk.target)
            if fingerprint is None:
                continue
            with fingerprint:
                if fingerprint.good_for(point.point, disk.size) and (copy := fingerprint.snapshot()) is not None:
                    found[disk.target] = copy
        return found

    def _renew_rotten(self, job: _Job, known: Mapping[DiskTarget, Fingerprint], verified: Verified) -> None:
        """Drop fingerprints that turned out to be damaged: the next cycle asks the replica, which is right."""
        for disk in verified.disks:
            if disk.target in known and disk.how == "sum":
                _log.warning("a damaged fingerprint is made anew", vm=job.vm, disk=disk.target)
                self._stages.fingerprints.remove(job.vm, disk.target)

    # ---- repair

    def _repair(self, job: _Job, before: Verified) -> tuple[Verified, int]:
        """Bring what is wrong again in new points, and see that it is right there."""
        if again_possible(before):
            return self._look_again(job, before, self._bring_again(job))
        if job.wish.point is not None and before.point != self._newest(job):
            raise repair_failed(job.rel.name, f"point {before.point} is an older one; {verdict_text(before)}")
        self._compare_all_next(job)
        wire = self._bring_again(job)
        return self._compare(job, None)[1], wire

    def _bring_again(self, job: _Job) -> int:
        """Run cycles until the replica asks for nothing any more; tell the bytes that crossed the network."""
        wire = 0
        for _ in range(_ROUNDS):
            job.meter.phase("bringing again what is wrong")
            cycle = Task(f"repair of {job.rel.name}")
            self._require_cycles(job)
            self._runner.ask_cycle(job.rel, cycle)
            while not cycle.wait(_LOOK):
                self._require_cycles(job)
            cycle.raise_error()
            result = cycle.report().result
            wire += result.wire_bytes if result is not None else 0
            if not job.client.position(job.vm).repairs:
                return wire
        raise repair_failed(job.rel.name, f"after {_ROUNDS} points the replica still asks for damaged clusters")

    def _compare_all_next(self, job: _Job) -> None:
        """Let the next cycle read the disks whole and compare: nobody knows better than the disks themselves."""
        deadline = time.monotonic() + _PATIENCE
        while time.monotonic() < deadline:
            self._require_cycles(job)
            with self._runner.turn(job.rel, "preparing a comparison", _TURN) as taken:
                if taken:
                    self._stages.hypervisor.end_backup(job.vm)
                    delete_checkpoints(self._stages, job.vm, job.rel.policy.replica)
                    return
        raise repair_failed(job.rel.name, "its cycles leave no moment for it")

    def _require_cycles(self, job: _Job) -> None:
        """Go on only while cycles of the VM come: none would ever end the waiting."""
        if job.halt.is_set():
            raise cancelled()
        if self._runner.find(job.vm) is not job.rel:
            raise not_protected(job.rel.name)
        require_not_planned(job.rel.name, job.rel.policy)
        if job.rel.policy.paused:
            raise paused(job.rel.name)

    def _look_again(self, job: _Job, before: Verified, wire: int) -> tuple[Verified, int]:
        """Compare what was wrong in the newest point."""
        with self._known(job, None) as (point, known), self._still(job, point.point):
            job.meter.phase("looking again at what was wrong")
            comparison = self._comparison(job, point.point, 0)
            disks = [
                comparison.again(disk.target, known[disk.target], disk.wrong)
                if disk.target in known
                else unproven(disk.target, no_fingerprint(job.rel.name))
                for disk in before.disks
                if disk.wrong
            ]
            verified = summed_up(point.point, disks, repaired=True)
            job.client.keep_verdict(job.vm, verified)
        return verified, wire


def _disk(
    comparison: Comparison,
    job: _Job,
    point: PointSummary,
    target: DiskTarget,
    known: Mapping[DiskTarget, Fingerprint],
) -> DiskVerdict:
    proof = point.proofs.get(target)
    if target in known:
        return comparison.by_blocks(target, known[target], proof)
    if proof is not None:
        size = next(disk.size for disk in point.disks if disk.target == target)
        return comparison.by_sum(target, size, proof)
    return unproven(target, no_fingerprint(job.rel.name))
