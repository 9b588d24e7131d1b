"""Long acts that somebody waits for: named, watched, kept a while after their end."""

import secrets
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from vmreplica.agent.meter import Meter
from vmreplica.model.errors import Conflict, NotFound, VmReplicaError
from vmreplica.model.export import ImportReport
from vmreplica.model.report import BootReport, CommitReport, CycleReport, PlannedReport, TaskReport
from vmreplica.model.scrubbing import ScrubReport
from vmreplica.model.taking import PointExportReport
from vmreplica.model.verified import VerifyReport

_KEPT: Final = 200


class Task:
    """One act; finished once, from any thread."""

    def __init__(self, what: str) -> None:
        self.id = secrets.token_hex(8)
        self.what = what
        self.meter: Meter | None = None
        #: What an import came to.
        self.imported: ImportReport | None = None
        #: What an export of a point came to.
        self.exported: PointExportReport | None = None
        #: Set to cancel it; None: it goes on to its end.
        self.stop: threading.Event | None = None
        #: What a commit came to.
        self.committed: CommitReport | None = None
        #: What a planned failover came to.
        self.planned: PlannedReport | None = None
        #: What a boot test came to.
        self.booted: BootReport | None = None
        #: What a verification came to.
        self.verified: VerifyReport | None = None
        #: What a scrub came to.
        self.scrubbed: ScrubReport | None = None
        self._done = threading.Event()
        self._lock = threading.Lock()
        self._then: list[Callable[[VmReplicaError | None], None]] = []
        self._result: CycleReport | None = None
        self._error: VmReplicaError | None = None

    def finish(self, result: CycleReport | None, error: VmReplicaError | None) -> None:
        """Say how it ended."""
        with self._lock:
            self._result, self._error = result, error
            self._done.set()
            told, self._then = self._then, []
        for tell in told:
            tell(error)

    def then(self, tell: Callable[[VmReplicaError | None], None]) -> None:
        """Call with the error, or None, when it ends; at once when it has."""
        with self._lock:
            if not self._done.is_set():
                self._then.append(tell)
                return
            error = self._error
        tell(error)

    def wait(self, timeout: float) -> bool:
        """Wait until it has ended, at most so many seconds; tell whether it has."""
        return self._done.wait(timeout)

    def raise_error(self) -> None:
        """Fail as it failed, if it did."""
        if self._error is not None:
            raise self._error

    def report(self) -> TaskReport:
        """Describe the present moment."""
        done = self._done.is_set()
        error = self._error
        return TaskReport(
            id=self.id,
            what=self.what,
            done=done,
            progress=self.meter.progress() if self.meter and not done else None,
            result=self._result,
            imported=self.imported,
            exported=self.exported,
            committed=self.committed,
            planned=self.planned,
            booted=self.booted,
            verified=self.verified,
            scrubbed=self.scrubbed,
            error=error.message if error else None,
            error_code=error.code if error else None,
            hint=error.hint if error else "",
            problem=error.problem() if error else None,
        )


class Tasks:
    """All acts of this agent's life, the newest 200 of them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tasks: OrderedDict[str, Task] = OrderedDict()

    def start(self, what: str) -> Task:
        """Begin an act."""
        task = Task(what)
        with self._lock:
            self._tasks[task.id] = task
            while len(self._tasks) > _KEPT:
                self._tasks.popitem(last=False)
        return task

    def get(self, task_id: str) -> Task:
        """Find an act.

        Raises:
            NotFound: nobody knows it, for example since the agent was restarted.
        """
        with self._lock:
            task = self._tasks.get(task_id)
        if task is None:
            raise NotFound(
                "task-unknown",
                f"no task {task_id} is known, the agent may have been restarted",
                hint="`vmreplica status` shows what is going on",
            )
        return task

    def cancel(self, task_id: str) -> Task:
        """Stop an act that can be stopped; one that is over stays as it is.

        Raises:
            NotFound: ``task-unknown``.
            Conflict: ``task-goes-on``: it cannot be stopped.
        """
        task = self.get(task_id)
        if task.stop is None:
            hint = "`vmreplica status` shows what is going on"
            raise Conflict("task-goes-on", f"{task.what} cannot be cancelled", hint=hint)
        task.stop.set()
        return task
