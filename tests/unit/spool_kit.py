"""Pending points with known content, and a small replica that keeps what it is sent in memory."""

import random
import threading

import numpy as np
from point_kit import VM, make_opening, make_summary

from vmreplica.model.body import Body, Buffers, joined
from vmreplica.model.errors import Conflict
from vmreplica.model.ids import DiskTarget, PointId, VmId
from vmreplica.model.point import (
    HeldSegments,
    IncomingPoint,
    PointClosing,
    PointOpening,
    PointSummary,
)
from vmreplica.model.units import CLUSTER, MiB
from vmreplica.qcow2 import frames
from vmreplica.qcow2.segment import KIND_ZSTD, RECORD, Records, clusters_of, parse
from vmreplica.spool import SpoolDisk, SpoolPoint

POINT = "20260102T000000Z-00000001"


def opening(*targets: DiskTarget, vm: VmId = VM, point: PointId = POINT, size: int = 64 * MiB) -> PointOpening:
    """The whole copy of a VM with these disks."""
    return make_opening(point, dict.fromkeys(targets or ("vda",), size), vm=vm)


def content(first: int, clusters: int) -> tuple[Records, list[bytes]]:
    """Records and frames of clusters that do not compress."""
    guest = random.Random(first).randbytes(clusters * CLUSTER)
    data = [frame for frame in frames.encode(memoryview(guest), 1) if frame is not None]
    rows = [(first + place, len(frame), KIND_ZSTD) for place, frame in enumerate(data)]
    return np.array(rows, RECORD), data


def add_segment(
    disk: SpoolDisk, clusters: int = 4, *, cancel: threading.Event | None = None, patience: float = 20
) -> None:
    """Append the next few clusters of a disk."""
    first = disk.next_cluster
    disk.append(*content(first, clusters), first + clusters, cancel=cancel, patience=patience)


def fill(point: SpoolPoint, segments: int = 3) -> None:
    """Append so many segments to each disk, and finish the point."""
    for disk in point.disks:
        for _ in range(segments):
            add_segment(disk)
        disk.finish()
    point.finish(point.guest_bytes)


class MemoryReplica:
    """A replica that checks every rule of the format, and counts what reaches it."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.opening: PointOpening | None = None
        self.held: dict[tuple[DiskTarget, int], bytes] = {}
        self.puts: list[tuple[DiskTarget, int]] = []
        self.closing: PointClosing | None = None

    def open_point(self, opening: PointOpening) -> IncomingPoint:
        """Begin, or go on."""
        with self.lock:
            self.opening = opening
            return IncomingPoint(
                point=opening.point,
                held=tuple(
                    HeldSegments(
                        target=disk.target,
                        ranges=tuple((n, n + 1) for target, n in sorted(self.held) if target == disk.target),
                    )
                    for disk in opening.disks
                ),
            )

    def put_segment(self, vm: VmId, point: PointId, target: DiskTarget, number: int, body: Body) -> None:
        """Check and keep a segment."""
        content = joined(body)
        with self.lock:
            self.puts.append((target, number))
            assert self.opening is not None
            assert self.opening.vm == vm
            size = {disk.target: disk.size for disk in self.opening.disks}[target]
            parse(content, point=point, target=target, number=number, clusters=clusters_of(size))
            self.held[target, number] = content

    def complete(self, vm: VmId, point: PointId, closing: PointClosing) -> PointSummary:
        """Publish if nothing is missing."""
        with self.lock:
            assert self.opening is not None
            assert (self.opening.vm, self.opening.point) == (vm, point)
            wanted = {(disk.target, number) for disk in closing.disks for number in range(disk.segments)}
            if wanted != set(self.held):
                raise Conflict("point-incomplete", "segments are missing")
            self.closing = closing
            disks = {disk.target: disk.size for disk in self.opening.disks}
            return make_summary(point, disks, instant=self.opening.instant, guest_bytes=closing.guest_bytes)


def flipped(body: Body) -> Body:
    """The same segment with one bit wrong in its data."""
    content = bytearray(joined(body))
    content[-1] ^= 1
    return Buffers(content)
