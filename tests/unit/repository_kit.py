"""A primary in a few lines: it has disks as plain dictionaries, sends points, and remembers what each must read as."""

import datetime as dt
import random
import subprocess
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import numpy as np
from point_kit import VM, make_opening

from vmreplica.model.point import DiskClosing, PointClosing, PointOpening, PointSummary
from vmreplica.model.policy import ReplicaOffer
from vmreplica.model.units import CLUSTER
from vmreplica.qcow2 import frames
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
from vmreplica.repository import Replica, Repository

OWNER = "a" * 32
STRANGER = "b" * 32
START = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
ZERO = bytes(CLUSTER)
SIZE = 64 * CLUSTER

Disk = dict[int, bytes]
Changes = Mapping[str, Mapping[int, bytes]]


def noise(seed: int) -> bytes:
    """A cluster that does not compress."""
    return random.Random(seed).randbytes(CLUSTER)


def offer(*, keep: int = 3, epoch: int = 0, paused: bool = False, name: str = "web") -> ReplicaOffer:
    """A policy."""
    return ReplicaOffer(name=name, interval=60, keep=keep, epoch=epoch, disk_bytes=SIZE, paused=paused)


def open_repository(store: Path, *, min_free: int = 0) -> Repository:
    """Open a repository as an agent does at its start."""
    repository = Repository(store, min_free=min_free, clock=lambda: START)
    repository.recover()
    return repository


def new_replica(store: Path, *, keep: int = 3) -> Replica:
    """A repository with one accepted VM."""
    return open_repository(store).create(VM, OWNER, offer(keep=keep))


class Primary:
    """Sends points of its disks.

    Args:
        sizes: bytes of each disk.
        each: clusters per segment.
        patches: send patches of clusters of which only some blocks changed.
        spacing: seconds between points.
    """

    def __init__(
        self, sizes: Mapping[str, int] | None = None, *, each: int = 8, patches: bool = False, spacing: int = 1
    ) -> None:
        self.sizes = dict(sizes or {"vda": SIZE})
        self.disks: dict[str, Disk] = {target: {} for target in self.sizes}
        self.each = each
        self.patches = patches
        self.spacing = spacing
        #: What each published point's disks must read as.
        self.expected: dict[str, dict[str, bytes]] = {}
        self.latest: str | None = None
        self.count = 0

    def opening(self, *, whole: bool = False, epoch: int = 0, keep: int = 3, checkpoint: bool = True) -> PointOpening:
        """The opening of the next point."""
        self.count += 1
        instant = START + dt.timedelta(seconds=self.count * self.spacing)
        point = f"{instant:%Y%m%dT%H%M%SZ}-{self.count:08x}"
        parent = None if whole else self.latest
        return make_opening(
            point,
            self.sizes,
            parent=parent,
            kind="delta" if parent else "resync" if self.latest else "initial",
            instant=instant,
            epoch=epoch,
            checkpoint=f"vmreplica-aaaaaaaa-{point}" if checkpoint else None,
            interval=60,
            keep=keep,
        )

    def write(self, opening: PointOpening, changes: Changes) -> tuple[dict[str, list[bytes]], PointClosing]:
        """Change the disks; give each disk's segments and the closing."""
        segments: dict[str, list[bytes]] = {}
        closings: list[DiskClosing] = []
        for target in self.sizes:
            change, before = dict(changes.get(target, {})), dict(self.disks[target])
            self.disks[target].update(change)
            if opening.parent is None:
                change = {n: data for n, data in self.disks[target].items() if data != ZERO}
            below = before if self.patches and opening.parent is not None else None
            segments[target], closing = self._segments(opening, target, change, below)
            closings.append(closing)
        self.expected[opening.point] = {target: self._flat(target) for target in self.sizes}
        return segments, PointClosing(disks=tuple(closings), guest_bytes=SIZE)

    def send(
        self, replica: Replica, changes: Changes, *, whole: bool = False, opening: PointOpening | None = None
    ) -> PointSummary:
        """Make, send and publish a point."""
        opening = opening or self.opening(whole=whole)
        segments, closing = self.write(opening, changes)
        replica.open_point(opening)
        for target, bodies in segments.items():
            for number, body in enumerate(bodies):
                replica.put_segment(opening.point, target, number, body)
        summary = replica.complete(opening.point, closing)
        self.latest = opening.point
        return summary

    def _segments(
        self, opening: PointOpening, target: str, change: Disk, below: Disk | None
    ) -> tuple[list[bytes], DiskClosing]:
        bodies: list[bytes] = []
        place, numbers = DATA_START, sorted(change)
        for number, start in enumerate(range(0, len(numbers), self.each)):
            part = numbers[start : start + self.each]
            last = start + self.each >= len(numbers)
            rows, data, patches = _rows({n: change[n] for n in part}, below)
            head, buffers = pack(
                point=opening.point,
                target=target,
                number=number,
                data_offset=place,
                next_cluster=clusters_of(self.sizes[target]) if last else numbers[start + self.each],
                records=np.array(rows, RECORD),
                data=data,
                patches=patches,
            )
            place = head.data_end
            bodies.append(b"".join(buffers))
        return bodies, DiskClosing(target=target, segments=len(bodies), data_end=place)

    def _flat(self, target: str) -> bytes:
        size = self.sizes[target]
        disk = bytearray(clusters_of(size) * CLUSTER)
        for number, data in self.disks[target].items():
            disk[number * CLUSTER : (number + 1) * CLUSTER] = data
        return bytes(disk[:size])


