"""The part of the small agent that keeps failovers for good, and moves VMs."""

from vmreplica.model.report import CommitReport, FailoverPlan, TaskReport
from vmreplica.model.states import State


class KeepsFailovers:
    """Answers what a commit and a planned failover are asked, beside the rest of the small agent."""

    progress: list[TaskReport]

    def plan_commit(self, vm: str) -> FailoverPlan:
        """Plan to keep a failover."""
        self._asked("plan_commit", vm)
        harmless = {"kind": "commit", "loses_seconds": 0.0, "loses_bytes": None, "newer_points": 1}
        return self._plan(vm, None).model_copy(update=harmless)

    def commit(self, vm: str) -> TaskReport:
        """Keep it."""
        self._asked("commit", vm)
        plan = self._plan(vm, None)
        report = CommitReport(
            vm=plan.vm, name=plan.name, state=State.COMMITTED, images=("/s/vda.qcow2",), freed_bytes=5 << 20
        )
        self.progress = [TaskReport(id="t1", what=f"commit of {vm}", done=True, committed=report)]
        return TaskReport(id="t1", what=f"commit of {vm}", done=False)

    def plan_planned(self, vm: str, *, patience: int, force: bool) -> FailoverPlan:
        """Plan a planned failover."""
        self._asked("plan_planned", vm, patience, force)
        changes = {"kind": "planned", "loses_seconds": 0.0, "loses_bytes": 0, "warnings": ()}
        return self._plan(vm, None).model_copy(update=changes)

    def planned_failover(self, vm: str, *, patience: int, force: bool) -> TaskReport:
        """Begin a planned failover."""
        self._asked("planned_failover", vm, patience, force)
        return self.progress[0]

    def _asked(self, *what: object) -> None:
        raise NotImplementedError

    def _plan(self, vm: str, point: str | None) -> FailoverPlan:
        raise NotImplementedError
