"""The boot-test command: prove that a VM would come to life here, now or by schedule."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from vmreplica.cli.client import LONG, AgentClient, vm_path
from vmreplica.cli.commands import add_command
from vmreplica.cli.options import DEFAULT_SOCKET, AsJson, SocketPath, VmArgument, Yes
from vmreplica.cli.output import (
    confirm,
    console,
    make_request,
    read_report,
    show,
    show_answer,
    show_document,
    show_done,
)
from vmreplica.model.units import parse_duration

if TYPE_CHECKING:
    from vmreplica.model.report import TaskReport

#: The exit code when the guest did not come to life; the same as of the doctor's problems.
FAILED_EXIT: Final = 11


def register(app: typer.Typer) -> None:
    """Add this command to the command line."""
    add_command(
        app,
        boot_test,
        "On the replica: boot a copy of a VM, isolated, until it shows a sign of life; keep verdict and screenshot, "
        f"and remove the copy. The exit code is {FAILED_EXIT} when it shows none.",
        "vmreplica boot-test web --dry-run",
        "vmreplica boot-test web",
        "vmreplica boot-test web --sign 'console:web login:' --limit 10m --json",
        "vmreplica boot-test web --sign tcp:443 --network isolated",
        "vmreplica boot-test web --sign script:/usr/local/bin/is-web-alive --network isolated",
        "vmreplica boot-test web --every 1d --at 03:00",
        "vmreplica boot-test web --off",
        "vmreplica boot-test web --picture screen.png",
        name="boot-test",
    )


Point = Annotated[
    str | None,
    typer.Option(metavar="ID", help="A recovery point, as vmreplica points lists them, or latest-app."),
]
Sign = Annotated[
    str | None,
    typer.Option(
        metavar="SIGN",
        help="What counts as life: agent, console:TEXT, tcp:PORT (with --network), script:PATH; default auto: the "
        "guest agent or a login prompt on the serial console.",
    ),
]
Limit = Annotated[str | None, typer.Option(metavar="TIME", help="For the sign of life; default 5m.")]
Network = Annotated[
    str | None, typer.Option(metavar="NET", help="Plug the copy in here; else its cables are unplugged.")
]
Every = Annotated[str | None, typer.Option(metavar="TIME", help="Do it by itself this often: 1d, 12h.")]
At = Annotated[str | None, typer.Option(metavar="HH:MM", help="With --every of a day or more: at this time of day.")]
Picture = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Write the screenshot of the last test (or of --point's) to a file.")
]


def boot_test(
    vm: VmArgument,
    *,
    point: Point = None,
    sign: Sign = None,
    limit: Limit = None,
    network: Network = None,
    every: Every = None,
    at: At = None,
    off: Annotated[bool, typer.Option("--off", help="Do it by itself no longer.")] = False,
    picture: Picture = None,
    force: Annotated[bool, typer.Option("--force", help="With --picture: overwrite the file.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan and do nothing.")] = False,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Show progress until it is done, or return.")] = True,
    yes: Yes = False,
    as_json: AsJson = False,
    socket: SocketPath = DEFAULT_SOCKET,
) -> None:
    """Boot a copy."""
    how = {"sign": sign, "limit": _seconds("--limit", limit), "network": network}
    wish = {name: value for name, value in how.items() if value is not None}
    _refuse_nonsense(
        point=point, wish=bool(wish), every=every, at=at, off=off, picture=picture, force=force, dry_run=dry_run
    )
    client = AgentClient(socket)
    if picture is not None:
        _fetch(client, vm, point, picture, force=force, as_json=as_json)
    elif every is not None or off:
        _schedule(client, vm, _seconds("--every", every), at, wish, yes=yes, as_json=as_json)
    else:
        _test(client, vm, point, wish, dry_run=dry_run, wait=wait, yes=yes, as_json=as_json)


def _refuse_nonsense(
    *,
    point: str | None,
    wish: bool,
    every: str | None,
    at: str | None,
    off: bool,
    picture: Path | None,
    force: bool,
    dry_run: bool,
) -> None:
    """See that the options go together.

    Raises:
        BadRequest: ``options-contradict``.
    """
    scheduling = every is not None or off
    if picture is not None and (wish or scheduling or at or dry_run):
        wrong, remedy = "--picture goes with --point and --force only", "vmreplica boot-test VM --picture FILE"
    elif force and picture is None:
        wrong, remedy = "--force goes with --picture only", "vmreplica boot-test VM --picture FILE --force"
    elif off and (every or at or wish):
        wrong, remedy = "--off goes with --json only", "vmreplica boot-test VM --off"
    elif at and not every:
        wrong, remedy = "--at goes with --every only", "vmreplica boot-test VM --every 1d --at 03:00"
    elif scheduling and (point or dry_run):
        wrong, remedy = "a schedule is for the newest point each time", "vmreplica boot-test VM --every 1d --at 03:00"
    else:
        return
    from vmreplica.model.errors import BadRequest  # noqa: PLC0415 - slow to import

    raise BadRequest("options-contradict", wrong, hint=remedy)


def _test(
    client: AgentClient, vm: str, point: str | None, wish: dict[str, Any], *, dry_run: bool, wait: bool, yes: bool,
    as_json: bool,
) -> None:  # fmt: skip
    from vmreplica.api.requests import BootTestRequest  # noqa: PLC0415 - slow to import
    from vmreplica.cli.show_failover import plan_view  # noqa: PLC0415 - slow to import
    from vmreplica.model.report import FailoverPlan, TaskReport  # noqa: PLC0415 - slow to import

    body = make_request(BootTestRequest, point=point, wish=wish)
    answer = client.send("POST", vm_path(vm, "boot-test-plan"), body)
    plan = read_report(FailoverPlan, answer)
    if dry_run:
        show_answer(answer) if as_json else show(plan_view(plan))
        return
    if plan.warnings and not yes:
        # A test that disturbs nothing needs no question; this one may.
        if not as_json:
            console(stderr=True).print(plan_view(plan))
        confirm(f"Boot a copy of {plan.name} on {wish.get('network')}?", yes=False, as_json=as_json)
    # The point of the plan that was shown is the one that is booted, even if a newer one arrives meanwhile.
    begun = body.model_copy(update={"point": plan.point})
    task = read_report(TaskReport, client.send("POST", vm_path(vm, "boot-test"), begun, timeout=LONG))
    _watch(client, task, vm, wait=wait, as_json=as_json)


def _watch(client: AgentClient, task: "TaskReport", vm: str, *, wait: bool, as_json: bool) -> None:
    from vmreplica.cli.show_boot import boot_view  # noqa: PLC0415 - slow to import
    from vmreplica.cli.watch import follow  # noqa: PLC0415 - slow to import

    if wait:
        task = follow(client, task, vm, as_json=as_json)
    if as_json:
        show_document(task.model_dump(mode="json"))
    elif task.booted is None:
        show_done(f"{task.what} began; vmreplica status {vm} shows how it is getting on.", as_json=False)
    else:
        show(boot_view(task.booted))
    if task.booted is not None and not task.booted.result.good:
        raise typer.Exit(FAILED_EXIT)


def _schedule(
    client: AgentClient, vm: str, every: int | None, at: str | None, wish: dict[str, Any], *, yes: bool, as_json: bool
) -> None:
    from vmreplica.api.requests import BootScheduleRequest, BootTestRequest  # noqa: PLC0415 - slow to import
    from vmreplica.cli.show_boot import schedule_view  # noqa: PLC0415 - slow to import
    from vmreplica.model.report import BootScheduleReport, FailoverPlan  # noqa: PLC0415 - slow to import

    body = make_request(BootScheduleRequest, every=every, at=at, wish=wish)
    if wish.get("network") and not yes:
        asked = client.send("POST", vm_path(vm, "boot-test-plan"), make_request(BootTestRequest, wish=wish))
        plan = read_report(FailoverPlan, asked)
        if plan.warnings:
            question = f"{' '.join(plan.warnings)}. Boot copies of {plan.name} there by schedule?"
            confirm(question, yes=False, as_json=as_json)
    answer = client.send("PUT", vm_path(vm, "boot-test-schedule"), body)
    if as_json:
        show_answer(answer)
    else:
        show(schedule_view(vm, read_report(BootScheduleReport, answer).boot))


def _fetch(client: AgentClient, vm: str, point: str | None, picture: Path, *, force: bool, as_json: bool) -> None:
    from vmreplica.model.errors import BadRequest  # noqa: PLC0415 - slow to import

    content = client.get(vm_path(vm, "boot-test-picture"), point=point)
    try:
        with picture.open("wb" if force else "xb") as file:
            file.write(content)
    except FileExistsError as error:
        raise BadRequest("file-exists", f"{picture} exists already", hint="--force overwrites it") from error
    except OSError as error:
        raise BadRequest(
            "file-unwritable", f"cannot write {picture}: {error.strerror}", hint="name a file in a directory of yours"
        ) from error
    show_document({"result": "ok", "file": str(picture), "bytes": len(content)}) if as_json else show_done(
        f"{picture}: {len(content)} bytes.", as_json=False
    )


def _seconds(option: str, text: str | None) -> int | None:
    if text is None:
        return None
    from vmreplica.model.errors import BadRequest  # noqa: PLC0415 - slow to import

    try:
        return parse_duration(text)
    except ValueError as error:
        raise BadRequest("duration-invalid", f"{option}: {error}", hint=f"{option} 5m, {option} 1d") from error
