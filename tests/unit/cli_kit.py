"""Runs of the command line in this process, against a real API."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from vmreplica.cli.main import make_app


@dataclass(frozen=True)
class Ran:
    """What a run of the command line left behind."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """The one JSON document on standard output; anything else there makes this fail."""
        return json.loads(self.out)


class Program:
    """The command line, bound to a socket."""

    def __init__(self, socket: Path) -> None:
        self.socket = socket

    def __call__(self, *args: str) -> Ran:
        """Run it as typer's own tests do: standard input is no terminal."""
        result = CliRunner().invoke(make_app(), list(args), env={"VMREPLICA_SOCKET": str(self.socket)})
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return Ran(result.exit_code, result.stdout, result.stderr)
