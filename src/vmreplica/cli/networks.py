"""The networks command: which network of the replica stands for which one of the primary."""

import re
from typing import Annotated

import typer

from vmreplica.cli.client import AgentClient, vm_path
from vmreplica.cli.commands import add_command
from vmreplica.cli.options import DEFAULT_SOCKET, AsJson, SocketPath, VmArgument
from vmreplica.cli.output import make_request, read_report, show, show_answer


def register(app: typer.Typer) -> None:
    """Add this command to the command line."""
    add_command(
        app,
        networks,
        "On the replica: show and change which of its networks stands for which of the primary's.",
        "vmreplica networks web",
        "vmreplica networks web --map lan=isolated --map dmz=bridge:br7",
        "vmreplica networks web --map br0,vlan=20=bridge:ovs0,vlan=120",
        "vmreplica networks web --unmap dmz",
    )


def networks(
    vm: VmArgument,
    *,
    mapping: Annotated[
        list[str] | None,
        typer.Option("--map", metavar="FROM=TO", help="The primary's network or bridge, and this host's; repeatable."),
    ] = None,
    unmap: Annotated[
        list[str] | None, typer.Option("--unmap", metavar="FROM", help="Forget this entry; repeatable.")
    ] = None,
    as_json: AsJson = False,
    socket: SocketPath = DEFAULT_SOCKET,
) -> None:
    """Show or change the network map."""
    client = AgentClient(socket)
    if mapping or unmap:
        from vmreplica.model.networks import NetworksChange  # noqa: PLC0415 - slow to import

        body = make_request(NetworksChange, networks=parse_mapping(mapping or []), unmap=tuple(unmap or ()))
        answer = client.send("PUT", vm_path(vm, "networks"), body)
    else:
        answer = client.get(vm_path(vm, "networks"))
    if as_json:
        show_answer(answer)
        return
    from vmreplica.cli.show_networks import networks_view  # noqa: PLC0415 - slow to import
    from vmreplica.model.networks import NetworksReport  # noqa: PLC0415 - slow to import

    show(networks_view(read_report(NetworksReport, answer)))


def parse_mapping(pairs: list[str]) -> dict[str, str]:
    """Read FROM=TO pairs; the first equals sign that is not of a VLAN divides.

    Raises:
        BadRequest: a pair lacks a side, or a network is named twice.
    """
    from vmreplica.model.errors import BadRequest  # noqa: PLC0415 - slow to import

    mapping: dict[str, str] = {}
    for pair in pairs:
        theirs, equals, ours = _divided(pair)
        if not (theirs and equals and ours) or theirs in mapping:
            reason = "is given twice" if theirs in mapping else "is not FROM=TO"
            raise BadRequest("network-map-invalid", f"--map {pair!r} {reason}", hint="for example --map lan=br0")
        mapping[theirs] = ours
    return mapping


def _divided(pair: str) -> tuple[str, str, str]:
    tagged = re.fullmatch(r"([^=]*,vlan=[\d+]+)=(.*)", pair, re.DOTALL)
    return (tagged[1], "=", tagged[2]) if tagged else pair.partition("=")
