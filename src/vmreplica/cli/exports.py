"""The import command, and what enable needs for an export."""

import os
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from vmreplica.cli.client import AgentClient
from vmreplica.cli.commands import add_command
from vmreplica.cli.options import DEFAULT_SOCKET, AsJson, SocketPath
from vmreplica.cli.output import make_request, read_report, show_document, show_done
from vmreplica.model.units import format_size

_EXPORT: Final = "export:"
#: Bytes of a file with a passphrase or a key.
_MAX_SECRET: Final = 65536

PassphraseFile = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="The export is encrypted with the passphrase in this file's first line."),
]
Recipient = Annotated[
    str | None, typer.Option(metavar="AGEKEY", help="The export is encrypted for this public key of age.")
]


def register(app: typer.Typer) -> None:
    """Add this command to the command line."""
    add_command(
        app,
        import_,
        "On the replica: take in the first copy of a VM that travelled in a directory.",
        "vmreplica import /mnt/usb/web",
        "vmreplica import /mnt/usb/files --passphrase-file key.txt --no-wait",
        name="import",
    )


def import_(
    directory: Annotated[
        Path, typer.Argument(metavar="DIR", help="What enable --seed export:DIR wrote, or a copy.", show_default=False)
    ],
    *,
    passphrase_file: PassphraseFile = None,
    identity: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The age identity that the export was encrypted for.")
    ] = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Show progress until it is done, or return.")] = True,
    as_json: AsJson = False,
    socket: SocketPath = DEFAULT_SOCKET,
) -> None:
    """Import."""
    from vmreplica.api.requests import ImportRequest  # noqa: PLC0415 - slow to import
    from vmreplica.cli.watch import follow  # noqa: PLC0415 - slow to import
    from vmreplica.model.report import TaskReport  # noqa: PLC0415 - slow to import

    body = make_request(
        ImportRequest,
        directory=_absolute(str(directory)),
        passphrase=_passphrase(passphrase_file),
        identity=_secret(identity) if identity else None,
    )
    client = AgentClient(socket)
    task = read_report(TaskReport, client.send("POST", "/v1/imports", body))
    if wait:
        task = follow(client, task, body.directory, as_json=as_json)
    if as_json:
        show_document(task.model_dump(mode="json"))
    elif task.imported is None:
        show_done(f"{task.what} began; vmreplica status shows when it is done.", as_json=False)
    elif task.imported.was_here:
        show_done(f"{task.imported.name}: this export was imported before; nothing is to be done.", as_json=False)
    else:
        size = format_size(task.imported.file_bytes)
        show_done(
            f"{task.imported.name}: point {task.imported.point} is here ({size} read); failover is possible.",
            as_json=False,
        )


def seed_fields(seed: str | None, passphrase_file: Path | None, recipient: str | None) -> Any:
    """Read what was said about the first copy; a directory is one of the caller's.

    Raises:
        BadRequest: ``seed-invalid``, ``key-without-export``, ``secret-unreadable``.
    """
    from vmreplica.model.errors import BadRequest  # noqa: PLC0415 - pydantic is needed on failure only
    from vmreplica.model.seed import parse_seed  # noqa: PLC0415 - slow to import

    if seed is not None and seed.startswith(_EXPORT):
        directory = seed.removeprefix(_EXPORT)
        request = parse_seed(f"{_EXPORT}{_absolute(directory)}" if directory else seed)
        return {**request.model_dump(), "passphrase": _passphrase(passphrase_file), "recipient": recipient}
    if passphrase_file is not None or recipient is not None:
        raise BadRequest(
            "key-without-export",
            "--passphrase-file and --recipient encrypt an export, and none was asked for",
            hint="add --seed export:DIR",
        )
    return None if seed is None else parse_seed(seed)


def next_step(directory: str) -> str:
    """Say what is to be done with a complete export."""
    return (
        f"The export in {directory} is complete. Bring it to the replica and run there:\n"
        f"  vmreplica import {directory}\n"
        "What changes meanwhile is sent over the network already."
    )


def _absolute(directory: str) -> str:
    return os.path.abspath(directory)  # noqa: PTH100 - Path.resolve would follow links, Path.absolute keeps dots


def _passphrase(path: Path | None) -> str | None:
    if path is None:
        return None
    first = _secret(path).split("\n", 1)[0].removesuffix("\r")
    if not first:
        from vmreplica.model.errors import BadRequest  # noqa: PLC0415 - pydantic is needed on failure only

        raise BadRequest("secret-unreadable", f"the first line of {path} is empty", hint="write the passphrase there")
    return first


def _secret(path: Path) -> str:
    try:
        with path.open("rb") as fh:
            return fh.read(_MAX_SECRET).decode()
    except (OSError, UnicodeDecodeError) as error:
        from vmreplica.model.errors import BadRequest  # noqa: PLC0415 - pydantic is needed on failure only

        why = error.strerror if isinstance(error, OSError) else "it is not text"
        raise BadRequest(
            "secret-unreadable", f"{path} cannot be read: {why}", hint="name a text file that you may read"
        ) from error
