"""Commands about the past and who is told of it: history, events, health-test."""

import os
import sys
import time
from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from vmreplica.cli.client import AgentClient, vm_path
from vmreplica.cli.commands import add_command
from vmreplica.cli.options import DEFAULT_SOCKET, AsJson, SocketPath, VmArgument
from vmreplica.cli.output import read_report, show, show_answer

if TYPE_CHECKING:
    from vmreplica.model.errors import VmReplicaError
    from vmreplica.model.events import EventsReport

#: Seconds that the agent holds a question back until there is news, and between attempts while it is away.
_WAIT: Final = 20
_AGAIN: Final = 2.0
_BATCH: Final = 500

Kinds = Annotated[
    list[str] | None,
    typer.Option(
        "--kind", metavar="KIND", help="Only this kind, may be given several times: cycle, health, failover, scrub...",
        show_default=False,
    ),
]  # fmt: skip
Since = Annotated[
    str | None,
    typer.Option("--since", metavar="WHEN", help="Not before: 12h or 7d ago, 2026-11-25, '2026-11-25 14:00'.",
                 show_default=False),
]  # fmt: skip
Limit = Annotated[int, typer.Option(metavar="N", help="How many, from 1 to 1000.")]


def register(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    add_command(
        app,
        history,
        "List the last runs of a VM and what else happened to it, on either host.",
        "vmreplica history web --limit 5",
        "vmreplica history web --since 7d --kind failover --kind test",
        "vmreplica history web --json | jq '.cycles[] | [.started, .outcome, .rate]'",
    )
    add_command(
        app,
        events,
        "Show what happens on this host, oldest first; with --follow go on until Ctrl-C.",
        "vmreplica events",
        "vmreplica events web --since 24h --kind health",
        "vmreplica events --follow --json | jq -c 'select(.severity != \"info\")'",
    )
    add_command(
        app,
        health_test,
        "Tell the hook and the webhook of the configuration, as a test, and say how that went.",
        "vmreplica health-test",
        name="health-test",
    )


def history(
    vm: VmArgument,
    *,
    limit: Limit = 20,
    kind: Kinds = None,
    since: Since = None,
    as_json: AsJson = False,
    socket: SocketPath = DEFAULT_SOCKET,
) -> None:
    """List runs and acts."""
    query = _query(limit, kind, since)
    answer = AgentClient(socket).get(vm_path(vm, "history"), **query)
    if as_json:
        show_answer(answer)
        return
    from vmreplica.cli.show_records import history_view  # noqa: PLC0415 - slow to import
    from vmreplica.model.report import HistoryReport  # noqa: PLC0415 - slow to import

    show(history_view(read_report(HistoryReport, answer)))


def _in_lines(command: Callable[..., None]) -> Callable[..., None]:
    """Print errors as one line of JSON, too; end quietly when nobody reads on."""

    @wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except BrokenPipeError:
            # What is still buffered cannot be written either, and Python would complain about that at its end.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit from None

    return run


@_in_lines
def events(
    vm: Annotated[
        str | None, typer.Argument(metavar="VM", help="Only of this VM, by name or UUID.", show_default=False)
    ] = None,
    *,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until Ctrl-C.")] = False,
    limit: Limit = 20,
    kind: Kinds = None,
    since: Since = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON document per line; an error, too, is one line.")
    ] = False,
    socket: SocketPath = DEFAULT_SOCKET,
) -> None:
    """Show events."""
    from vmreplica.model.errors import VmReplicaError  # noqa: PLC0415 - slow to import

    client = AgentClient(socket)
    try:
        report = _ask(client, vm, _query(limit, kind, since))
        _print(report, as_json=as_json)
        if follow:
            _follow(client, vm, _query(_BATCH, kind, None), report.newest, as_json=as_json)
    except KeyboardInterrupt:
        raise typer.Exit from None
    except VmReplicaError as error:
        if not as_json:
            raise
        _line({"error": error.problem().model_dump(mode="json")})
        raise typer.Exit(error.exit_code) from error


def health_test(as_json: AsJson = False, socket: SocketPath = DEFAULT_SOCKET) -> None:
    """Test the hook and the webhook."""
    from vmreplica.model.telling import HealthTestReport  # noqa: PLC0415 - slow to import

    answer = AgentClient(socket).send("POST", "/v1/health-test", timeout=900.0)
    report = read_report(HealthTestReport, answer)
    if as_json:
        show_answer(answer)
    else:
        from vmreplica.cli.show_records import test_view  # noqa: PLC0415 - slow to import

        show(test_view(report))
    if any(result is not None and not result.ok for result in (report.hook, report.webhook)):
        raise typer.Exit(1)


def _query(limit: int, kinds: list[str] | None, since: str | None) -> dict[str, str | None]:
    return {"limit": str(limit), "kind": ",".join(kinds) if kinds else None, "since": _moment(since)}


def _moment(since: str | None) -> str | None:
    if since is None:
        return None
    import datetime as dt  # noqa: PLC0415 - needed with --since only

    from vmreplica.model.errors import BadRequest  # noqa: PLC0415 - slow to import
    from vmreplica.model.moments import parse_since  # noqa: PLC0415 - slow to import

    try:
        return parse_since(since, dt.datetime.now(dt.UTC)).isoformat()
    except ValueError as error:
        raise BadRequest("since-invalid", str(error), hint="--since 7d") from None


def _ask(client: AgentClient, vm: str | None, query: dict[str, str | None], **more: str) -> "EventsReport":
    from vmreplica.model.events import EventsReport  # noqa: PLC0415 - slow to import

    return read_report(EventsReport, client.get("/v1/events", vm=vm, **query, **more))


def _follow(client: AgentClient, vm: str | None, query: dict[str, str | None], newest: int, *, as_json: bool) -> None:
    """Ask for what follows, again and again; an agent that is restarted is waited for."""
    from vmreplica.model.errors import TimedOut, Unreachable  # noqa: PLC0415 - slow to import

    away = False
    while True:
        try:
            report = _ask(client, vm, query, after=str(newest), wait=str(_WAIT))
        except (Unreachable, TimedOut) as error:
            if not away:
                _say_away(error)
            away = True
            time.sleep(_AGAIN)
            continue
        away = False
        _print(report, as_json=as_json)
        newest = report.newest


def _say_away(error: "VmReplicaError") -> None:
    typer.echo(f"waiting for the agent: {error.message}", err=True)


def _print(report: "EventsReport", *, as_json: bool) -> None:
    if as_json:
        for event in report.events:
            _line(event.model_dump(mode="json"))
    elif report.events:
        from vmreplica.cli.show_records import event_text  # noqa: PLC0415 - slow to import

        for event in report.events:
            sys.stdout.write(f"{event_text(event)}\n")
    sys.stdout.flush()


def _line(document: Any) -> None:
    import json  # noqa: PLC0415 - needed with --json only

    sys.stdout.write(f"{json.dumps(document)}\n")
