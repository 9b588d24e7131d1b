"""The command that only looks: status."""

import sys
import time
from typing import TYPE_CHECKING, Annotated, Final

import typer

from vmreplica.cli.client import AgentClient
from vmreplica.cli.commands import add_command
from vmreplica.cli.options import DEFAULT_SOCKET, AsJson, SocketPath
from vmreplica.cli.output import console, error_text, read_report, show, show_answer

if TYPE_CHECKING:
    from rich.console import RenderableType

_REFRESH: Final = 2.0

OptionalVm = Annotated[
    str | None, typer.Argument(metavar="VM", help="Only this VM, by name or UUID, in detail.", show_default=False)
]


def register(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    add_command(
        app,
        status,
        "Show how replication is doing: state, health, age of the newest recovery point.",
        "vmreplica status",
        "vmreplica status web --watch",
        "vmreplica status --check",
        "vmreplica status --json | jq -r '.relationships[] | [.name, .health.level, .point_age] | @tsv'",
    )


def status(
    vm: OptionalVm = None,
    watch: Annotated[bool, typer.Option("--watch", help="Refresh until Ctrl-C.")] = False,
    check: Annotated[
        bool,
        typer.Option(
            "--check", help="Print one line for monitoring; exit code 0 well, 1 warning, 2 critical, 3 unknown."
        ),
    ] = False,
    as_json: AsJson = False,
    socket: SocketPath = DEFAULT_SOCKET,
) -> None:
    """Show status."""
    client = AgentClient(socket)
    if check:
        _check(client, vm, as_json=as_json)
    elif watch:
        _watch(client, vm, as_json=as_json)
    elif as_json:
        show_answer(client.get("/v1/status", vm=vm))
    else:
        show(_status(client, vm))


def _status(client: AgentClient, vm: str | None) -> "RenderableType":
    answer = client.get("/v1/status", vm=vm)
    from vmreplica.cli.show import relation_view, status_view  # noqa: PLC0415 - slow to import
    from vmreplica.model.report import StatusReport  # noqa: PLC0415 - slow to import

    report = read_report(StatusReport, answer)
    return status_view(report) if vm is None else relation_view(report)


def _check(client: AgentClient, vm: str | None, *, as_json: bool) -> None:
    from vmreplica.cli.check import check  # noqa: PLC0415 - slow to import
    from vmreplica.model.errors import BadRequest  # noqa: PLC0415 - slow to import

    if as_json:
        raise BadRequest(
            "check-is-one-line", "--check prints one line, --json is one document", hint="use one of the two"
        )
    line, code = check(client, vm)
    typer.echo(line)
    raise typer.Exit(code)


def _watch(client: AgentClient, vm: str | None, *, as_json: bool) -> None:
    from vmreplica.model.errors import BadRequest  # noqa: PLC0415 - slow to import

    if as_json:
        raise BadRequest(
            "watch-is-for-people", "--watch goes on and on, --json is one document", hint="use one of the two"
        )
    if not sys.stdout.isatty():
        raise BadRequest("watch-is-for-people", "--watch needs a terminal", hint="poll vmreplica status --json instead")
    from rich.live import Live  # noqa: PLC0415 - slow to import

    view = _status(client, vm)
    try:
        with Live(view, console=console(), auto_refresh=False) as live:
            while True:
                time.sleep(_REFRESH)
                live.update(_status_or_error(client, vm), refresh=True)
    except KeyboardInterrupt:
        raise typer.Exit from None


def _status_or_error(client: AgentClient, vm: str | None) -> "RenderableType":
    from rich.text import Text  # noqa: PLC0415 - slow to import

    from vmreplica.model.errors import VmReplicaError  # noqa: PLC0415 - slow to import

    try:
        return _status(client, vm)
    except VmReplicaError as error:
        return Text(error_text(error.problem()), style="bold red")
