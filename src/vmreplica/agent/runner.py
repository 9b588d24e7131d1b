"""The scheduler of this host: every protected VM's cycles on their beat, no more at once than allowed."""

import datetime as dt
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from functools import partial
from typing import Final, TypeVar

import structlog

from vmreplica.agent.account import keep_report, late_reports, report_of, waiting_error
from vmreplica.agent.bandwidth import Bandwidth
from vmreplica.agent.clients import Clients
from vmreplica.agent.cycle import RESYNC_QUEUED, Cycle
from vmreplica.agent.decide import WAITS_FOR_SEED
from vmreplica.agent.exporting import spacing
from vmreplica.agent.facts import Stages
from vmreplica.agent.guard import Guard
from vmreplica.agent.journal import Journal
from vmreplica.agent.keeper import Keeper
from vmreplica.agent.lost_policy import put_policy_back
from vmreplica.agent.meter import Meter
from vmreplica.agent.outcome import Outcome
from vmreplica.agent.relationship import Relationship
from vmreplica.agent.schedule import Turn, may_go_long, next_due, next_wake, pick, retry_due
from vmreplica.agent.swap import ASK_AGAIN, NOT_SWAPPED, OLD_PRIMARY_AWAY, Swap
from vmreplica.agent.tasks import Task
from vmreplica.agent.turns import borrowed
from vmreplica.hypervisor import DomainBrief
from vmreplica.model.errors import Conflict, VmReplicaError
from vmreplica.model.ids import VmId
from vmreplica.model.point import PointKind, Position
from vmreplica.model.policy import Policy
from vmreplica.model.report import CycleReport
from vmreplica.peer.line import Halt

_T = TypeVar("_T")
_log: Final = structlog.get_logger(__name__)

#: Seconds between looks at the domains' metadata: VMs migrate in, are renamed and removed without telling us.
_REFRESH: Final = 15.0
#: Seconds that who asks right after the start waits for the first of them at most.
_FIRST_LOOK: Final = 10.0
#: Seconds that ending a running cycle may take before a verb gives up waiting for it.
_HALT_LIMIT: Final = 60.0
#: Seconds until the next cycle, by what the last one waited for: somebody else's work, or being there.
_GLANCES: Final = {WAITS_FOR_SEED: 2.0, OLD_PRIMARY_AWAY: ASK_AGAIN}
#: What passes by itself: tasks wait for the point to come.
_PATIENT: Final = frozenset({RESYNC_QUEUED, WAITS_FOR_SEED})


