"""Options and arguments that several commands share."""

from pathlib import Path
from typing import Annotated, Final

import typer

DEFAULT_SOCKET: Final = Path("/run/vmreplica/agent.sock")

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output, errors included.")]
SocketPath = Annotated[
    Path, typer.Option("--socket", envvar="VMREPLICA_SOCKET", metavar="PATH", help="The local agent's socket.")
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")]
VmArgument = Annotated[str, typer.Argument(metavar="VM", help="The VM's name or UUID.", show_default=False)]
PeerArgument = Annotated[
    str, typer.Argument(metavar="NAME", help="The other host, as peer list names it.", show_default=False)
]


def usage_text(summary: str, *examples: str) -> str:
    """Make a command's help: a line of what it does, then examples."""
    shown = "\n".join(f"  {example}" for example in examples)
    return f"{summary}\n\n\b\nExamples:\n{shown}"
