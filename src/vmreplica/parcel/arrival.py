"""Reading an export that arrived: nothing in the directory is believed but what has the digest its primary told."""

import hashlib
from pathlib import Path
from typing import Final

from vmreplica.model.errors import BadRequest, Corrupt, NotFound
from vmreplica.model.export import AwaitedBase, Directory, ExportHeader
from vmreplica.model.ids import DiskTarget
from vmreplica.parcel.layout import (
    CHECKSUMS,
    CLOSING,
    HEADER,
    KEY,
    MAX_FILE,
    MAX_LINE,
    MAX_SMALL,
    OPENING,
    checksum_lines,
    document_path,
    segment_path,
)
from vmreplica.parcel.place import Place
from vmreplica.parcel.prepare import read_header
from vmreplica.parcel.seal import Secret, Unsealer, open_key, read_identity

_DIGEST: Final = 32


class Arrival:
    """An export's directory on the replica. Thread-safe; nothing is kept open.

    Args:
        directory: absolute.

    Raises:
        NotFound: ``export-unknown``: it holds no export.
        Unreachable: ``export-gone``, ``export-forbidden``.
        Corrupt: ``export-damaged``.
    """

    def __init__(self, directory: Directory) -> None:
        self._directory = Path(directory)
        with Place(self._directory) as place:
            header = read_header(place)
        if header is None:
            raise NotFound(
                "export-unknown",
                f"{directory} holds no export of vmreplica: there is no {HEADER} in it",
                hint="name the very directory that `vmreplica enable VM --seed export:DIR` wrote, or a copy of it",
            )
        self.header: ExportHeader = header
        self._sealed = header.protection != "none"
        #: Digests of each disk's segments, one behind the other.
        self._digests: dict[DiskTarget, bytearray] = {}
        self._unsealer = Unsealer(None)
        self._opening = ""

    def check(self, awaited: AwaitedBase) -> int:
        """Compare the checksum list with what the primary told, and see that all files are there; reads few of them.

        Returns:
            Bytes of all segments' files.

        Raises:
            Corrupt: ``export-damaged``, naming the file.
            NotFound: ``export-incomplete``: files are missing.
        """
        point = awaited.opening.point
        self._opening = document_path(point, OPENING, sealed=self._sealed)
        documents = [document_path(point, name, sealed=self._sealed) for name in (OPENING, CLOSING)]
        documents = [HEADER, *([KEY] if self.header.protection == "passphrase" else []), *documents]
        with Place(self._directory) as place:
            digests = self._read_list(place, awaited, documents)
            missing, total = self._look(place, awaited, documents)
            if missing:
                raise self._incomplete(missing)
            for path in documents:
                _require_digest(self._content(place, path), digests[path], self._directory / path)
        return total

    def unlock(self, secret: Secret) -> None:
        """Get ready to decrypt; with a passphrase it takes seconds. To be called after ``check``.

        Raises:
            BadRequest: ``passphrase-needed``, ``identity-needed``, ``passphrase-wrong``, ``identity-invalid``,
                ``export-key-differs``.
        """
        if self.header.protection == "passphrase":
            if secret.passphrase is None:
                raise self._needed("passphrase-needed", "a passphrase", "--passphrase-file FILE")
            with Place(self._directory) as place:
                self._unsealer = open_key(
                    self._content(place, KEY), secret.passphrase, f"the export in {self._directory}"
                )
        elif self.header.protection == "recipient":
            if secret.identity is None:
                raise self._needed("identity-needed", "a public key", "--identity FILE")
            self._unsealer = read_identity(secret.identity)
        with Place(self._directory) as place:
            self._unsealer.unseal(self._content(place, self._opening), f"the export in {self._directory}")

    def segment(self, awaited: AwaitedBase, target: DiskTarget, number: int) -> bytes:
        """Read a segment; its content is still to be checked against the format.

        Raises:
            Corrupt: ``export-damaged``.
            BadRequest: ``export-key-differs``.
            NotFound: ``export-incomplete``.
        """
        path = segment_path(awaited.opening.point, target, number, sealed=self._sealed)
        with Place(self._directory) as place:
            content = self._content(place, path)
        wanted = self._digests[target][number * _DIGEST : (number + 1) * _DIGEST].hex()
        _require_digest(content, wanted, self._directory / path)
        return self._unsealer.unseal(content, str(self._directory / path))

    def _read_list(self, place: Place, awaited: AwaitedBase, documents: list[str]) -> dict[str, str]:
        """Read the list; give the documents' digests and keep the segments'."""
        point, closings = awaited.opening.point, awaited.closing.disks
        lines = len(documents) + sum(disk.segments for disk in closings)
        content = place.read(CHECKSUMS, lines * MAX_LINE)
        if content is None:
            raise self._incomplete([CHECKSUMS])
        _require_digest(content, awaited.checksums, self._directory / CHECKSUMS)
        listed = checksum_lines(content.decode(errors="replace"))
        found: dict[str, str] = {}
        paths = {f"{point}/{disk.target}/": (disk.target, bytearray(_DIGEST * disk.segments)) for disk in closings}
        count = 0
        for digest, path in listed:
            target, digests = paths.get("/".join(path.split("/")[:2]) + "/", ("", None))
            number = _number(path)
            if digests is None:
                found[path] = digest
            elif path == segment_path(point, target, number, sealed=self._sealed) and number * _DIGEST < len(digests):
                digests[number * _DIGEST : (number + 1) * _DIGEST] = bytes.fromhex(digest)
            count += 1
        if count != lines or set(found) != set(documents):
            raise _damaged(self._directory / CHECKSUMS, "it does not list the files of the awaited point")
        self._digests = dict(paths.values())
        return found

    def _look(self, place: Place, awaited: AwaitedBase, documents: list[str]) -> tuple[list[str], int]:
        missing = [path for path in documents if place.size(path) is None]
        total = 0
        for disk in awaited.closing.disks:
            for number in range(disk.segments):
                path = segment_path(awaited.opening.point, disk.target, number, sealed=self._sealed)
                size = place.size(path)
                total += size or 0
                if size is None:
                    missing.append(path)
        return missing, total

    def _content(self, place: Place, path: str) -> bytes:
        content = place.read(path, MAX_SMALL if path in {HEADER, KEY} else MAX_FILE)
        if content is None:
            raise self._incomplete([path])
        return content

    def _incomplete(self, missing: list[str]) -> NotFound:
        more = f" and {len(missing) - 1} more files" if len(missing) > 1 else ""
        return NotFound(
            "export-incomplete",
            f"the export of {self.header.name} in {self._directory} is not complete: {missing[0]}{more} missing",
            hint="copy what is missing (or everything) again and import again: what is here already is not read twice",
        )

    def _needed(self, code: str, what: str, option: str) -> BadRequest:
        return BadRequest(
            code,
            f"the export of {self.header.name} in {self._directory} is encrypted with {what}",
            hint=f"vmreplica import {self._directory} {option}",
        )


def _number(path: str) -> int:
    digits = path.rpartition("/")[2].partition(".")[0]
    return int(digits) if digits.isascii() and digits.isdigit() else 0


def _require_digest(content: bytes, wanted: str, path: Path) -> None:
    if hashlib.sha256(content).hexdigest() != wanted:
        raise _damaged(path, "it does not have the checksum that its primary told")


def _damaged(path: Path, why: str) -> Corrupt:
    return Corrupt(
        "export-damaged",
        f"{path} is damaged: {why}",
        hint="copy this file (or the whole directory) from the original again, and import again",
    )
