"""A point under construction: segments come in any order and from several threads, each durable before it is answered.

Per disk stands an image file, into which the data parts go to their places, and the index, which is the journal: a head
in it means that its data is durable.
"""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from vmreplica.fsio import fsync_dir, require_free
from vmreplica.model.errors import Conflict, Corrupt
from vmreplica.model.ids import PointId
from vmreplica.model.point import DiskClosing, DiskSpec, HeldSegments, IncomingPoint, PointOpening
from vmreplica.qcow2.index import index_entry, read_entry, recover_index
from vmreplica.qcow2.layout import touched_l2
from vmreplica.qcow2.patching import write_patches
from vmreplica.qcow2.rawio import punch, pwrite_all
from vmreplica.qcow2.segment import (
    BLOCK,
    DATA_START,
    Records,
    Segment,
    SegmentHead,
    clusters_of,
    parse,
    patch_blocks,
    record_ends,
    split,
)
from vmreplica.repository.incoming_sums import IncomingSums
from vmreplica.repository.layout import FILE_MODE, store_errors

_BUFFER = 1 << 20
#: Bytes of durable data from which on they do not stay in the page cache: a first copy would push all else out of it,
#: and fresh pages for each segment take as much of the system's time as all else that receiving does there.
_LARGE = 1 << 20


@dataclass(frozen=True, slots=True)
class DiskCheck:
    """What the walk over a complete disk found."""

    l2_tables: int
    #: Bytes of all its segments as they were sent.
    wire_bytes: int
    patches: int


