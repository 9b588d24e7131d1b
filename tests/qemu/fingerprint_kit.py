"""A disk and what its replica holds, cycle by cycle: what segments lead to, reckoned without any of our tables."""

import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from capture_kit import BITMAP, View, change, opening, run, served, serving
from point_kit import segment_of

from vmreplica.capture import DiskPlan, Mode, capture_point
from vmreplica.fingerprint import Fingerprint, hash_blocks
from vmreplica.model.units import CLUSTER, TiB
from vmreplica.qcow2.frames import decode, decode_patch
from vmreplica.qcow2.segment import BLOCK, BLOCKS, KIND_ZERO, KIND_ZSTD, Segment, clusters_of, parse
from vmreplica.spool import Spool, SpoolPoint

Must = tuple[tuple[int, int], ...]

KEY = 77
LATEST = "20260101T000000Z-00000001"


@dataclass
class Carried:
    """What the segments of a point carry."""

    whole: int = 0
    zeroes: int = 0
    #: Cluster -> mask of its blocks.
    patches: dict[int, int] = field(default_factory=dict)
    wire: int = 0


@dataclass
class Copy:
    """What a replica holds of a disk: its bytes, and the fingerprint the primary keeps of it."""

    directory: Path
    content: bytearray
    fingerprint: Fingerprint
    cycles: int = 0

    def spool(self) -> Path:
        """Where the next point is spooled."""
        return self.directory / f"spool{self.cycles}"

    def cycle(self, view: View, mode: Mode, must: Must = ()) -> tuple[SpoolPoint, Carried]:
        """Capture a point, publish it, and merge what was staged."""
        point = Spool(self.spool(), TiB).create(opening({"vda": view.size}, delta=True))
        capture(point, view, mode, self.fingerprint, must)
        return point, self.publish(point)

    def publish(self, point: SpoolPoint) -> Carried:
        """Take in a captured point as a replica does, and its staged hashes as the primary does."""
        self.cycles += 1
        disk = point.disk("vda")
        self.content = self.content.ljust(disk.size, b"\0")
        carried = apply(point, self.content)
        self.fingerprint.resize(disk.size)
        self.fingerprint.merge(disk.staged(), LATEST)
        proof, total = disk.closing.proof if disk.closing else None, self.fingerprint.sum
        if proof is not None:
            assert (proof.sum, proof.key) == (total.text if total else None, f"{KEY:016x}")
        return carried

    def assert_same(self, disk: Path, image_format: str = "qcow2") -> None:
        """Replica and fingerprint both say what the disk holds."""
        raw = self.directory / "now.raw"
        run("qemu-img", "convert", "-f", image_format, "-O", "raw", disk, raw)
        wanted = raw.read_bytes()
        assert bytes(self.content) == wanted
        found = self.fingerprint.hashes(0, 1 << 40)
        assert np.array_equal(found, hash_blocks(memoryview(wanted), KEY))


def empty_copy(directory: Path, size: int) -> Copy:
    """A replica's disk of zeroes, and its fingerprint."""
    fingerprint = Fingerprint.create(directory / "vda.fp", key=KEY, size=size, target="vda")
    fingerprint.merge([], LATEST)
    return Copy(directory, bytearray(size), fingerprint)


def capture(
    point: SpoolPoint, view: View, mode: Mode, fingerprint: Fingerprint | None, must: Must = ()
) -> list[tuple[int, int]]:
    """Capture one disk; returns the progress told."""
    told: list[tuple[int, int]] = []
    capture_point(
        {"vda": view},
        point,
        plans={"vda": DiskPlan(mode, must)},
        fingerprints={} if fingerprint is None else {"vda": fingerprint},
        cancel=threading.Event(),
        progress=lambda done, total: told.append((done, total)),
    )
    return told


def next_cycle(
    copy: Copy, disk: Path, mode: Mode, *, writes: Iterable[str] = (), must: Must = ()
) -> tuple[Carried, int]:
    """Write on a qcow2 disk and bring the copy up to it; returns what was carried, and the point's guest bytes."""
    change(disk, writes)
    with served(disk, copy.directory / "nbd.sock", bitmap=BITMAP if mode == "delta" else None) as view:
        point, carried = copy.cycle(view, mode, must)
    run("qemu-img", "bitmap", "--clear", disk, BITMAP)
    assert point.closing is not None
    return carried, point.closing.guest_bytes


def next_raw_cycle(copy: Copy, disk: Path) -> Carried:
    """Bring the copy up to a raw disk."""
    socket = copy.directory / "nbd.sock"
    with serving(socket, "-f", "raw", str(disk)):
        return copy.cycle(View(socket, "", disk.stat().st_size), "compare")[1]


def apply(point: SpoolPoint, content: bytearray) -> Carried:
    """Do what a point's segments say to a disk's bytes."""
    disk = point.disk("vda")
    carried = Carried()
    for number in disk.waiting():
        body = segment_of(disk, number)
        carried.wire += len(body)
        name = point.opening.point
        segment = parse(body, point=name, target="vda", number=number, clusters=clusters_of(disk.size))
        _apply_segment(segment, content, carried)
    return carried


def _apply_segment(segment: Segment, content: bytearray, carried: Carried) -> None:
    data, patches = segment.data, segment.patches
    size = len(content)
    for cluster, length, kind in segment.records.tolist():
        start = cluster * CLUSTER
        if kind == KIND_ZERO:
            end = min(start + length * CLUSTER, size)
            content[start:end] = bytes(end - start)
            carried.zeroes += length
        elif kind == KIND_ZSTD:
            content[start : start + CLUSTER] = decode(data[:length])[: size - start]
            data = data[length:]
            carried.whole += 1
        else:
            mask = kind >> 16
            _patch(content, start, mask, decode_patch(patches[:length], mask.bit_count()))
            patches = patches[length:]
            carried.patches[cluster] = mask
    assert not len(data)
    assert not len(patches)
    assert len(content) == size


def _patch(content: bytearray, start: int, mask: int, blocks: bytes) -> None:
    places = [start + bit * BLOCK for bit in range(BLOCKS) if mask >> bit & 1]
    for number, place in enumerate(places):
        end = min(place + BLOCK, len(content))
        content[place:end] = blocks[number * BLOCK : (number + 1) * BLOCK][: end - place]
