"""The command that writes a point into image files."""

import os
from typing import Annotated

import typer

from vmreplica.cli.client import LONG, AgentClient, quoted, vm_path
from vmreplica.cli.options import DEFAULT_SOCKET, AsJson, SocketPath, VmArgument
from vmreplica.cli.output import make_request, printable, read_report, show, show_answer, show_document, show_done

PointArgument = Annotated[
    str,
    typer.Argument(
        metavar="POINT", help="The point's id, as vmreplica points lists it, latest, or latest-app.", show_default=False
    ),
]
EvenDamaged = Annotated[bool, typer.Option("--even-damaged", help="Use a point that is known to be damaged.")]


def export(
    vm: VmArgument,
    point: PointArgument,
    *,
    to: Annotated[
        str,
        typer.Option("--to", metavar="PATH", help="The file; a directory that is there gets one file per disk."),
    ],
    form: Annotated[str, typer.Option("--format", metavar="FORMAT", help="qcow2, raw, vhdx or vmdk.")] = "qcow2",
    disk: Annotated[
        str | None, typer.Option("--disk", metavar="TARGET", help="Only this disk, such as vda; not given: all.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace files that are there.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Compare what was written with the point.")] = False,
    even_damaged: EvenDamaged = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell what would be written.")] = False,
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help="Show progress until it is done; Ctrl-C cancels it.")
    ] = True,
    as_json: AsJson = False,
    socket: SocketPath = DEFAULT_SOCKET,
) -> None:
    """Export a point."""
    from vmreplica.model.taking import PointExportWish  # noqa: PLC0415 - slow to import

    # Relative to where the command was typed, not to where the agent runs.
    place = os.path.abspath(to)  # noqa: PTH100 - Path.resolve would follow links
    wish = make_request(
        PointExportWish, to=place, format=form, disk=disk, force=force, check=check, even_damaged=even_damaged
    )
    client = AgentClient(socket)
    if dry_run:
        _show_planned(client.send("POST", point_path(vm, point, "export-plan"), wish, timeout=LONG), as_json=as_json)
    else:
        answer = client.send("POST", point_path(vm, point, "export"), wish, timeout=LONG)
        _show_export(client, vm, answer, wait=wait, as_json=as_json)


def point_path(vm: str, point: str, act: str) -> str:
    """Spell the path of an act on a point, whatever was typed for it."""
    return vm_path(vm, f"points/{quoted(point)}/{act}")


def _show_planned(answer: bytes, *, as_json: bool) -> None:
    if as_json:
        show_answer(answer)
        return
    from vmreplica.cli.show_points import export_view  # noqa: PLC0415 - slow to import
    from vmreplica.model.taking import PointExportReport  # noqa: PLC0415 - slow to import

    show(export_view(read_report(PointExportReport, answer), done=False))


def _show_export(client: AgentClient, vm: str, answer: bytes, *, wait: bool, as_json: bool) -> None:
    from vmreplica.model.report import TaskReport  # noqa: PLC0415 - slow to import

    task = read_report(TaskReport, answer)
    if wait:
        from vmreplica.cli.watch import follow  # noqa: PLC0415 - slow to import

        task = follow(client, task, vm, as_json=as_json, cancels=True)
    if as_json:
        show_document(task.model_dump(mode="json"))
    elif task.exported is None:
        show_done(f"{task.what} began; it goes on without you: vmreplica events {printable(vm)}", as_json=False)
    else:
        from vmreplica.cli.show_points import export_view  # noqa: PLC0415 - slow to import

        show(export_view(task.exported, done=True))