class IncomingDisk:
    """One disk of a point under construction. Thread-safe."""

    def __init__(self, directory: Path, spec: DiskSpec, point: PointId, min_free: int) -> None:
        self.spec = spec
        self.clusters = clusters_of(spec.size)
        self.image = directory / f"{spec.target}.image"
        self.index = directory / f"{spec.target}.index"
        self._point = point
        self._min_free = min_free
        #: Full segments carry over a hundred clusters: a sender that makes so many small ones fills our memory.
        self._most_segments = 1024 + self.clusters // 16
        #: Digest of each held segment, and where its entry stands in the index.
        self._held: dict[int, tuple[bytes, int]] = {}
        self._writing: set[int] = set()
        self._change = threading.Condition()
        self._closed = False
        self._image_fd = self._index_fd = -1
        self._sums = self._open()

    def put(self, number: int, body: memoryview | bytes) -> None:
        """Make a segment durable.

        Raises:
            Corrupt: it breaks a rule of the format.
            Conflict: ``segment-differs``: another one is held under its number; ``point-not-open``.
            NoSpace: the store is full, or fuller than allowed; nothing of it is held.
        """
        if number > self._most_segments:
            raise Corrupt("segment-number", f"disk {self.spec.target} has no segment {number}")
        segment = parse(body, point=self._point, target=self.spec.target, number=number, clusters=self.clusters)
        with self._claimed(segment.head) as fresh:
            if fresh:
                # Patches are stored decoded.
                size = len(body) + int(patch_blocks(segment.records).sum()) * BLOCK
                require_free(self.image.parent, self._min_free + size, f"a segment of {self.spec.target}")
                with store_errors(self.image):
                    self._write(segment)

    def ranges(self) -> HeldSegments:
        """Tell what is held, as half-open ranges of numbers."""
        with self._change:
            numbers = sorted(self._held)
        starts = [n for place, n in enumerate(numbers) if not place or numbers[place - 1] != n - 1]
        ends = [n + 1 for place, n in enumerate(numbers) if place + 1 == len(numbers) or numbers[place + 1] != n + 1]
        return HeldSegments(target=self.spec.target, ranges=tuple(zip(starts, ends, strict=True)))

    @property
    def closed(self) -> bool:
        """Whether it takes no more segments."""
        return self._closed

    def close(self) -> None:
        """Take no more segments; wait for those that are being written, then close the files."""
        with self._change:
            self._closed = True
            self._change.wait_for(lambda: not self._writing)
            if self._image_fd >= 0:
                os.close(self._image_fd)
                os.close(self._index_fd)
                self._image_fd = self._index_fd = -1
                self._sums.close()

    def check(self, closing: DiskClosing) -> DiskCheck:
        """Check all segments together, put index and sums in order, and size the tables; the disk is closed.

        Raises:
            Conflict: ``point-incomplete``: segments are missing.
            Corrupt: ``point-damaged``: they contradict each other or the closing.
        """
        if sorted(self._held) != list(range(closing.segments)):
            raise Conflict(
                "point-incomplete",
                f"{len(self._held)} of {closing.segments} segments of disk {self.spec.target} are here",
                hint="ask what is held and send the rest",
                kind="transient",
            )
        result = self._walk(closing)
        with store_errors(self.index):
            self._sort_index()
            self._sums.finish(self.image, self._entries())
        return result

    def records(self) -> Iterator[Records]:
        """Read the records of all segments, in order once ``check`` has put them so."""
        for entry in self._entries():
            yield split(entry)[1]

    # ---- helpers

    def _entries(self) -> Iterator[bytes]:
        with self.index.open("rb", buffering=_BUFFER) as fh:
            while (entry := read_entry(fh)) is not None:
                yield entry

    def _open(self) -> IncomingSums:
        with store_errors(self.image):
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
            self._index_fd = os.open(self.index, flags | os.O_APPEND, FILE_MODE)
            try:
                self._image_fd = os.open(self.image, flags, FILE_MODE)
            except OSError:
                os.close(self._index_fd)
                raise
            recover_index(self.index)
            with self.index.open("rb", buffering=_BUFFER) as fh:
                self._read_back(fh)
            return IncomingSums(self.index)

    def _read_back(self, fh: BinaryIO) -> None:
        position = 0
        while (entry := read_entry(fh)) is not None:
            head = split(entry)[0]
            self._held[head.number] = (head.digest, position)
            position = fh.tell()

    @contextmanager
    def _claimed(self, head: SegmentHead) -> Iterator[bool]:
        """Be the only one that writes this number; False when it is held already."""
        number = head.number
        with self._change:
            self._change.wait_for(lambda: number not in self._writing)
            if self._closed:
                raise Conflict("point-not-open", f"point {self._point} takes no more segments", kind="transient")
            if number in self._held:
                if self._held[number][0] != head.digest:
                    raise Conflict(
                        "segment-differs",
                        f"another segment {number} of disk {self.spec.target} is held of point {self._point}",
                        hint="abandon the point and begin it anew",
                    )
                yield False
                return
            self._writing.add(number)
        try:
            yield True
        finally:
            with self._change:
                self._writing.discard(number)
                self._change.notify_all()

    def _write(self, segment: Segment) -> None:
        head = segment.head
        try:
            pwrite_all(self._image_fd, segment.data, head.data_offset)
            sums = write_patches(self._image_fd, segment)
            os.fdatasync(self._image_fd)
            _let_go(self._image_fd, head.data_offset, len(segment.data))
        except (OSError, Corrupt):
            if head.data_end > head.data_offset:
                punch(self._image_fd, head.data_offset, head.data_end - head.data_offset)
            raise
        entry = index_entry(segment.head_bytes)
        with self._change:
            position = os.fstat(self._index_fd).st_size
            try:
                self._sums.add(segment, sums)
                if os.write(self._index_fd, entry) != len(entry):
                    os.write(self._index_fd, entry)  # the file system is full: this one tells so
                os.fdatasync(self._index_fd)
            except OSError:
                os.ftruncate(self._index_fd, position)
                raise
            self._held[head.number] = (head.digest, position)

    def _walk(self, closing: DiskClosing) -> DiskCheck:
        place, reached, last_table, tables, wire, patches = DATA_START, 0, -1, 0, 0, 0
        with self.index.open("rb") as fh:
            for number in range(closing.segments):
                fh.seek(self._held[number][1])
                head, records, head_bytes = split(read_entry(fh) or b"")
                if head.data_offset != place or (len(records) and int(records["cluster"][0]) < reached):
                    raise self._damaged(f"segment {number} does not go on where its predecessor ends")
                touched = touched_l2(records)
                if len(touched):
                    tables += len(touched) - (int(touched[0]) == last_table)
                    last_table, reached = int(touched[-1]), int(record_ends(records)[-1])
                place, wire = head.data_end, wire + len(head_bytes) + head.payload
                patches += head.patch_count
        if place != closing.data_end:
            raise self._damaged(f"its data ends at {place}, the closing says {closing.data_end}")
        return DiskCheck(tables, wire, patches)

    def _sort_index(self) -> None:
        positions = [self._held[number][1] for number in range(len(self._held))]
        if positions == sorted(positions):
            return
        ordered = self.index.with_suffix(".ordered")
        with self.index.open("rb") as source, ordered.open("wb", buffering=_BUFFER) as target:
            for number, position in enumerate(positions):
                source.seek(position)
                self._held[number] = (self._held[number][0], target.tell())
                target.write(index_entry(read_entry(source) or b""))
            target.flush()
            os.fsync(target.fileno())
        ordered.chmod(FILE_MODE)
        ordered.replace(self.index)
        fsync_dir(self.index.parent)

    def _damaged(self, why: str) -> Corrupt:
        return Corrupt(
            "point-damaged",
            f"disk {self.spec.target} of point {self._point} cannot be published: {why}",
            hint="the point is thrown away; the next cycle makes a new one",
            kind="transient",
        )


def _let_go(fd: int, offset: int, size: int) -> None:
    if size >= _LARGE:
        with suppress(OSError):
            os.posix_fadvise(fd, offset, size, os.POSIX_FADV_DONTNEED)


class Incoming:
    """All disks of a point under construction."""

    def __init__(self, directory: Path, opening: PointOpening, min_free: int) -> None:
        self.directory = directory
        self.opening = opening
        self._min_free = min_free
        self.disks: dict[str, IncomingDisk] = {}
        self.reopen()

    def reopen(self) -> None:
        """Take segments (again), after an attempt to publish failed or a crash ended one."""
        for spec in self.opening.disks:
            published = self.directory / f"{spec.target}.qcow2"
            if published.exists():
                published.rename(self.directory / f"{spec.target}.image")
        self.disks = {
            spec.target: IncomingDisk(self.directory, spec, self.opening.point, self._min_free)
            for spec in self.opening.disks
        }

    def held(self) -> IncomingPoint:
        """Tell what is held of each disk."""
        return IncomingPoint(point=self.opening.point, held=tuple(disk.ranges() for disk in self.disks.values()))

    @property
    def closed(self) -> bool:
        """Whether it takes no more segments."""
        return any(disk.closed for disk in self.disks.values())

    def close(self) -> None:
        """Take no more segments."""
        for disk in self.disks.values():
            disk.close()
