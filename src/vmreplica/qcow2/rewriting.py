"""Writing merged images segment by segment: which records, where their bytes come from, and the index."""

from collections.abc import Iterator
from typing import BinaryIO, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from vmreplica.model.ids import DiskTarget, PointId
from vmreplica.qcow2.gather import Pool
from vmreplica.qcow2.head import (
    BLOCK,
    BLOCKS,
    DATA_START,
    KIND_PATCH,
    KIND_ZERO,
    KIND_ZSTD,
    MAX_PATCHES,
    MAX_RECORDS,
    RECORD,
    SEGMENT_BYTES,
    SegmentHead,
)
from vmreplica.qcow2.index import index_entry
from vmreplica.qcow2.layout import I64
from vmreplica.qcow2.overlaying import NOTHING, Blocks, Window
from vmreplica.qcow2.segment import merged_head
from vmreplica.qcow2.sums import UNKNOWN, SumsWriter

#: Clusters that are encoded anew and in memory at once.
_MADE: Final = 64
#: Clusters that the kernel reads ahead.
_READ: Final = 512

#: A record with where its bytes come from: a layer and an offset in its image, or -1 and the number of a frame in
#: memory. Of a patch: its place among the blocks.
_ROW: Final = np.dtype(
    [("cluster", "<i8"), ("length", "<i8"), ("place", "<i8"), ("mask", "<u4"), ("kind", "<u4"), ("layer", "<i2")]
)

_Rows = npt.NDArray[np.void]


class _Piece(NamedTuple):
    """Records, ascending; the frames that were made for them, and the blocks of their patches."""

    rows: _Rows
    frames: list[bytes]
    blocks: Blocks


class SegmentWriter:
    """Puts segments together from what ascending windows say. Memory: one segment, and 64 clusters.

    Args:
        pool: where bytes come from and go to.
        index: of the new image.
        sums: of the patches in it.
        point: that it belongs to.
        target: of the disk.
        keep_zeroes: whether to say what reads as zeroes.
    """

    def __init__(
        self,
        pool: Pool,
        index: BinaryIO,
        sums: SumsWriter,
        *,
        point: PointId,
        target: DiskTarget,
        keep_zeroes: bool,
    ) -> None:
        self._pool = pool
        self._index = index
        self._sums = sums
        self._names = point, target
        self._keep_zeroes = keep_zeroes
        self._waiting = _Waiting()
        #: Where the next segment's data begins in the image.
        self.data_end = DATA_START
        self.segments = self.data_bytes = self.encoded = 0
        self.patched, self.summed = False, True

    def add(self, window: Window) -> None:
        """Say what a window says.

        Raises:
            Corrupt: ``image-damaged``, ``frame-broken``.
            OSError: also when the file system is full.
        """
        for low, high in _bounded(window):
            piece = self._piece(window, low, high)
            while len(piece.rows):
                count = self._waiting.fitting(piece.rows)
                self._waiting.take(_cut(piece, 0, count))
                piece = _cut(piece, count, len(piece.rows))
                if len(piece.rows):
                    self._flush(int(piece.rows["cluster"][0]))

    def finish(self, clusters: int) -> None:
        """Write what is left of a disk of so many clusters."""
        if self._waiting.rows:
            self._flush(clusters)

    def _piece(self, window: Window, low: int, high: int) -> _Piece:
        """Make the records of some clusters, encoding what has to be encoded."""
        begin, end = np.searchsorted(window.patched, [low, high])
        made, at, blocks = window.made[begin:end], window.patched[begin:end] - low, window.blocks[begin:end]
        rows = np.zeros(high - low, _ROW)
        rows["cluster"] = window.first + np.arange(low, high)
        for name, values in (("kind", window.kind), ("layer", window.layer), ("place", window.place)):
            rows[name] = values[low:high]
        rows["length"] = window.length[low:high]
        data = rows[rows["kind"] == KIND_ZSTD]
        self._pool.expect(data["layer"], data["place"], data["length"], blocks)
        encoded = self._encode(rows, at[made], blocks[made])
        left, at = blocks[~made], at[~made]
        rows["mask"][at], rows["length"][at] = left.masks, left.counts * BLOCK
        return _Piece(_joined(rows, keep_zeroes=self._keep_zeroes), encoded, left)

    def _encode(self, rows: _Rows, at: I64, blocks: Blocks) -> list[bytes]:
        """Make whole clusters of those at some places, in place; give their frames."""
        made: list[bytes] = []
        for number, place in enumerate(at.tolist()):
            row = rows[place]
            whole = row["kind"] == KIND_ZSTD
            below = self._pool.frame(int(row["layer"]), int(row["place"]), int(row["length"])) if whole else None
            frame = self._pool.remake(below, blocks[number : number + 1])
            if frame is None:
                row["kind"] = KIND_ZERO
            else:
                row["kind"], row["layer"], row["place"], row["length"] = KIND_ZSTD, -1, len(made), len(frame)
                made.append(frame)
        self.encoded += len(at)
        return made

    def _flush(self, next_cluster: int) -> None:
        """Write a segment."""
        rows, blocks, made = self._waiting.all()
        data = rows[rows["kind"] == KIND_ZSTD]
        head = SegmentHead(
            self.segments, len(rows), self.data_end, next_cluster, int(data["length"].sum()), *self._names,
            digest=bytes(16), patch_count=len(blocks),
        )  # fmt: skip
        self._pool.put_frames(data["layer"], data["place"], data["length"], made, head.data_offset)
        self._pool.put_blocks(blocks, head.patches_at)
        records = np.zeros(len(rows), RECORD)
        records["cluster"], records["length"] = rows["cluster"], rows["length"]
        records["kind"] = rows["mask"] << np.uint32(BLOCKS) | rows["kind"]
        head_bytes = merged_head(head, records)
        self._index.write(index_entry(head_bytes))
        sums = blocks.sums[blocks.layer >= 0]
        self._sums.add(head_bytes, head.number, sums)
        self.summed &= bool((sums != UNKNOWN).all())
        self.data_bytes += head.data_length + int(blocks.counts.sum()) * BLOCK
        self.segments += 1
        self.patched |= head.patch_count > 0
        self.data_end = head.data_end
        self._waiting = _Waiting()


