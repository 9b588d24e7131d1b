"""Reading an image whole and checking every byte of it that means something (docs/design/format.md, "Scrub").

Of an image that came as a point: its index by the checksums in there, its tables and header by their digest, each
compressed cluster by the checksum of its frame, each block of a patch by its sum. Of a folded image: its tables by
their sums, and the frames that they lead to. What the kernel has of a file in memory is dropped: the disk is read.

Memory: what is read at once (4 MiB) with what it inflates to in each thread, the L1 table and the sums of the tables.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from vmreplica.model.damage import DamageKind
from vmreplica.model.errors import Corrupt
from vmreplica.model.units import CLUSTER, MiB
from vmreplica.qcow2 import frames
from vmreplica.qcow2.head import (
    BLOCK,
    BLOCKS,
    DATA_START,
    KIND_ZSTD,
    Records,
    SegmentHead,
    is_patch,
    patch_masks,
    split,
)
from vmreplica.qcow2.index import read_entry
from vmreplica.qcow2.layout import I64
from vmreplica.qcow2.rawio import pread_exact
from vmreplica.qcow2.sums import UNKNOWN, Sums, SumsReader, block_sums

#: Bytes read at once.
_PIECE: Final = 4 * MiB
_BUFFER: Final = 1 << 20
#: Host clusters of patches read at once.
_PATCHES: Final = _PIECE // CLUSTER

#: Told how many bytes were read, often: waits as long as a limit wants, or raises what shall stop the work.
Pace = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Fault:
    """Bytes of an image that are not what was written."""

    what: DamageKind
    #: Guest bytes that cannot be trusted; a length of 0: none.
    offset: int
    length: int
    text: str
    #: It was put right from what else is known of the image.
    repaired: bool = False


class FrameReader:
    """Decompresses frames in threads, which let others run meanwhile.

    Args:
        threads: how many.
    """

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="scrub") if threads > 1 else None

    def broken(self, data: memoryview, starts: I64, ends: I64, *, padded: bool = False) -> list[int]:
        """Tell which of some frames cannot be decompressed to what they were made of.

        Args:
            data: where they are.
            starts: offset of each in it.
            ends: where each ends.
            padded: whether its end is known to a sector only.
        """
        rows = list(enumerate(zip(starts.tolist(), ends.tolist(), strict=True)))
        if self._pool is None or len(rows) < 2 * self._threads:
            return _broken(data, rows, padded)
        parts = [rows[n :: self._threads] for n in range(self._threads)]
        found = self._pool.map(lambda part: _broken(data, part, padded), parts)
        return sorted(place for part in found for place in part)

    def close(self) -> None:
        """End the threads."""
        if self._pool is not None:
            self._pool.shutdown()


def _broken(data: memoryview, rows: Sequence[tuple[int, tuple[int, int]]], padded: bool) -> list[int]:
    found = []
    for place, (start, end) in rows:
        try:
            frames.decode(data[start:end], padded=padded)
        except Corrupt:
            found.append(place)
    return found


class DiskFile:
    """An image's file, read from the disk and not from the kernel's memory.

    Args:
        path: of it.
        pace: told what was read.

    Raises:
        OSError: it cannot be opened.
    """

    def __init__(self, path: Path, pace: Pace) -> None:
        self.path = path
        self._pace = pace
        self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.size = os.fstat(self.fd).st_size

    def read(self, size: int, offset: int) -> bytes:
        """Read exactly so many bytes.

        Raises:
            Corrupt: ``image-damaged``: the file ends before, or the disk cannot read it.
        """
        self._pace(size)
        os.posix_fadvise(self.fd, offset, size, os.POSIX_FADV_DONTNEED)
        try:
            return pread_exact(self.fd, size, offset, self.path)
        except OSError as error:
            raise Corrupt("image-damaged", f"{self.path} cannot be read at {offset}: {error.strerror}") from error

    def close(self) -> None:
        """Close it."""
        os.close(self.fd)


@contextmanager
def opened(path: Path, pace: Pace) -> Iterator[DiskFile]:
    """Open an image's file while the block lasts."""
    file = DiskFile(path, pace)
    try:
        yield file
    finally:
        file.close()


