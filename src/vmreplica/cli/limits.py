"""When and how fast is sent: the options of enable for it, and the command that changes rates while it runs."""

import datetime as dt
from typing import TYPE_CHECKING, Annotated

import typer

from vmreplica.cli.client import AgentClient, vm_path
from vmreplica.cli.commands import add_command
from vmreplica.cli.options import DEFAULT_SOCKET, AsJson, SocketPath, VmArgument
from vmreplica.cli.output import make_request, printable, read_report, show_answer

if TYPE_CHECKING:
    from vmreplica.model.rates import Limit
    from vmreplica.model.report import RelationshipReport

LimitOption = Annotated[
    list[str] | None,
    typer.Option(
        "--limit",
        metavar="RATE",
        help="How fast may be sent: 50M (bytes per second, M of 1024*1024), 400Mbit, 'mon-fri 08:00-18:00 20M', none; "
        "repeatable, the first window that fits counts. Not given: as before.",
    ),
]
AtOption = Annotated[
    str | None,
    typer.Option(
        "--at",
        metavar="TIME",
        help="When initial replication begins: 22:00, 'tomorrow 02:30', 2026-11-25T22:00; at most 7 days ahead.",
    ),
]


def register(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    add_command(
        app,
        limit,
        "Show or change how fast a VM's points may be sent, by time of day; a point on its way follows at once.",
        "vmreplica limit web",
        "vmreplica limit web 50M",
        "vmreplica limit web 'mon-fri 08:00-18:00 20M' 400Mbit",
        "vmreplica limit web none",
    )


def limit(
    vm: VmArgument,
    rates: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RATE]...",
            help="50M (bytes per second), 400Mbit, 'mon-fri 08:00-18:00 20M', none; without any nothing is changed.",
            show_default=False,
        ),
    ] = None,
    as_json: AsJson = False,
    socket: SocketPath = DEFAULT_SOCKET,
) -> None:
    """Show or change how fast may be sent."""
    from vmreplica.api.requests import LimitRequest  # noqa: PLC0415 - slow to import
    from vmreplica.model.report import RelationshipReport  # noqa: PLC0415 - slow to import

    client = AgentClient(socket)
    wanted = read_limit(rates)
    if wanted is None:
        found = _primary(client, vm)
        answer = found.model_dump_json().encode()
    else:
        answer = client.send("PUT", vm_path(vm, "limit"), make_request(LimitRequest, limit=wanted))
        found = read_report(RelationshipReport, answer)
    if as_json:
        show_answer(answer)
        return
    typer.echo(printable(f"{found.name}: {limit_text(found)}"))


def read_limit(texts: list[str] | None) -> "Limit | None":
    """Read rates as typed; None when there are none.

    Raises:
        BadRequest: ``limit-rate-invalid``.
    """
    from vmreplica.model.errors import BadRequest  # noqa: PLC0415 - slow to import
    from vmreplica.model.rates import parse_limit  # noqa: PLC0415 - slow to import

    if not texts:
        return None
    try:
        return parse_limit(texts)
    except ValueError as error:
        raise BadRequest(
            "limit-rate-invalid", str(error), hint="for example 50M, 400Mbit, none, or 'mon-fri 08:00-18:00 20M'"
        ) from error


def read_moment(text: str | None) -> dt.datetime | None:
    """Read a moment as typed, in this host's time zone.

    Raises:
        BadRequest: ``begin-invalid``.
    """
    from vmreplica.model.errors import BadRequest  # noqa: PLC0415 - slow to import
    from vmreplica.model.moments import parse_moment  # noqa: PLC0415 - slow to import

    if text is None:
        return None
    try:
        return parse_moment(text, dt.datetime.now(dt.UTC))
    except ValueError as error:
        raise BadRequest("begin-invalid", f"--at: {error}", hint="--at 22:00, at most seven days ahead") from error


def limit_text(relation: "RelationshipReport") -> str:
    """Say which rates are set, and which one is in force until when."""
    from vmreplica.model.rates import NO_LIMIT, format_limit, format_rate  # noqa: PLC0415 - slow to import

    text = format_rate(relation.rate)
    if relation.rate_until is not None:
        text += f" until {relation.rate_until.astimezone():%a %H:%M}"
    if relation.limit == NO_LIMIT:
        return text if relation.rate is None else f"{text} (all VMs of this host together)"
    return f"{text} (set: {', '.join(format_limit(relation.limit))})"


def _primary(client: AgentClient, vm: str) -> "RelationshipReport":
    from vmreplica.model.errors import NotFound  # noqa: PLC0415 - slow to import
    from vmreplica.model.report import StatusReport  # noqa: PLC0415 - slow to import

    report = read_report(StatusReport, client.get("/v1/status", vm=vm))
    for relation in report.relationships:
        if relation.role == "primary":
            return relation
    raise NotFound(
        "not-protected", f"{vm} is not protected from this host", hint="how fast is sent is set on the primary"
    )
