"""Reading the indexes of images that stand on each other side by side, one range of guest clusters after the other."""

from collections.abc import Iterator, Sequence
from typing import BinaryIO, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from vmreplica.model.errors import Corrupt
from vmreplica.model.units import CLUSTER
from vmreplica.qcow2.head import (
    KIND_PATCH,
    KIND_ZERO,
    KIND_ZSTD,
    Records,
    SegmentHead,
    is_patch,
    patch_blocks,
    patch_masks,
    record_ends,
    split,
)
from vmreplica.qcow2.index import read_entry
from vmreplica.qcow2.sums import Sums, SumsReader

#: A record with all that its place in the index tells: guest clusters [start, end); bytes of its frame, and where in
#: the image it stands (of a patch: its host cluster); of a patch the place of its first block's sum among the sums.
ROW: Final = np.dtype(
    [
        ("start", "<i8"),
        ("end", "<i8"),
        ("length", "<i8"),
        ("place", "<i8"),
        ("block", "<i8"),
        ("mask", "<u4"),
        ("kind", "<u4"),
    ]
)

#: A one-dimensional array of dtype ROW.
Rows = npt.NDArray[np.void]

_NO_SUMS: Final = np.zeros(0, np.uint64)


class Said(NamedTuple):
    """What a layer says: rows, and the sums of the blocks of their patches."""

    rows: Rows
    sums: Sums


class Layer:
    """The records of one image, ascending. Memory: those of one segment, at most 4 MiB."""

    def __init__(self, batches: Iterator[Said]) -> None:
        self._batches = batches
        self._rows: Rows = np.zeros(0, ROW)
        self._sums = _NO_SUMS
        self._last = 0
        self._load()

    @property
    def next_cluster(self) -> int | None:
        """The first guest cluster that was not taken yet and that something is said about; None at the end."""
        return int(self._rows["start"][0]) if len(self._rows) else None

    def take(self, end: int) -> Said:
        """Give what is said about all clusters before this one that were not taken yet; runs of zeroes are cut there.

        Raises:
            Corrupt: ``index-damaged``, ``index-order``, ``sums-damaged``.
        """
        parts, sums, taken = [self._rows[:0]], [_NO_SUMS], 0
        while len(self._rows) and int(self._rows["start"][0]) < end:
            part, own = self._cut(end)
            part["block"] += taken
            taken += len(own)
            parts.append(part)
            sums.append(own)
            if not len(self._rows):
                self._load()
        return Said(np.concatenate(parts), np.concatenate(sums))

    def _cut(self, end: int) -> Said:
        """Take what there is of the segment at hand."""
        count = int(np.searchsorted(self._rows["start"], end, "left"))
        part, self._rows = self._rows[:count].copy(), self._rows[count:]
        if int(part["end"][-1]) > end:
            rest = part[-1:].copy()
            rest["start"], part["end"][-1] = end, end
            self._rows = np.concatenate([rest, self._rows])
        low = int(part["block"][0])
        high = int(self._rows["block"][0]) if len(self._rows) else low + len(self._sums)
        sums, self._sums = self._sums[: high - low], self._sums[high - low :]
        part["block"] -= low
        return Said(part, sums)

    def _load(self) -> None:
        """Read on until there is a record, and check that they ascend: all else relies on it."""
        for rows, sums in self._batches:
            if len(rows):
                starts = np.append(rows["start"], np.iinfo(np.int64).max)
                if int(starts[0]) < self._last or (starts[1:] < rows["end"]).any():
                    raise Corrupt("index-order", "the records of a disk do not ascend")
                self._rows, self._sums, self._last = rows, sums, int(rows["end"][-1])
                return


def of_index(heads: BinaryIO, sums: SumsReader) -> Layer:
    """Read an index from its start, with the sums beside it.

    Raises:
        Corrupt: ``index-damaged``, ``sums-damaged``.
    """
    return Layer(_said(heads, sums))


def of_zeroes(clusters: int) -> Layer:
    """Say of so many clusters that they read as zeroes: what an image shows that stands alone."""
    return Layer(iter([Said(np.array([(0, clusters, 0, 0, 0, 0, KIND_ZERO)], ROW), _NO_SUMS)]))


def windows(layers: Sequence[Layer], clusters: int) -> Iterator[tuple[int, list[Said]]]:
    """Go through all layers side by side.

    Args:
        layers: of one disk.
        clusters: guest clusters at a time.

    Yields:
        The first cluster of a range that something is said about, and what each layer says about that range.

    Raises:
        Corrupt: ``index-damaged``, ``index-order``, ``sums-damaged``.
    """
    while waiting := [layer.next_cluster for layer in layers if layer.next_cluster is not None]:
        first = min(waiting)
        yield first, [layer.take(first + clusters) for layer in layers]


def _said(heads: BinaryIO, sums: SumsReader) -> Iterator[Said]:
    while (entry := read_entry(heads)) is not None:
        head, records, head_bytes = split(entry)
        yield Said(_rows(head, records), sums.of(head_bytes, head.number, records))


def _rows(head: SegmentHead, records: Records) -> Rows:
    rows = np.zeros(len(records), ROW)
    rows["start"], rows["end"] = records["cluster"], record_ends(records)
    rows["length"], rows["mask"] = records["length"], patch_masks(records)
    zstd, patch = records["kind"] == KIND_ZSTD, is_patch(records)
    rows["kind"] = np.where(patch, KIND_PATCH, records["kind"])
    lengths = rows["length"][zstd]
    rows["place"][zstd] = head.data_offset + np.cumsum(lengths) - lengths
    rows["place"][patch] = head.patches_at + np.arange(np.count_nonzero(patch)) * CLUSTER
    counts = patch_blocks(records)
    rows["block"] = np.cumsum(counts) - counts
    return rows
