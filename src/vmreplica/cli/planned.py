"""The planned failover of the failover command: plan, confirm, then watch it to its end."""

from vmreplica.cli.client import LONG, AgentClient, vm_path
from vmreplica.cli.output import confirm, console, make_request, read_report, show, show_document
from vmreplica.model.units import parse_duration

_DEFAULT = "5m"
#: Seconds that a guest may be given, as in the request's shape.
_SHORTEST, _LONGEST = 5, 86400


def refuse_planned_nonsense(*, planned: bool, others: bool, details: bool) -> None:
    """See that the options go together.

    Raises:
        BadRequest: ``options-contradict``.
    """
    if details and not planned:
        wrong = "--force and --timeout go with --planned only"
    elif planned and others:
        wrong = "--planned goes with --force, --timeout, --dry-run, --yes and --json only"
    else:
        return
    from vmreplica.model.errors import BadRequest  # noqa: PLC0415 - slow to import

    raise BadRequest("options-contradict", wrong, hint="vmreplica failover VM --planned --timeout 10m --force")


def move(
    client: AgentClient, vm: str, timeout: str | None, *, force: bool, dry_run: bool, yes: bool, as_json: bool
) -> None:
    """Move a VM to its replica, or only show the plan."""
    from vmreplica.api.requests import PlannedRequest  # noqa: PLC0415 - slow to import
    from vmreplica.cli.failover import show_plan  # noqa: PLC0415 - they need each other
    from vmreplica.cli.show_failover import moved_view, plan_view  # noqa: PLC0415 - slow to import
    from vmreplica.cli.watch import follow  # noqa: PLC0415 - slow to import
    from vmreplica.model.report import FailoverPlan, TaskReport  # noqa: PLC0415 - slow to import

    body = make_request(PlannedRequest, patience=_seconds(timeout), force=force)
    if dry_run:
        show_plan(client.send("POST", vm_path(vm, "planned-plan"), body, timeout=LONG), as_json=as_json)
        return
    if not yes:
        plan = read_report(FailoverPlan, client.send("POST", vm_path(vm, "planned-plan"), body, timeout=LONG))
        if not as_json:
            console(stderr=True).print(plan_view(plan))
        confirm(f"Shut {plan.name} down and start it on its replica?", yes=False, as_json=as_json)
    task = read_report(TaskReport, client.send("POST", vm_path(vm, "planned"), body, timeout=LONG))
    done = follow(client, task, vm, as_json=as_json)
    if as_json:
        show_document(done.model_dump(mode="json"))
    else:
        show(moved_view(done, vm))


def _seconds(timeout: str | None) -> int:
    from vmreplica.model.errors import BadRequest  # noqa: PLC0415 - slow to import

    hint = "--timeout 90s, --timeout 10m"
    try:
        seconds = parse_duration(timeout or _DEFAULT)
    except ValueError as error:
        raise BadRequest("timeout-invalid", f"--timeout: {error}", hint=hint) from error
    if not _SHORTEST <= seconds <= _LONGEST:
        raise BadRequest("timeout-invalid", f"--timeout: {timeout} is not between 5s and 24h", hint=hint)
    return seconds
