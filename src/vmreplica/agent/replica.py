"""The replica side of the agent: what this host holds for others, and starting it when a person says so."""

import datetime as dt
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import AbstractContextManager
from typing import Final, Literal

import structlog

from vmreplica.agent.addressing import Addressing
from vmreplica.agent.boot_testing import BootTesting
from vmreplica.agent.clients import Clients
from vmreplica.agent.committing import Commits
from vmreplica.agent.config import ReplicaSection
from vmreplica.agent.halfway import Halfway, attempt
from vmreplica.agent.handover import require_no_failover, runs_there
from vmreplica.agent.importing import Imports
from vmreplica.agent.journal import Journal
from vmreplica.agent.networks import change_networks, networks_report
from vmreplica.agent.planning import plan_copy, plan_start
from vmreplica.agent.replica_report import Beside, describe_replica
from vmreplica.agent.scrubbing import Scrubbing
from vmreplica.agent.seeder import Seeder
from vmreplica.agent.seeding import SeedTools
from vmreplica.agent.space import SpaceWatch
from vmreplica.agent.tasks import Task, Tasks
from vmreplica.agent.upkeep import Upkeep
from vmreplica.failover.execute import execute, undo
from vmreplica.failover.layer import written_bytes
from vmreplica.failover.plan import PrimaryAnswer
from vmreplica.failover.preview import with_notes
from vmreplica.failover.taking_back import plan_cancel, what_to_cancel
from vmreplica.failover.tests import FailoverTests
from vmreplica.hypervisor import Hypervisor
from vmreplica.model.errors import Conflict, NotFound, VmReplicaError
from vmreplica.model.ids import HostId, HostName, PointChoice, VmId
from vmreplica.model.networks import NetworksChange, NetworksReport
from vmreplica.model.point import PointSummary
from vmreplica.model.report import (
    CancelReport,
    FailoverPlan,
    FailoverReport,
    RelationshipReport,
    StartedTest,
)
from vmreplica.model.states import RECEIVING, Event, State
from vmreplica.peer.book import PeerBook
from vmreplica.repository import Replica, Repository

_log: Final = structlog.get_logger(__name__)

#: Seconds a primary has to say whether the VM runs there; on the worst day it is gone and nobody wants to wait.
_ASK_LIMIT: Final = 1.0


