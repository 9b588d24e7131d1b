"""Folding a point's image into the image below it, verbatim but for patches (docs/design/format.md, "Folding").

``prepare_fold`` adds to the base's file and changes nothing that its header leads to: until the header it
returns is written by ``switch``, the base is the same image as before, and ``undo`` cuts the file back.
``reclaim`` gives the space of what was superseded back to the file system afterwards. Each of them may be
repeated after a crash.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

import numpy as np
import numpy.typing as npt

from vmreplica.model.units import CLUSTER
from vmreplica.qcow2.head import KIND_ZERO, KIND_ZSTD, Records, is_patch, split
from vmreplica.qcow2.index import read_entry
from vmreplica.qcow2.layout import (
    BIG16,
    BIG64,
    COMPRESSED,
    COPIED,
    I64,
    OFFSET_MASK,
    REFCOUNTS,
    U64,
    UNALLOCATED,
    Batch,
    Header,
    described,
    l1_entries_of,
    l2_tables,
    table_clusters,
)
from vmreplica.qcow2.patching import Patcher
from vmreplica.qcow2.rawio import copy_range, punch, pwrite_all
from vmreplica.qcow2.reader import Image
from vmreplica.qcow2.space import HostSpace, free_runs
from vmreplica.qcow2.sums import Sums, SumsReader, blocks_in
from vmreplica.qcow2.table_sums import (
    NONE,
    SummedTables,
    read_table_sums,
    sums_of_tables,
    table_sum,
    write_table_sums,
)

_BLOCK: Final = 4096
_SECTOR: Final = 512
_DEAD_BATCH: Final = 65536
_BUFFER: Final = 1 << 20
#: Patched clusters in memory at once.
_PATCHES: Final = 64


@dataclass(frozen=True, slots=True)
class Beside:
    """Files beside the images of a fold."""

    #: Of the overlay; the sums of its patches stand beside it.
    index: Path
    #: To be written: what it supersedes in the base, for ``reclaim``.
    dead: Path
    #: Of the base's tables as they are; there may be none yet.
    sums: Path
    #: To be written: of the base's tables as they will be.
    new_sums: Path


def prepare_fold(base: Path, overlay: Path, beside: Beside, *, size: int, check: Callable[[], None]) -> bytes:
    """Add an overlay's data and new tables to its base's file.

    Args:
        base: image without a backing file.
        overlay: image over it.
        beside: ``dead`` and ``new_sums`` are written.
        size: of the overlay's disk in bytes; not less than that of the base's.
        check: called often; raises what shall stop the work.

    Returns:
        The header that makes the base equal to the overlay.

    Raises:
        Corrupt: ``image-damaged``, ``index-damaged``, ``index-order``, ``sums-damaged``.
        NoSpace, OSError: also when the file system is full.
    """
    with _opened(base, os.O_RDWR) as fd, _opened(overlay, os.O_RDONLY) as source, beside.dead.open("wb") as gone:
        image = Image(fd, base)
        fold = _Fold(image, fd, size, _summed(image, beside.sums, base))
        sums = beside.index.with_suffix(".sums")
        with beside.index.open("rb", buffering=_BUFFER) as heads, SumsReader(sums) as known:
            batches = _Mover(fold, source, overlay, check).batches(heads, known)
            for number, entries, said in l2_tables(batches, UNALLOCATED):
                check()
                fold.merge(number, entries, said, gone)
        header = fold.finish()
        gone.flush()
        os.fsync(gone.fileno())
        os.fsync(fd)
        write_table_sums(beside.new_sums, fold.tables.sums)
    return header


def _summed(image: Image, sums: Path, base: Path) -> SummedTables:
    """Give the base's tables, each to be checked before anything is made of it; those of before have no sums."""
    known = read_table_sums(sums)
    tables = SummedTables(image, known or sums_of_tables(image), str(base))
    tables.check_rest()
    return tables


def switch(base: Path, header: bytes) -> None:
    """Write the prepared header: from here on the base has the overlay's content."""
    with _opened(base, os.O_RDWR) as fd:
        pwrite_all(fd, header.ljust(_BLOCK, b"\0"), 0)
        os.fsync(fd)


def undo(base: Path, size: int) -> None:
    """Cut what was prepared off a base's file, which had so many bytes before."""
    with _opened(base, os.O_RDWR) as fd:
        os.ftruncate(fd, size)
        _punch_free(fd, base, lambda: False)
        os.fsync(fd)


