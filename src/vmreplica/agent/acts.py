"""What people ask for and what comes of it, written into the journal by one sentence each."""

import contextlib
from collections.abc import Iterator
from typing import Final

from vmreplica.agent.journal import Journal
from vmreplica.agent.tasks import Task
from vmreplica.model.errors import BadRequest, NotFound, VmReplicaError
from vmreplica.model.events import EventKind

#: Wrong requests: nothing happened to any VM.
_NOTHING: Final = (BadRequest, NotFound)


class Acts:
    """Thread-safe.

    Args:
        journal: history.
    """

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    @contextlib.contextmanager
    def act(self, kind: EventKind, vm: str, what: str) -> Iterator["Act"]:
        """Write down how the block ends: what it says itself, or the error that it ends with.

        Args:
            kind: what it is about.
            vm: name or UUID.
            what: the act for the sentence about its failure: ``the failover``.
        """
        act = Act(self._journal, kind, vm, what)
        try:
            yield act
        except _NOTHING:
            raise
        except VmReplicaError as error:
            act.failed(error)
            raise


class Act:
    """One act under way.

    Args:
        journal: history.
        kind: what it is about.
        vm: name or UUID.
        what: for the sentence about its failure.
    """

    def __init__(self, journal: Journal, kind: EventKind, vm: str, what: str) -> None:
        self._journal = journal
        self._kind = kind
        self._asked = vm
        self._what = what

    def done(self, code: str, text: str, **details: object) -> None:
        """Say what it came to."""
        vm, name = self._journal.named(self._asked)
        self._journal.event(vm, self._kind, code, text, name=name, severity="info", **details)

    def failed(self, error: VmReplicaError) -> None:
        """Say why it came to nothing."""
        vm, name = self._journal.named(self._asked)
        text = f"{self._what} failed: {error.message}"
        self._journal.event(vm, self._kind, error.code, text, name=name, severity="warning", hint=error.hint)

    def follow(self, task: Task, code: str, text: str, **details: object) -> Task:
        """Say it when a task has ended well, or why it failed."""

        def ended(error: VmReplicaError | None) -> None:
            if error is None:
                self.done(code, text, **details)
            else:
                self.failed(error)

        task.then(ended)
        return task


def note_import(journal: Journal, directory: str, task: Task, error: VmReplicaError | None) -> None:
    """Write down how an import of an export ended."""
    if error is not None:
        text = f"import of {directory} failed: {error.message}"
        journal.event(None, "import", error.code, text, severity="warning")
    elif task.imported is not None:
        journal.event(task.imported.vm, "import", "imported", f"the first copy was imported from {directory}")
