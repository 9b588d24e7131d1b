"""Bringing bytes of several images into one file: frames one behind the other, blocks of patches to their places."""

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from vmreplica.model.errors import Corrupt
from vmreplica.model.units import CLUSTER, KiB, MiB
from vmreplica.qcow2 import frames
from vmreplica.qcow2.head import BLOCK, BLOCKS
from vmreplica.qcow2.layout import I64
from vmreplica.qcow2.overlaying import I16, Blocks
from vmreplica.qcow2.rawio import begin_writing, copy_range, pread_exact, pread_into, pwrite_all
from vmreplica.qcow2.sums import agree

#: Frames that stand one behind the other in their image are copied in the kernel from so many bytes on; fewer are
#: read and written together with their neighbours.
_LONG: Final = 256 * KiB
#: Written at once, and in memory, at most.
_PIECE: Final = 4 * MiB
#: Of the frames that are made here, as of those that a primary sends.
_LEVEL: Final = 1


class Pool:
    """The images that are read, open, and the file that is written.

    Args:
        images: file descriptor and path of each, by the number of its layer.
        fd: of the file.
        wrote: told how many bytes were written, often; may raise what shall stop the work.
    """

    def __init__(self, images: Sequence[tuple[int, Path]], fd: int, wrote: Callable[[int], None]) -> None:
        self._images = images
        self._fd = fd
        self._wrote = wrote
        self._buffer = memoryview(bytearray(_PIECE))

    def expect(self, layer: I16, place: I64, length: I64, blocks: Blocks) -> None:
        """Let the kernel read what is needed soon: the images are read in turns, which looks random to it.

        Args:
            layer: of frames.
            place: of frames.
            length: of frames; between those of one image is not much else.
            blocks: of patches; between them are holes.
        """
        for number in np.unique(layer).tolist():
            own = np.flatnonzero(layer == number)
            start, end = int(place[own[0]]), int(place[own[-1]] + length[own[-1]])
            self._expect(number, start, end - start)
        for number, start, _target, size in block_runs(blocks, blocks.place):
            self._expect(number, start, size)

    def _expect(self, layer: int, start: int, size: int) -> None:
        os.posix_fadvise(self._images[layer][0], start, size, os.POSIX_FADV_WILLNEED)

    def frame(self, layer: int, place: int, length: int) -> bytes:
        """Read one frame."""
        fd, path = self._images[layer]
        return pread_exact(fd, length, place, path)

    def put_frames(self, layer: I16, place: I64, length: I64, made: Sequence[bytes], to: int) -> None:
        """Write frames one behind the other.

        Args:
            layer: of each frame its image; -1: ``place`` is its number in ``made``.
            place: of each frame its offset in the image.
            length: of each frame.
            made: frames that stand in no image.
            to: offset in the file.

        Raises:
            Corrupt: ``image-damaged``: an image ends before a frame.
            OSError: also when the file system is full.
        """
        filled, begin = 0, to
        for number, start, run in _runs(layer, place, length):
            if filled + run > len(self._buffer) or run >= _LONG:
                to, filled = self._flush(filled, to), 0
            if run >= _LONG:
                fd, path = self._images[number]
                copy_range(fd, self._fd, start=start, to=to, size=run, path=path)
                self._wrote(run)
                to += run
            else:
                self._fetch(number, start, made, self._buffer[filled : filled + run])
                filled += run
        to = self._flush(filled, to)
        begin_writing(self._fd, begin, to - begin)

    def put_blocks(self, blocks: Blocks, to: int) -> None:
        """Write the blocks of patches to host clusters one behind the other; what they do not have stays a hole.

        Args:
            blocks: one row for each patch.
            to: offset of the first host cluster.

        Raises:
            Corrupt: ``image-damaged``.
            OSError: also when the file system is full.
        """
        places = to + np.arange(len(blocks))[:, None] * CLUSTER + np.arange(BLOCKS) * BLOCK
        for number, start, target, size in block_runs(blocks, places):
            fd, path = self._images[number]
            copy_range(fd, self._fd, start=start, to=target, size=size, path=path)
            self._wrote(size)

    def remake(self, below: bytes | None, blocks: Blocks) -> bytes | None:
        """Make the frame of a whole cluster with blocks of patches in it.

        Args:
            below: frame of the cluster that they lie over; None: zeroes.
            blocks: one row.

        Returns:
            None when the cluster is all zero.

        Raises:
            Corrupt: ``image-damaged``, ``frame-broken``.
        """
        cluster = bytearray(frames.decode(below) if below is not None else bytes(CLUSTER))
        for number, start, target, size in block_runs(blocks, np.arange(BLOCKS)[None] * BLOCK):
            fd, path = self._images[number]
            data = pread_exact(fd, size, start, path)
            first = target // BLOCK
            # In the new frame nobody could see any more that it had gone bad.
            if not agree(data, blocks.sums[0, first : first + size // BLOCK]):
                raise Corrupt("image-damaged", f"{path} has a changed block at {start} that does not have its sum")
            cluster[target : target + size] = data
        (frame,) = frames.encode(memoryview(cluster), _LEVEL)
        return frame

    def _fetch(self, number: int, start: int, made: Sequence[bytes], view: memoryview) -> None:
        if number < 0:
            view[:] = made[start]
        else:
            fd, path = self._images[number]
            pread_into(fd, view, start, path)

    def _flush(self, filled: int, to: int) -> int:
        if filled:
            pwrite_all(self._fd, self._buffer[:filled], to)
            self._wrote(filled)
        return to + filled


def block_runs(blocks: Blocks, targets: npt.NDArray[np.int64]) -> Iterator[tuple[int, int, int, int]]:
    """Join neighbouring blocks.

    Args:
        blocks: where they are.
        targets: of each block the offset where it shall be; of the shape of ``blocks``.

    Yields:
        Layer, offset in its image, offset where it shall be, and size in bytes of each run.
    """
    own = blocks.layer >= 0
    layer, place, target = blocks.layer[own], blocks.place[own], targets[own]
    first = np.ones(len(layer), np.bool_)
    first[1:] = (layer[1:] != layer[:-1]) | (np.diff(place) != BLOCK) | (np.diff(target) != BLOCK)
    starts = np.flatnonzero(first)
    sizes = np.diff(np.append(starts, len(layer))) * BLOCK
    yield from zip(layer[starts].tolist(), place[starts].tolist(), target[starts].tolist(), sizes.tolist(), strict=True)


def _runs(layer: I16, place: I64, length: I64) -> Iterator[tuple[int, int, int]]:
    """Join frames that stand one behind the other in their image: layer, offset and bytes of each run."""
    first = np.ones(len(layer), np.bool_)
    first[1:] = (layer[1:] != layer[:-1]) | (place[1:] != place[:-1] + length[:-1]) | (layer[1:] < 0)
    starts = np.flatnonzero(first)
    sizes = np.add.reduceat(length, starts) if len(starts) else length
    yield from zip(layer[starts].tolist(), place[starts].tolist(), sizes.tolist(), strict=True)
