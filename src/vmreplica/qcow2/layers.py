"""Reading the indexes of images that stand on each other side by side, one range of guest clusters after the other."""

from collections.abc import Iterator, Sequence
from typing import BinaryIO, Final

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
)
from vmreplica.qcow2.index import read_heads

#: A record with all that its place in the index tells: guest clusters [start, end); bytes of its frame, and where in
#: the image it stands (of a patch: its host cluster); number of its first block among all blocks of patches.
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


class Layer:
    """The records of one image, ascending. Memory: those of one segment, at most 4 MiB."""

    def __init__(self, batches: Iterator[Rows]) -> None:
        self._batches = batches
        self._rows: Rows = np.zeros(0, ROW)
        self._last = 0
        self._load()

    @property
    def next_cluster(self) -> int | None:
        """The first guest cluster that was not taken yet and that something is said about; None at the end."""
        return int(self._rows["start"][0]) if len(self._rows) else None

    def take(self, end: int) -> Rows:
        """Give what is said about all clusters before this one that were not taken yet; runs of zeroes are cut there.

        Raises:
            Corrupt: ``index-damaged``, ``index-order``.
        """
        parts = []
        while len(self._rows) and int(self._rows["start"][0]) < end:
            count = int(np.searchsorted(self._rows["start"], end, "left"))
            part, self._rows = self._rows[:count].copy(), self._rows[count:]
            if int(part["end"][-1]) > end:
                rest = part[-1:].copy()
                rest["start"], part["end"][-1] = end, end
                self._rows = np.concatenate([rest, self._rows])
            parts.append(part)
            if not len(self._rows):
                self._load()
        return np.concatenate(parts) if parts else self._rows[:0]

    def _load(self) -> None:
        """Read on until there is a record, and check that they ascend: all else relies on it."""
        for rows in self._batches:
            if len(rows):
                starts = np.append(rows["start"], np.iinfo(np.int64).max)
                if int(starts[0]) < self._last or (starts[1:] < rows["end"]).any():
                    raise Corrupt("index-order", "the records of a disk do not ascend")
                self._rows, self._last = rows, int(rows["end"][-1])
                return


def of_index(heads: BinaryIO) -> Layer:
    """Read an index from its start.

    Raises:
        Corrupt: ``index-damaged``.
    """
    return Layer(_rows_of(heads))


def of_zeroes(clusters: int) -> Layer:
    """Say of so many clusters that they read as zeroes: what an image shows that stands alone."""
    return Layer(iter([np.array([(0, clusters, 0, 0, 0, 0, KIND_ZERO)], ROW)]))


def windows(layers: Sequence[Layer], clusters: int) -> Iterator[tuple[int, list[Rows]]]:
    """Go through all layers side by side.

    Args:
        layers: of one disk.
        clusters: guest clusters at a time.

    Yields:
        The first cluster of a range that something is said about, and what each layer says about that range.

    Raises:
        Corrupt: ``index-damaged``, ``index-order``.
    """
    while waiting := [layer.next_cluster for layer in layers if layer.next_cluster is not None]:
        first = min(waiting)
        yield first, [layer.take(first + clusters) for layer in layers]


def _rows_of(heads: BinaryIO) -> Iterator[Rows]:
    blocks = 0
    for head, records in read_heads(heads):
        rows = _rows(head, records, blocks)
        blocks += int(patch_blocks(records).sum())
        yield rows


def _rows(head: SegmentHead, records: Records, blocks: int) -> Rows:
    rows = np.zeros(len(records), ROW)
    rows["start"], rows["end"] = records["cluster"], record_ends(records)
    rows["length"], rows["mask"] = records["length"], patch_masks(records)
    zstd, patch = records["kind"] == KIND_ZSTD, is_patch(records)
    rows["kind"] = np.where(patch, KIND_PATCH, records["kind"])
    lengths = rows["length"][zstd]
    rows["place"][zstd] = head.data_offset + np.cumsum(lengths) - lengths
    rows["place"][patch] = head.patches_at + np.arange(np.count_nonzero(patch)) * CLUSTER
    counts = patch_blocks(records)
    rows["block"] = blocks + np.cumsum(counts) - counts
    return rows