class SegmentCheck:
    """Checks the data and patches of segments against their records.

    Args:
        file: of the image.
        frame_reader: decompresses.
    """

    def __init__(self, file: DiskFile, frame_reader: FrameReader) -> None:
        self._file = file
        self._frames = frame_reader
        #: Blocks of patches whose sums nobody knows.
        self.unsummed = 0

    def data(self, head: SegmentHead, records: Records) -> Iterator[Fault]:
        """Check the whole clusters of a segment."""
        zstd = records[records["kind"] == KIND_ZSTD]
        lengths = zstd["length"].astype(np.int64)
        ends = np.cumsum(lengths)
        low = 0
        while low < len(zstd):
            begin = int(ends[low] - lengths[low])
            high = max(low + 1, int(np.searchsorted(ends, begin + _PIECE, "right")))
            clusters = zstd["cluster"][low:high].tolist()
            starts = ends[low:high] - lengths[low:high] - begin
            try:
                raw = self._file.read(int(ends[high - 1]) - begin, head.data_offset + begin)
                wrong = self._frames.broken(memoryview(raw), starts, ends[low:high] - begin)
            except Corrupt:
                wrong = self._one_by_one(head.data_offset + begin + starts, lengths[low:high])
            for place in wrong:
                text = f"the compressed cluster at byte {head.data_offset + begin + int(starts[place])} of the file"
                yield Fault("data", clusters[place] * CLUSTER, CLUSTER, text)
            low = high

    def patches(self, head: SegmentHead, records: Records, sums: Sums) -> Iterator[Fault]:
        """Check the blocks of a segment's patches."""
        rows = records[is_patch(records)]
        masks, done = patch_masks(rows), 0
        for low in range(0, len(rows), _PATCHES):
            part = masks[low : low + _PATCHES]
            chosen = np.flatnonzero(((part[:, None] >> np.arange(BLOCKS, dtype=np.uint32)) & 1).reshape(-1))
            known = sums[done : done + len(chosen)]
            done += len(chosen)
            self.unsummed += int((known == UNKNOWN).sum())
            place = head.patches_at + low * CLUSTER
            try:
                raw = np.frombuffer(self._file.read(len(part) * CLUSTER, place), np.uint8).reshape(-1, BLOCK)
                found = block_sums(raw[chosen].tobytes())
                wrong = np.flatnonzero((known != UNKNOWN) & (found != known))
            except Corrupt:
                wrong = np.arange(len(chosen))
            for one in chosen[wrong].tolist():
                cluster, block = divmod(one, BLOCKS)
                guest = int(rows["cluster"][low + cluster]) * CLUSTER + block * BLOCK
                yield Fault("patch", guest, BLOCK, f"the block at byte {place + one * BLOCK} of the file")

    def _one_by_one(self, starts: I64, lengths: I64) -> list[int]:
        """Read frames by themselves: the disk cannot read one of them."""
        wrong = []
        for place, (start, length) in enumerate(zip(starts.tolist(), lengths.tolist(), strict=True)):
            try:
                frames.decode(self._file.read(length, start))
            except Corrupt:
                wrong.append(place)
        return wrong


@dataclass(slots=True)
class IndexWalk:
    """What a walk over an image's index came to."""

    segments: int = 0
    data_end: int = DATA_START
    patched: bool = False
    damaged: str = ""
    sums_damaged: str = ""
    unsummed: int = 0


def check_segments(
    file: DiskFile, index: Path, sums: Path, frame_reader: FrameReader, walk: IndexWalk
) -> Iterator[Fault]:
    """Check all that the index of an image names: data and patches.

    Args:
        file: of the image.
        index: of it.
        sums: of its patches.
        frame_reader: decompresses.
        walk: is filled in.
    """
    check = SegmentCheck(file, frame_reader)
    if not index.exists():
        walk.damaged = f"{index} is missing"
        return
    with index.open("rb", buffering=_BUFFER) as heads, SumsReader(sums) as known:
        while True:
            try:
                entry = read_entry(heads)
            except Corrupt as error:
                walk.damaged = error.message
                break
            if entry is None:
                break
            head, records, _ = split(entry)
            if head.data_offset != walk.data_end or head.number != walk.segments:
                walk.damaged = f"{index} is damaged: segment {walk.segments} does not go on where its predecessor ends"
                break
            yield from check.data(head, records)
            if head.patch_count:
                yield from check.patches(head, records, _sums_of(known, entry, head, records, walk))
            walk.segments, walk.data_end = walk.segments + 1, head.data_end
            walk.patched |= head.patch_count > 0
    walk.unsummed = check.unsummed


def _sums_of(known: SumsReader, entry: bytes, head: SegmentHead, records: Records, walk: IndexWalk) -> Sums:
    try:
        return known.of(entry, head.number, records)
    except Corrupt as error:
        walk.sums_damaged = error.message
        masks = patch_masks(records[is_patch(records)])
        return np.full(sum(mask.bit_count() for mask in masks.tolist()), UNKNOWN, np.uint64)


def check_frames_at(
    file: DiskFile, frame_reader: FrameReader, clusters: I64, starts: I64, ends: I64
) -> Iterator[Fault]:
    """Check compressed clusters by where descriptors say that they are.

    Args:
        file: of the image.
        frame_reader: decompresses.
        clusters: their guest clusters.
        starts: where each begins in the file.
        ends: where each ends, to a sector.
    """
    order = np.argsort(starts, kind="stable")
    clusters, starts, ends = clusters[order], starts[order], ends[order]
    low = 0
    while low < len(starts):
        begin = int(starts[low])
        # What lies between is read as well, and is little: superseded clusters of this region.
        high = max(low + 1, int(np.searchsorted(starts, begin + _PIECE - CLUSTER, "right")))
        end = int(ends[low:high].max())
        try:
            raw = memoryview(file.read(min(end, file.size) - begin, begin))
            wrong = frame_reader.broken(raw, starts[low:high] - begin, ends[low:high] - begin, padded=True)
        except (Corrupt, ValueError):
            wrong = [n for n in range(high - low) if not _readable(file, int(starts[low + n]), int(ends[low + n]))]
        for place in wrong:
            text = f"the compressed cluster at byte {int(starts[low + place])} of the file"
            yield Fault("data", int(clusters[low + place]) * CLUSTER, CLUSTER, text)
        low = high


def _readable(file: DiskFile, start: int, end: int) -> bool:
    try:
        frames.decode(file.read(max(0, min(end, file.size) - start), start), padded=True)
    except (Corrupt, ValueError):
        return False
    return True