def with_blocks(cluster: bytes, seed: int) -> bytes:
    """The cluster with some of its blocks changed to noise, one repeated byte or zeroes."""
    source, changed = random.Random(seed), bytearray(cluster)
    for block in source.sample(range(BLOCKS), source.randint(1, BLOCKS - 1)):
        data = source.choice([source.randbytes(BLOCK), bytes(BLOCK), bytes([source.randint(1, 255)]) * BLOCK])
        changed[block * BLOCK : (block + 1) * BLOCK] = data
    return bytes(changed)


def _rows(change: Disk, below: Disk | None) -> tuple[list[tuple[int, int, int]], list[bytes], list[bytes]]:
    """Records, frames and patches of some clusters."""
    rows: list[tuple[int, int, int]] = []
    data: list[bytes] = []
    patches: list[bytes] = []
    for number, cluster in change.items():
        (frame,) = frames.encode(memoryview(cluster), 1)
        blocks = _differing(below.get(number, ZERO), cluster) if below is not None else []
        if 0 < len(blocks) < BLOCKS:
            raw = b"".join(cluster[n * BLOCK : (n + 1) * BLOCK] for n in blocks)
            patches.append(frames.encode_patch(memoryview(raw), 1))
            rows.append((number, len(patches[-1]), patch_kind(sum(1 << n for n in blocks))))
        elif frame is not None:
            data.append(frame)
            rows.append((number, len(frame), KIND_ZSTD))
        else:
            rows.append((number, 1, KIND_ZERO))
    return rows, data, patches


def _differing(old: bytes, new: bytes) -> list[int]:
    return [n for n in range(BLOCKS) if old[n * BLOCK : (n + 1) * BLOCK] != new[n * BLOCK : (n + 1) * BLOCK]]


def read_image(path: Path, scratch: Path | None = None) -> bytes:
    """A point's disk as QEMU sees it; read by way of a file beside it, or in another directory."""
    raw = (scratch or path.parent) / ".read.raw"
    run = subprocess.run(
        ["qemu-img", "convert", "-U", "-f", "qcow2", "-O", "raw", str(path), str(raw)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    try:
        return raw.read_bytes()
    finally:
        raw.unlink()


def check_all(replica: Replica, primary: Primary, only: Collection[str] = ()) -> list[str]:
    """Every listed point, or only these, is sound and reads as it must; tell the ids of all, oldest first."""
    listed = [summary.point for summary in reversed(replica.points())]
    for point in only or listed:
        for disk in replica.point(point).disks:
            image = replica.image(point, disk.target)
            run = subprocess.run(["qemu-img", "check", "-f", "qcow2", str(image)], capture_output=True, check=False)
            assert run.returncode == 0, run.stdout
            assert read_image(image) == primary.expected[point][disk.target], (point, disk.target)
    return listed


class Killed(BaseException):
    """The process ends here: no handler of ours runs."""


def kill_at(step: str) -> Callable[[str], None]:
    """Make what ends the process before a step of a fold."""

    def before(name: str) -> None:
        if name == step:
            raise Killed(step)

    return before


def fill(replica: Replica, primary: Primary, points: int, *, seed: int = 1) -> None:
    """Send so many points of random changes: noise and zeroes, and changed blocks if the primary sends patches."""
    source = random.Random(seed)
    for turn in range(points):
        changes: dict[str, Disk] = {}
        for target, size in primary.sizes.items():
            chosen = source.sample(range(size // CLUSTER), 8 if primary.patches else 6)
            changes[target] = {n: _changed(primary, target, n, turn * 100 + n, source) for n in chosen}
        primary.send(replica, changes)


def _changed(primary: Primary, target: str, number: int, seed: int, source: random.Random) -> bytes:
    choices = [ZERO, noise(seed)]
    if primary.patches:
        choices += [with_blocks(primary.disks[target].get(number, ZERO), seed)] * 4
    return source.choice(choices)
