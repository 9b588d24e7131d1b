"""``vmreplica lab``: two or more real hosts on this machine, to try the product and to break things on purpose."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vmreplica.cli.options import AsJson, usage_text
from vmreplica.cli.output import reporting, show_document, show_done

if TYPE_CHECKING:
    from vmreplica.lab import Lab, RecordsReport

app = typer.Typer(
    name="lab",
    help="Two or more real hosts on this machine, in namespaces, with private libvirt daemons. Needs root.",
    rich_markup_mode=None,
    no_args_is_help=True,
    add_completion=False,
)
agent_app = typer.Typer(name="agent", help="The agent of a lab host.", rich_markup_mode=None, no_args_is_help=True)
guest_app = typer.Typer(name="guest", help="Guests of a lab host.", rich_markup_mode=None, no_args_is_help=True)
app.add_typer(agent_app)
app.add_typer(guest_app)

LabDir = Annotated[
    Path | None,
    typer.Option("--dir", envvar="VMREPLICA_LAB", metavar="DIR", help="The lab's directory [/var/tmp/vmreplica-lab]."),
]
HostArgument = Annotated[str, typer.Argument(metavar="HOST", help="a, b, c...", show_default=False)]
OtherArgument = Annotated[str, typer.Argument(metavar="OTHER", help="Another host.", show_default=False)]


def _command(
    app_: typer.Typer, summary: str, *examples: str, name: str | None = None, raw: bool = False
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a command with help and the product's way of showing errors."""
    settings = {"ignore_unknown_options": True} if raw else {}

    def register(function: Callable[..., None]) -> Callable[..., None]:
        app_.command(name, help=usage_text(summary, *examples), context_settings=settings)(reporting(function))
        return function

    return register


@_command(app, "Make a lab and start its hosts.", "vmreplica lab up", "vmreplica lab up --hosts 3 --no-agents")
def up(
    directory: LabDir = None,
    hosts: Annotated[int, typer.Option(help="How many hosts.")] = 2,
    agents: Annotated[bool, typer.Option(help="Start the agents as well.")] = True,
    as_json: AsJson = False,
) -> None:
    """Make a lab."""
    from vmreplica.lab import Lab  # noqa: PLC0415 - slow to import

    lab = Lab.up(directory, hosts=hosts, agents=agents, say=_say)
    _show_status(lab, as_json=as_json)


@_command(app, "End the lab and remove all of it, in whatever condition it is.", "vmreplica lab down")
def down(
    directory: LabDir = None,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the files: disks, logs, stores.")] = False,
    as_json: AsJson = False,
) -> None:
    """End the lab."""
    from vmreplica.lab import Lab  # noqa: PLC0415 - slow to import

    there_was = Lab.remove(directory, keep=keep)
    show_done("the lab is gone" if there_was else "there was no lab", as_json=as_json)


@_command(app, "Show the lab's hosts.", "vmreplica lab status --json")
def status(directory: LabDir = None, as_json: AsJson = False) -> None:
    """Show the hosts."""
    _show_status(_open(directory), as_json=as_json)


@_command(
    app, "Run a command on a host; its exit code is the command's.",
    "vmreplica lab exec a -- virsh list --all", "vmreplica lab exec b -- vmreplica status",
    name="exec", raw=True,
)  # fmt: skip
def execute(
    host: HostArgument,
    command: Annotated[list[str], typer.Argument(metavar="COMMAND...", help="After two dashes.", show_default=False)],
    directory: LabDir = None,
) -> None:
    """Run a command on a host."""
    argv = _open(directory).host(host).terminal_argv(command)
    os.execvp(argv[0], argv)  # noqa: S606 - the command takes this process's place, terminal and exit code


@_command(app, "Let everything between two hosts vanish silently.", "vmreplica lab cut a b")
def cut(host: HostArgument, other: OtherArgument, directory: LabDir = None, as_json: AsJson = False) -> None:
    """Cut a line."""
    _open(directory).cut(host, other)
    show_done(f"the line between {host} and {other} is cut", as_json=as_json)


@_command(app, "Undo a cut or a slow line.", "vmreplica lab heal a b")
def heal(host: HostArgument, other: OtherArgument, directory: LabDir = None, as_json: AsJson = False) -> None:
    """Heal a line."""
    _open(directory).heal(host, other)
    show_done(f"the line between {host} and {other} is whole", as_json=as_json)


@_command(app, "Make the line between two hosts slow.", "vmreplica lab slow a b --mbit 20 --ms 40")
def slow(
    host: HostArgument,
    other: OtherArgument,
    *,
    mbit: Annotated[float, typer.Option(help="Bandwidth of each direction, Mbit/s.")] = 1000.0,
    ms: Annotated[float, typer.Option(help="Delay of each direction, milliseconds.")] = 0.0,
    directory: LabDir = None,
    as_json: AsJson = False,
) -> None:
    """Slow a line down."""
    _open(directory).slow(host, other, mbit=mbit, ms=ms)
    show_done(f"the line between {host} and {other} has {mbit:g} Mbit/s and {ms:g} ms", as_json=as_json)


@_command(app, "Cut a host's power: everything on it ends at once.", "vmreplica lab crash a")
def crash(host: HostArgument, directory: LabDir = None, as_json: AsJson = False) -> None:
    """Crash a host."""
    _open(directory).crash(host)
    show_done(f"host {host} is down", as_json=as_json)


