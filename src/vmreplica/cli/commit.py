"""The commit command: a VM that was failed over stays, and no longer stands on recovery points."""

from typing import Annotated

import typer

from vmreplica.cli.client import LONG, AgentClient, vm_path
from vmreplica.cli.commands import add_command
from vmreplica.cli.options import DEFAULT_SOCKET, AsJson, SocketPath, VmArgument, Yes
from vmreplica.cli.output import confirm, console, read_report, show, show_answer, show_document, show_done


def register(app: typer.Typer) -> None:
    """Add this command to the command line."""
    add_command(
        app,
        commit,
        "On the replica: keep a failover for good; the VM's images are folded into one per disk while it runs.",
        "vmreplica commit web --dry-run",
        "vmreplica commit web",
        "vmreplica commit web --yes --no-wait --json",
    )


def commit(
    vm: VmArgument,
    *,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan and do nothing.")] = False,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Show progress until it is done, or return.")] = True,
    yes: Yes = False,
    as_json: AsJson = False,
    socket: SocketPath = DEFAULT_SOCKET,
) -> None:
    """Keep a failover for good."""
    keep(AgentClient(socket), vm, dry_run=dry_run, yes=yes, wait=wait, as_json=as_json)


def keep(client: AgentClient, vm: str, *, dry_run: bool, yes: bool, wait: bool, as_json: bool) -> None:
    """Show what keeping a failover does; unless only that is wanted, ask, do it and show how it gets on.

    Raises:
        VmReplicaError: it was refused, or failed on the way.
        typer.Exit: the person said no, or stopped watching.
    """
    from vmreplica.cli.show_failover import commit_view, loss_text, plan_view  # noqa: PLC0415 - slow to import
    from vmreplica.cli.watch import follow  # noqa: PLC0415 - slow to import
    from vmreplica.model.report import FailoverPlan, TaskReport  # noqa: PLC0415 - slow to import

    if dry_run or not yes:
        answer = client.send("GET", vm_path(vm, "commit-plan"), timeout=LONG)
        plan = read_report(FailoverPlan, answer)
        if dry_run:
            show_answer(answer) if as_json else show(plan_view(plan))
            return
        if not as_json:
            console(stderr=True).print(plan_view(plan))
        confirm(f"{loss_text(plan)} Commit the failover of {plan.name}?", yes=False, as_json=as_json)
    task = read_report(TaskReport, client.send("POST", vm_path(vm, "commit"), timeout=LONG))
    if wait:
        task = follow(client, task, vm, as_json=as_json)
    if as_json:
        show_document(task.model_dump(mode="json"))
    elif task.committed is None:
        show_done(f"{task.what} began; vmreplica status {vm} shows how it is getting on.", as_json=False)
    else:
        show(commit_view(task.committed))