class _Waiting:
    """What the next segment holds so far."""

    def __init__(self) -> None:
        self.rows: list[_Rows] = []
        self._blocks: list[Blocks] = []
        self._made: list[bytes] = []
        self._records = self._data = self._patches = 0

    def fitting(self, rows: _Rows) -> int:
        """Tell how many of some records still go in; at least one goes into an empty segment."""
        sizes = np.where(rows["kind"] == KIND_ZSTD, rows["length"], 0)
        before = self._data + np.cumsum(sizes) - sizes
        patches = self._patches + np.cumsum(rows["kind"] == KIND_PATCH)
        within = (before < SEGMENT_BYTES) & (patches <= MAX_PATCHES)
        return min(MAX_RECORDS - self._records, len(rows) if within.all() else int(np.argmin(within)))

    def take(self, piece: _Piece) -> None:
        """Put records in."""
        rows = piece.rows.copy()
        made = rows["layer"] < 0
        self._made, base = [*self._made, *(piece.frames[number] for number in rows["place"][made])], len(self._made)
        rows["place"][made] = base + np.arange(np.count_nonzero(made))
        self.rows.append(rows)
        self._blocks.append(piece.blocks)
        self._records += len(rows)
        self._data += int(rows["length"][rows["kind"] == KIND_ZSTD].sum())
        self._patches += len(piece.blocks)

    def all(self) -> tuple[_Rows, Blocks, list[bytes]]:
        """Give everything."""
        return np.concatenate(self.rows), Blocks.joined(self._blocks), self._made


def _bounded(window: Window) -> Iterator[tuple[int, int]]:
    """Divide a window's clusters so that each part has a bounded number of frames to read and to make."""
    made, whole = window.patched[window.made], np.flatnonzero(window.kind == KIND_ZSTD)
    low = 0
    for high in np.union1d(made[_MADE::_MADE], whole[_READ::_READ]).tolist():
        yield low, high
        low = high
    yield low, len(window.kind)


def _joined(rows: _Rows, *, keep_zeroes: bool) -> _Rows:
    """Make one record of each run of zeroes; leave out the clusters of which nothing is said."""
    zero = rows["kind"] == KIND_ZERO
    if not keep_zeroes:
        stored: _Rows = rows[(rows["kind"] != NOTHING) & ~zero]
        return stored
    edges = np.flatnonzero(np.diff(np.concatenate([[False], zero, [False]])))
    starts, ends = edges[::2], edges[1::2]
    rows["length"][starts] = ends - starts
    said = (rows["kind"] != NOTHING) & ~zero
    said[starts] = True
    records: _Rows = rows[said]
    return records


def _cut(piece: _Piece, low: int, high: int) -> _Piece:
    """Give some records of a piece."""
    patch = np.cumsum(np.concatenate([[0], piece.rows["kind"] == KIND_PATCH]))
    return _Piece(piece.rows[low:high], piece.frames, piece.blocks[int(patch[low]) : int(patch[high])])
