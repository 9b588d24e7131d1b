"""The command that looks for trouble before it comes."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from vmreplica.cli.client import AgentClient, vm_path
from vmreplica.cli.commands import add_command
from vmreplica.cli.options import DEFAULT_SOCKET, AsJson, SocketPath
from vmreplica.cli.output import console, make_request, read_report, show, show_document

if TYPE_CHECKING:
    from vmreplica.model.report import DoctorReport

#: The exit code when something was found that keeps replication from working; below 11 are those of errors.
PROBLEM_EXIT: Final = 11
_LIMIT: Final = 240.0

OptionalVm = Annotated[
    str | None, typer.Argument(metavar="VM", help="Look at this VM, by name or UUID, not at the host.",
                               show_default=False)
]  # fmt: skip


def register(app: typer.Typer) -> None:
    """Add this command to the command line."""
    add_command(
        app,
        doctor,
        "Look for trouble on this host, or with one VM, and say what to do about it. Without a VM nothing is touched; "
        f"with one, a real backup job is begun and ended. The exit code is {PROBLEM_EXIT} when there is a problem.",
        "vmreplica doctor",
        "vmreplica doctor web",
        "vmreplica doctor web --no-trial",
        "vmreplica doctor --json | jq -r '.findings[] | select(.severity == \"problem\") | [.code, .remedy] | @tsv'",
    )


def doctor(
    vm: OptionalVm = None,
    trial: Annotated[
        bool, typer.Option("--trial/--no-trial", help="Begin and end a real backup job on the VM; the guest runs on.")
    ] = True,
    config: Annotated[
        Path,
        typer.Option(envvar="VMREPLICA_CONFIG", metavar="FILE", help="The configuration to look at without an agent."),
    ] = Path("/etc/vmreplica/agent.toml"),
    as_json: AsJson = False,
    socket: SocketPath = DEFAULT_SOCKET,
) -> None:
    """Look for trouble."""
    report = _examined(AgentClient(socket), vm, trial=trial, config=config, as_json=as_json)
    if as_json:
        show_document(report.model_dump(mode="json"))
    else:
        from vmreplica.cli.show_doctor import doctor_view  # noqa: PLC0415 - slow to import

        show(doctor_view(report))
    if report.worst == "problem":
        raise typer.Exit(PROBLEM_EXIT)


def _examined(client: AgentClient, vm: str | None, *, trial: bool, config: Path, as_json: bool) -> "DoctorReport":
    if as_json or not sys.stderr.isatty():
        return _examine(client, vm, trial=trial, config=config)
    with console(stderr=True).status(f"looking at {vm or 'this host'}"):
        return _examine(client, vm, trial=trial, config=config)


def _examine(client: AgentClient, vm: str | None, *, trial: bool, config: Path) -> "DoctorReport":
    """Ask the agent; without one, look at what can be seen from here."""
    from vmreplica.api.requests import DoctorRequest  # noqa: PLC0415 - slow to import
    from vmreplica.model.errors import TimedOut, Unreachable  # noqa: PLC0415 - slow to import
    from vmreplica.model.report import DoctorReport  # noqa: PLC0415 - slow to import

    path = "/v1/doctor" if vm is None else vm_path(vm, "doctor")
    try:
        answer = client.send("POST", path, make_request(DoctorRequest, trial=trial), timeout=_LIMIT)
    except (Unreachable, TimedOut) as error:
        if not error.code.startswith("agent-"):
            raise
        from vmreplica.agent.doctor.offline import examine_without_agent  # noqa: PLC0415 - slow to import

        return examine_without_agent(config, error, vm)
    return read_report(DoctorReport, answer)
