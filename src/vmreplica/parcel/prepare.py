"""The beginning of an export: its header, and the key of an encrypted one, before anything is replicated."""

import datetime as dt
import secrets
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from vmreplica.fsio import fsync_dir
from vmreplica.model.errors import Conflict, Corrupt
from vmreplica.model.export import Directory, ExportHeader, Protection, Recipient, SeedExport
from vmreplica.model.ids import HostId, VmId, VmName
from vmreplica.parcel.layout import CHECKSUMS, HEADER, KEY, MAX_SMALL
from vmreplica.parcel.place import Place, place_errors
from vmreplica.parcel.seal import Sealer, new_key

#: What stands in the root of many media and is nobody's data.
_HARMLESS: Final = frozenset({"lost+found", "System Volume Information", "$RECYCLE.BIN"})


def prepare_export(
    directory: Directory,
    *,
    vm: VmId,
    name: VmName,
    primary: HostId,
    replica: HostId,
    passphrase: str | None = None,
    recipient: Recipient | None = None,
    known: SeedExport | None = None,
) -> SeedExport:
    """Make a directory ready for the export of a VM, or find it ready.

    Args:
        directory: made when only the last part of its path is missing; must be empty otherwise.
        vm: whose export.
        name: its name.
        primary: this host.
        replica: the host that will import it.
        passphrase: encrypts it; takes seconds.
        recipient: or this public key does.
        known: the export that the VM's policy has already: one in the same directory is gone on with.

    Raises:
        Conflict: ``export-exists``, ``export-directory-not-empty``.
        BadRequest: ``recipient-invalid``.
        Unreachable, NoSpace: see ``Place``.
    """
    Sealer(recipient)
    path = Path(directory)
    _make(path)
    with Place(path) as place:
        found = read_header(place)
        if known is not None and known.directory == directory and found is not None and found.export == known.export:
            return known
        _require_free(place, found, vm, replica)
        recipient, protection = _protect(place, passphrase, recipient)
        header = ExportHeader(
            export=secrets.token_hex(8),
            vm=vm,
            name=name,
            primary=primary,
            replica=replica,
            protection=protection,
            created=dt.datetime.now(dt.UTC),
        )
        # The header last: without it the directory holds no export.
        place.publish(HEADER, header.model_dump_json(indent=1).encode() + b"\n")
    return SeedExport(export=header.export, directory=directory, recipient=recipient)


def _make(path: Path) -> None:
    with place_errors(path):
        if not path.exists():
            path.mkdir(mode=0o700)
            fsync_dir(path.parent)


def _protect(place: Place, passphrase: str | None, recipient: Recipient | None) -> tuple[Recipient | None, Protection]:
    """Choose the key to encrypt with; one that a passphrase opens is made, and put into the export."""
    if passphrase is None:
        return recipient, "recipient" if recipient else "none"
    made, key = new_key(passphrase)
    place.publish(KEY, key)
    return made, "passphrase"


def read_header(place: Place) -> ExportHeader | None:
    """Read what an export says of itself; None if the directory holds none.

    Raises:
        Corrupt: ``export-damaged``.
    """
    content = place.read(HEADER, MAX_SMALL)
    if content is None:
        return None
    try:
        return ExportHeader.model_validate_json(content)
    except ValidationError as error:
        raise Corrupt(
            "export-damaged",
            f"{place.directory / HEADER} is damaged, or of a later version",
            hint="copy the export again, or make a new one",
        ) from error


def _require_free(place: Place, found: ExportHeader | None, vm: VmId, replica: HostId) -> None:
    """Require that nothing of anybody is overwritten; what was prepared for this VM and never begun may be."""
    names = [name for name in place.names() if name not in _HARMLESS and not name.startswith(".")]
    if found is not None:
        begun = set(names) - {HEADER, KEY}
        if begun or (found.vm, found.replica) != (vm, replica):
            state = "a complete export" if CHECKSUMS in names else "an export"
            raise Conflict(
                "export-exists",
                f"{place.directory} holds {state} of {found.name} for {found.replica[:8]}, made {found.created:%F}",
                hint="choose another directory, or empty this one when that export is no longer needed",
            )
    elif set(names) - {KEY}:
        raise Conflict(
            "export-directory-not-empty",
            f"{place.directory} is not empty: {', '.join(names[:3])}{' ...' if len(names) > 3 else ''}",  # noqa: PLR2004 - a few do
            hint=f"name a directory of its own, for example --seed export:{place.directory / 'export'}",
        )
