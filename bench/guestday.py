"""A guest's day as it reaches a replica: what it writes in each cycle, and sending that, without a VM and a network.

The disk has four parts, in the proportions of a small server: a database whose pages are written again and again, few
of them very often; a log that is appended to; files, of which every other one is written anew where an older one was;
and what nobody touches. All bytes are those of system files, so that they compress as such do.
"""

import datetime as dt
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bench.content import sample
from vmreplica.model.ids import PointId
from vmreplica.model.keep import DEFAULT_KEEP
from vmreplica.model.point import DiskClosing, DiskSpec, PointClosing, PointOpening
from vmreplica.qcow2.frames import encode, encode_patch
from vmreplica.qcow2.segment import (
    BLOCK,
    BLOCKS,
    DATA_START,
    KIND_ZERO,
    KIND_ZSTD,
    RECORD,
    clusters_of,
    pack,
    patch_kind,
)
from vmreplica.repository import Replica

MiB = 1 << 20
CLUSTER = BLOCK * BLOCKS
TARGET = "vda"
VM = "11111111-2222-3333-4444-555555555555"
_LEVEL = 1
#: Bytes of the parts; the database comes first, then the log, then the files.
_DATABASE, _LOG, _FILES = 64 * MiB, 128 * MiB, 512 * MiB
SIZE = 1024 * MiB
#: What a cycle writes: pages drawn for the database, bytes of the log, bytes of files.
_DRAWS, _APPENDED, _FILED = 512, 1 * MiB, 3 * MiB
#: How much more often the first pages of the database are drawn than the last.
_SKEW = 4
_FILE_BYTES = (16 * 1024, 512 * 1024)
_SEGMENT_CLUSTERS = 256


class Sent(NamedTuple):
    """A point that was sent."""

    point: PointId
    changed_bytes: int


class GuestDay:
    """The guest and its primary.

    Args:
        disk: file that holds what the guest's disk reads as; made anew.
        begin: aware instant of the first point.
        seed: the same gives the same day.
    """

    def __init__(self, disk: Path, begin: dt.datetime, seed: int = 1) -> None:
        self.disk = disk
        self.now = begin
        self._chance = random.Random(seed)
        self._bytes = _system_bytes(64 * MiB)
        self._log = 0
        self._files: list[tuple[int, int]] = []
        self._latest: PointId | None = None
        self._count = 0
        with disk.open("wb") as raw:
            raw.truncate(SIZE)

    def first(self, replica: Replica) -> Sent:
        """Send all of the disk; every part is full."""
        blocks = range((_DATABASE + _LOG + _FILES) // BLOCK)
        return self._send(replica, {block: self._content() for block in blocks})

    def cycle(self, replica: Replica) -> Sent:
        """Let the guest write what it writes between two points, and send that."""
        changes = {self._page(): self._content() for _ in range(_DRAWS)}
        start = _DATABASE // BLOCK
        for _ in range(_APPENDED // BLOCK):
            changes[start + self._log % (_LOG // BLOCK)] = self._content()
            self._log += 1
        filed = 0
        while filed < _FILED:
            first, count = self._place()
            changes |= {block: self._content() for block in range(first, first + count)}
            filed += count * BLOCK
        return self._send(replica, changes)

    def idle(self, replica: Replica) -> Sent:
        """Send a point in which nothing has changed."""
        return self._send(replica, {})

    def _page(self) -> int:
        return int(_DATABASE // BLOCK * self._chance.random() ** _SKEW)

    def _place(self) -> tuple[int, int]:
        """Where a file is written: first block and how many; every other time where one was before."""
        if self._files and self._chance.random() < 0.5:
            return self._chance.choice(self._files)
        count = self._chance.randint(*_FILE_BYTES) // BLOCK
        first = (_DATABASE + _LOG) // BLOCK + self._chance.randrange(_FILES // BLOCK - count)
        self._files.append((first, count))
        return first, count

    def _content(self) -> bytes:
        place = self._chance.randrange(len(self._bytes) // BLOCK) * BLOCK
        return self._bytes[place : place + BLOCK]

    def _send(self, replica: Replica, changes: Mapping[int, bytes]) -> Sent:
        opening = self._opening()
        with self.disk.open("r+b", buffering=0) as raw:
            for block, data in changes.items():
                raw.seek(block * BLOCK)
                raw.write(data)
            replica.open_point(opening)
            closing = _ship(replica, opening.point, changes)
        replica.complete(opening.point, closing)
        self._latest = opening.point
        return Sent(opening.point, len(changes) * BLOCK)

    def _opening(self) -> PointOpening:
        self._count += 1
        point = f"{self.now:%Y%m%dT%H%M%SZ}-{self._count:08x}"
        return PointOpening(
            vm=VM,
            name="day",
            point=point,
            parent=self._latest,
            kind="delta" if self._latest else "initial",
            instant=self.now,
            epoch=0,
            checkpoint=None,
            disks=(DiskSpec(target=TARGET, size=SIZE),),
            definition="<domain/>",
            interval=300,
            keep=DEFAULT_KEEP,
        )


def _system_bytes(size: int) -> bytes:
    """Read so many bytes of this machine's system files."""
    found = bytearray()
    for path in sample(Path("/usr"), 4 * size):
        found += path.read_bytes()
        if len(found) >= size:
            return bytes(found[:size])
    raise RuntimeError("there are too few system files in /usr")


def _ship(replica: Replica, point: PointId, changes: Mapping[int, bytes]) -> PointClosing:
    place, count = DATA_START, 0
    for number, (rows, data, patches, following) in enumerate(_segments(changes)):
        head, buffers = pack(
            point=point,
            target=TARGET,
            number=number,
            data_offset=place,
            next_cluster=following,
            records=np.array(rows, RECORD),
            data=data,
            patches=patches,
        )
        replica.put_segment(point, TARGET, number, b"".join(buffers))
        place, count = head.data_end, number + 1
    closing = DiskClosing(target=TARGET, segments=count, data_end=place)
    return PointClosing(disks=(closing,), guest_bytes=len(changes) * BLOCK)


_Segment = tuple[list[tuple[int, int, int]], list[bytes], list[bytes], int]


def _segments(changes: Mapping[int, bytes]) -> Iterator[_Segment]:
    """Make what a primary makes of changed blocks: whole clusters, and patches of those that changed in part."""
    clusters: dict[int, dict[int, bytes]] = {}
    for block, content in changes.items():
        clusters.setdefault(block // BLOCKS, {})[block % BLOCKS] = content
    numbers = sorted(clusters)
    for start in range(0, len(numbers), _SEGMENT_CLUSTERS):
        part = numbers[start : start + _SEGMENT_CLUSTERS]
        rows: list[tuple[int, int, int]] = []
        data: list[bytes] = []
        patches: list[bytes] = []
        for number in part:
            blocks = clusters[number]
            body = memoryview(b"".join(blocks[place] for place in sorted(blocks)))
            if len(blocks) < BLOCKS:
                patches.append(encode_patch(body, _LEVEL))
                rows.append((number, len(patches[-1]), patch_kind(sum(1 << place for place in blocks))))
            elif (frame := encode(body, _LEVEL)[0]) is not None:
                data.append(frame)
                rows.append((number, len(frame), KIND_ZSTD))
            else:
                rows.append((number, 1, KIND_ZERO))
        rest = numbers[start + _SEGMENT_CLUSTERS :]
        following = rest[0] if rest else clusters_of(SIZE)
        yield rows, data, patches, following
