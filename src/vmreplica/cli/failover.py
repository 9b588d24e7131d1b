"""The failover command: plan, show, confirm, execute."""

from typing import Annotated

import typer

from vmreplica.cli.client import LONG, AgentClient, vm_path
from vmreplica.cli.commands import add_command
from vmreplica.cli.options import DEFAULT_SOCKET, AsJson, SocketPath, VmArgument, Yes
from vmreplica.cli.output import confirm, make_request, read_report, show, show_answer


def register(app: typer.Typer) -> None:
    """Add this command to the command line."""
    add_command(
        app,
        failover,
        "On the replica: start the copy of a VM whose primary is gone.",
        "vmreplica failover web --dry-run",
        "vmreplica failover web",
        "vmreplica failover web --point 20261122T031500Z-5f3a90c1 --yes --json",
    )


def failover(
    vm: VmArgument,
    *,
    point: Annotated[
        str | None, typer.Option(metavar="ID", help="An older recovery point, as vmreplica points lists them.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan and do nothing.")] = False,
    yes: Yes = False,
    as_json: AsJson = False,
    socket: SocketPath = DEFAULT_SOCKET,
) -> None:
    """Fail over."""
    client = AgentClient(socket)
    if dry_run:
        _show_plan(client.get(vm_path(vm, "failover-plan"), point=point), as_json=as_json)
        return
    if not yes:
        point = _confirmed_point(client, vm, point, as_json=as_json)
    from vmreplica.api.requests import FailoverRequest  # noqa: PLC0415 - slow to import

    body = make_request(FailoverRequest, point=point)
    answer = client.send("POST", vm_path(vm, "failover"), body, timeout=LONG)
    if as_json:
        show_answer(answer)
        return
    from vmreplica.cli.show import failover_view  # noqa: PLC0415 - slow to import
    from vmreplica.model.report import FailoverReport  # noqa: PLC0415 - slow to import

    show(failover_view(read_report(FailoverReport, answer)))


def _show_plan(answer: bytes, *, as_json: bool) -> None:
    if as_json:
        show_answer(answer)
        return
    from vmreplica.cli.show import plan_view  # noqa: PLC0415 - slow to import
    from vmreplica.model.report import FailoverPlan  # noqa: PLC0415 - slow to import

    show(plan_view(read_report(FailoverPlan, answer)))


def _confirmed_point(client: AgentClient, vm: str, point: str | None, *, as_json: bool) -> str:
    # The point of the plan that was confirmed is the one that is started, even if a newer one arrives meanwhile.
    from vmreplica.cli.output import console  # noqa: PLC0415 - slow to import
    from vmreplica.cli.show import loss_text, plan_view  # noqa: PLC0415 - slow to import
    from vmreplica.model.report import FailoverPlan  # noqa: PLC0415 - slow to import

    plan = read_report(FailoverPlan, client.get(vm_path(vm, "failover-plan"), point=point))
    if not as_json:
        console(stderr=True).print(plan_view(plan))
    confirm(f"{loss_text(plan)} Start {plan.name} here?", yes=False, as_json=as_json)
    return plan.point
