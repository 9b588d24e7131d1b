"""The ``vmreplica`` program: all commands, put together."""

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Final

import typer
from typer.core import TyperGroup

from vmreplica.cli import (
    boot_test,
    commit,
    doctor,
    exports,
    failover,
    handover,
    limits,
    look,
    networks,
    peers,
    points,
    protect,
    records,
    reverse,
    scrub,
    service,
    start,
    verify,
)
from vmreplica.cli.output import show_document

_LAB: Final = "lab"
_USAGE_EXIT: Final = 2


class _Root(TyperGroup):
    """Answers wrong usage as JSON when asked for JSON, and imports the lab's commands only when they are wanted."""

    def main(self, args: Sequence[str] | None = None, *others: Any, **more: Any) -> Any:
        """Run the command line."""
        given = list(sys.argv[1:] if args is None else args)
        if "--json" not in _before_dashes(given):
            return super().main(given, *others, **more)
        more["standalone_mode"] = False
        try:
            result = super().main(given, *others, **more)
        except typer.TyperException as error:
            _show_usage_error(error)
            sys.exit(_USAGE_EXIT)
        sys.exit(result if isinstance(result, int) else 0)

    def list_commands(self, ctx: Any) -> list[str]:
        """Name all commands."""
        names = super().list_commands(ctx)
        return [*names, _LAB] if find_spec("vmreplica.cli.lab") else names

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Find a command."""
        if cmd_name == _LAB and find_spec("vmreplica.cli.lab"):
            return typer.main.get_command(import_module(f"vmreplica.cli.{_LAB}").app)
        return super().get_command(ctx, cmd_name)


def make_app() -> typer.Typer:
    """Build the command line."""
    root = typer.Typer(
        cls=_Root,
        name="vmreplica",
        help="Asynchronous replication and disaster recovery of running libvirt/QEMU VMs.",
        rich_markup_mode=None,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
    )
    for commands in (
        protect,
        networks,
        limits,
        exports,
        look,
        records,
        doctor,
        failover,
        boot_test,
        verify,
        reverse,
        scrub,
        commit,
        handover,
        start,
    ):
        commands.register(root)
    root.add_typer(points.make_app(), name="points")
    root.add_typer(peers.make_app(), name="peer")
    service.register(root)
    return root


def main() -> None:
    """Run the program."""
    make_app()(prog_name="vmreplica")


def _before_dashes(args: list[str]) -> list[str]:
    return args[: args.index("--")] if "--" in args else args


def _show_usage_error(error: typer.TyperException) -> None:
    from vmreplica.model.errors import BadRequest  # noqa: PLC0415 - needed on failure only

    message = error.format_message() if hasattr(error, "format_message") else str(error)
    problem = BadRequest("usage", message, hint="vmreplica COMMAND --help").problem()
    show_document({"error": problem.model_dump(mode="json")})
