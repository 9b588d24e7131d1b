"""Commands that change a VM's protection: enable, disable, pause, resume, sync."""

from typing import TYPE_CHECKING, Annotated, Final

import typer

from vmreplica.cli.client import LONG, AgentClient, vm_path
from vmreplica.cli.commands import add_command
from vmreplica.cli.consistency import AppConsistentOption, read_app_consistent
from vmreplica.cli.exports import PassphraseFile, Recipient, next_step, seed_fields
from vmreplica.cli.keeps import KeepOption, read_keep
from vmreplica.cli.limits import AtOption, LimitOption, read_limit, read_moment
from vmreplica.cli.options import DEFAULT_SOCKET, AsJson, SocketPath, VmArgument, Yes
from vmreplica.cli.output import confirm, make_request, read_report, show_document, show_done
from vmreplica.model.units import parse_duration

if TYPE_CHECKING:
    from vmreplica.api.requests import EnableRequest

#: Errors that a person may agree to, and the field that says so.
_CONFIRMED: Final = {
    "base-device-unconfirmed": "erase",
    "export-awaited": "give_up",
    "points-would-go": "drop_points",
}
Wait = Annotated[bool, typer.Option("--wait/--no-wait", help="Show progress until it is done, or return at once.")]
Seed = Annotated[
    str | None,
    typer.Option(
        metavar="HOW",
        help="How the first copy gets there: network; existing:PATH or existing:vda=PATH,vdb=raw:PATH compares "
        "with copies on the peer (restored backups) and sends what differs; export:DIR writes it to a directory that "
        "you carry to the peer, for vmreplica import.",
    ),
]
Every = Annotated[str, typer.Option(metavar="INTERVAL", help="How old the newest recovery point may be: 5s to 24h.")]
Excluded = Annotated[
    list[str] | None,
    typer.Option(metavar="TARGET", help="A disk that is not replicated, as virsh domblklist names it; repeatable."),
]
BaseDevices = Annotated[
    list[str] | None,
    typer.Option(
        metavar="TARGET=DEVICE",
        help="A block device of the replica that holds the base of a disk, its content is lost; repeatable.",
    ),
]


