"""The peer commands: invite, join, list, test, remove."""

from typing import Annotated

import typer

from vmreplica.cli.client import LONG, AgentClient, peer_path
from vmreplica.cli.commands import add_command
from vmreplica.cli.options import DEFAULT_SOCKET, AsJson, PeerArgument, SocketPath, Yes
from vmreplica.cli.output import confirm, make_request, read_report, show, show_answer, show_done


def make_app() -> typer.Typer:
    """Build the group of peer commands."""
    app = typer.Typer(
        help="Pair this host with others.", rich_markup_mode=None, no_args_is_help=True, add_completion=False
    )
    add_command(
        app,
        invite,
        "Make a pairing token for another host; good once, for 15 minutes.",
        "vmreplica peer invite",
        "vmreplica peer invite --for backup1 --json",
    )
    add_command(
        app,
        join,
        "Pair with the host that made a token, in both directions.",
        "vmreplica peer join eyJ2ZXJzaW9uIjoxLCJob3...",
    )
    add_command(app, list_peers, "List paired hosts.", "vmreplica peer list", name="list")
    add_command(
        app,
        measure,
        "Measure the connection to a paired host: certificate, clocks, speed, free space.",
        "vmreplica peer test backup1",
        name="test",
    )
    add_command(app, remove, "Forget a paired host; it can no longer connect.", "vmreplica peer remove backup1")
    return app


def invite(
    for_name: Annotated[
        str | None, typer.Option("--for", metavar="NAME", help="Only the host of this name may use it.")
    ] = None,
    as_json: AsJson = False,
    socket: SocketPath = DEFAULT_SOCKET,
) -> None:
    """Invite a host."""
    from vmreplica.api.requests import InviteRequest  # noqa: PLC0415 - slow to import

    answer = AgentClient(socket).send("POST", "/v1/invitations", make_request(InviteRequest, for_name=for_name))
    if as_json:
        show_answer(answer)
        return
    from vmreplica.model.report import Invitation  # noqa: PLC0415 - slow to import

    invitation = read_report(Invitation, answer)
    typer.echo(f"On the other host, before {invitation.expires.astimezone():%H:%M:%S}:", err=True)
    typer.echo(f"vmreplica peer join {invitation.token}")


def join(
    token: Annotated[
        str, typer.Argument(metavar="TOKEN", help="What peer invite printed on the other host.", show_default=False)
    ],
    as_json: AsJson = False,
    socket: SocketPath = DEFAULT_SOCKET,
) -> None:
    """Join a host."""
    from vmreplica.api.requests import JoinRequest  # noqa: PLC0415 - slow to import

    answer = AgentClient(socket).send("POST", "/v1/peers", make_request(JoinRequest, token=token), timeout=LONG)
    if as_json:
        show_answer(answer)
        return
    from vmreplica.cli.show import paired_view  # noqa: PLC0415 - slow to import
    from vmreplica.model.report import PeerReport  # noqa: PLC0415 - slow to import

    show(paired_view(read_report(PeerReport, answer)))


def list_peers(as_json: AsJson = False, socket: SocketPath = DEFAULT_SOCKET) -> None:
    """List hosts."""
    answer = AgentClient(socket).get("/v1/peers")
    if as_json:
        show_answer(answer)
        return
    from vmreplica.cli.show import peers_view  # noqa: PLC0415 - slow to import
    from vmreplica.model.report import PeersReport  # noqa: PLC0415 - slow to import

    show(peers_view(read_report(PeersReport, answer)))


def measure(name: PeerArgument, *, as_json: AsJson = False, socket: SocketPath = DEFAULT_SOCKET) -> None:
    """Test a connection."""
    answer = AgentClient(socket).send("POST", peer_path(name, "/test"), timeout=LONG)
    if as_json:
        show_answer(answer)
        return
    from vmreplica.cli.show import test_view  # noqa: PLC0415 - slow to import
    from vmreplica.model.report import PeerTest  # noqa: PLC0415 - slow to import

    show(test_view(read_report(PeerTest, answer)))


def remove(name: PeerArgument, yes: Yes = False, as_json: AsJson = False, socket: SocketPath = DEFAULT_SOCKET) -> None:
    """Forget a host."""
    confirm(
        f"Forget {name}? Neither host can replicate to the other until they are paired again.",
        yes=yes,
        as_json=as_json,
    )
    AgentClient(socket).send("DELETE", peer_path(name))
    show_done(f"{name} is no longer paired with this host.", as_json=as_json, peer=name)
