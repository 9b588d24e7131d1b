"""Checksums of patches: the blocks that an image holds in the clear (docs/design/format.md, "Sums").

Whole clusters are zstd frames with a checksum each, which QEMU verifies on every read. The blocks of patches have none
in the image. So beside an index stands ``<target>.sums``: one entry for each of its segments that has patches, in their
order, with the xxh3-64 of each block in the order of the records and, within a record, of the blocks. An entry names
its segment by number and by the checksum that the index has of its head: it belongs to these very records.

Whoever makes a new index out of others carries the sums over, block by block: ``SumsReader.of`` gives them with each
segment that is read, ``SumsWriter.add`` takes them with each that is written.
"""

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Final, Self

import numpy as np
import numpy.typing as npt
import xxhash

from vmreplica.model.errors import Corrupt
from vmreplica.qcow2.head import BLOCK, MAX_PATCHES, Records, patch_blocks

#: xxh3-64 of each block, in order. UNKNOWN where nobody knows it any more.
Sums = npt.NDArray[np.uint64]
#: Of a block that came before sums were kept; no block has it, but for one in 2^64.
UNKNOWN: Final = 0

#: Number of the segment, blocks, xxh3-64 of the segment's head and records.
_FIELDS: Final = struct.Struct("<II8s")
_SUM: Final = 8
_ITEM: Final = np.dtype("<u8")
#: A patch has 15 blocks at most.
_MOST: Final = MAX_PATCHES * 15
_BUFFER: Final = 1 << 20
_MODE: Final = 0o600


def block_sums(blocks: bytes | memoryview) -> Sums:
    """Sum blocks that stand one behind the other, 4096 bytes each."""
    view = memoryview(blocks)
    digest = xxhash.xxh3_64_intdigest
    found = [digest(view[start : start + BLOCK]) or 1 for start in range(0, len(view), BLOCK)]
    return np.array(found, np.uint64)


def agree(blocks: bytes | memoryview, sums: Sums) -> bool:
    """Tell whether blocks that stand one behind the other have their sums, as far as these are known."""
    return bool(((sums == UNKNOWN) | (sums == block_sums(blocks))).all())


def blocks_in(records: Records) -> int:
    """Tell how many blocks the patches among these records have together: so many sums belong to them."""
    return int(patch_blocks(records).sum())


def sums_entry(number: int, head_bytes: bytes, sums: Sums) -> bytes:
    """Make the entry of one segment.

    Args:
        number: of the segment.
        head_bytes: its head and records, as the index has them.
        sums: of its patches' blocks.
    """
    body = _FIELDS.pack(number, len(sums), head_sum_of(head_bytes)) + sums.astype(_ITEM).tobytes()
    return body + xxhash.xxh3_64_digest(body)


class SumsReader:
    """Reads the sums that stand beside an index, in the order of its segments.

    Args:
        path: of the file; there is none beside an index without patches, or of a point from before there were sums.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._fh: BinaryIO | None = path.open("rb", buffering=_BUFFER)
        except FileNotFoundError:
            self._fh = None

    @property
    def known(self) -> bool:
        """Whether there are sums at all."""
        return self._fh is not None

    def of(self, head_bytes: bytes, number: int, records: Records) -> Sums:
        """Give the sums of the next segment that has patches; UNKNOWN for each block where there is no file.

        After an error the next segment can be asked for all the same.

        Args:
            head_bytes: its head and records, as the index has them.
            number: of the segment.
            records: of it; without patches nothing is read.

        Raises:
            Corrupt: ``sums-damaged``: the entry is not the one of this segment, or does not have its checksum.
        """
        blocks = blocks_in(records)
        if self._fh is None or not blocks:
            return np.full(blocks, UNKNOWN, np.uint64)
        entry = self._fh.read(_FIELDS.size + blocks * _ITEM.itemsize + _SUM)
        sums = np.frombuffer(entry[_FIELDS.size : -_SUM], _ITEM, count=-1) if len(entry) % _SUM == 0 else None
        if sums is None or len(sums) != blocks or sums_entry(number, head_bytes, sums.astype(np.uint64)) != entry:
            raise Corrupt("sums-damaged", f"{self._path} is damaged: the sums of segment {number} are not as written")
        return sums.astype(np.uint64)

    def ended(self) -> bool:
        """Tell whether everything in the file has been read."""
        return self._fh is None or not self._fh.read(1)

    def close(self) -> None:
        """Close the file."""
        if self._fh is not None:
            self._fh.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class SumsWriter:
    """Writes the sums beside a new index; without any patch there is no file.

    Args:
        path: of the file to make; one that is there is replaced.
    """

    def __init__(self, path: Path) -> None:
        path.unlink(missing_ok=True)
        self._path = path
        self._fh: BinaryIO | None = None

    def add(self, head_bytes: bytes, number: int, sums: Sums) -> None:
        """Append the sums of the next segment; one without patches (no sums) leaves no trace.

        Raises:
            OSError: also when the file system is full.
        """
        if len(sums):
            if self._fh is None:
                fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _MODE)
                self._fh = os.fdopen(fd, "wb", buffering=_BUFFER)
            self._fh.write(sums_entry(number, head_bytes, sums))

    def finish(self) -> None:
        """Make durable what was written, but for the directory.

        Raises:
            OSError: also when the file system is full.
        """
        if self._fh is not None:
            self._fh.flush()
            os.fsync(self._fh.fileno())
            self._fh.close()

    def abort(self) -> None:
        """Close the file after an error."""
        if self._fh is not None:
            self._fh.raw.close()  # type: ignore[attr-defined]


def head_sum_of(head_bytes: bytes) -> bytes:
    """Tell by what an entry names its segment."""
    return xxhash.xxh3_64_digest(head_bytes)


def read_journal(fh: BinaryIO) -> Iterator[tuple[int, bytes, int]]:
    """Read entries as they were appended while a point came, in any order; ends at what is not whole.

    Yields:
        Number and head checksum of a segment, and where its entry begins; the file stands at the entry's end.
    """
    while True:
        place = fh.tell()
        start = fh.read(_FIELDS.size)
        if len(start) < _FIELDS.size:
            return
        number, blocks, head_sum = _FIELDS.unpack(start)
        if not 0 < blocks <= _MOST:
            return
        body = start + fh.read(blocks * _ITEM.itemsize)
        if fh.read(_SUM) != xxhash.xxh3_64_digest(body):
            return
        yield number, head_sum, place


def read_entry_sums(fh: BinaryIO, place: int) -> Sums:
    """Read the sums of an entry that ``read_journal`` has found."""
    fh.seek(place)
    _number, blocks, _head_sum = _FIELDS.unpack(fh.read(_FIELDS.size))
    return np.frombuffer(fh.read(blocks * _ITEM.itemsize), _ITEM).astype(np.uint64)