def register(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    add_command(
        app,
        enable,
        "Protect a VM: copy it to a paired host and go on copying what changes.",
        "vmreplica enable web --to backup1",
        "vmreplica enable db --to backup1 --every 30s --exclude-disk vdb --no-wait",
        "vmreplica enable db --to backup1 --keep within=2h,hourly=48,daily=14,monthly=6,space=200G",
        "vmreplica enable mail --to backup1 --base-device vda=/dev/vg/mail-copy",
        "vmreplica enable web --to backup1 --seed existing:/var/lib/vmreplica/seeds/web.vhdx",
        "vmreplica enable files --to backup1 --seed export:/mnt/usb/files --passphrase-file key.txt",
        "vmreplica enable files --to backup1 --at 22:00 --limit 'mon-fri 08:00-18:00 20M' --limit 50M",
        "vmreplica enable db --to backup1 --app-consistent every=1h",
    )
    add_command(
        app,
        disable,
        "Stop protecting a VM; its copy is kept unless --delete-copy is given.",
        "vmreplica disable web",
        "vmreplica disable web --delete-copy --yes",
    )
    add_command(app, pause, "Begin no replication cycle of a VM until it is resumed.",
                "vmreplica pause web", "vmreplica pause web --release")  # fmt: skip
    add_command(app, resume, "Go on replicating a paused VM.", "vmreplica resume web")
    add_command(app, sync, "Run a replication cycle now.", "vmreplica sync web", "vmreplica sync web --no-wait --json")


def enable(
    vm: VmArgument,
    *,
    to: Annotated[str, typer.Option("--to", metavar="PEER", help="The paired host that gets the copy.")],
    every: Every = "5m",
    exclude_disk: Excluded = None,
    keep: KeepOption = None,
    base_device: BaseDevices = None,
    seed: Seed = None,
    passphrase_file: PassphraseFile = None,
    recipient: Recipient = None,
    yes: Yes = False,
    at: AtOption = None,
    limit: LimitOption = None,
    app_consistent: AppConsistentOption = None,
    wait: Wait = True,
    as_json: AsJson = False,
    socket: SocketPath = DEFAULT_SOCKET,
) -> None:
    """Protect a VM."""
    from vmreplica.api.requests import EnableRequest  # noqa: PLC0415 - slow to import

    body = make_request(
        EnableRequest,
        to=to,
        every=_seconds(every),
        excluded=tuple(exclude_disk or ()),
        keep=read_keep(keep),
        base_devices=parse_devices(base_device or []),
        erase=yes,
        seed=seed_fields(seed, passphrase_file, recipient),
        give_up=yes,
        drop_points=yes,
        limit=read_limit(limit),
        at=read_moment(at),
        app_consistent=read_app_consistent(app_consistent),
    )
    client = AgentClient(socket)
    _show_beginning(client, vm, _enabled(client, vm, body, as_json=as_json), body, wait=wait, as_json=as_json)


def _show_beginning(
    client: AgentClient, vm: str, answer: bytes, body: "EnableRequest", *, wait: bool, as_json: bool
) -> None:
    if body.at is not None and not as_json:
        moment = f"{body.at.astimezone():%Y-%m-%d %H:%M}"
        show_done(f"Initial replication of {vm} begins {moment}; vmreplica sync {vm} begins it now.", as_json=False)
        return
    show_task(client, vm, answer, wait=wait and body.at is None, as_json=as_json)
    if wait and not as_json and body.seed is not None and body.seed.kind == "export":
        show_done(next_step(body.seed.directory), as_json=False)


def disable(
    vm: VmArgument,
    *,
    delete_copy: Annotated[
        bool, typer.Option("--delete-copy", help="Delete all recovery points on the replica too.")
    ] = False,
    yes: Yes = False,
    as_json: AsJson = False,
    socket: SocketPath = DEFAULT_SOCKET,
) -> None:
    """Stop protecting a VM."""
    from vmreplica.api.requests import DisableRequest  # noqa: PLC0415 - slow to import

    what = "deletes all its recovery points on the replica" if delete_copy else "keeps its copy, which then grows old"
    confirm(f"Stop protecting {vm}? This {what}.", yes=yes, as_json=as_json)
    body = DisableRequest(delete_copy=delete_copy)
    AgentClient(socket).send("POST", vm_path(vm, "disable"), body, timeout=LONG)
    show_done(f"{vm} is no longer protected.", as_json=as_json, vm=vm)


def pause(
    vm: VmArgument,
    *,
    release: Annotated[
        bool,
        typer.Option("--release", help="Take our bitmaps out of its images, too: QEMU reverts no snapshot below one."),
    ] = False,
    as_json: AsJson = False,
    socket: SocketPath = DEFAULT_SOCKET,
) -> None:
    """Pause a VM's replication."""
    AgentClient(socket).send("POST", vm_path(vm, "release" if release else "pause"), timeout=LONG)
    show_done(f"{vm} is paused: its newest recovery point grows old until vmreplica resume.", as_json=as_json, vm=vm)


def resume(vm: VmArgument, *, as_json: AsJson = False, socket: SocketPath = DEFAULT_SOCKET) -> None:
    """Resume a VM's replication."""
    AgentClient(socket).send("POST", vm_path(vm, "resume"))
    show_done(f"{vm} is replicated again.", as_json=as_json, vm=vm)


def sync(vm: VmArgument, *, wait: Wait = True, as_json: AsJson = False, socket: SocketPath = DEFAULT_SOCKET) -> None:
    """Run a cycle now."""
    client = AgentClient(socket)
    show_task(client, vm, client.send("POST", vm_path(vm, "sync")), wait=wait, as_json=as_json)


def show_task(client: AgentClient, vm: str, answer: bytes, *, wait: bool, as_json: bool) -> None:
    """Watch a task, if that is wanted, and show what it came to.

    Raises:
        VmReplicaError: it failed.
    """
    from vmreplica.cli.watch import follow  # noqa: PLC0415 - slow to import
    from vmreplica.model.report import TaskReport  # noqa: PLC0415 - slow to import

    task = read_report(TaskReport, answer)
    if wait:
        task = follow(client, task, vm, as_json=as_json)
    if as_json:
        show_document(task.model_dump(mode="json"))
    elif not wait:
        show_done(f"{task.what} began; vmreplica status {vm} shows how it goes.", as_json=False)
    elif task.result is not None:
        from vmreplica.cli.show import cycle_text  # noqa: PLC0415 - slow to import

        show_done(cycle_text(vm, task.result), as_json=False)
    else:
        show_done(f"{vm}: done.", as_json=False)


def _enabled(client: AgentClient, vm: str, body: "EnableRequest", *, as_json: bool) -> bytes:
    """Ask for protection; what would be lost by it is told by the agent, and agreed to by a person."""
    from vmreplica.model.errors import Conflict  # noqa: PLC0415 - slow to import

    path = vm_path(vm, "enable")
    for _ in _CONFIRMED:
        try:
            return client.send("POST", path, body, timeout=LONG)
        except Conflict as error:
            if error.code not in _CONFIRMED:
                raise
            confirm(f"{error.message[0].upper()}{error.message[1:]}. Go on?", yes=False, as_json=as_json)
            body = body.model_copy(update={_CONFIRMED[error.code]: True})
    return client.send("POST", path, body, timeout=LONG)


def _seconds(every: str) -> int:
    from vmreplica.model.errors import BadRequest  # noqa: PLC0415 - slow to import
    from vmreplica.model.policy import MAX_INTERVAL, MIN_INTERVAL  # noqa: PLC0415 - slow to import

    hint = "--every 30s, --every 5m, --every 12h"
    try:
        seconds = parse_duration(every)
    except ValueError as error:
        raise BadRequest("interval-invalid", f"--every: {error}", hint=hint) from error
    if not MIN_INTERVAL <= seconds <= MAX_INTERVAL:
        text = f"--every: an interval is from {MIN_INTERVAL}s to {MAX_INTERVAL // 3600}h, not {every}"
        raise BadRequest("interval-invalid", text, hint=hint)
    return seconds


def parse_devices(pairs: list[str]) -> dict[str, str]:
    """Read TARGET=DEVICE pairs.

    Raises:
        BadRequest: a pair lacks a side, or a disk is named twice.
    """
    from vmreplica.model.errors import BadRequest  # noqa: PLC0415 - slow to import

    devices: dict[str, str] = {}
    for pair in pairs:
        target, _, device = pair.partition("=")
        if not target or not device or target in devices:
            reason = "names a disk twice" if target in devices else "is not TARGET=DEVICE"
            hint = "for example --base-device vda=/dev/vg/web1"
            raise BadRequest("base-device-invalid", f"--base-device {pair!r} {reason}", hint=hint)
        devices[target] = device
    return devices
