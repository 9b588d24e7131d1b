"""Building an image's tables behind its data: L2, L1, refcounts, and last the header (docs/design/format.md).

The data parts of all segments stand in the file already. Memory is bounded: one L2 table, the L1 table, and two bytes
per host cluster of the file.
"""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Final, Literal, NamedTuple, TypedDict

import numpy as np
import numpy.typing as npt
import xxhash

from vmreplica.model.units import CLUSTER
from vmreplica.qcow2.head import DATA_START, KIND_ZERO, KIND_ZSTD, Records
from vmreplica.qcow2.layout import (
    BIG16,
    BIG64,
    COPIED,
    READS_ZERO,
    READS_ZERO_BITMAP,
    REFCOUNTS,
    UNALLOCATED,
    Batch,
    Header,
    count_frames,
    l1_entries_of,
    l2_entries_of,
    l2_tables,
    round_up,
    table_clusters,
)  # fmt: skip
from vmreplica.qcow2.rawio import pwrite_all

#: Longer than any header with its extensions and backing name.
_HEADER_BYTES: Final = 4096
_NOTHING: Final = range(0)


class _Places(TypedDict):
    """What of a header is known only when the tables stand."""

    l1_offset: int
    l1_entries: int
    refcount_offset: int
    refcount_clusters: int


_UNPLACED: Final = _Places(l1_offset=0, l1_entries=0, refcount_offset=0, refcount_clusters=0)


@dataclass(frozen=True, slots=True)
class TablesResult:
    """An image's size in bytes, and the xxh3-128 (hex) of all its tables and its header."""

    file_bytes: int
    digest: str


def write_tables(
    fd: int,
    *,
    size: int,
    data_end: int,
    records: Iterable[Records],
    backing: str | None,
    raw_backing: bool = False,
    patched: bool = False,
) -> TablesResult:
    """Make a valid image of a file that holds data.

    Args:
        fd: the file, open for writing; anything behind ``data_end`` in it is dropped.
        size: of the disk, in bytes.
        data_end: where the data ends; it begins at DATA_START, each segment's part goes on where the last ended.
        records: of all segments in order, one array for each.
        backing: name of the backing file as it shall stand in the header.
        raw_backing: the backing file is raw, not qcow2.
        patched: whether there are patches among the records; they need a backing file.

    Raises:
        Corrupt: ``index-order``.
        OSError: also when the file system is full; the file has no header then, and the call may be repeated.
    """
    pwrite_all(fd, bytes(_HEADER_BYTES), 0)
    os.ftruncate(fd, data_end)
    tail = _Tail(fd, round_up(data_end))
    plain = Header(size=size, **_UNPLACED, backing=backing, raw_backing=raw_backing, extended=patched)
    return _commit(fd, tail, _build(tail, records, plain).pack())


class WrongTable(NamedTuple):
    """A table that is not what the records of its image say."""

    what: Literal["header", "table", "refcounts"]
    #: Guest bytes that are looked up in it; a length of 0: none.
    offset: int
    length: int
    text: str


def wrong_tables(
    fd: int,
    *,
    size: int,
    data_end: int,
    records: Iterable[Records],
    backing: str | None,
    patched: bool,
    repair: bool = False,
) -> tuple[list[WrongTable], str]:
    """Compare an image's header and tables with what ``write_tables`` would write, one after the other.

    Args:
        fd: the file, open for reading, and for writing if it is repaired.
        size: as for ``write_tables``, like all that follow.
        data_end: likewise.
        records: likewise.
        backing: likewise.
        patched: likewise.
        repair: write what is right in the place of what is wrong; it is durable when this returns.

    Returns:
        What is wrong, and the digest that right tables and header have.

    Raises:
        Corrupt: ``index-order``.
        OSError: the file cannot be read or written.
    """
    tail = _Compared(fd, round_up(data_end), repair=repair)
    header = _build(tail, records, Header(size=size, **_UNPLACED, backing=backing, extended=patched))
    tail.compare(header.pack().ljust(CLUSTER, b"\0"), 0, "header", range(size))
    tail.hasher.update(header.pack())
    if repair and tail.wrong:
        os.fsync(fd)
    return tail.wrong, tail.hasher.hexdigest()


