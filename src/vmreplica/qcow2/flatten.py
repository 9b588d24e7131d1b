"""Writing what images hold to a base that is not ours alone, at the places where the guest has it.

Everything here may be repeated: the same bytes go to the same places.
"""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from vmreplica.model.errors import Corrupt
from vmreplica.model.units import CLUSTER, MiB
from vmreplica.qcow2 import frames
from vmreplica.qcow2.head import BLOCK, KIND_ZERO, KIND_ZSTD, Records, SegmentHead, patch_masks
from vmreplica.qcow2.index import read_heads
from vmreplica.qcow2.layout import COMPRESSED, L2_ENTRIES, READS_ZERO, U64, described, l1_entries_of
from vmreplica.qcow2.patching import mask_runs
from vmreplica.qcow2.rawio import make_zero, pread_exact, pwrite_all
from vmreplica.qcow2.reader import Image

#: Adjacent clusters are written together up to so many bytes.
_PIECE: Final = 4 * MiB
#: More than this is never waiting to be written by the kernel: whoever stops the work does not wait long.
_UNSYNCED: Final = 64 * MiB
_BUFFER: Final = 1 << 20


class TargetDisk(ABC):
    """What is made equal to a disk: collects adjacent clusters, and never lets much be unsynced.

    Args:
        size: of the disk in bytes; nothing behind it is touched.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._parts: list[bytes] = []
        self._start = self._end = self._unsynced = 0
        #: Told how many bytes were written, zeroes aside; waits as long as a limit wants.
        self.pace: Callable[[int], None] = lambda _count: None

    def put(self, offset: int, data: bytes) -> None:
        """Write bytes at an offset, at the latest with ``sync``."""
        if offset != self._end or self._end - self._start >= _PIECE:
            self._write()
            self._start = self._end = offset
        data = data[: max(0, self._size - offset)]
        self._parts.append(data)
        self._end += len(data)

    def zero(self, offset: int, size: int) -> None:
        """Let a range read as zeroes."""
        self._write()
        size = min(size, self._size - offset)
        if size > 0:
            self._blank(offset, size)

    def sync(self) -> None:
        """Make everything durable."""
        self._write()
        self._flush()
        self._unsynced = 0

    @abstractmethod
    def _store(self, data: bytes, offset: int) -> None:
        """Write at an offset."""

    @abstractmethod
    def _blank(self, offset: int, size: int) -> None:
        """Let a range read as zeroes."""

    @abstractmethod
    def _flush(self) -> None:
        """Make durable what was written."""

    def _write(self) -> None:
        if self._parts:
            self._store(b"".join(self._parts), self._start)
        written = self._end - self._start
        self._unsynced += written
        self._parts = []
        self._start = self._end
        if self._unsynced >= _UNSYNCED:
            self._flush()
            self._unsynced = 0
        self.pace(written)


class RawDisk(TargetDisk):
    """The start of a device, or a file.

    Args:
        fd: open for writing.
        size: of the disk in bytes.
    """

    def __init__(self, fd: int, size: int) -> None:
        super().__init__(size)
        self._fd = fd

    def _store(self, data: bytes, offset: int) -> None:
        pwrite_all(self._fd, data, offset)

    def _blank(self, offset: int, size: int) -> None:
        make_zero(self._fd, offset, size)

    def _flush(self) -> None:
        os.fdatasync(self._fd)


def apply_overlay(overlay: Path, index: Path, disk: TargetDisk, check: Callable[[], None]) -> None:
    """Write what an overlay says about its disk, and nothing else. The caller syncs.

    Args:
        overlay: the image.
        index: of it.
        disk: what it stands on.
        check: called often; raises what shall stop the work.

    Raises:
        Corrupt: ``image-damaged``, ``index-damaged``, ``frame-broken``.
        OSError: the device failed.
    """
    with overlay.open("rb", buffering=0) as source, index.open("rb", buffering=_BUFFER) as heads:
        for head, records in read_heads(heads):
            check()
            _apply_segment(source.fileno(), overlay, head, records, disk)


def _apply_segment(source: int, overlay: Path, head: SegmentHead, records: Records, disk: TargetDisk) -> None:
    data = memoryview(pread_exact(source, head.data_length, head.data_offset, overlay))
    place, patches_at = 0, head.patches_at
    rows = zip(records.tolist(), patch_masks(records).tolist(), strict=True)
    for (cluster, length, kind), mask in rows:
        offset = cluster * CLUSTER
        if kind == KIND_ZSTD:
            disk.put(offset, frames.decode(data[place : place + length]))
            place += length
        elif kind == KIND_ZERO:
            disk.zero(offset, length * CLUSTER)
        else:
            blocks = pread_exact(source, CLUSTER, patches_at, overlay)
            for low, high in mask_runs(mask):
                disk.put(offset + low * BLOCK, blocks[low * BLOCK : high * BLOCK])
            patches_at += CLUSTER


def copy_base(base: Path, disk: TargetDisk, *, first: int, check: Callable[[], None]) -> Iterator[int]:
    """Write a whole image that stands alone, zeroes too, one L2 table (512 MiB of the disk) after the other.

    Args:
        base: the image.
        disk: what becomes equal to it.
        first: table to begin with.
        check: called often; raises what shall stop the work.

    Yields:
        After each table the number of the next one; the caller syncs.

    Raises:
        Corrupt: ``image-damaged``, ``frame-broken``.
        OSError: the device failed.
    """
    with base.open("rb", buffering=0) as source:
        image = Image(source.fileno(), base)
        for number in range(first, l1_entries_of(image.header.size)):
            _copy_table(source.fileno(), base, image.l2(number), number, disk, check)
            yield number + 1


def _copy_table(  # noqa: PLR0917 - where from, what, where to
    source: int, base: Path, entries: U64, number: int, disk: TargetDisk, check: Callable[[], None]
) -> None:
    used = (entries & np.uint64(COMPRESSED)) != 0
    if (entries[~used] > READS_ZERO).any():
        raise Corrupt("image-damaged", f"{base} has an entry that is not ours in table {number}")
    start = number * L2_ENTRIES
    for low, high in _runs(~used):
        disk.zero((start + low) * CLUSTER, (high - low) * CLUSTER)
    for low, high in _runs(used):
        begins, ends = described(entries[low:high])
        for place, begin, end in zip(range(low, high), begins.tolist(), ends.tolist(), strict=True):
            check()
            raw = pread_exact(source, end - begin, begin, base)
            disk.put((start + place) * CLUSTER, frames.decode(raw, padded=True))


def _runs(mask: npt.NDArray[np.bool_]) -> Iterator[tuple[int, int]]:
    """List the runs of true entries as half-open ranges."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]])))
    yield from zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)
