"""The networks command: which network of the replica stands for which one of the primary."""

import re
from typing import TYPE_CHECKING, Annotated

import typer

from vmreplica.cli.client import AgentClient, vm_path
from vmreplica.cli.commands import add_command
from vmreplica.cli.options import DEFAULT_SOCKET, AsJson, SocketPath, VmArgument
from vmreplica.cli.output import make_request, read_report, show, show_answer

if TYPE_CHECKING:
    from vmreplica.model.addresses import AddressPlan
    from vmreplica.model.errors import BadRequest


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
        "vmreplica networks web --ip 0=192.0.2.7/24,gateway=192.0.2.1,dns=192.0.2.2+192.0.2.3",
        "vmreplica networks web --keep-ip 0",
    )


Map = Annotated[
    list[str] | None,
    typer.Option("--map", metavar="FROM=TO", help="The primary's network or bridge, and this host's; repeatable."),
]
Unmap = Annotated[list[str] | None, typer.Option("--unmap", metavar="FROM", help="Forget this entry; repeatable.")]
Ip = Annotated[
    list[str] | None,
    typer.Option(
        "--ip",
        metavar="NIC=ADDRESS/PREFIX[,gateway=A][,dns=A]",
        help="Addresses that the guest agent gives an interface (MAC or number) after a failover; repeatable.",
    ),
]
KeepIp = Annotated[
    list[str] | None, typer.Option("--keep-ip", metavar="NIC", help="Leave its addresses to the guest; repeatable.")
]


def networks(
    vm: VmArgument,
    *,
    mapping: Map = None,
    unmap: Unmap = None,
    ip: Ip = None,
    keep_ip: KeepIp = None,
    as_json: AsJson = False,
    socket: SocketPath = DEFAULT_SOCKET,
) -> None:
    """Show or change the network map."""
    client = AgentClient(socket)
    if mapping or unmap or ip or keep_ip:
        from vmreplica.model.networks import NetworksChange  # noqa: PLC0415 - slow to import

        body = make_request(
            NetworksChange,
            networks=parse_mapping(mapping or []),
            unmap=tuple(unmap or ()),
            addresses=parse_addresses(ip or []),
            keep_addresses=tuple(keep_ip or ()),
        )
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


def parse_addresses(texts: list[str]) -> "dict[str, AddressPlan]":
    """Read NIC=ADDRESS/PREFIX,gateway=...,dns=... texts.

    Raises:
        BadRequest: ``addresses-invalid``.
    """
    from vmreplica.model.addresses import parse_plan  # noqa: PLC0415 - slow to import

    plans: dict[str, AddressPlan] = {}
    for text in texts:
        nic, equals, plan = text.partition("=")
        if not (nic and equals and plan) or nic in plans:
            raise _bad_addresses(text, "is given twice" if nic in plans else "is not NIC=ADDRESS/PREFIX")
        try:
            plans[nic] = parse_plan(plan)
        except ValueError as error:
            raise _bad_addresses(text, _first_line(error)) from error
    return plans


def _bad_addresses(text: str, why: str) -> "BadRequest":
    from vmreplica.model.errors import BadRequest  # noqa: PLC0415 - slow to import

    hint = "for example --ip 52:54:00:12:34:56=192.0.2.7/24,gateway=192.0.2.1,dns=192.0.2.2"
    return BadRequest("addresses-invalid", f"--ip {text!r}: {why}", hint=hint)


def _first_line(error: ValueError) -> str:
    """Say what is wrong; of what pydantic has to say, the first thing."""
    from pydantic import ValidationError  # noqa: PLC0415 - slow to import

    return error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)


def _divided(pair: str) -> tuple[str, str, str]:
    tagged = re.fullmatch(r"([^=]*,vlan=[\d+]+)=(.*)", pair, re.DOTALL)
    return (tagged[1], "=", tagged[2]) if tagged else pair.partition("=")
