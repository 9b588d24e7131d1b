"""The verbs of failover, as the API knows them, handed on to whoever does them."""

from vmreplica.agent.acts import Acts
from vmreplica.agent.boot_testing import BootTesting
from vmreplica.agent.planned_service import Planned
from vmreplica.agent.replica import ReplicaSide
from vmreplica.agent.reversing import Reversing
from vmreplica.agent.scrubbing import Scrubbing
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
from vmreplica.model.units import format_duration
from vmreplica.peer.book import PeerBook
from vmreplica.peer.planned import PlannedWish


class FailoverVerbs:
    """The part of ``Agent`` that is about failovers."""

    book: PeerBook
    planned: Planned
    _reversing: Reversing
    _replicas: ReplicaSide
    _tasks: Tasks
    _acts: Acts

    @property
    def boots(self) -> BootTesting:
        """Boot tests."""
        return self._replicas.boots

    @property
    def scrubs(self) -> Scrubbing:
        """Scrub."""
        return self._replicas.scrubbing

    def plan_failover(self, vm: str, point: str | None, *, even_damaged: bool = False) -> FailoverPlan:
        """Tell what a failover would do and lose; changes nothing."""
        return self._replicas.plan(vm, point, even_damaged=even_damaged)

    def failover(self, vm: str, point: str | None, *, even_damaged: bool = False) -> FailoverReport:
        """Start the VM on this host."""
        with self._acts.act("failover", vm, "the failover") as act:
            report = self._replicas.failover(vm, point, even_damaged=even_damaged)
            plan = report.plan
            text = f"started here from point {plan.point}, {format_duration(plan.loses_seconds)} of its life are lost"
            act.done("failed-over", text, point=plan.point, seconds=report.seconds, lost_seconds=plan.loses_seconds)
        return report

    def plan_reverse(self, vm: str) -> FailoverPlan:
        """Tell what a swap of the roles would do; changes nothing."""
        return self._reversing.plan(vm)

    def reverse(self, vm: str) -> TaskReport:
        """Protect a VM that was failed over to this host from here; the task is the first cycle."""
        with self._acts.act("reverse", vm, "the swap of the roles") as act:
            task = self._reversing.reverse(vm)
            act.done("reverse-asked", "it shall be replicated from here to its old primary")
        return act.follow(task, "protected-again", "its first point from here is at its old primary").report()

    def plan_commit(self, vm: str) -> FailoverPlan:
        """Tell what keeping a failover for good would do; changes nothing."""
        return self._replicas.commits.plan(self._replicas.get(vm))

    def commit(self, vm: str) -> TaskReport:
        """Keep a failover for good; the task is the folding of its images."""
        task = self._tasks.start(f"commit of {vm}")
        with self._acts.act("commit", vm, "the commit"):
            self._replicas.commit(vm, task)
        return task.report()

    def plan_planned(self, vm: str, *, patience: int, force: bool) -> FailoverPlan:
        """Tell what a planned failover would do, asked on either side; changes nothing."""
        return self.planned.plan_verb(vm, PlannedWish(patience=patience, force=force))

    def planned_failover(self, vm: str, *, patience: int, force: bool) -> TaskReport:
        """Move a VM to its replica, or go on with that, asked on either side."""
        return self.planned.begin_verb(vm, PlannedWish(patience=patience, force=force))

    def plan_test(self, vm: str, point: str | None, network: str | None, *, even_damaged: bool = False) -> FailoverPlan:
        """Tell what a test failover would do; changes nothing."""
        return self._replicas.plan_test(vm, point, network, even_damaged=even_damaged)

    def test_failover(
        self, vm: str, *, point: str | None, network: str | None, seconds: int | None, even_damaged: bool = False
    ) -> StartedTest:
        """Start a copy of the VM on this host, beside the VM."""
        with self._acts.act("test", vm, "the test failover") as act:
            started = self._replicas.test(vm, point=point, network=network, seconds=seconds, even_damaged=even_damaged)
            test = started.test
            text = f"{test.name} was started beside it from point {test.point}"
            act.done("test-started", text, copy=test.name, point=test.point, until=test.until, seconds=started.seconds)
        return started

    def plan_cancel(self, vm: str, *, tests_only: bool) -> FailoverPlan:
        """Plan what ``cancel_failover`` does."""
        of_planned = None if tests_only else self.planned.plan_cancel_verb(vm)
        return of_planned or self._replicas.plan_cancel(vm, tests_only=tests_only)

    def cancel_failover(self, vm: str, *, tests_only: bool) -> CancelReport:
        """Take back the failover, or the test failovers, with every trace."""
        with self._acts.act("cancel", vm, "the cancelling") as act:
            taken_back = None if tests_only else self.planned.cancel_verb(vm)
            report = taken_back or self._replicas.cancel(vm, tests_only=tests_only)
            what = (
                "its test failovers were removed"
                if report.kind == "test"
                else f"its {report.kind} failover was taken back"
            )
            act.done("cancelled", what, what=report.kind, removed=report.removed)
        return report

    def networks(self, vm: str) -> NetworksReport:
        """Tell which network of this host stands for which one of the primary."""
        return self._replicas.networks(vm)

    def change_networks(self, vm: str, change: NetworksChange) -> NetworksReport:
        """Change which network of this host stands for which one of the primary."""
        return self._replicas.change_networks(vm, change)

    def hand_over(self, vm: str, to: str) -> RelationshipReport:
        """Take the points of a VM, held here, from another paired host."""
        with self._acts.act("hand-over", vm, "the hand-over") as act:
            report = self._replicas.hand_over(vm, self.book.by_name(to).host_id)
            act.done("handed-over", f"its points are taken from {to} from now on", primary=to)
        return report
