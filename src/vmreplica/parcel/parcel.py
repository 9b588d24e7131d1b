"""Writing an export: the spool's very segments, each durable before it is counted, and at the end the checksum list."""

import hashlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Self

from vmreplica.model.errors import Unreachable
from vmreplica.model.export import SeedExport, Sha256
from vmreplica.model.ids import DiskTarget
from vmreplica.model.point import PointClosing, PointOpening
from vmreplica.parcel.layout import (
    CHECKSUMS,
    CLOSING,
    HEADER,
    JOURNAL,
    KEY,
    MAX_FILE,
    MAX_LINE,
    OPENING,
    checksum_line,
    checksum_lines,
    document_path,
    segment_number,
    segment_path,
)
from vmreplica.parcel.place import Place
from vmreplica.parcel.prepare import read_header
from vmreplica.parcel.seal import Sealer

#: Bytes of the list at most: enough for 80 TB of compressed data.
_MAX_LIST: Final = MAX_LINE * 10_000_000


class Parcel:
    """One point on its way into a directory; begun again it goes on where it stopped. Thread-safe.

    Args:
        seed: where, as the VM's policy says.
        opening: of the point; of another one that was begun there before, everything is removed.
        reserve: bytes to leave free on the file system.

    Raises (every method):
        Unreachable: ``export-gone`` and others: the medium is not there, or is another one.
        NoSpace: it is full.
        Corrupt: ``export-damaged``.
    """

    def __init__(self, seed: SeedExport, opening: PointOpening, *, reserve: int = 0) -> None:
        self._seed = seed
        self._point = opening.point
        self._reserve = reserve
        self._sealer = Sealer(seed.recipient)
        self._lock = threading.Lock()
        self._held: dict[DiskTarget, set[int]] = {disk.target: set() for disk in opening.disks}
        self._journal = f"{opening.point}/{JOURNAL}"
        self._opening = document_path(opening.point, OPENING, sealed=self._sealer.sealed)
        self._closing = document_path(opening.point, CLOSING, sealed=self._sealer.sealed)
        with self._place() as place:
            self._begin(place, opening)

    def held(self) -> dict[DiskTarget, set[int]]:
        """Tell which segments are durable there."""
        with self._lock:
            return {target: set(numbers) for target, numbers in self._held.items()}

    def put(self, target: DiskTarget, number: int, body: bytes) -> None:
        """Make a segment durable."""
        with self._lock:
            if number in self._held[target]:
                return
        path = segment_path(self._point, target, number, sealed=self._sealer.sealed)
        content = self._sealer.seal(body)
        line = checksum_line(hashlib.sha256(content).hexdigest(), path).encode()
        with self._place() as place:
            place.publish(path, content, reserve=self._reserve)
            with self._lock:
                place.append(self._journal, line)
                self._held[target].add(number)

    def close(self, closing: PointClosing) -> Sha256:
        """Write the closing and the checksum list; give the list's own SHA-256. Again is harmless."""
        with self._place() as place:
            finished = place.read(CHECKSUMS, _MAX_LIST)
            if finished is None:
                place.publish(self._closing, self._sealer.seal(closing.model_dump_json().encode()))
                finished = self._checksums(place)
                place.publish(CHECKSUMS, finished)
            place.remove(self._journal)
        return hashlib.sha256(finished).hexdigest()

    def _begin(self, place: Place, opening: PointOpening) -> None:
        finished = place.read(CHECKSUMS, _MAX_LIST)
        if finished is not None and place.size(self._closing) is not None:
            self._take_in(place, finished.decode(errors="replace"))
            return
        # Not of this point: it was never acknowledged, so nobody waits for it.
        place.remove(CHECKSUMS)
        for name in place.names():
            if name not in {HEADER, KEY, self._point} and not name.startswith(".") and _is_point(name):
                place.remove(name)
        if place.size(self._opening) is None:
            place.publish(self._opening, self._sealer.seal(opening.model_dump_json().encode()), reserve=self._reserve)
        kept = self._take_in(place, (place.read(self._journal, _MAX_LIST) or b"").decode(errors="replace"))
        place.publish(self._journal, "".join(kept).encode())

    def _take_in(self, place: Place, text: str) -> list[str]:
        """Take note of the segments that are listed and there; give their lines, each once."""
        kept = []
        for digest, path in checksum_lines(text):
            target = path.split("/")[1] if path.count("/") > 1 else ""
            number = segment_number(self._point, target, path, sealed=self._sealer.sealed)
            held = self._held.get(target)
            if held is None or number is None or number in held or not place.size(path):
                continue
            held.add(number)
            kept.append(checksum_line(digest, path))
        return kept

    def _checksums(self, place: Place) -> bytes:
        lines = [self._line(place, path) for path in self._documents(place)]
        segments = place.read(self._journal, _MAX_LIST) or b""
        return "".join(lines).encode() + segments

    def _documents(self, place: Place) -> Iterator[str]:
        yield HEADER
        if place.size(KEY) is not None:
            yield KEY
        yield self._opening
        yield self._closing

    def _line(self, place: Place, path: str) -> str:
        content = place.read(path, MAX_FILE)
        if content is None:
            raise _gone(self._seed, f"{path} is missing")
        return checksum_line(hashlib.sha256(content).hexdigest(), path)

    def _place(self) -> "_Ours":
        return _Ours(self._seed)


class _Ours(Place):
    """The directory, if the export stands in it that was prepared there."""

    def __init__(self, seed: SeedExport) -> None:
        super().__init__(Path(seed.directory))
        self._seed = seed

    def __enter__(self) -> Self:
        super().__enter__()
        try:
            self._require_ours()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _require_ours(self) -> None:
        header = read_header(self)
        if header is None:
            raise _gone(self._seed, "there is no export in it")
        if header.export != self._seed.export:
            raise _gone(self._seed, f"it holds another export, of {header.name}")


def _gone(seed: SeedExport, why: str) -> Unreachable:
    """Say that the medium is not there, or is another one."""
    return Unreachable(
        "export-gone",
        f"the export in {seed.directory} cannot be gone on with: {why}",
        hint="plug the medium in and mount it there again; it goes on by itself",
    )


def _is_point(name: str) -> bool:
    return len(name) == len("20260101T000000Z-00000000") and name[8] == "T" and name[15:17] == "Z-"
