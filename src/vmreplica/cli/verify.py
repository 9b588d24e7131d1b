"""The verify command: prove that a point at the replica holds what the VM's disks held, and repair it."""

from typing import TYPE_CHECKING, Annotated, Final

import typer

from vmreplica.cli.client import AgentClient, vm_path
from vmreplica.cli.commands import add_command
from vmreplica.cli.options import DEFAULT_SOCKET, AsJson, SocketPath, VmArgument
from vmreplica.cli.output import make_request, read_report, show, show_document, show_done
from vmreplica.model.units import parse_size

if TYPE_CHECKING:
    from vmreplica.model.verified import VerifyReport

#: The exit code when the point is not proven to be right; the same as of the doctor's problems.
FAILED_EXIT: Final = 11


def register(app: typer.Typer) -> None:
    """Add this command to the command line."""
    add_command(
        app,
        verify,
        "On the primary: prove that a recovery point holds what the VM's disks held, the newest block by block; with "
        f"--repair what is wrong is brought again. The exit code is {FAILED_EXIT} when it is not proven.",
        "vmreplica verify web",
        "vmreplica verify web --repair",
        "vmreplica verify web --point 20261122T102000Z-00000001 --json",
        "vmreplica verify web --rate 100M",
        "vmreplica verify web --cancel",
    )


Point = Annotated[
    str | None, typer.Option(metavar="ID", help="An older recovery point, as vmreplica points lists them.")
]
Repair = Annotated[
    bool,
    typer.Option("--repair", help="Bring wrong blocks again in a new point, now; compare disks that nobody can tell."),
]
Rate = Annotated[
    str | None, typer.Option(metavar="SIZE", help="Let the replica read at most so many bytes per second: 100M.")
]


def verify(
    vm: VmArgument,
    *,
    point: Point = None,
    repair: Repair = False,
    rate: Rate = None,
    cancel: Annotated[bool, typer.Option("--cancel", help="End the verification that is under way.")] = False,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Show progress until it is done, or return.")] = True,
    as_json: AsJson = False,
    socket: SocketPath = DEFAULT_SOCKET,
) -> None:
    """Prove a point."""
    client = AgentClient(socket)
    if cancel:
        _refuse_others(others=point is not None or repair or rate is not None)
        client.send("DELETE", vm_path(vm, "verify"))
        show_done(f"{vm}: the verification ends", as_json=as_json, vm=vm)
        return
    from vmreplica.api.requests import VerifyRequest  # noqa: PLC0415 - slow to import
    from vmreplica.cli.watch import follow  # noqa: PLC0415 - slow to import
    from vmreplica.model.report import TaskReport  # noqa: PLC0415 - slow to import

    body = make_request(VerifyRequest, point=point, repair=repair, rate=_bytes(rate))
    task = read_report(TaskReport, client.send("POST", vm_path(vm, "verify"), body))
    if wait:
        task = follow(client, task, vm, as_json=as_json)
    if as_json:
        show_document(task.model_dump(mode="json"))
    elif task.verified is None:
        show_done(f"{task.what} began; vmreplica points {vm} shows what it comes to.", as_json=False)
    else:
        from vmreplica.cli.show_verify import verify_view  # noqa: PLC0415 - slow to import

        show(verify_view(task.verified))
    if task.verified is not None and not _proven(task.verified):
        raise typer.Exit(FAILED_EXIT)


def _proven(report: "VerifyReport") -> bool:
    return (report.repaired or report.verified).verdict in {"equal", "repaired"}


def _refuse_others(*, others: bool) -> None:
    if others:
        from vmreplica.model.errors import BadRequest  # noqa: PLC0415 - slow to import

        raise BadRequest("options-contradict", "--cancel goes with --json only", hint="vmreplica verify VM --cancel")


def _bytes(rate: str | None) -> int | None:
    if rate is None:
        return None
    try:
        return parse_size(rate)
    except ValueError as error:
        from vmreplica.model.errors import BadRequest  # noqa: PLC0415 - slow to import

        raise BadRequest("rate-invalid", f"--rate: {error}", hint="--rate 100M") from error
