"""Commands about the program itself: agent, version."""

from pathlib import Path
from typing import Annotated

import typer

from vmreplica import __version__
from vmreplica.cli.commands import add_command
from vmreplica.cli.options import AsJson
from vmreplica.cli.output import show_document


def register(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    add_command(
        app,
        agent,
        "Run the agent of this host in the foreground, as its service does.",
        "vmreplica agent --config /etc/vmreplica/agent.toml",
    )
    add_command(app, version, "Show the version.", "vmreplica version --json")


def agent(
    config: Annotated[Path, typer.Option(metavar="FILE", help="The configuration, in TOML.")] = Path(
        "/etc/vmreplica/agent.toml"
    ),
    as_json: AsJson = False,  # noqa: ARG001 - errors are shown accordingly by reporting()
) -> None:
    """Run the agent."""
    from vmreplica.api.daemon import run  # noqa: PLC0415 - slow to import

    run(config)


def version(as_json: AsJson = False) -> None:
    """Show the version."""
    if as_json:
        show_document({"version": __version__})
    else:
        typer.echo(f"vmreplica {__version__}")