def _build(tail: "_Tail", records: Iterable[Records], plain: Header) -> Header:
    """Append all tables; give the header that leads to them."""
    extended, alone = plain.extended, plain.backing is None
    counts = np.zeros(tail.offset // CLUSTER, np.uint16)
    batches = _placed(records, counts, keep_zeroes=not alone)
    zero = UNALLOCATED if alone else READS_ZERO_BITMAP if extended else READS_ZERO
    l1 = _write_l2(tail, batches, zero, size=plain.size, extended=extended)
    l1_offset = tail.append(l1.astype(BIG64).tobytes(), range(plain.size))
    refcount_offset, refcount_clusters = _write_refcounts(tail, counts)
    return replace(
        plain,
        l1_offset=l1_offset,
        l1_entries=len(l1),
        refcount_offset=refcount_offset,
        refcount_clusters=refcount_clusters,
    )


def _write_l2(
    tail: "_Tail", batches: Iterable[Batch], zero: int, *, size: int, extended: bool
) -> npt.NDArray[np.uint64]:
    """Append the second-level tables; give the first-level one, which points to them."""
    l1 = np.zeros(l1_entries_of(size, extended=extended), np.uint64)
    reach = CLUSTER * l2_entries_of(extended=extended)
    for number, entries, _said in l2_tables(batches, zero, extended=extended):
        serves = range(number * reach, min((number + 1) * reach, size))
        l1[number] = tail.append(entries.astype(BIG64).tobytes(), serves) | COPIED
    return l1


def _commit(fd: int, tail: "_Tail", header: bytes) -> TablesResult:
    """Write the header once all that it points to is on the disk: from then on the file is an image."""
    os.fdatasync(fd)
    pwrite_all(fd, header, 0)
    os.fsync(fd)
    tail.hasher.update(header)
    return TablesResult(tail.offset, tail.hasher.hexdigest())


class _Tail:
    """The end of a file: appends whole clusters, and hashes what it appended."""

    def __init__(self, fd: int, offset: int) -> None:
        self._fd = fd
        self.offset = offset
        self.hasher = xxhash.xxh3_128()

    def append(self, data: bytes, serves: range = _NOTHING) -> int:
        """Append a table, padded to a cluster; tell its offset.

        Args:
            data: of the table.
            serves: the guest bytes that are looked up in it.
        """
        data = data.ljust(round_up(len(data)), b"\0")
        self._put(data, serves)
        self.hasher.update(data)
        self.offset += len(data)
        return self.offset - len(data)

    def _put(self, data: bytes, _serves: range) -> None:
        pwrite_all(self._fd, data, self.offset)


class _Compared(_Tail):
    """The end of a file that has its tables: compares instead of appending."""

    def __init__(self, fd: int, offset: int, *, repair: bool) -> None:
        super().__init__(fd, offset)
        self._repair = repair
        self.wrong: list[WrongTable] = []

    def compare(self, data: bytes, offset: int, what: Literal["header", "table", "refcounts"], serves: range) -> None:
        """Compare what stands at an offset with what should."""
        if os.pread(self._fd, len(data), offset) == data:
            return
        self.wrong.append(WrongTable(what, serves.start, len(serves), f"at byte {offset} of the file"))
        if self._repair:
            pwrite_all(self._fd, data, offset)

    def _put(self, data: bytes, serves: range) -> None:
        self.compare(data, self.offset, "table" if serves else "refcounts", serves)


def _placed(records: Iterable[Records], counts: npt.NDArray[np.uint16], *, keep_zeroes: bool) -> Iterator[Batch]:
    """Give each cluster with data its place, segment by segment, and count it there."""
    position = DATA_START
    counts[0] = 1
    for batch in records:
        zstd, data = batch["kind"] == KIND_ZSTD, batch["kind"] != KIND_ZERO
        starts, ends = np.zeros(len(batch), np.int64), np.zeros(len(batch), np.int64)
        lengths = batch["length"][zstd].astype(np.int64)
        ends[zstd] = position + np.cumsum(lengths)
        starts[zstd] = ends[zstd] - lengths
        position += int(lengths.sum())
        patches = data & ~zstd
        if patches.any():
            starts[patches] = round_up(position) + np.arange(np.count_nonzero(patches)) * CLUSTER
            ends[patches] = starts[patches] + CLUSTER
            position = int(ends[patches][-1])
        count_frames(counts, starts[data], ends[data], 1)
        kept = batch if keep_zeroes else batch[data]
        if len(kept):
            yield kept, starts[data]


def _write_refcounts(tail: _Tail, counts: npt.NDArray[np.uint16]) -> tuple[int, int]:
    """Append refcount blocks and table, which count themselves too; tell the table's offset and clusters."""
    blocks, table = fit_refcounts(tail.offset // CLUSTER)
    total = tail.offset // CLUSTER + blocks + table
    start = tail.offset
    for block in range(blocks):
        low = block * REFCOUNTS
        values = np.zeros(REFCOUNTS, BIG16)
        values[: max(0, min(REFCOUNTS, total - low))] = 1
        known = counts[low : low + REFCOUNTS]
        values[: len(known)] = known
        tail.append(values.tobytes())
    places = np.arange(blocks, dtype=np.uint64) * np.uint64(CLUSTER) + np.uint64(start)
    return tail.append(places.astype(BIG64).tobytes()), table


def fit_refcounts(clusters: int) -> tuple[int, int]:
    """Tell how many refcount blocks and refcount table clusters cover so many clusters and themselves."""
    blocks = table = 0
    while True:
        needed = -(-(clusters + blocks + table) // REFCOUNTS)
        if (needed, table_clusters(needed)) == (blocks, table):
            return blocks, table
        blocks, table = needed, table_clusters(needed)
