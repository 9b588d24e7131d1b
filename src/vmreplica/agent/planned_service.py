"""Planned failovers as people and peers ask for them: on the primary, or on the replica, which passes the wish on."""

import threading
import time
from collections.abc import Callable
from typing import Final

import structlog

from vmreplica.agent.clients import Clients
from vmreplica.agent.config import Config
from vmreplica.agent.facts import Stages
from vmreplica.agent.fencing import Claim
from vmreplica.agent.meter import Meter
from vmreplica.agent.planned import PlannedFailovers
from vmreplica.agent.planned_run import Tools
from vmreplica.agent.planned_there import PlannedThere
from vmreplica.agent.primary import PrimarySide
from vmreplica.agent.relationship import Relationship
from vmreplica.agent.replica import ReplicaSide
from vmreplica.agent.runner import Runner
from vmreplica.agent.tasks import Task, Tasks
from vmreplica.failover.plan import StepHook, no_hook
from vmreplica.hypervisor.fence import Fence
from vmreplica.model.errors import NotFound, Refused, TimedOut, Unreachable, VmReplicaError, from_problem
from vmreplica.model.ids import HostId, VmId
from vmreplica.model.point import Position
from vmreplica.model.report import CancelReport, FailoverPlan, TaskReport
from vmreplica.model.states import RECEIVING
from vmreplica.peer.book import PeerBook
from vmreplica.peer.client import PeerClient
from vmreplica.peer.planned import PlannedWish, Readiness, ReadinessQuestion, StartedThere, StartWish, Withdrawal
from vmreplica.repository import Replica, ReplicaRecord, Repository

_log: Final = structlog.get_logger(__name__)

#: Seconds between questions to the primary, and for which it may be silent.
_GLANCE: Final = 0.3
_SILENCE: Final = 60.0


class Planned:
    """Thread-safe; implements ``peer.planned.PlannedService`` and the verbs of the facade.

    Args:
        here: the primary's part.
        there: the replica's part.
        primaries: VMs that are protected from here.
        replicas: what is held here for others.
        clients: connections to other hosts.
        tasks: where acts that take long are registered.
    """

    def __init__(
        self,
        *,
        here: PlannedFailovers,
        there: PlannedThere,
        primaries: PrimarySide,
        replicas: ReplicaSide,
        clients: Clients,
        tasks: Tasks,
    ) -> None:
        self._here = here
        self._there = there
        self._primaries = primaries
        self._replicas = replicas
        self._clients = clients
        self._tasks = tasks

    def start_work(self) -> None:
        """Begin to go on with what was begun before."""
        self._here.start()

    def stop_work(self) -> None:
        """End all runs where they are."""
        self._here.stop()

    # ---- verbs

    def plan_verb(self, vm: str, wish: PlannedWish) -> FailoverPlan:
        """Tell what a planned failover would do, asked on either side."""
        rel = self._primaries.protected(vm)
        if rel is not None:
            return self._here.plan(rel, wish)
        replica = self._receiving(vm)
        return self._primary_of(replica).plan_planned(replica.record.vm, wish)

    def begin_verb(self, vm: str, wish: PlannedWish) -> TaskReport:
        """Begin a planned failover, or go on with it, asked on either side."""
        rel = self._primaries.protected(vm)
        if rel is not None:
            return self._here.begin(rel, wish).report()
        replica = self._receiving(vm)
        client = self._primary_of(replica)
        first = client.begin_planned(replica.record.vm, wish)
        task = self._tasks.start(first.what)
        mirror = _Mirror(client, replica.record.vm, replica.record.name, task)
        threading.Thread(target=mirror.run, args=(first,), name="planned-mirror", daemon=True).start()
        return task.report()

    def plan_cancel_verb(self, vm: str) -> FailoverPlan | None:
        """Plan what ``cancel_verb`` does."""
        rel = self._moving(vm)
        return None if rel is None else self._here.plan_cancel(rel)

    def cancel_verb(self, vm: str) -> CancelReport | None:
        """Take a planned failover back, if this host is the primary of a VM; else None."""
        rel = self._moving(vm)
        return None if rel is None else self._here.cancel(rel)

    # ---- what peers ask: the replica's part

    def readiness(self, peer: HostId, vm: VmId, question: ReadinessQuestion) -> Readiness:
        """See whether the VM can run here, and the way back is open."""
        return self._there.readiness(peer, vm, question)

    def start(self, peer: HostId, vm: VmId, wish: StartWish) -> StartedThere:
        """Start it, and begin to reverse replication."""
        return self._there.start(peer, vm, wish)

    def withdraw(self, peer: HostId, vm: VmId, withdrawal: Withdrawal) -> Position:
        """Never start it any more for a wish of an epoch before."""
        return self._there.withdraw(peer, vm, withdrawal)

    # ---- what peers ask: the primary's part

    def wish(self, peer: HostId, vm: VmId, wish: PlannedWish) -> TaskReport:
        """Begin, or go on with, a planned failover to the asking host."""
        return self._here.begin(self._ours(peer, vm), wish).report()

    def progress(self, peer: HostId, vm: VmId) -> TaskReport:
        """Tell the asking host how a planned failover to it is doing."""
        return self._here.task_for(peer, vm).report()

    def plan(self, peer: HostId, vm: VmId, wish: PlannedWish) -> FailoverPlan:
        """Tell the asking host what a planned failover to it would do."""
        return self._here.plan(self._ours(peer, vm), wish)

    # ---- helpers

    def _moving(self, vm: str) -> Relationship | None:
        """Find a VM that is protected from here; of one that was failed over to here, only while it is moving back."""
        rel = self._primaries.protected(vm)
        past = rel is not None and rel.policy.planned is None and self._replicas.find(vm) is not None
        return None if past else rel

    def _ours(self, peer: HostId, vm: VmId) -> Relationship:
        rel = self._primaries.protected(vm)
        if rel is None or rel.policy.replica != peer:
            raise Refused(
                "not-your-vm",
                f"this host does not protect {vm} to the calling host",
                hint="vmreplica status on both hosts shows who sends to whom",
            )
        return rel

    def _receiving(self, vm: str) -> Replica:
        replica = self._replicas.get(vm)
        if replica.record.state not in RECEIVING:
            raise NotFound(
                "not-protected",
                f"{replica.record.name} is {replica.record.state} here: there is nothing to plan",
                hint=f"vmreplica status {replica.record.name}",
            )
        return replica

    def _primary_of(self, replica: Replica) -> PeerClient:
        client, name = self._clients.to(replica.record.owner), replica.record.name
        try:
            client.hello()
        except VmReplicaError as error:
            raise Unreachable(
                "primary-unreachable",
                f"the primary of {name} does not answer, and it has to shut {name} down: {error.message}",
                hint=f"if it is lost: vmreplica failover {name}, which starts it here from its newest point",
                kind="operator",
            ) from error
        return client