class Runner:
    """Thread-safe. Knows each protected VM as a Relationship and runs its cycles.

    Args:
        stages: libvirt, spool and limits.
        clients: connections to replicas.
        journal: history.
        bandwidth: how fast is sent.
        keeper: looks after backup jobs of VMs whose cycles rest.
        guard: told of each position: whether the VM lives on its replica.
        swap: asks old primaries to become replicas.
        concurrent: cycles at once.
        slots: of these, such as read whole disks.
    """

    def __init__(
        self,
        *,
        stages: Stages,
        clients: Clients,
        journal: Journal,
        bandwidth: Bandwidth,
        keeper: Keeper,
        guard: Guard,
        swap: Swap,
        concurrent: int,
        slots: int,
    ) -> None:
        self._stages = stages
        self._hypervisor = stages.hypervisor
        self._clients = clients
        self._journal = journal
        self._bandwidth = bandwidth
        self._keeper = keeper
        self._guard = guard
        self._swap = swap
        self._concurrent = concurrent
        self._slots = slots
        self._clock: Callable[[], float] = time.monotonic
        self._wake = threading.Condition()
        self._known: dict[VmId, Relationship] = {}
        #: Being dissolved: their policy may still stand in the metadata for a moment.
        self._retiring: set[VmId] = set()
        self._stopping = False
        self._refresh_at = 0.0
        self._looked = threading.Event()
        self._pool = ThreadPoolExecutor(max_workers=concurrent, thread_name_prefix="cycle")
        self._thread = threading.Thread(target=self._loop, name="scheduler", daemon=True)

    def start(self) -> None:
        """Begin to look after the protected VMs."""
        self._hypervisor.watch(self._on_event)
        self._keeper.start()
        self._thread.start()

    def stop(self) -> None:
        """End all cycles; what they began goes on after the next start."""
        with self._wake:
            self._stopping = True
            for rel in self._known.values():
                rel.halt.set()
            self._wake.notify_all()
        self._thread.join()
        self._pool.shutdown(wait=True)
        self._keeper.stop()

    # ---- relationships

    def await_look(self) -> None:
        """Wait until the protected VMs are known, or libvirt cannot tell them; at once when that was long ago."""
        self._looked.wait(_FIRST_LOOK)

    def find(self, vm: str) -> Relationship | None:
        """Find a protected VM by name or UUID."""
        with self._wake:
            return next((rel for rel in self._known.values() if vm in {rel.vm, rel.name}), None)

    def adopt(self, brief: DomainBrief, policy: Policy) -> Relationship:
        """Look after a VM from now on, or take note of its new name or policy."""
        with self._wake:
            self._retiring.discard(brief.vm)
            rel = self._known.get(brief.vm)
            if rel is None:
                rel = Relationship(vm=brief.vm, name=brief.name, policy=policy, due=self._clock())
                rel.idle.set()
                rel.fenced = self._guard.fenced(brief.vm)
                self._known[brief.vm] = rel
            rel.name, rel.policy = brief.name, policy
            self._journal.know(rel.vm, rel.name)
            return rel

    def protect(self, brief: DomainBrief, policy: Policy, task: Task) -> None:
        """Put a policy in force; the task ends with the first cycle under it, which may have begun already."""
        with self._wake:
            known = self._known.get(brief.vm)
            begun = known is not None and known.policy == policy and known.meter is not None
            rel = self.adopt(brief, policy)
            if begun:
                rel.answering.append(task)
                task.meter = rel.meter
            else:
                rel.waiting.append(task)
            self.change(rel, policy)

    def ask_cycle(self, rel: Relationship, task: Task) -> None:
        """Make a cycle due now; the task ends with the next one to begin."""
        with self._wake:
            rel.waiting.append(task)
            rel.due = min(rel.due, self._clock())
            self._wake.notify_all()

    def retire(self, rel: Relationship) -> None:
        """Forget a relationship and wait for its running cycle to end; ``adopt`` brings it back."""
        with self._wake:
            self._retiring.add(rel.vm)
            self._known.pop(rel.vm, None)
        self.halt(rel)
        self._keeper.release(rel.vm)

    def halt(self, rel: Relationship) -> None:
        """Give up the running cycle, if any, and wait for it; who waits for a later one is told."""
        rel.halt.set()
        rel.idle.wait(_HALT_LIMIT)
        with self._wake:
            waiting, rel.waiting = rel.waiting, []
        for task in waiting:
            task.finish(None, Conflict("cycle-stopped", "the cycle was stopped", kind="transient"))

    def change(self, rel: Relationship, policy: Policy) -> None:
        """Put a new policy in force; a cycle is due at once."""
        with self._wake:
            rel.policy = policy
            rel.halt.clear()
            rel.due, rel.failures = self._clock(), 0
            self._wake.notify_all()

    def update(self, rel: Relationship, policy: Policy) -> None:
        """Put a new policy in force that asks for no cycle of its own; a running one follows it."""
        with self._wake:
            rel.policy = policy
            self._wake.notify_all()

    def amend(self, rel: Relationship, change: Callable[[Policy], Policy]) -> Policy:
        """Change a policy where it is written, one after the other: nobody takes back what another one wrote."""
        with rel.amending:
            policy = change(self._hypervisor.policy(rel.vm) or rel.policy)
            self._hypervisor.set_policy(rel.vm, policy)
            self.update(rel, policy)
        return policy

    def turn(self, rel: Relationship, what: str, patience: float) -> AbstractContextManager[bool]:
        """Take a VM's turn, so that no cycle of it runs meanwhile; see ``borrowed``."""
        return borrowed(self._wake, rel, what, patience=patience, clock=self._clock)

    def each(self, view: Callable[[Relationship, float], _T]) -> list[_T]:
        """Look at every relationship, with the present time of the scheduler's clock; nothing moves meanwhile."""
        with self._wake:
            now = self._clock()
            return [view(rel, now) for rel in self._known.values()]

    # ---- the loop

    def _loop(self) -> None:
        while True:
            self._refresh()
            self._looked.set()
            with self._wake:
                if self._stopping:
                    return
                now = self._clock()
                for vm in pick(now, self._turns(), self._concurrent, self._slots):
                    self._launch(self._known[vm])
                busy = sum(rel.running for rel in self._known.values()) >= self._concurrent
                self._wake.wait(_REFRESH if busy else next_wake(now, self._turns(), _REFRESH))

    def _turns(self) -> list[Turn]:
        clock, now = self._clock(), dt.datetime.now(dt.UTC)
        return [
            Turn(vm=rel.vm, due=rel.due_at(clock, now), running=rel.running, long=rel.long, queued=rel.queued)
            for rel in self._known.values()
            if rel.running or not rel.rests
        ]

    def _launch(self, rel: Relationship) -> None:
        rel.meter = Meter()
        rel.count_waiting(self._clock(), dt.datetime.now(dt.UTC))
        rel.show_seeding()
        rel.idle.clear()
        rel.halt.clear()
        rel.answering, rel.waiting, rel.news = rel.waiting, [], False
        for task in rel.answering:
            task.meter = rel.meter
        self._pool.submit(self._run, rel, rel.meter)

    def _run(self, rel: Relationship, meter: Meter) -> None:
        started, clock = dt.datetime.now(dt.UTC), self._clock()
        try:
            outcome = self._outcome(rel, meter)
        except VmReplicaError as caught:
            # There is no way to the replica at all, for example because it is no longer paired.
            outcome = Outcome(published=None, step=None, guest_bytes=0, waits=None, error=caught)
        report = report_of(rel, meter, outcome, started=started, seconds=self._clock() - clock)
        self._settle(rel, report, outcome, clock)

    def _outcome(self, rel: Relationship, meter: Meter) -> Outcome:
        """Run a cycle; first let the old primary become the replica, if that is wanted."""
        wish = rel.policy.reverse
        if wish is not None:
            meter.phase("asking the old primary to become the replica")
            if not self._swap.ask(rel, partial(self.amend, rel)):
                return NOT_SWAPPED
        outcome = self.cycle(rel, meter, rel.policy, rel.halt).run()
        if wish is not None and wish.planned and outcome.published is not None:
            self._swap.settle(rel.vm)
        return outcome

    def cycle(self, rel: Relationship, meter: Meter, policy: Policy, halt: Halt) -> Cycle:
        """Make a cycle of a VM, for whoever has its turn."""
        self._keeper.release(rel.vm)
        return Cycle(
            stages=self._stages,
            client=self._clients.to(rel.policy.replica),
            vm=rel.vm,
            policy=policy,
            halt=halt,
            pace=self._bandwidth.throttle(rel.vm, lambda: rel.policy.limit, meter.sent, meter.held),
            slot=lambda *, must: self._may_go_long(rel, must=must),
            meter=meter,
            amend=partial(self.amend, rel),
            seen=lambda position: self.saw(rel, position),
            began=lambda kind: self._began(rel, kind),
        )

    def _forget_seed(self, rel: Relationship) -> None:
        """Once the first copy is at the replica, another one would never go to a directory unasked."""
        position = rel.position
        if rel.policy.seed is None or position is None or position.latest is None or position.awaited is not None:
            return
        try:
            self.amend(rel, lambda policy: policy.model_copy(update={"seed": None}))
        except VmReplicaError as error:
            _log.warning("the policy still names an export that is imported", vm=rel.vm, why=error.message)

    def _may_go_long(self, rel: Relationship, *, must: bool) -> bool:
        with self._wake:
            rel.long = rel.long or must or may_go_long(self._turns(), rel.vm, self._slots)
            return rel.long

    def saw(self, rel: Relationship, position: Position) -> None:
        """Take note of what a replica tells."""
        fenced = self._guard.saw(rel.vm, rel.name, rel.policy, position)
        with self._wake:
            rel.fenced = fenced
            rel.position = position
            rel.show_seeding()

    def _began(self, rel: Relationship, kind: PointKind) -> None:
        with self._wake:
            rel.sending = kind

    def _settle(self, rel: Relationship, report: CycleReport | None, outcome: Outcome, started: float) -> None:
        late = late_reports(outcome)
        for kept in (*late, *((report,) if report else ())):
            keep_report(self._journal, rel, kept)
        if outcome.error is None:
            self._forget_seed(rel)
        self._keeper.hold(rel.vm)
        with self._wake:
            now = self._clock()
            rel.meter, rel.sending, rel.long = None, None, False
            rel.waits = outcome.waits
            rel.await_base(since=started if outcome.waits in _GLANCES else None)
            rel.queued = outcome.waits == RESYNC_QUEUED
            rel.last = report or (late[-1] if late else rel.last)
            if outcome.waits in _PATIENT:
                # Whoever waits for the point goes on waiting.
                rel.waiting, rel.answering = [*rel.answering, *rel.waiting], []
            if not rel.queued:
                # Else it keeps its place.
                self._plan_next(rel, outcome, started, now)
                if outcome.waits in _GLANCES:
                    rel.due = now + _GLANCES[outcome.waits]
                elif rel.waiting or rel.news:
                    rel.due = now
            answered, rel.answering = rel.answering, []
            rel.idle.set()
            self._wake.notify_all()
        for task in answered:
            task.finish(report, outcome.error or waiting_error(rel, outcome))

    def _plan_next(self, rel: Relationship, outcome: Outcome, started: float, now: float) -> None:
        awaited = rel.position.awaited if rel.position is not None else None
        interval = spacing(float(rel.policy.interval), awaited, dt.datetime.now(dt.UTC))
        if outcome.error is not None:
            rel.failures += 1
            rel.due = retry_due(now, rel.failures, interval, random.random())  # noqa: S311 - spreads retries
            return
        rel.failures = 0
        rel.due = next_due(started, now, interval)
        if outcome.published is not None and rel.position is not None:
            points = min(rel.position.points + 1, rel.policy.keep.most(rel.policy.interval))
            rel.position = rel.position.model_copy(
                update={"latest": outcome.published, "points": points, "awaited": outcome.published.waits_for}
            )

    def _on_event(self, vm: VmId, event: str) -> None:
        with self._wake:
            rel = self._known.get(vm)
            if rel is not None and rel.takes_notice(event):
                rel.due, rel.news = min(rel.due, self._clock()), rel.running
            self._refresh_at = 0.0
            self._wake.notify_all()

    def _refresh(self) -> None:
        if self._clock() < self._refresh_at:
            return
        self._refresh_at = self._clock() + _REFRESH
        try:
            policies = self._hypervisor.policies()
            briefs = {brief.vm: brief for brief in self._hypervisor.domains()} if policies or self._known else {}
        except VmReplicaError as error:
            _log.warning("cannot read the policies of the VMs", why=error.message)
            return
        with self._wake:
            gone = [rel for vm, rel in self._known.items() if vm not in policies and not rel.running]
            self._retiring &= set(policies)
            retiring = frozenset(self._retiring)
        for rel in gone:
            if not (rel.vm in briefs and put_policy_back(self._hypervisor, rel, partial(self._is_known, rel))):
                with self._wake:
                    self._known.pop(rel.vm, None)
        for vm, policy in policies.items():
            if vm in briefs and vm not in retiring:
                known = self.find(vm) is not None
                self.adopt(briefs[vm], policy)
                if not known:
                    # Its cycle may not begin for long, for example because it is paused.
                    self._keeper.hold(vm)

    def _is_known(self, rel: Relationship) -> bool:
        with self._wake:
            return self._known.get(rel.vm) is rel
