"""The failover command: plan, show, confirm, execute; a test beside the VM; and taking either back."""

from typing import Annotated, Any

import typer

from vmreplica.cli.client import LONG, AgentClient, vm_path
from vmreplica.cli.commands import add_command
from vmreplica.cli.commit import keep
from vmreplica.cli.options import DEFAULT_SOCKET, AsJson, SocketPath, VmArgument, Yes
from vmreplica.cli.output import confirm, console, make_request, read_report, show, show_answer
from vmreplica.model.units import parse_duration


def register(app: typer.Typer) -> None:
    """Add this command to the command line."""
    add_command(
        app,
        failover,
        "On the replica: start the copy of a VM whose primary is gone, or try it beside the VM that runs.",
        "vmreplica failover web --dry-run",
        "vmreplica failover web",
        "vmreplica failover web --point 20261122T031500Z-5f3a90c1 --yes --json",
        "vmreplica failover db --point latest-app --dry-run",
        "vmreplica failover web --test --for 2h",
        "vmreplica failover web --test --network lab-only",
        "vmreplica failover web --planned --dry-run",
        "vmreplica failover web --planned --timeout 10m --force",
        "vmreplica failover web --cancel --dry-run",
        "vmreplica failover web --cancel",
    )


Test = Annotated[
    bool, typer.Option("--test", help="Start a copy beside the VM, on a throw-away layer; replication goes on.")
]
Cancel = Annotated[
    bool, typer.Option("--cancel", help="Take the failover back, or (with --test, or when there is none) the tests.")
]
Network = Annotated[
    str | None,
    typer.Option(metavar="NET", help="With --test: plug the copy in here; else its cables are unplugged."),
]
For = Annotated[
    str | None, typer.Option("--for", metavar="TIME", help="With --test: remove the copy by itself after, say, 2h.")
]
Planned = Annotated[
    bool,
    typer.Option("--planned", help="On either side: shut the guest down, send the last changes, start it over there."),
]
Force = Annotated[
    bool, typer.Option("--force", help="With --planned: pull the guest's plug when it does not shut itself down.")
]
Patience = Annotated[
    str | None, typer.Option("--timeout", metavar="TIME", help="With --planned: for the guest's shutdown; default 5m.")
]
Point = Annotated[
    str | None,
    typer.Option(
        metavar="ID",
        help="An older recovery point, as vmreplica points lists them; latest-app: the newest that is "
        "application-consistent.",
    ),
]


EvenDamaged = Annotated[
    bool, typer.Option("--even-damaged", help="Use the point though some of its bytes are known to be wrong.")
]


Commit = Annotated[bool, typer.Option("--commit", help="Keep the failover for good, as vmreplica commit does.")]


def failover(
    vm: VmArgument,
    *,
    point: Point = None,
    test: Test = False,
    network: Network = None,
    lifetime: For = None,
    cancel: Cancel = False,
    commit: Commit = False,
    planned: Planned = False,
    force: Force = False,
    timeout: Patience = None,
    even_damaged: EvenDamaged = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan and do nothing.")] = False,
    yes: Yes = False,
    as_json: AsJson = False,
    socket: SocketPath = DEFAULT_SOCKET,
) -> None:
    """Fail over, test or take back."""
    from vmreplica.cli.planned import move, refuse_planned_nonsense  # noqa: PLC0415 - slow to import

    others = bool(point or test or network or lifetime or cancel or commit or even_damaged)
    refuse_planned_nonsense(planned=planned, others=others, details=force or timeout is not None)
    _refuse_nonsense(point=point, test=test, network=network, lifetime=lifetime, cancel=cancel, commit=commit)
    client = AgentClient(socket)
    if planned:
        move(client, vm, timeout, force=force, dry_run=dry_run, yes=yes, as_json=as_json)
    elif commit:
        keep(client, vm, dry_run=dry_run, yes=yes, wait=True, as_json=as_json)
    elif dry_run and cancel:
        show_plan(_cancel_plan(client, vm, tests_only=test), as_json=as_json)
    elif cancel:
        _cancel(client, vm, tests_only=test, yes=yes, as_json=as_json)
    elif dry_run:
        asked = {"point": point, "network": network, "even_damaged": _flag(even_damaged)}
        show_plan(client.get(vm_path(vm, "test-plan" if test else "failover-plan"), **asked), as_json=as_json)
    elif test:
        wish = {"point": point, "network": network, "seconds": _seconds(lifetime), "even_damaged": even_damaged}
        _test(client, vm, wish, yes=yes, as_json=as_json)
    else:
        _fail_over(client, vm, point, even_damaged=even_damaged, yes=yes, as_json=as_json)


def _refuse_nonsense(
    *, point: str | None, test: bool, network: str | None, lifetime: str | None, cancel: bool, commit: bool
) -> None:
    """See that the options go together.

    Raises:
        BadRequest: ``options-contradict``.
    """
    if (network or lifetime) and not test:
        wrong, remedy = "--network and --for go with --test only", "vmreplica failover VM --test --network NET"
    elif commit and (point or test or cancel):
        wrong, remedy = "--commit goes with --dry-run, --yes and --json only", "vmreplica commit VM"
    elif cancel and (point or network or lifetime):
        wrong, remedy = "--cancel goes with --test, --dry-run, --yes and --json only", "vmreplica failover VM --cancel"
    else:
        return
    from vmreplica.model.errors import BadRequest  # noqa: PLC0415 - slow to import

    raise BadRequest("options-contradict", wrong, hint=remedy)