def reclaim(image: Path, dead: Path, stopped: Callable[[], bool]) -> None:
    """Punch what was superseded out of a folded image, as far as whole blocks of the file system go.

    Args:
        image: the former base.
        dead: what ``prepare_fold`` wrote.
        stopped: asked often; once true, the rest keeps its space until its whole clusters are free.
    """
    with _opened(image, os.O_RDWR) as fd, dead.open("rb") as gone:
        while (raw := gone.read(_DEAD_BATCH * 16)) and not stopped():
            for start, end in np.frombuffer(raw, np.int64).reshape(-1, 2).tolist():
                # A descriptor tells the end rounded up to a sector: the next frame may begin in that sector.
                low, high = -(-start // _BLOCK) * _BLOCK, (end - _SECTOR + 1) // _BLOCK * _BLOCK
                if low < high and not stopped():
                    punch(fd, low, high - low)
        _punch_free(fd, image, stopped)


def _punch_free(fd: int, path: Path, stopped: Callable[[], bool]) -> None:
    image = Image(fd, path)
    starts, lengths = free_runs(image.refcounts(0))
    for start, length in zip(starts.tolist(), lengths.tolist(), strict=True):
        if stopped():
            return
        punch(fd, start * CLUSTER, length * CLUSTER)


@contextmanager
def _opened(path: Path, flags: int) -> Iterator[int]:
    fd = os.open(path, flags | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


class _Fold:
    """The new state of a base, built beside the old one. Memory: L1, refcounts (2 bytes per host cluster)."""

    def __init__(self, image: Image, fd: int, size: int, tables: SummedTables) -> None:
        self.image, self.fd, self._size, self.tables = image, fd, size, tables
        self.space = HostSpace(image.refcounts(REFCOUNTS), image.bytes // CLUSTER)
        self._l1 = np.zeros(max(l1_entries_of(size), len(image.l1)), np.uint64)
        self._l1[: len(image.l1)] = image.l1
        tables.sums.resize(len(self._l1), len(image.refcount_table))

    def place(self, lengths: I64, room: "_Room", put: Callable[[int, int, int], None]) -> I64:
        """Find places for frames that stand one after the other; tell their offsets.

        Args:
            lengths: of the frames.
            room: where there is room.
            put: copies so many bytes of the frames, from one place in them, to a place in the base.
        """
        placed = np.zeros(len(lengths), np.int64)
        done = taken = 0
        while done < len(lengths):
            ends = np.cumsum(lengths[done:])
            fitting = int(np.searchsorted(ends, room.end - room.start, "right"))
            if not fitting:
                room.start, room.end = self.space.data_run(max(CLUSTER * 2, int(ends[-1])))
                continue
            ends = ends[:fitting]
            used = int(ends[-1])
            placed[done : done + fitting] = room.start + ends - lengths[done : done + fitting]
            put(taken, used, room.start)
            room.start, taken, done = room.start + used, taken + used, done + fitting
        self.space.count(placed, placed + lengths, 1)
        return placed

    def merge(self, number: int, entries: U64, said: npt.NDArray[np.bool_], gone: BinaryIO) -> None:
        """Write a new L2 table: the base's, but the overlay's where that says something."""
        old = self.tables.l2(number)
        replaced = old[said & ((old & np.uint64(COMPRESSED)) != 0)]
        starts, ends = described(replaced)
        self.space.count(starts, ends, -1)
        gone.write(np.stack([starts, ends], axis=1).tobytes())
        merged = np.where(said, entries, old)
        if self._l1[number]:
            self.space.drop_table(int(self._l1[number]) & OFFSET_MASK, 1)
        self._l1[number], self.tables.sums.l2[number] = 0, NONE
        if merged.any():
            offset, self.tables.sums.l2[number] = self._write(merged)
            self._l1[number] = offset | COPIED

    def finish(self) -> bytes:
        """Write the L1 table and all counts that changed; give the header that leads to them."""
        self.space.drop_table(self.image.header.l1_offset, self.image.l1_clusters)
        l1_offset, self.tables.sums.l1 = self._write(self._l1)
        refcount_offset, refcount_clusters = self._write_refcounts()
        os.ftruncate(self.fd, self.space.clusters * CLUSTER)
        return Header(
            size=self._size,
            l1_offset=l1_offset,
            l1_entries=len(self._l1),
            refcount_offset=refcount_offset,
            refcount_clusters=refcount_clusters,
        ).pack()

    def _write(self, table: U64) -> tuple[int, int]:
        """Write a table; tell its offset and its sum."""
        clusters = table_clusters(len(table))
        offset = self.space.table(clusters)
        raw = table.astype(BIG64).tobytes().ljust(clusters * CLUSTER, b"\0")
        pwrite_all(self.fd, raw, offset)
        return offset, table_sum(raw)

    def _write_refcounts(self) -> tuple[int, int]:
        """Move the changed refcount blocks; moving one changes counts, so until none is left over."""
        space, header = self.space, self.image.header
        space.drop_table(header.refcount_offset, header.refcount_clusters)
        # Each block covers far more clusters than all blocks of these tables: one more is always enough.
        blocks = -(-(space.clusters + REFCOUNTS // 2) // REFCOUNTS) + 1
        blocks = max(blocks, int(np.flatnonzero(self.image.refcount_table)[-1]) + 1)
        table = np.zeros(table_clusters(blocks) * (CLUSTER // 8), np.uint64)
        known = min(len(table), len(self.image.refcount_table))
        table[:known] = self.image.refcount_table[:known]
        offset = space.table(table_clusters(blocks))
        moved: set[int] = set()
        while waiting := space.dirty - moved:
            for block in sorted(waiting):
                if table[block]:
                    space.drop_table(int(table[block]), 1)
                table[block] = space.table(1)
                moved.add(block)
        self.tables.sums.resize(0, len(table))
        for block in sorted(moved):
            self._write_block(block, int(table[block]))
        raw = table.astype(BIG64).tobytes()
        pwrite_all(self.fd, raw, offset)
        self.tables.sums.refcount_table = table_sum(raw)
        return offset, table_clusters(blocks)

    def _write_block(self, block: int, offset: int) -> None:
        values = np.zeros(REFCOUNTS, BIG16)
        known = self.space.counts[block * REFCOUNTS : min((block + 1) * REFCOUNTS, self.space.clusters)]
        values[: len(known)] = known
        raw = values.tobytes()
        pwrite_all(self.fd, raw, offset)
        self.tables.sums.blocks[block] = table_sum(raw)


class _Room:
    """The free run that data is being put into: [start, end) in bytes."""

    def __init__(self) -> None:
        self.start = 0
        self.end = 0


class _Mover:
    """Brings an overlay's data into the base: frames as they are, patches put into their clusters."""

    def __init__(self, fold: _Fold, source: int, path: Path, check: Callable[[], None]) -> None:
        self._fold, self._source, self._path, self._check = fold, source, path, check
        self._room = _Room()
        self._patcher = Patcher(fold.image, fold.fd, source, path)

    def batches(self, heads: BinaryIO, known: SumsReader) -> Iterator[Batch]:
        """Move each segment's data; tell its records, without patches any more, and where its clusters are now."""
        while (entry := read_entry(heads)) is not None:
            head, records, head_bytes = split(entry)
            self._check()
            zstd, offsets = records["kind"] == KIND_ZSTD, np.zeros(len(records), np.int64)
            offsets[zstd] = self._copy(records["length"][zstd].astype(np.int64), head.data_offset)
            if head.patch_count:
                sums = known.of(head_bytes, head.number, records)
                records = records.copy()
                self._merge_patches(records, offsets, head.patches_at, sums)
            yield records, offsets[records["kind"] == KIND_ZSTD]

    def _copy(self, lengths: I64, start: int) -> I64:
        def put(begin: int, size: int, to: int) -> None:
            copy_range(self._source, self._fold.fd, start=start + begin, to=to, size=size, path=self._path)

        return self._fold.place(lengths, self._room, put)

    def _merge_patches(self, records: Records, offsets: I64, start: int, sums: Sums) -> None:
        """Make whole clusters of patches, some at a time: bounded memory."""
        patches = np.flatnonzero(is_patch(records))
        for low in range(0, len(patches), _PATCHES):
            self._check()
            part = patches[low : low + _PATCHES]
            blocks = blocks_in(records[part])
            made = self._patcher.frames(records[part], start + low * CLUSTER, sums[:blocks])
            sums = sums[blocks:]
            records["kind"][part] = [KIND_ZERO if frame is None else KIND_ZSTD for frame in made]
            records["length"][part] = [1 if frame is None else len(frame) for frame in made]
            used = part[[frame is not None for frame in made]]
            body = memoryview(b"".join(frame for frame in made if frame is not None))

            def put(begin: int, size: int, to: int, body: memoryview = body) -> None:
                pwrite_all(self._fold.fd, body[begin : begin + size], to)

            offsets[used] = self._fold.place(records["length"][used].astype(np.int64), self._room, put)
