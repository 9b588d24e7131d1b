"""How a command is added: its help with examples, and the way its errors end."""

from collections.abc import Callable

import typer

from vmreplica.cli.options import usage_text
from vmreplica.cli.output import reporting


def add_command(
    app: typer.Typer, function: Callable[..., None], summary: str, *examples: str, name: str | None = None
) -> None:
    """Add a command.

    Args:
        app: where to.
        function: what it does; its parameters are the command's, ``as_json`` says how errors are shown.
        summary: one sentence for its help and for the list of commands.
        examples: command lines shown in its help.
        name: if it differs from the function's.
    """
    app.command(name, help=usage_text(summary, *examples), short_help=summary)(reporting(function))
