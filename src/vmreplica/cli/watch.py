"""Watching a task until it is done. Ctrl-C stops the watching, and the work only where that is said."""

import sys
from collections.abc import Callable
from time import monotonic, sleep
from typing import Final, Protocol

import typer

from vmreplica.cli.client import AgentClient
from vmreplica.cli.output import INTERRUPTED, console, printable, read_report, show_document
from vmreplica.model.errors import Internal, VmReplicaError, from_problem
from vmreplica.model.report import Progress, TaskReport
from vmreplica.model.units import format_duration, format_size

_POLL: Final = 0.5
_LINE_EVERY: Final = 10.0


class _Display(Protocol):
    def show(self, progress: Progress) -> None: ...
    def close(self) -> None: ...


def follow(client: AgentClient, task: TaskReport, vm: str, *, as_json: bool, cancels: bool = False) -> TaskReport:
    """Show a task's progress on standard error until it is done.

    Args:
        client: of the agent.
        task: as it began.
        vm: shown with it.
        as_json: nothing is shown on the way.
        cancels: Ctrl-C cancels the work; otherwise it only ends the watching.

    Raises:
        VmReplicaError: the task failed.
        typer.Exit: the person stopped watching.
    """
    display = _Quiet() if as_json else _display(vm)
    latest = [task]

    def poll() -> TaskReport:
        latest[0] = read_report(TaskReport, client.get(f"/v1/tasks/{task.id}"))
        return latest[0]

    try:
        _until_done(task, poll, display)
    except KeyboardInterrupt:
        display.close()
        if cancels:
            _cancel(client, task, poll)
        _stopped_watching(latest[0], vm, as_json=as_json)
    display.close()
    failure = task_error(latest[0])
    if failure is not None:
        raise failure
    return latest[0]


def task_error(task: TaskReport) -> VmReplicaError | None:
    """Tell with which error a finished task ended, if with any."""
    if task.problem is not None:
        return from_problem(task.problem)
    if task.error is not None:
        return Internal(task.error_code or "task-failed", task.error, hint=task.hint)
    result = task.result
    if result is not None and result.outcome != "published":
        text = result.error or f"the cycle was {result.outcome}"
        return Internal(result.error_code or "task-failed", text, hint=result.hint)
    return None


def _until_done(task: TaskReport, poll: Callable[[], TaskReport], display: _Display) -> None:
    while not task.done:
        if task.progress is not None:
            display.show(task.progress)
        sleep(_POLL)
        task = poll()
    if task.progress is not None:
        display.show(task.progress)


def _cancel(client: AgentClient, task: TaskReport, poll: Callable[[], TaskReport]) -> None:
    """Cancel the work, and see that it is over.

    Raises:
        VmReplicaError: that it was cancelled, unless it was done just before.
        typer.Exit: it was done.
    """
    client.send("DELETE", f"/v1/tasks/{task.id}")
    _until_done(task, poll, _Quiet())
    failure = task_error(poll())
    if failure is not None:
        raise failure
    raise typer.Exit


def _stopped_watching(task: TaskReport, vm: str, *, as_json: bool) -> None:
    if as_json:
        show_document(task.model_dump(mode="json"))
    else:
        typer.echo(f"\nNo longer watching; the work goes on: vmreplica status {printable(vm)}", err=True)
    raise typer.Exit(INTERRUPTED)


def _display(vm: str) -> _Display:
    return _Bar(vm) if sys.stderr.isatty() else _Lines(vm)


class _Quiet:
    def show(self, progress: Progress) -> None:
        """Show nothing."""

    def close(self) -> None:
        """Nothing was opened."""


class _Lines:
    """A line now and then, for logs; the last one is always shown."""

    def __init__(self, vm: str) -> None:
        self._vm = vm
        self._phase = ""
        self._next = 0.0
        self._seen = self._said = ""

    def show(self, progress: Progress) -> None:
        self._seen = progress_text(progress)
        if progress.phase != self._phase or monotonic() >= self._next:
            self._phase, self._next = progress.phase, monotonic() + _LINE_EVERY
            self.close()

    def close(self) -> None:
        """Say what was seen last, unless that was said."""
        if self._seen != self._said:
            typer.echo(printable(f"{self._vm}: {self._seen}"), err=True)
        self._said = self._seen


class _Bar:
    """A bar that moves, for terminals."""

    def __init__(self, vm: str) -> None:
        from rich.progress import BarColumn, TextColumn  # noqa: PLC0415 - slow to import
        from rich.progress import Progress as Bars  # noqa: PLC0415 - slow to import

        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.fields[text]}", markup=False),
        )
        # Without a thread of its own: Ctrl-C must never find one that waits for this one.
        self._bars = Bars(*columns, console=console(stderr=True), transient=True, auto_refresh=False)
        self._bar = self._bars.add_task(printable(vm), total=None, text="")
        self._bars.start()

    def show(self, progress: Progress) -> None:
        self._bars.update(
            self._bar,
            completed=progress.done_bytes,
            total=progress.total_bytes or None,
            text=progress_text(progress),
            refresh=True,
        )

    def close(self) -> None:
        self._bars.stop()


def progress_text(progress: Progress) -> str:
    """Spell progress: phase, bytes, rate, time left; of what is not known yet only what is."""
    if not progress.total_bytes:
        sent = f", {format_size(progress.wire_bytes)} sent" if progress.wire_bytes else ""
        return f"{printable(progress.phase)}{sent}"
    text = (
        f"{printable(progress.phase)} {format_size(progress.done_bytes)} of {format_size(progress.total_bytes)}, "
        f"{format_size(progress.rate)}/s, {format_size(progress.wire_bytes)} sent"
    )
    if progress.seconds_left is not None:
        text += f", {format_duration(progress.seconds_left)} left"
    return text
