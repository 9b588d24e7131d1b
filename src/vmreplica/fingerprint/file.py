"""The file of a disk's fingerprint (docs/design/fingerprint.md, "File").

Read and written in windows, never mapped: pages of a mapping would count as the agent's memory, 2 GB for a disk of
1 TB. Where the disk is zero the file is a hole.
"""

import contextlib
import errno
import os
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import numpy as np
import xxhash

from vmreplica.fingerprint.blocks import Hashes, blocks_of
from vmreplica.fingerprint.sums import BlockSum, sum_blocks
from vmreplica.fsio import fsync_dir, no_space
from vmreplica.model.errors import Corrupt
from vmreplica.model.ids import DiskTarget, PointId
from vmreplica.qcow2.rawio import punch, pwrite_all

_MAGIC: Final = b"VMRFPR1\0"
#: Magic, key, size, state, point, target.
_HEAD: Final = struct.Struct("<8sQQI4x32s16s")
#: Sum of all hashes (low, high), flags; behind the head's checksum, with a checksum of its own.
_TAIL: Final = struct.Struct("<QQQ")
_SUMMED: Final = 1
_OWN: Final = 2
_DATA: Final = 4096
_PER_PAGE: Final = _DATA // 8
_CLEAN: Final = 1
_MERGING: Final = 2
#: Hashes looked at at once while searching: 512 KiB.
_WINDOW: Final = 1 << 16


@dataclass(frozen=True, slots=True)
class _Head:
    key: int
    size: int
    state: int
    point: PointId
    target: DiskTarget
    #: Of all hashes; None: it has to be reckoned anew.
    sum: BlockSum | None
    #: All of it was read from the VM's own disk, not told by the replica.
    own: bool

    def pack(self) -> bytes:
        start = _HEAD.pack(_MAGIC, self.key, self.size, self.state, self.point.encode(), self.target.encode())
        start += xxhash.xxh3_64_digest(start)
        flags = (_SUMMED if self.sum is not None else 0) | (_OWN if self.own else 0)
        tail = _TAIL.pack(*(self.sum or BlockSum()), flags)
        return start + tail + xxhash.xxh3_64_digest(start + tail)


