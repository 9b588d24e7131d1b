"""The reverse command: a VM that was failed over is replicated back to where it came from."""

from typing import Annotated, Final

import typer

from vmreplica.cli.client import LONG, AgentClient, vm_path
from vmreplica.cli.commands import add_command
from vmreplica.cli.options import DEFAULT_SOCKET, AsJson, SocketPath, VmArgument, Yes
from vmreplica.cli.output import confirm, console, read_report, show, show_answer, show_document, show_done
from vmreplica.cli.protect import Wait, show_task

#: The one error that is none here: what was asked for is written down, and is done when it can be.
_LATER: Final = "old-primary-away"


def register(app: typer.Typer) -> None:
    """Add this command to the command line."""
    add_command(
        app,
        reverse,
        "After a failover, where the VM runs now: make its old primary the replica, with its old disks.",
        "vmreplica reverse web --dry-run",
        "vmreplica reverse web",
        "vmreplica reverse web --yes --no-wait --json",
    )


def reverse(
    vm: VmArgument,
    *,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan and do nothing.")] = False,
    yes: Yes = False,
    wait: Wait = True,
    as_json: AsJson = False,
    socket: SocketPath = DEFAULT_SOCKET,
) -> None:
    """Swap the roles of two hosts."""
    client = AgentClient(socket)
    if dry_run or not yes:
        _show_plan(client.get(vm_path(vm, "reverse-plan")), as_json=as_json, aside=not dry_run)
    if dry_run:
        return
    confirm(f"Its failover cannot be taken back then. Replicate {vm} back?", yes=yes, as_json=as_json)
    answer = client.send("POST", vm_path(vm, "reverse"), timeout=LONG)
    _follow(client, vm, answer, wait=wait, as_json=as_json)


def _show_plan(answer: bytes, *, as_json: bool, aside: bool) -> None:
    from vmreplica.cli.show_failover import plan_view  # noqa: PLC0415 - slow to import
    from vmreplica.model.report import FailoverPlan  # noqa: PLC0415 - slow to import

    plan = read_report(FailoverPlan, answer)
    if not as_json:
        view = plan_view(plan)
        console(stderr=True).print(view) if aside else show(view)
    elif not aside:
        show_answer(answer)


def _follow(client: AgentClient, vm: str, answer: bytes, *, wait: bool, as_json: bool) -> None:
    from vmreplica.model.errors import VmReplicaError  # noqa: PLC0415 - slow to import
    from vmreplica.model.report import TaskReport  # noqa: PLC0415 - slow to import

    try:
        show_task(client, vm, answer, wait=wait, as_json=as_json)
    except VmReplicaError as error:
        if error.code != _LATER:
            raise
        if as_json:
            task = read_report(TaskReport, client.get(f"/v1/tasks/{read_report(TaskReport, answer).id}"))
            show_document(task.model_dump(mode="json"))
        else:
            show_done(f"{error.message}. {error.hint[0].upper()}{error.hint[1:]}", as_json=False)