class ReplicaSide:
    """Thread-safe; ``start`` finishes what a crash interrupted and begins the upkeep of the chains.

    Args:
        repository: the points held for other hosts.
        hypervisor: this host's libvirt.
        clients: connections to the primaries.
        book: paired hosts.
        seed_tools: for reading existing copies.
        tasks: of this agent.
        journal: history.
        space: watches the room of the store.
        config: section ``[replica]``.
    """

    def __init__(
        self,
        *,
        repository: Repository,
        hypervisor: Hypervisor,
        clients: Clients,
        book: PeerBook,
        seed_tools: SeedTools,
        tasks: Tasks,
        journal: Journal,
        space: SpaceWatch,
        config: ReplicaSection,
    ) -> None:
        self._repository = repository
        #: Reads existing copies that primaries name.
        self.seeder = Seeder(repository, seed_tools)
        self._hypervisor = hypervisor
        self.journal = journal
        self._clients = clients
        self._book = book
        self._tests = FailoverTests(hypervisor)
        #: Reading all points and checking them.
        self.scrubbing = Scrubbing(
            repository, journal, tasks, find=self.get, period=config.scrub or None, rate=config.scrub_limit or None
        )
        #: Failovers that are being kept for good.
        self.commits = Commits(hypervisor, repository.min_free, journal)
        self.beside = Beside(self.commits, self.scrubbing, space)
        self._addressing = Addressing(repository, hypervisor)
        #: Boot tests, asked for or by schedule.
        self.boots = BootTesting(
            repository, hypervisor, self._tests, journal, find=self.get, tasks=tasks, started=self._addressing.add_test
        )
        self._failing_over = threading.Lock()
        self._halfway = Halfway(hypervisor, self._failing_over)
        self._upkeep = Upkeep(repository, self._tests, journal, self._halfway.settle)
        self._asking = ThreadPoolExecutor(max_workers=4, thread_name_prefix="ask")
        self.imports = Imports(repository, clients.here, self._upkeep.put)

    def start(self) -> None:
        """Roll interrupted folds and failovers forward or back, then begin the upkeep."""
        self._repository.recover()
        for replica in self._repository.replicas():
            self.journal.know(replica.record.vm, replica.record.name)
            attempt("test failovers are left as they are", replica, self._tests.recover)
            attempt("a failover is left halfway", replica, self._halfway.settle)
            attempt("a boot test is left as it is", replica, self.boots.recover)
            attempt("a commit is left as it is", replica, self.commits.recover)
            self._upkeep.put(replica.record.vm)
        self._upkeep.start()
        self.seeder.start()
        self._addressing.start()
        self.boots.start()
        self.scrubbing.start()
        # What this host offers takes seconds to find out once, and is needed in a hurry in a failover.
        self._asking.submit(self._warm_up)

    def stop(self) -> None:
        """End the upkeep after the fold it is at."""
        self.scrubbing.stop()
        self.boots.stop()
        self.commits.stop()
        self.imports.stop()
        self.seeder.stop()
        self._addressing.stop()
        self._upkeep.stop()
        self._asking.shutdown(wait=False, cancel_futures=True)

    def published(self, vm: VmId, _point: PointSummary) -> None:
        """Take note of a new point: older ones may have to be folded."""
        self.look_after(vm)

    def look_after(self, vm: VmId) -> None:
        """Look at a VM's points soon: some may have to go that were held until now."""
        self._upkeep.put(vm)

    # ---- verbs

    def find(self, vm: str) -> Replica | None:
        """Find a replica by the VM's name or UUID."""
        matches = [r for r in self._repository.replicas() if vm in {r.record.vm, r.record.name}]
        if len(matches) > 1:
            raise Conflict(
                "vm-name-ambiguous",
                f"{len(matches)} replicas here are of VMs named {vm}",
                hint="name it by UUID: " + ", ".join(r.record.vm for r in matches),
            )
        return matches[0] if matches else None

    def get(self, vm: str) -> Replica:
        """Find a replica or say that there is none.

        Raises:
            NotFound: no such replica here (``replica-unknown``).
        """
        replica = self.find(vm)
        if replica is None:
            raise NotFound(
                "replica-unknown",
                f"this host holds no replica of {vm}",
                hint="`vmreplica status` lists what it holds, and which host holds what it protects: ask there",
            )
        return replica

    def plan(self, vm: str, point: PointChoice | None, *, even_damaged: bool = False) -> FailoverPlan:
        """Plan an unplanned failover; changes nothing."""
        replica = self.get(vm)
        plan = plan_start(replica, point, self.ask_primary(replica), even_damaged=even_damaged)
        return with_notes(plan, replica, self._hypervisor)

    def failover(self, vm: str, point: PointChoice | None, *, even_damaged: bool = False) -> FailoverReport:
        """Start the VM here.

        Raises:
            VmReplicaError: it was refused, or a step failed and everything was undone.
        """
        replica = self.get(vm)
        began = time.monotonic()
        with self._failing_over, self.boots.aside():
            plan = plan_start(replica, point, "silent", even_damaged=even_damaged)
            asked: list[Future[PrimaryAnswer]] = []
            notes = execute(
                replica,
                self._hypervisor,
                plan,
                # Not before: the primary might let the VM start in between, as nothing here would forbid it yet.
                fenced=lambda: asked.append(self._asking.submit(self.ask_primary, replica)),
                ask_primary=lambda: asked.pop().result(),
            )
        shown = plan.model_copy(update={"notes": notes})
        state = State(replica.record.state)
        return FailoverReport(plan=shown, state=state, started=True, seconds=time.monotonic() - began)

    def plan_test(
        self, vm: str, point: PointChoice | None, network: str | None, *, even_damaged: bool = False
    ) -> FailoverPlan:
        """Plan a test failover; changes nothing.

        Raises:
            NotFound: ``network-unknown``, and those of ``plan.plan_test``.
        """
        replica = self.get(vm)
        plan = plan_copy(replica, self._hypervisor, point, network, even_damaged=even_damaged)
        return with_notes(plan, replica, self._hypervisor, network)

    def test(
        self,
        vm: str,
        *,
        point: PointChoice | None,
        network: str | None,
        seconds: int | None,
        even_damaged: bool = False,
    ) -> StartedTest:
        """Start a copy of the VM here, beside the VM itself.

        Args:
            vm: name or UUID.
            point: from which, or which; None: the newest.
            network: of this host, for all its interfaces; None: they are unplugged.
            seconds: until it is removed by itself; None: never.
            even_damaged: start it though the point is damaged.

        Raises:
            VmReplicaError: it was refused, or a step failed and everything was undone.
        """
        replica, began = self.get(vm), time.monotonic()
        plan = plan_copy(replica, self._hypervisor, point, network, even_damaged=even_damaged)
        until = None if seconds is None else dt.datetime.now(dt.UTC) + dt.timedelta(seconds=seconds)
        test, notes = self._tests.start(replica, plan, network=network, until=until)
        self._addressing.add_test(replica, test.vm)
        shown = plan.model_copy(update={"notes": notes})
        return StartedTest(plan=shown, test=test, seconds=time.monotonic() - began)

    def plan_cancel(self, vm: str, *, tests_only: bool) -> FailoverPlan:
        """Plan what ``cancel`` does; changes nothing.

        Raises:
            Conflict: ``nothing-to-cancel``, ``failover-under-way``.
        """
        replica, now = self.get(vm), dt.datetime.now(dt.UTC)
        written, acting = written_bytes(replica.run_dir), self._failing_over.locked()
        points = replica.points()
        return plan_cancel(replica.record, points, tests_only=tests_only, now=now, written=written, acting=acting)

    def cancel(self, vm: str, *, tests_only: bool) -> CancelReport:
        """Take back the failover in effect or left halfway; when there is none, or it is asked for, the test failovers.

        Raises:
            Conflict: ``nothing-to-cancel``.
        """
        replica = self.get(vm)
        with self._failing_over:
            kind = what_to_cancel(replica.record, tests_only=tests_only)
            if kind == "unplanned":
                undo(replica, self._hypervisor)
                return self._cancelled(replica, kind, (replica.record.name,))
        return self._cancelled(replica, kind, self._tests.end(replica))

    def commit(self, vm: str, task: Task) -> None:
        """Begin to keep the failover of a VM for good; the task ends with it.

        Raises:
            VmReplicaError: it was refused, nothing has changed.
        """
        replica = self.get(vm)
        with self._failing_over:
            self.commits.begin(replica, task)

    def networks(self, vm: str) -> NetworksReport:
        """Tell which network of this host stands for which one of the primary."""
        return networks_report(self.get(vm), self._hypervisor)

    def change_networks(self, vm: str, change: NetworksChange) -> NetworksReport:
        """Change that.

        Raises:
            BadRequest: ``network-map-invalid``.
        """
        change_networks(self.get(vm), change)
        return self.networks(vm)

    def hand_over(self, vm: str, to: HostId) -> RelationshipReport:
        """Take a VM's points from another host: the one that it was migrated to.

        Only a person may say so here: a host that could claim a VM by itself could feed any other host's replica.

        Raises:
            Conflict: the VM runs where its points came from (``vm-runs-there``), or it was failed over.
        """
        replica = self.get(vm)
        record = replica.record
        if record.owner != to:
            require_no_failover(record)
            if self.ask_primary(replica) == "runs":
                raise runs_there(record, self.peer_name(record.owner))
            replica.update(owner=to)
            _log.info("replica handed over", vm=record.vm, was=record.owner, owner=to)
        return self.describe(replica)

    def forget(self, replica: Replica, *, delete_copy: bool) -> None:
        """Dissolve a relationship from this side, for a primary that is gone for good.

        Raises:
            Conflict: the VM is defined here on the replica's files.
        """
        record = replica.record
        if record.tests and delete_copy:
            raise Conflict(
                "replica-in-use",
                f"a test failover of {record.name} runs on the files of its replica",
                hint=f"vmreplica failover {record.name} --test --cancel",
            )
        if record.failover is not None and self._hypervisor.exists(record.vm):
            raise Conflict(
                "replica-in-use",
                f"{record.name} was failed over and is defined here, on the files of its replica",
                hint=f"to give it up for good: virsh destroy {record.name}; virsh undefine {record.name}",
            )
        if delete_copy:
            replica.require_unread()
        self.seeder.cancel(record.vm)
        if delete_copy:
            self.commits.give_up(replica)
            replica.move(Event.REMOVE)
            if record.failover is not None:
                replica.release(record.failover.hold)
                replica.update(failover=None)
            self._repository.remove(record.vm)
        elif State(record.state) in RECEIVING:
            replica.move(Event.PAUSE)

    def describe(self, replica: Replica) -> RelationshipReport:
        """Report a relationship from its replica."""
        peer = self.peer_name(replica.record.owner)
        return describe_replica(replica, peer, self._tests.reports(replica), self.beside)

    def copy_only(self, replica: Replica) -> NotFound:
        """Say that this host has only the copy of a VM."""
        name, primary = replica.record.name, self.peer_name(replica.record.owner) or "its primary"
        return NotFound(
            "not-protected",
            f"this host only holds the copy of {name}, which {primary} sends",
            hint=f"run the same command on {primary}",
        )

    def reports(self) -> list[RelationshipReport]:
        """Report every replica held here."""
        return [self.describe(replica) for replica in self._repository.replicas()]

    def no_failover(self) -> AbstractContextManager[object]:
        """Let no failover begin or be taken back in the block."""
        return self._failing_over

    # ---- helpers

    def ask_primary(self, replica: Replica) -> PrimaryAnswer:
        """Ask the host that sent a VM's points whether the VM runs there; takes a second at most."""
        record = replica.record
        asked = self._asking.submit(lambda: self._clients.to(record.owner).runs_here(record.vm).runs)
        try:
            return "runs" if asked.result(timeout=_ASK_LIMIT) else "stopped"
        except (VmReplicaError, FutureTimeoutError):
            return "silent"

    def _warm_up(self) -> None:
        try:
            self._hypervisor.abilities()
        except VmReplicaError as error:
            _log.warning("cannot ask what this host offers", why=error.message)

    def _cancelled(
        self, replica: Replica, kind: Literal["unplanned", "test"], removed: tuple[str, ...]
    ) -> CancelReport:
        record = replica.record
        self._upkeep.put(record.vm)
        return CancelReport(vm=record.vm, name=record.name, kind=kind, removed=removed, state=State(record.state))

    def peer_name(self, host: HostId) -> HostName | None:
        """Tell what a host is called; None when it is no longer paired."""
        try:
            return self._book.by_id(host).name
        except NotFound:
            return None
