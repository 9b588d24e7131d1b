"""One image of a point checked from its first to its last byte, and put right as far as it tells what is right."""

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import xxhash

from vmreplica.model.errors import Corrupt
from vmreplica.model.units import CLUSTER, MiB
from vmreplica.qcow2.checking import (
    DiskFile,
    Fault,
    FrameReader,
    IndexWalk,
    Pace,
    check_frames_at,
    check_segments,
    opened,
)
from vmreplica.qcow2.head import Records
from vmreplica.qcow2.index import read_heads
from vmreplica.qcow2.layout import (
    BIG64,
    COMPRESSED,
    OFFSET_MASK,
    U64,
    Header,
    described,
    l2_entries_of,
    round_up,
)
from vmreplica.qcow2.reader import Image
from vmreplica.qcow2.table_sums import SummedTables, TableSums, read_table_sums
from vmreplica.qcow2.tables import WrongTable, wrong_tables

_PIECE: Final = 4 * MiB
_BUFFER: Final = 1 << 20

#: Makes the block in which an image is written to: it sees that the image is still what was checked, and stays so.
Repairing = Callable[[], AbstractContextManager[object]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What a point's manifest says of an image with an index."""

    #: Of the disk, and of the file, in bytes.
    size: int
    file_bytes: int
    #: Digest (hex) of tables and header.
    digest: str
    #: In its index; None: nobody wrote it down.
    segments: int | None
    #: Whether all its patches have sums.
    summed: bool
    #: Names that its backing file may have; None: it has none. The digest tells which one it is.
    backings: tuple[str | None, ...]


@dataclass(frozen=True, slots=True)
class ImageToCheck:
    """An image that came as a point, with the files beside it."""

    image: Path
    index: Path
    sums: Path


def check_image(
    files: ImageToCheck, expected: Expected, frame_reader: FrameReader, pace: Pace, *, repairing: Repairing | None
) -> Iterator[Fault]:
    """Check an image that has an index.

    Args:
        files: the image.
        expected: what it should be.
        frame_reader: decompresses.
        pace: told what is read.
        repairing: tables are written anew in place, in such a block, that are not what an intact index says; what it
            raises on entering goes to whoever calls, and nothing is written. None: they stay as they are.

    Raises:
        OSError: a file cannot be opened.
    """
    walk = IndexWalk()
    with opened(files.image, pace) as file:
        if file.size < expected.file_bytes:
            text = f"the file has {file.size} bytes, {expected.file_bytes} were written"
            yield Fault("table", 0, expected.size, text)
        yield from check_segments(file, files.index, files.sums, frame_reader, walk)
        if not walk.damaged and expected.segments not in {None, walk.segments}:
            walk.damaged = f"{files.index} has {walk.segments} segments, {expected.segments} were written"
        if walk.damaged:
            yield Fault("index", 0, 0, walk.damaged)
        if walk.sums_damaged or (expected.summed and walk.unsummed):
            yield Fault("sums", 0, 0, walk.sums_damaged or f"{files.sums} lacks the sums of {walk.unsummed} blocks")
        if _tables_right(file, expected, None if walk.damaged else walk.data_end):
            if walk.damaged:
                yield from _by_tables(file, frame_reader)
            return
    if walk.damaged:
        yield Fault("table", 0, expected.size, "header and tables are not as they were written, nor is the index")
        return
    yield from _wrong_tables(files, expected, walk, repairing)


def _tables_right(file: DiskFile, expected: Expected, data_end: int | None) -> bool:
    """Tell whether tables and header have their digest."""
    try:
        raw = file.read(CLUSTER, 0)
        header = Header.unpack(raw, str(file.path), overlay=True)
        packed = header.pack()
        if raw != packed.ljust(CLUSTER, b"\0"):
            return False
        start = round_up(data_end) if data_end is not None else _first_table(file, header)
        hasher = xxhash.xxh3_128()
        for offset in range(start, expected.file_bytes, _PIECE):
            hasher.update(file.read(min(_PIECE, expected.file_bytes - offset), offset))
    except Corrupt:
        return False
    hasher.update(packed)
    return hasher.hexdigest() == expected.digest


def _first_table(file: DiskFile, header: Header) -> int:
    l1 = _l1(file, header)
    tables: list[int] = (l1[l1 > 0] & np.uint64(OFFSET_MASK)).tolist()
    return min([header.l1_offset, *tables])


def _l1(file: DiskFile, header: Header) -> U64:
    if header.l1_offset + header.l1_entries * 8 > file.size:
        raise Corrupt("image-damaged", f"{file.path} names a table outside of itself")
    return np.frombuffer(file.read(header.l1_entries * 8, header.l1_offset), BIG64).astype(np.uint64)


def _by_tables(file: DiskFile, frame_reader: FrameReader) -> Iterator[Fault]:
    """Check the compressed clusters that right tables lead to: the index cannot tell them any more."""
    header = Header.unpack(file.read(CLUSTER, 0), str(file.path), overlay=True)
    per_table = l2_entries_of(extended=header.extended)
    for number, entry in enumerate(_l1(file, header).tolist()):
        if entry:
            words = np.frombuffer(file.read(CLUSTER, entry & OFFSET_MASK), BIG64).astype(np.uint64)
            yield from _frames_of(file, frame_reader, words[:: 2 if header.extended else 1], number * per_table)


def _frames_of(file: DiskFile, frame_reader: FrameReader, entries: U64, first: int) -> Iterator[Fault]:
    used = np.flatnonzero((entries & np.uint64(COMPRESSED)) != 0)
    starts, ends = described(entries[used])
    yield from check_frames_at(file, frame_reader, used + first, starts, ends)


def _wrong_tables(
    files: ImageToCheck, expected: Expected, walk: IndexWalk, repairing: Repairing | None
) -> Iterator[Fault]:
    """Say which tables are wrong, by the index; what is right has the digest, or nothing is put right."""
    for backing in expected.backings if not walk.patched else [name for name in expected.backings if name]:
        wrong, digest = _compared(files, expected, walk, backing, repair=False)
        if digest == expected.digest and wrong:
            if repairing is not None:
                with repairing():
                    _compared(files, expected, walk, backing, repair=True)
            for table in wrong:
                yield Fault(table.what, table.offset, table.length, table.text, repaired=repairing is not None)
            return
    yield Fault("table", 0, expected.size, "header and tables do not have the digest that the manifest tells")


def _compared(
    files: ImageToCheck, expected: Expected, walk: IndexWalk, backing: str | None, *, repair: bool
) -> tuple[list[WrongTable], str]:
    fd = os.open(files.image, (os.O_RDWR if repair else os.O_RDONLY) | os.O_CLOEXEC)
    try:
        return wrong_tables(
            fd,
            size=expected.size,
            data_end=walk.data_end,
            records=_records(files.index),
            backing=backing,
            patched=walk.patched,
            repair=repair,
        )
    finally:
        os.close(fd)


def _records(index: Path) -> Iterator[Records]:
    with index.open("rb", buffering=_BUFFER) as fh:
        for _head, records in read_heads(fh):
            yield records


class FoldedImage:
    """A folded image, checked table by table; between two tables its file may change, by a fold.

    Args:
        image: the image.
        sums: of its tables.
        size: of the disk in bytes.
        digest: of its header; empty: nobody knows.
        pace: told what is read.

    Raises:
        OSError: a file cannot be opened.
    """

    def __init__(self, image: Path, sums: Path, *, size: int, digest: str, pace: Pace) -> None:
        self._size = size
        self._digest = digest
        self._file = DiskFile(image, pace)
        #: What is wrong with header and sums; without a header nothing else can be read.
        self.faults: list[Fault] = []
        self._image: Image | None = None
        #: None: nobody knows what they should be.
        self._tables: SummedTables | None = None
        try:
            self._image = self._opened(image)
            known = self._known(sums)
            self._tables = SummedTables(self._image, known, str(image)) if known is not None else None
        except Corrupt as error:
            self.faults.append(Fault("header", 0, size, error.message))

    def close(self) -> None:
        """Close it."""
        self._file.close()

    def numbers(self) -> list[int]:
        """List the L2 tables that there are, or should be."""
        found = set(np.flatnonzero(self._image.l1).tolist()) if self._image is not None else set()
        if self._tables is not None:
            found |= set(np.flatnonzero(self._tables.sums.l2).tolist())
        return sorted(found)

    def rest(self) -> Iterator[Fault]:
        """Check header, L1 table and refcounts."""
        yield from self.faults
        if self._tables is None:
            return
        try:
            self._tables.check_rest()
        except Corrupt as error:
            l1 = "L1" in error.message
            yield Fault("table" if l1 else "refcounts", 0, self._size if l1 else 0, error.message)

    def table(self, number: int, frame_reader: FrameReader) -> Iterator[Fault]:
        """Check one L2 table and all that it leads to."""
        if self._image is None:
            return
        per_table = l2_entries_of(extended=False)
        start = number * per_table * CLUSTER
        try:
            entries = (self._tables or self._image).l2(number)
        except Corrupt as error:
            yield Fault("table", start, min(per_table * CLUSTER, self._size - start), error.message)
            return
        yield from _frames_of(self._file, frame_reader, entries, number * per_table)

    def _known(self, path: Path) -> TableSums | None:
        try:
            return read_table_sums(path)
        except Corrupt as error:
            self.faults.append(Fault("sums", 0, 0, error.message))
            return None

    def _opened(self, path: Path) -> Image:
        raw = self._file.read(CLUSTER, 0)
        packed = Header.unpack(raw, str(path)).pack()
        if raw != packed.ljust(CLUSTER, b"\0"):
            raise Corrupt("image-damaged", f"the header of {path} has more than was written")
        if self._digest and xxhash.xxh3_128_hexdigest(packed) != self._digest:
            raise Corrupt("image-damaged", f"the header of {path} is not as it was written")
        return Image(self._file.fd, path)
