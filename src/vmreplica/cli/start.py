"""Commands about starting protected VMs: start, autostart, install-hook."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vmreplica.cli.client import LONG, AgentClient, vm_path
from vmreplica.cli.commands import add_command
from vmreplica.cli.options import DEFAULT_SOCKET, AsJson, SocketPath, VmArgument, Yes
from vmreplica.cli.output import confirm, make_request, printable, read_report, show_document, show_done

if TYPE_CHECKING:
    from vmreplica.model.start import StartReport

ConfigPath = Annotated[
    Path, typer.Option(envvar="VMREPLICA_CONFIG", metavar="FILE", help="The configuration, when no agent runs.")
]
_CONFIG = Path("/etc/vmreplica/agent.toml")


def register(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    add_command(
        app,
        start,
        "Start a protected VM if its replica agrees, as virsh start does; or on your word that it runs nowhere else.",
        "vmreplica start web",
        "vmreplica start web --dry-run",
        "vmreplica start web --i-am-sure",
    )
    add_command(
        app,
        autostart,
        "Start a protected VM with its host, once its replica agrees; or no longer.",
        "vmreplica autostart web",
        "vmreplica autostart web --disable",
    )
    add_command(
        app,
        install_hook,
        "Let libvirt ask the agent before a protected VM starts; other hooks are left alone.",
        "vmreplica install-hook && systemctl reload libvirtd",
        "vmreplica install-hook --config /etc/vmreplica/agent.toml --json",
        name="install-hook",
    )


def start(
    vm: VmArgument,
    *,
    sure: Annotated[
        bool,
        typer.Option("--i-am-sure", help="Start it whatever its replica says or does not say; needs no agent."),
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Ask the replica, and start nothing.")] = False,
    yes: Yes = False,
    config: ConfigPath = _CONFIG,
    as_json: AsJson = False,
    socket: SocketPath = DEFAULT_SOCKET,
) -> None:
    """Start a VM."""
    from vmreplica.model.errors import TimedOut, Unreachable  # noqa: PLC0415 - slow to import

    client = AgentClient(socket)
    try:
        if sure and not (yes or dry_run):
            _confirm_twin(_ask(client, vm, sure=True, dry_run=True), as_json=as_json)
        report = _ask(client, vm, sure=sure, dry_run=dry_run)
    except (Unreachable, TimedOut) as error:
        if not error.code.startswith("agent-") or dry_run:
            raise
        if not sure:
            error.hint = f"{error.hint}; if you know that {vm} runs nowhere else: vmreplica start {vm} --i-am-sure"
            raise
        from vmreplica.agent.hooks import start_alone  # noqa: PLC0415 - slow to import

        report = start_alone(config, vm)
    _show(report, dry_run=dry_run, as_json=as_json)


def _ask(client: AgentClient, vm: str, *, sure: bool, dry_run: bool) -> "StartReport":
    from vmreplica.model.start import StartReport, StartRequest  # noqa: PLC0415 - slow to import

    body = make_request(StartRequest, sure=sure, dry_run=dry_run)
    return read_report(StartReport, client.send("POST", vm_path(vm, "start"), body, timeout=LONG))


def _confirm_twin(report: "StartReport", *, as_json: bool) -> None:
    """Ask once more before a VM is started that is known to live on its replica."""
    if report.lives_elsewhere and not report.running:
        text = f"{report.reason}. What {report.name} does here from now on is lost on one side. Start it all the same?"
        confirm(text, yes=False, as_json=as_json)


def _show(report: "StartReport", *, dry_run: bool, as_json: bool) -> None:
    if as_json:
        show_document(report.model_dump(mode="json"))
        return
    if report.started:
        text = f"{report.name} is started." if report.allowed else f"{report.name} is started on your word."
    elif report.running:
        text = f"{report.name} runs already."
    elif dry_run and report.allowed:
        text = f"{report.name} may start: nothing says that it runs elsewhere."
    else:
        text = f"{report.name} would not be started: {report.reason}"
    typer.echo(printable(text))


def autostart(
    vm: VmArgument,
    *,
    disable: Annotated[bool, typer.Option("--disable", help="Leave it off when the host is started.")] = False,
    as_json: AsJson = False,
    socket: SocketPath = DEFAULT_SOCKET,
) -> None:
    """Set autostart."""
    from vmreplica.model.start import AutostartReport, AutostartRequest  # noqa: PLC0415 - slow to import

    body = make_request(AutostartRequest, on=not disable)
    report = read_report(AutostartReport, AgentClient(socket).send("PUT", vm_path(vm, "autostart"), body))
    if as_json:
        show_document(report.model_dump(mode="json"))
        return
    how = "starts with its host, once its replica agrees" if report.on else "stays off when its host is started"
    show_done(f"{report.name} {how}.", as_json=False)


def install_hook(
    *,
    config: Annotated[Path, typer.Option(metavar="FILE", help="The agent's configuration.")] = _CONFIG,
    to: Annotated[Path, typer.Option("--to", metavar="DIR", help="Where libvirt runs hooks of VMs from.")] = Path(
        "/etc/libvirt/hooks/qemu.d"
    ),
    as_json: AsJson = False,
) -> None:
    """Install libvirt's hook."""
    from vmreplica.agent.hooks import install  # noqa: PLC0415 - slow to import

    report = install(config, to)
    if as_json:
        show_document(report.model_dump(mode="json"))
    elif report.changed:
        typer.echo(f"{report.path} is installed. libvirt takes notice of it after: systemctl reload libvirtd")
        typer.echo("  (on hosts with modular daemons: systemctl reload virtqemud)")
    else:
        typer.echo(f"{report.path} is up to date.")