def make_planned(
    config: Config,
    *,
    stages: Stages,
    runner: Runner,
    clients: Clients,
    book: PeerBook,
    tasks: Tasks,
    repository: Repository,
    primaries: PrimarySide,
    replicas: ReplicaSide,
    reverse: Callable[[Replica], object],
    claim: Callable[[VmId], Claim],
    before: StepHook = no_hook,
) -> Planned:
    """Put the parts together.

    ``reverse`` begins to swap roles, ``claim`` marks a VM that may be starting, ``before`` observes the steps.
    """
    hypervisor = stages.hypervisor
    ban = Fence(config.agent.state_dir / "fence")
    tools = Tools(stages=stages, runner=runner, clients=clients, ban=ban, claim=claim, before=before)
    there = PlannedThere(
        repository=repository,
        replicas=replicas,
        hypervisor=hypervisor,
        clients=clients,
        reverse=reverse,
        before=before,
    )
    here = PlannedFailovers(
        tools,
        book=book,
        tasks=tasks,
        here=config.agent.name,
        past=lambda vm: _past(replicas, vm),
        journal=replicas.journal,
    )
    return Planned(here=here, there=there, primaries=primaries, replicas=replicas, clients=clients, tasks=tasks)


def _past(replicas: ReplicaSide, vm: VmId) -> ReplicaRecord | None:
    replica = replicas.find(vm)
    return None if replica is None else replica.record


class _Mirror:
    """Shows here what the primary's run does."""

    def __init__(self, client: PeerClient, vm: VmId, name: str, task: Task) -> None:
        self._client = client
        self._vm = vm
        self._name = name
        self._task = task
        task.meter = Meter()
        task.meter.phase("asking the primary")

    def run(self, report: TaskReport) -> None:
        error: VmReplicaError | None = None
        try:
            report = self._follow(report)
            self._task.planned = report.planned
            error = from_problem(report.problem) if report.problem is not None else None
        except VmReplicaError as caught:
            error = Unreachable(
                "primary-lost-sight-of",
                f"the primary of {self._name} no longer tells how its planned failover is doing: {caught.message}",
                hint=f"it goes on, or back, by itself: vmreplica status {self._name}",
            )
        self._task.finish(None, error)

    def _follow(self, report: TaskReport) -> TaskReport:
        heard = time.monotonic()
        while not report.done:
            if report.progress is not None and self._task.meter is not None:
                self._task.meter.show(report.progress)
            time.sleep(_GLANCE)
            try:
                report = self._client.planned_progress(self._vm)
                heard = time.monotonic()
            except (Unreachable, TimedOut):
                if time.monotonic() - heard > _SILENCE:
                    raise
        return report
