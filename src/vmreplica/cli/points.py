"""The points commands: list (the default), pin, unpin, export, mount, unmount."""

from typing import Annotated, Any, Final

import typer
from typer.core import TyperGroup

from vmreplica.cli.client import LONG, AgentClient, vm_path
from vmreplica.cli.commands import add_command
from vmreplica.cli.options import DEFAULT_SOCKET, AsJson, SocketPath, VmArgument
from vmreplica.cli.output import make_request, read_report, show, show_answer, show_done
from vmreplica.cli.point_export import EvenDamaged, PointArgument, export, point_path

_DEFAULT: Final = "list"


class _Points(TyperGroup):
    """Takes a first word that is no command for a VM whose points are listed."""

    #: The command that is meant where none is named.
    default = _DEFAULT

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put the default command in front, where none is named."""
        if args and args[0] not in {*self.list_commands(ctx), "--help"}:
            args = [self.default, *args]
        return super().parse_args(ctx, args)


def make_app() -> typer.Typer:
    """Build the group of point commands."""
    app = typer.Typer(
        cls=_Points,
        help="List the recovery points of a VM: vmreplica points VM. Keep single ones, and take files out of them.",
        rich_markup_mode=None,
        no_args_is_help=True,
        add_completion=False,
    )
    add_command(
        app,
        list_points,
        "List the recovery points of a VM, newest first; the word list may be left out.",
        "vmreplica points web",
        "vmreplica points web --plan",
        "vmreplica points list export",
        name=_DEFAULT,
    )
    _add_single(app)
    return app


def _add_single(app: typer.Typer) -> None:
    """Add what is done with one point."""
    add_command(
        app,
        pin,
        "On the replica: keep a point whatever the rules of retention say.",
        "vmreplica points pin web 20261122T102500Z-0a1b2c3d --reason 'before the upgrade'",
        "vmreplica points pin web latest",
    )
    add_command(
        app,
        unpin,
        "On the replica: leave a pinned point to the rules of retention again.",
        "vmreplica points unpin web 20261122T102500Z-0a1b2c3d",
    )
    add_command(
        app,
        export,
        "On the replica: write a point's disks into image files that need no vmreplica.",
        "vmreplica points export web latest --to /srv/web.qcow2",
        "vmreplica points export web latest --to /mnt/usb --format vhdx --check",
        "vmreplica points export web latest --to /srv/data.img --format raw --disk vdb --dry-run",
    )
    add_command(
        app,
        mount,
        "On the replica: make a point's disks readable over NBD, so that single files can be taken out.",
        "vmreplica points mount web latest",
        "vmreplica points mount web latest --for 30m --json | jq -r '.disks[].uri'",
    )
    add_command(
        app,
        unmount,
        "On the replica: end the mount of a point or, without one, all mounts of a VM.",
        "vmreplica points unmount web",
        "vmreplica points unmount web 20261122T102500Z-0a1b2c3d",
    )


def list_points(
    vm: VmArgument,
    *,
    plan: Annotated[
        bool, typer.Option("--plan", help="Show which points the rules of retention keep or drop, and why.")
    ] = False,
    as_json: AsJson = False,
    socket: SocketPath = DEFAULT_SOCKET,
) -> None:
    """List recovery points."""
    answer = AgentClient(socket).get(vm_path(vm, "points"), plan="true" if plan else None)
    if as_json:
        show_answer(answer)
        return
    from vmreplica.cli.show import points_view  # noqa: PLC0415 - slow to import
    from vmreplica.cli.show_points import plan_view  # noqa: PLC0415 - slow to import
    from vmreplica.model.report import PointsReport  # noqa: PLC0415 - slow to import

    report = read_report(PointsReport, answer)
    show(plan_view(report) if plan else points_view(report))


def pin(
    vm: VmArgument,
    point: PointArgument,
    *,
    reason: Annotated[str, typer.Option(metavar="TEXT", help="Why, for whoever wonders later.")] = "a person wants it",
    as_json: AsJson = False,
    socket: SocketPath = DEFAULT_SOCKET,
) -> None:
    """Pin a point."""
    from vmreplica.api.requests import PinRequest  # noqa: PLC0415 - slow to import

    body = make_request(PinRequest, reason=reason)
    answer = AgentClient(socket).send("PUT", point_path(vm, point, "pin"), body, timeout=LONG)
    _show_point(answer, "{point} of {vm} stays until vmreplica points unpin.", vm, as_json=as_json)


def unpin(
    vm: VmArgument, point: PointArgument, *, as_json: AsJson = False, socket: SocketPath = DEFAULT_SOCKET
) -> None:
    """Unpin a point."""
    answer = AgentClient(socket).send("DELETE", point_path(vm, point, "pin"), timeout=LONG)
    _show_point(answer, "{point} of {vm} is left to the rules of retention again.", vm, as_json=as_json)


def mount(
    vm: VmArgument,
    point: PointArgument,
    *,
    time: Annotated[str, typer.Option("--for", metavar="TIME", help="When it ends by itself: 1m to 30d.")] = "8h",
    even_damaged: EvenDamaged = False,
    as_json: AsJson = False,
    socket: SocketPath = DEFAULT_SOCKET,
) -> None:
    """Mount a point."""
    from vmreplica.api.requests import MountRequest  # noqa: PLC0415 - slow to import

    body = make_request(MountRequest, seconds=_seconds(time), even_damaged=even_damaged)
    answer = AgentClient(socket).send("POST", point_path(vm, point, "mount"), body, timeout=LONG)
    if as_json:
        show_answer(answer)
        return
    from vmreplica.cli.show_points import mount_view  # noqa: PLC0415 - slow to import
    from vmreplica.model.taking import PointMount  # noqa: PLC0415 - slow to import

    show(mount_view(read_report(PointMount, answer)))


def unmount(
    vm: VmArgument,
    point: Annotated[
        str | None, typer.Argument(metavar="POINT", help="The point's id, latest, or latest-app.", show_default=False)
    ] = None,
    *,
    as_json: AsJson = False,
    socket: SocketPath = DEFAULT_SOCKET,
) -> None:
    """Unmount points."""
    path = vm_path(vm, "mounts") if point is None else point_path(vm, point, "mount")
    answer = AgentClient(socket).send("DELETE", path)
    if as_json:
        show_answer(answer)
        return
    from vmreplica.model.taking import UnmountReport  # noqa: PLC0415 - slow to import

    ended = read_report(UnmountReport, answer).points
    show_done(f"{vm}: mounted no longer: {', '.join(ended)}.", as_json=False)


# ---- helpers


def _seconds(text: str) -> int:
    from vmreplica.model.errors import BadRequest  # noqa: PLC0415 - slow to import
    from vmreplica.model.taking import MAX_MOUNT, MIN_MOUNT  # noqa: PLC0415 - slow to import
    from vmreplica.model.units import parse_duration  # noqa: PLC0415 - beside its only use

    hint = "--for 30m, --for 8h, --for 2d"
    try:
        seconds = parse_duration(text)
    except ValueError as error:
        raise BadRequest("mount-time-invalid", f"--for: {error}", hint=hint) from error
    if not MIN_MOUNT <= seconds <= MAX_MOUNT:
        raise BadRequest("mount-time-invalid", f"--for: a mount lasts from 1m to 30d, not {text}", hint=hint)
    return seconds


def _show_point(answer: bytes, text: str, vm: str, *, as_json: bool) -> None:
    if as_json:
        show_answer(answer)
        return
    from vmreplica.model.point import PointSummary  # noqa: PLC0415 - slow to import

    show_done(text.format(point=read_report(PointSummary, answer).point, vm=vm), as_json=False)