class Fingerprint:
    """One hash per 4 KiB block of what the replica's latest point holds of a disk.

    Reading is thread-safe; one thread at a time may change it, and nobody reads the same blocks meanwhile.
    """

    def __init__(self, path: Path, fd: int, head: _Head) -> None:
        self._path = path
        self._fd = fd
        self._head = head

    @classmethod
    def create(cls, path: Path, *, key: int, size: int, target: DiskTarget) -> Self:
        """Make the fingerprint of a disk of zeroes that describes no point yet; replaces what is at the path.

        Raises:
            NoSpace: the file system is full.
        """
        head = _Head(key, size, _CLEAN, "", target, BlockSum(), own=True)
        tmp = path.with_name(f".{path.name}.tmp")
        with no_space(path.parent):
            fd = os.open(tmp, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            try:
                pwrite_all(fd, head.pack(), 0)
                os.ftruncate(fd, _DATA + 8 * blocks_of(size))
                os.fsync(fd)
                tmp.replace(path)
                fsync_dir(path.parent)
            except BaseException:
                os.close(fd)
                tmp.unlink(missing_ok=True)
                raise
        return cls(path, fd, head)

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open an existing fingerprint.

        Raises:
            FileNotFoundError: there is none.
            Corrupt: ``fingerprint-damaged``; it has to be made anew.
        """
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            return cls(path, fd, _read_head(fd, path))
        except BaseException:
            os.close(fd)
            raise

    @property
    def key(self) -> int:
        """Key of the hashes."""
        return self._head.key

    @property
    def size(self) -> int:
        """Virtual size of the disk in bytes."""
        return self._head.size

    @property
    def target(self) -> DiskTarget:
        """The disk."""
        return self._head.target

    @property
    def point(self) -> PointId | None:
        """The point that it describes, or is being merged to; None for none."""
        return self._head.point or None

    @property
    def clean(self) -> bool:
        """Whether no merge was interrupted."""
        return self._head.state == _CLEAN

    @property
    def sum(self) -> BlockSum | None:
        """The sum of all its hashes; None while a merge is under way or was interrupted."""
        return self._head.sum if self.clean else None

    @property
    def own(self) -> bool:
        """Whether all of it was read from the VM's own disk; else some of it is what the replica said of itself."""
        return self._head.own

    def good_for(self, point: PointId, size: int) -> bool:
        """Tell whether it can be believed about a point in which the disk has this size."""
        return self.clean and (self.point, self.size) == (point, size)

    def hashes(self, first: int, count: int) -> Hashes:
        """Read the hashes of blocks; behind the disk's end there are none, so the answer may be shorter.

        Raises:
            Corrupt: ``fingerprint-damaged``; the file is too short.
        """
        count = max(0, min(count, blocks_of(self._head.size) - first))
        found = bytearray(8 * count)
        view = memoryview(found)
        offset = _DATA + 8 * first
        while view:
            read = os.preadv(self._fd, [view], offset)
            if not read:
                raise Corrupt("fingerprint-damaged", f"{self._path} ends at {offset}")
            view, offset = view[read:], offset + read
        return np.frombuffer(found, "<u8")

    def used(self, first: int, end: int, grain: int = 1) -> Iterator[tuple[int, int]]:
        """Find what is not zero: runs (first, end) of whole groups of ``grain`` blocks in which any hash is not 0.

        Holes of the file cost nothing.

        Args:
            first: block, a multiple of ``grain``.
            end: block behind the last.
            grain: blocks per group; at most a page of hashes (512), and a divisor of it.
        """
        end = min(end, blocks_of(self._head.size))
        while (first := self._next_page(first)) < end:
            hashes = self.hashes(first, min(_WINDOW, end - first))
            yield from ((first + low, first + high) for low, high in _used_runs(hashes, grain))
            first += len(hashes)

    def used_backwards(self, grain: int) -> Iterator[list[tuple[int, int]]]:
        """Find what ``used`` finds, from the end of the disk on: windows with any, the last one first."""
        end = blocks_of(self._head.size)
        for first in range((end - 1) // _WINDOW * _WINDOW, -1, -_WINDOW):
            if found := list(self.used(first, first + _WINDOW, grain)):
                yield found

    def merge(self, entries: Iterable[tuple[int, Hashes]], point: PointId, *, own: bool | None = None) -> None:
        """Take in hashes; it describes this point then. Again, after being killed, is harmless.

        Args:
            entries: first block and hashes; of one block the last wins.
            point: the point they lead to.
            own: whether all of the disk is now known from the VM itself; None: as far as it was.

        Raises:
            Corrupt: an entry is damaged or reaches beyond the disk; it stays doubtful.
            NoSpace: the file system is full; it stays doubtful until the same call succeeds.
        """
        total = self.sum
        self._write_head(replace(self._head, state=_MERGING, point=point, sum=None))
        with no_space(self._path):
            for first, hashes in entries:
                if total is not None:
                    total = total.plus(sum_blocks(first, hashes, self.key)).minus(self._sum(first, len(hashes)))
                self._write(first, hashes)
            os.fsync(self._fd)
        total = self._sum(0, blocks_of(self.size)) if total is None else total
        self._write_head(replace(self._head, state=_CLEAN, sum=total, own=self.own if own is None else own))

    def resize(self, size: int) -> None:
        """Follow the disk to a new size; what is new is zero. A smaller disk leaves it describing no point."""
        if size == self._head.size:
            return
        if size < self._head.size:
            self._write_head(replace(self._head, size=size, point="", sum=None))
        # The file is never shorter than its head says, and nothing old comes back when it grows.
        with no_space(self._path):
            os.ftruncate(self._fd, _DATA + 8 * blocks_of(self._head.size))
            os.ftruncate(self._fd, _DATA + 8 * blocks_of(size))
        if size > self._head.size:
            self._write_head(replace(self._head, size=size))

    def require_sum(self) -> BlockSum:
        """Give the sum of all hashes, reckoned and written down if it is not known (written by an older version)."""
        if self._head.sum is None:
            self._write_head(replace(self._head, sum=self._sum(0, blocks_of(self.size))))
        return self._head.sum or BlockSum()

    def snapshot(self) -> Self | None:
        """Copy it as it is now to a file without a name; None when it is being changed. It goes with its last user.

        Raises:
            NoSpace: the file system is full.
        """
        path = self._path.with_name(f".{self._path.name}.copy")
        with no_space(path.parent):
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            try:
                path.unlink()
                os.ftruncate(fd, _DATA + 8 * blocks_of(self.size))
                for first, end in self.used(0, blocks_of(self.size), _PER_PAGE):
                    pwrite_all(fd, self.hashes(first, end - first).tobytes(), _DATA + 8 * first)
                # Who changes it says so in the head first, and leads it to another point.
                if not self.clean or _read_head(self._fd, self._path) != self._head:
                    os.close(fd)
                    return None
                pwrite_all(fd, self._head.pack(), 0)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.close(fd)
                raise
        return type(self)(path, fd, self._head)

    def close(self) -> None:
        """Close the file; again is harmless."""
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _sum(self, first: int, count: int) -> BlockSum:
        total = BlockSum()
        for low, high in self.used(first, first + count):
            total = total.plus(sum_blocks(low, self.hashes(low, high - low), self.key))
        return total

    def _next_page(self, first: int) -> int:
        """Give the first block from here on whose hashes may be other than 0, by the file's holes."""
        offset = _DATA + 8 * first
        try:
            data = os.lseek(self._fd, offset, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            return blocks_of(self._head.size)
        return max(first, (data - _DATA) // 8 // _PER_PAGE * _PER_PAGE)

    def _write(self, first: int, hashes: Hashes) -> None:
        end = first + len(hashes)
        if end > blocks_of(self._head.size):
            raise Corrupt("fingerprint-range", f"hashes of {self._head.target} up to block {end} do not fit its size")
        position = 0
        for low, high in (*_used_runs(hashes, _PER_PAGE), (len(hashes), len(hashes))):
            if low > position:
                punch(self._fd, _DATA + 8 * (first + position), 8 * (low - position))
            pwrite_all(self._fd, hashes[low:high].astype("<u8", copy=False).tobytes(), _DATA + 8 * (first + low))
            position = high

    def _write_head(self, head: _Head) -> None:
        with no_space(self._path):
            pwrite_all(self._fd, head.pack(), 0)
            os.fsync(self._fd)
        self._head = head


def _used_runs(hashes: Hashes, grain: int) -> Iterator[tuple[int, int]]:
    """Find runs of groups of ``grain`` hashes that are not all 0."""
    if not len(hashes):
        return
    groups = np.logical_or.reduceat(hashes != 0, np.arange(0, len(hashes), grain))
    edges = np.flatnonzero(np.diff(groups, prepend=False, append=False)).reshape(-1, 2) * grain
    yield from ((low, min(high, len(hashes))) for low, high in edges.tolist())


def _read_head(fd: int, path: Path) -> _Head:
    raw = os.pread(fd, _HEAD.size + 8 + _TAIL.size + 8, 0)
    start, check = raw[: _HEAD.size], raw[_HEAD.size : _HEAD.size + 8]
    if len(check) != 8 or not start.startswith(_MAGIC) or xxhash.xxh3_64_digest(start) != check:  # noqa: PLR2004
        raise Corrupt("fingerprint-damaged", f"{path} has a damaged head")
    _magic, key, size, state, point, target = _HEAD.unpack(start)
    with contextlib.suppress(UnicodeDecodeError):
        names = point.rstrip(b"\0").decode("ascii"), target.rstrip(b"\0").decode("ascii")
        head = _Head(key, size, state, *names, *_read_tail(raw))
        if os.fstat(fd).st_size >= _DATA + 8 * blocks_of(size) and state in {_CLEAN, _MERGING}:
            return head
    raise Corrupt("fingerprint-damaged", f"{path} has a head that does not fit the file")


def _read_tail(raw: bytes) -> tuple[BlockSum | None, bool]:
    """Read sum and origin; an older version wrote none, and nobody can tell then."""
    place = _HEAD.size + 8
    if xxhash.xxh3_64_digest(raw[: place + _TAIL.size]) != raw[place + _TAIL.size :]:
        return None, False
    low, high, flags = _TAIL.unpack_from(raw, place)
    return BlockSum(low, high) if flags & _SUMMED else None, bool(flags & _OWN)