@_command(app, "Boot a crashed host; its guests stay off.", "vmreplica lab start a")
def start(host: HostArgument, directory: LabDir = None, as_json: AsJson = False) -> None:
    """Boot a host."""
    _open(directory).start(host)
    show_done(f"host {host} is up", as_json=as_json)


@_command(agent_app, "Start a host's agent.", "vmreplica lab agent start a", name="start")
def agent_start(host: HostArgument, directory: LabDir = None, as_json: AsJson = False) -> None:
    """Start an agent."""
    _open(directory).host(host).start_agent()
    show_done(f"the agent of host {host} runs", as_json=as_json)


@_command(agent_app, "Stop a host's agent.", "vmreplica lab agent stop a", name="stop")
def agent_stop(host: HostArgument, directory: LabDir = None, as_json: AsJson = False) -> None:
    """Stop an agent."""
    _open(directory).host(host).stop_agent()
    show_done(f"the agent of host {host} has ended", as_json=as_json)


@_command(agent_app, "End a host's agent with SIGKILL.", "vmreplica lab agent kill a", name="kill")
def agent_kill(host: HostArgument, directory: LabDir = None, as_json: AsJson = False) -> None:
    """Kill an agent."""
    _open(directory).host(host).kill_agent()
    show_done(f"the agent of host {host} was killed", as_json=as_json)


@_command(
    guest_app, "Make a Linux guest that writes numbered records on all its disks, and start it.",
    "vmreplica lab guest add a web", "vmreplica lab guest add a db --disks 2 --size 2G --fill 1G", name="add",
)  # fmt: skip
def guest_add(
    host: HostArgument,
    name: Annotated[str, typer.Argument(metavar="NAME", show_default=False)],
    *,
    disks: Annotated[int, typer.Option(help="Number of disks.")] = 1,
    size: Annotated[str, typer.Option(help="Size of each disk.")] = "64M",
    fill: Annotated[str, typer.Option(help="Ordinary system files to put on the first disk.")] = "0",
    interval_ms: Annotated[int, typer.Option(help="Milliseconds between records.")] = 200,
    memory: Annotated[int, typer.Option(help="MiB.")] = 160,
    nic: Annotated[str | None, typer.Option(metavar="NETWORK", help="A network card: lan or isolated.")] = None,
    idle: Annotated[bool, typer.Option("--idle", help="Write nothing.")] = False,
    wait: Annotated[bool, typer.Option(help="Wait until it runs.")] = True,
    directory: LabDir = None,
    as_json: AsJson = False,
) -> None:
    """Make a guest."""
    from vmreplica.lab import GuestSpec  # noqa: PLC0415 - slow to import

    spec = GuestSpec(
        name=name, disks=disks, size=_size(size), interval_ms=interval_ms, idle=idle, memory=memory,
        fill=_size(fill), network=nic,
    )  # fmt: skip
    guest = _open(directory).host(host).add_guest(spec)
    if wait:
        _say(f"waiting for {name} to boot")
        guest.wait_booted()
    images = [str(image) for image in guest.images]
    if as_json:
        show_document({"name": name, "uuid": guest.uuid, "images": images, "console": str(guest.console)})
    else:
        typer.echo(f"{name} runs on host {host}: {' '.join(images)}")


@_command(
    guest_app, "Check the records in a guest's images (vda first); the guest should be off.",
    "vmreplica lab guest check web-vda.qcow2", name="check",
)  # fmt: skip
def guest_check(
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", show_default=False)], as_json: AsJson = False
) -> None:
    """Check images."""
    from vmreplica.lab import check_records  # noqa: PLC0415 - slow to import
    from vmreplica.model.errors import Corrupt  # noqa: PLC0415 - slow to import

    report = check_records(images)
    if as_json:
        show_document(report.model_dump(mode="json"))
    else:
        _show_records(report)
    if not report.ok:
        raise typer.Exit(Corrupt.exit_code)


def _show_records(report: "RecordsReport") -> None:
    for disk in report.disks:
        typer.echo(f"{disk.image}: last record {disk.last}, {len(disk.missing)} missing, {len(disk.torn)} torn")
    typer.echo("the disks are of one instant" if report.one_instant else "the disks are NOT of one instant")


def _show_status(lab: "Lab", *, as_json: bool) -> None:
    report = lab.status()
    if as_json:
        show_document(report.model_dump(mode="json"))
        return
    for host in report.hosts:
        agent = f"agent {host.agent_pid}" if host.agent_pid else "no agent"
        guests = ", ".join(host.guests) or "none"
        typer.echo(f"{host.name}  {'up' if host.up else 'DOWN'}  {host.address}  {agent}  guests: {guests}")
        typer.echo(f"   virsh -c '{host.libvirt_uri}'")
        typer.echo(f"   vmreplica status --socket {host.agent_socket}")


def _open(directory: Path | None) -> "Lab":
    from vmreplica.lab import Lab  # noqa: PLC0415 - slow to import
    from vmreplica.lab.commands import require_root  # noqa: PLC0415 - slow to import

    require_root()
    return Lab.open(directory, say=_say)


def _size(text: str) -> int:
    from vmreplica.model.errors import BadRequest  # noqa: PLC0415 - slow to import
    from vmreplica.model.units import parse_size  # noqa: PLC0415 - slow to import

    try:
        return parse_size(text)
    except ValueError as error:
        raise BadRequest("size-invalid", str(error), hint="write for example 512M or 20GiB") from error


def _say(line: str) -> None:
    """Show progress on standard error, so that standard output is only the result."""
    typer.echo(f"lab: {line}", err=True)
