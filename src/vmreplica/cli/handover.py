"""The hand-over command: a VM was migrated, and its replica shall be fed by the host where it runs now."""

from typing import Annotated

import typer

from vmreplica.cli.client import AgentClient, vm_path
from vmreplica.cli.commands import add_command
from vmreplica.cli.options import DEFAULT_SOCKET, AsJson, SocketPath, VmArgument, Yes
from vmreplica.cli.output import confirm, make_request, show_answer, show_done


def register(app: typer.Typer) -> None:
    """Add this command to the command line."""
    add_command(
        app,
        hand_over,
        "On the replica: take a VM's points from the host that it was migrated to.",
        "vmreplica hand-over web --to host2",
        "vmreplica hand-over web --to host2 --yes --json",
    )


def hand_over(
    vm: VmArgument,
    *,
    to: Annotated[str, typer.Option("--to", metavar="PEER", help="The paired host where the VM runs now.")],
    yes: Yes = False,
    as_json: AsJson = False,
    socket: SocketPath = DEFAULT_SOCKET,
) -> None:
    """Hand a replica over."""
    from vmreplica.api.requests import HandOverRequest  # noqa: PLC0415 - slow to import

    body = make_request(HandOverRequest, to=to)
    confirm(f"Take points of {vm} from {to} and from no other host?", yes=yes, as_json=as_json)
    answer = AgentClient(socket).send("POST", vm_path(vm, "hand-over"), body)
    if as_json:
        show_answer(answer)
        return
    show_done(f"{vm}: points come from {to} now; its recovery points are kept.", as_json=False)
