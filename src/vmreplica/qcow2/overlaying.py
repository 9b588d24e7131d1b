"""What images that stand on each other say together about a range of guest clusters: the newest wins. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from vmreplica.qcow2.head import BLOCK, BLOCKS, KIND_PATCH, KIND_ZERO, KIND_ZSTD
from vmreplica.qcow2.layers import Rows, Said
from vmreplica.qcow2.layout import I64, covered
from vmreplica.qcow2.sums import Sums

#: Nothing is said: the cluster is what the image below all of these has.
NOTHING: Final = 0

I16 = npt.NDArray[np.int16]


@dataclass(frozen=True, slots=True)
class Blocks:
    """Where the blocks of patched clusters are: one row per cluster, one column for each of its 16 blocks."""

    #: Number of the layer; -1: none of these layers has that block as a patch.
    layer: I16
    #: Offset of the block in that layer's image, in bytes.
    place: I64
    #: The sum of the block.
    sums: Sums

    def __getitem__(self, rows: slice | npt.NDArray[np.bool_]) -> "Blocks":
        return Blocks(self.layer[rows], self.place[rows], self.sums[rows])

    def __len__(self) -> int:
        return len(self.layer)

    @classmethod
    def joined(cls, parts: Sequence["Blocks"]) -> "Blocks":
        """Put rows one after the other."""
        layer = np.concatenate([part.layer for part in parts])
        place = np.concatenate([part.place for part in parts])
        return cls(layer, place, np.concatenate([part.sums for part in parts]))

    @property
    def counts(self) -> I64:
        """Tell how many blocks each row has."""
        counts: I64 = (self.layer >= 0).sum(axis=1)
        return counts

    @property
    def masks(self) -> I64:
        """Tell which blocks each row has, as in the kind of a patch's record."""
        masks: I64 = ((self.layer >= 0) << np.arange(BLOCKS)).sum(axis=1)
        return masks


@dataclass(frozen=True, slots=True)
class Window:
    """What is to be said about ``len(kind)`` guest clusters, the first of which is ``first``."""

    first: int
    #: NOTHING or the kind of a record, blocks laid over whole clusters left aside.
    kind: npt.NDArray[np.uint8]
    #: Of whole clusters: layer, offset in its image and length of the frame.
    layer: I16
    place: I64
    length: I64
    #: Which clusters have blocks, ascending, counted from ``first``; and those.
    patched: I64
    blocks: Blocks
    #: Of each of ``patched``: it has to become a whole cluster, since below its blocks there is one of these layers,
    #: or since it has all blocks.
    made: npt.NDArray[np.bool_]


def lay_over(parts: Sequence[Said], first: int, count: int) -> Window:
    """Lay images over each other.

    Args:
        parts: what each says about these clusters, oldest first.
        first: guest cluster.
        count: how many clusters.
    """
    stack = _Stack(parts, first, count)
    for number, part in enumerate(parts):
        if len(part.rows):
            stack.add(number, part)
    return stack.window()


class _Stack:
    def __init__(self, parts: Sequence[Said], first: int, count: int) -> None:
        self._first = first
        self._kind = np.zeros(count, np.uint8)
        self._layer, self._place = np.zeros(count, np.int16), np.zeros(count, np.int64)
        self._length = np.zeros(count, np.int64)
        self._patched: I64 = np.unique(
            np.concatenate([said.rows["start"][said.rows["kind"] == KIND_PATCH] for said in parts])
        )
        self._patched -= first
        shape = (len(self._patched), BLOCKS)
        self._blocks = Blocks(np.full(shape, -1, np.int16), np.zeros(shape, np.int64), np.zeros(shape, np.uint64))

    def add(self, number: int, said: Said) -> None:
        """Lay the next newer layer over what is there."""
        part = said.rows
        zstd, zero, patch = (part["kind"] == kind for kind in (KIND_ZSTD, KIND_ZERO, KIND_PATCH))
        hidden = np.zeros(len(self._kind), np.bool_)
        if zstd.any():
            at = part["start"][zstd] - self._first
            self._kind[at], self._layer[at], hidden[at] = KIND_ZSTD, number, True
            self._place[at], self._length[at] = part["place"][zstd], part["length"][zstd]
        zeroes = covered(part["start"][zero] - self._first, part["end"][zero] - self._first, len(self._kind))
        if zeroes is not None:
            self._kind[zeroes] = KIND_ZERO
            hidden |= zeroes
        if len(self._patched):
            self._blocks.layer[hidden[self._patched]] = -1
            self._patch(number, part[patch], said.sums)

    def _patch(self, number: int, part: Rows, sums: Sums) -> None:
        at = part["start"] - self._first
        self._kind[at[self._kind[at] == NOTHING]] = KIND_PATCH
        rows, columns = np.nonzero((part["mask"][:, None] >> np.arange(BLOCKS, dtype=np.uint32)) & np.uint32(1))
        ranks = np.arange(len(rows)) - np.searchsorted(rows, rows)
        into = np.searchsorted(self._patched, at)[rows], columns
        self._blocks.layer[into] = number
        self._blocks.place[into] = part["place"][rows] + columns * BLOCK
        self._blocks.sums[into] = sums[part["block"][rows] + ranks]

    def window(self) -> Window:
        """Tell the result."""
        own = self._blocks.layer >= 0
        left: I64 = np.flatnonzero(np.any(own, axis=1))
        patched, full = self._patched[left], np.asarray(np.all(own, axis=1), np.bool_)[left]
        blocks = Blocks(self._blocks.layer[left], self._blocks.place[left], self._blocks.sums[left])
        made = full | (self._kind[patched] != KIND_PATCH)
        return Window(self._first, self._kind, self._layer, self._place, self._length, patched, blocks, made)