def _fail_over(
    client: AgentClient, vm: str, point: str | None, *, even_damaged: bool, yes: bool, as_json: bool
) -> None:
    if not yes:
        point = _confirmed_point(client, vm, point, even_damaged=even_damaged, as_json=as_json)
    from vmreplica.api.requests import FailoverRequest  # noqa: PLC0415 - slow to import

    body = make_request(FailoverRequest, point=point, even_damaged=even_damaged)
    answer = client.send("POST", vm_path(vm, "failover"), body, timeout=LONG)
    if as_json:
        show_answer(answer)
        return
    from vmreplica.cli.show_failover import failover_view  # noqa: PLC0415 - slow to import
    from vmreplica.model.report import FailoverReport  # noqa: PLC0415 - slow to import

    show(failover_view(read_report(FailoverReport, answer)))


def _test(client: AgentClient, vm: str, wish: dict[str, Any], *, yes: bool, as_json: bool) -> None:
    from vmreplica.api.requests import FailoverTestRequest  # noqa: PLC0415 - slow to import
    from vmreplica.cli.show_failover import plan_view, test_view  # noqa: PLC0415 - slow to import
    from vmreplica.model.report import FailoverPlan, StartedTest  # noqa: PLC0415 - slow to import

    body = make_request(FailoverTestRequest, **wish)
    asked = {"point": wish["point"], "network": wish["network"], "even_damaged": _flag(wish["even_damaged"])}
    plan = read_report(FailoverPlan, client.get(vm_path(vm, "test-plan"), **asked))
    if plan.warnings and not yes:
        # A test that disturbs nothing needs no question; this one may.
        if not as_json:
            console(stderr=True).print(plan_view(plan))
        where = f" on {wish['network']}" if wish["network"] else ""
        confirm(f"Start a copy of {plan.name}{where}?", yes=False, as_json=as_json)
    answer = client.send("POST", vm_path(vm, "test"), body, timeout=LONG)
    if as_json:
        show_answer(answer)
    else:
        show(test_view(read_report(StartedTest, answer)))


def _cancel(client: AgentClient, vm: str, *, tests_only: bool, yes: bool, as_json: bool) -> None:
    from vmreplica.api.requests import CancelRequest  # noqa: PLC0415 - slow to import
    from vmreplica.cli.show_failover import cancel_view, loses, loss_text, plan_view  # noqa: PLC0415 - slow to import
    from vmreplica.model.report import CancelReport, FailoverPlan  # noqa: PLC0415 - slow to import

    if not (yes or tests_only):
        plan = read_report(FailoverPlan, _cancel_plan(client, vm, tests_only=False))
        if loses(plan):
            if not as_json:
                console(stderr=True).print(plan_view(plan))
            confirm(f"{loss_text(plan)} Take the failover of {plan.name} back?", yes=False, as_json=as_json)
    body = make_request(CancelRequest, tests_only=tests_only)
    answer = client.send("POST", vm_path(vm, "cancel"), body, timeout=LONG)
    if as_json:
        show_answer(answer)
    else:
        show(cancel_view(read_report(CancelReport, answer)))


def _cancel_plan(client: AgentClient, vm: str, *, tests_only: bool) -> bytes:
    return client.get(vm_path(vm, "cancel-plan"), tests_only="true" if tests_only else None)


def _flag(value: bool) -> str | None:
    return "true" if value else None


def _seconds(lifetime: str | None) -> int | None:
    if lifetime is None:
        return None
    from vmreplica.model.errors import BadRequest  # noqa: PLC0415 - slow to import

    try:
        return parse_duration(lifetime)
    except ValueError as error:
        raise BadRequest("lifetime-invalid", f"--for: {error}", hint="--for 30m, --for 2h") from error


def show_plan(answer: bytes, *, as_json: bool) -> None:
    """Print a plan."""
    if as_json:
        show_answer(answer)
        return
    from vmreplica.cli.show_failover import plan_view  # noqa: PLC0415 - slow to import
    from vmreplica.model.report import FailoverPlan  # noqa: PLC0415 - slow to import

    show(plan_view(read_report(FailoverPlan, answer)))


def _confirmed_point(client: AgentClient, vm: str, point: str | None, *, even_damaged: bool, as_json: bool) -> str:
    # The point of the plan that was confirmed is the one that is started, even if a newer one arrives meanwhile.
    from vmreplica.cli.show_failover import loss_text, plan_view  # noqa: PLC0415 - slow to import
    from vmreplica.model.report import FailoverPlan  # noqa: PLC0415 - slow to import

    answer = client.get(vm_path(vm, "failover-plan"), point=point, even_damaged=_flag(even_damaged))
    plan = read_report(FailoverPlan, answer)
    if not as_json:
        console(stderr=True).print(plan_view(plan))
    confirm(f"{loss_text(plan)} Start {plan.name} here?", yes=False, as_json=as_json)
    return plan.point
