"""The verbs of failover, as the API knows them, handed on to whoever does them."""

from vmreplica.agent.boot_testing import BootTesting
from vmreplica.agent.planned_service import Planned
from vmreplica.agent.replica import ReplicaSide
from vmreplica.agent.reversing import Reversing
from vmreplica.agent.tasks import Tasks
from vmreplica.model.networks import NetworksChange, NetworksReport
from vmreplica.model.report import (
    CancelReport,
    FailoverPlan,
    FailoverReport,
    RelationshipReport,
    StartedTest,
    TaskReport,
)
from vmreplica.peer.book import PeerBook
from vmreplica.peer.planned import PlannedWish


class FailoverVerbs:
    """The part of ``Agent`` that is about failovers."""

    book: PeerBook
    planned: Planned
    _reversing: Reversing
    _replicas: ReplicaSide
    _tasks: Tasks

    @property
    def boots(self) -> BootTesting:
        """Boot tests."""
        return self._replicas.boots

    def plan_failover(self, vm: str, point: str | None) -> FailoverPlan:
        """Tell what a failover would do and lose; changes nothing."""
        return self._replicas.plan(vm, point)

    def failover(self, vm: str, point: str | None) -> FailoverReport:
        """Start the VM on this host."""
        return self._replicas.failover(vm, point)

    def plan_reverse(self, vm: str) -> FailoverPlan:
        """Tell what a swap of the roles would do; changes nothing."""
        return self._reversing.plan(vm)

    def reverse(self, vm: str) -> TaskReport:
        """Protect a VM that was failed over to this host from here; the task is the first cycle."""
        return self._reversing.reverse(vm).report()

    def plan_commit(self, vm: str) -> FailoverPlan:
        """Tell what keeping a failover for good would do; changes nothing."""
        return self._replicas.commits.plan(self._replicas.get(vm))

    def commit(self, vm: str) -> TaskReport:
        """Keep a failover for good; the task is the folding of its images."""
        task = self._tasks.start(f"commit of {vm}")
        self._replicas.commit(vm, task)
        return task.report()

    def plan_planned(self, vm: str, *, patience: int, force: bool) -> FailoverPlan:
        """Tell what a planned failover would do, asked on either side; changes nothing."""
        return self.planned.plan_verb(vm, PlannedWish(patience=patience, force=force))

    def planned_failover(self, vm: str, *, patience: int, force: bool) -> TaskReport:
        """Move a VM to its replica, or go on with that, asked on either side."""
        return self.planned.begin_verb(vm, PlannedWish(patience=patience, force=force))

    def plan_test(self, vm: str, point: str | None, network: str | None) -> FailoverPlan:
        """Tell what a test failover would do; changes nothing."""
        return self._replicas.plan_test(vm, point, network)

    def test_failover(self, vm: str, *, point: str | None, network: str | None, seconds: int | None) -> StartedTest:
        """Start a copy of the VM on this host, beside the VM."""
        return self._replicas.test(vm, point=point, network=network, seconds=seconds)

    def plan_cancel(self, vm: str, *, tests_only: bool) -> FailoverPlan:
        """Plan what ``cancel_failover`` does."""
        of_planned = None if tests_only else self.planned.plan_cancel_verb(vm)
        return of_planned or self._replicas.plan_cancel(vm, tests_only=tests_only)

    def cancel_failover(self, vm: str, *, tests_only: bool) -> CancelReport:
        """Take back the failover, or the test failovers, with every trace."""
        taken_back = None if tests_only else self.planned.cancel_verb(vm)
        return taken_back or self._replicas.cancel(vm, tests_only=tests_only)

    def networks(self, vm: str) -> NetworksReport:
        """Tell which network of this host stands for which one of the primary."""
        return self._replicas.networks(vm)

    def change_networks(self, vm: str, change: NetworksChange) -> NetworksReport:
        """Change which network of this host stands for which one of the primary."""
        return self._replicas.change_networks(vm, change)

    def hand_over(self, vm: str, to: str) -> RelationshipReport:
        """Take the points of a VM, held here, from another paired host."""
        return self._replicas.hand_over(vm, self.book.by_name(to).host_id)
