"""The scrub command: read recovery points and check every byte of them, now."""

from typing import Annotated, Final

import typer

from vmreplica.cli.client import LONG, AgentClient, vm_path
from vmreplica.cli.commands import add_command
from vmreplica.cli.options import DEFAULT_SOCKET, AsJson, SocketPath, VmArgument
from vmreplica.cli.output import make_request, read_report, show, show_document, show_done

#: The exit code when something is wrong; the same as of the doctor's problems.
DAMAGED_EXIT: Final = 11


def register(app: typer.Typer) -> None:
    """Add this command to the command line."""
    add_command(
        app,
        scrub,
        "On the replica: read a VM's recovery points and check every byte of them. The exit code is "
        f"{DAMAGED_EXIT} when something is wrong; damaged points are not used from then on.",
        "vmreplica scrub web",
        "vmreplica scrub web --point 20261122T031500Z-5f3a90c1",
        "vmreplica scrub web --no-wait --json",
    )


def scrub(
    vm: VmArgument,
    *,
    point: Annotated[str | None, typer.Option(metavar="ID", help="This recovery point only; default: all.")] = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Show progress until it is done, or return.")] = True,
    as_json: AsJson = False,
    socket: SocketPath = DEFAULT_SOCKET,
) -> None:
    """Read and check points."""
    from vmreplica.api.requests import ScrubRequest  # noqa: PLC0415 - slow to import
    from vmreplica.cli.show_scrub import scrub_view  # noqa: PLC0415 - slow to import
    from vmreplica.cli.watch import follow  # noqa: PLC0415 - slow to import
    from vmreplica.model.report import TaskReport  # noqa: PLC0415 - slow to import

    client = AgentClient(socket)
    body = make_request(ScrubRequest, point=point)
    task = read_report(TaskReport, client.send("POST", vm_path(vm, "scrub"), body, timeout=LONG))
    if wait:
        task = follow(client, task, vm, as_json=as_json)
    if as_json:
        show_document(task.model_dump(mode="json"))
    elif task.scrubbed is None:
        show_done(f"{task.what} began; vmreplica points {vm} shows what it finds.", as_json=False)
    else:
        show(scrub_view(task.scrubbed))
    if task.scrubbed is not None and task.scrubbed.damaged:
        raise typer.Exit(DAMAGED_EXIT)
