"""Disks served by a real NBD server, with changes tracked in a real bitmap, and the image that a spool leads to."""

import json
import os
import random
import socket
import subprocess
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from point_kit import make_opening, segment_of

from vmreplica.model.ids import DiskTarget
from vmreplica.model.point import PointOpening
from vmreplica.model.units import CLUSTER
from vmreplica.qcow2.segment import Records, clusters_of, parse
from vmreplica.qcow2.tables import write_tables
from vmreplica.spool import SpoolDisk, SpoolPoint

PARENT = "20260101T000000Z-00000001"
POINT = "20260102T000000Z-00000001"
BITMAP = "changes"


@dataclass(frozen=True)
class View:
    """What capture is given of a disk."""

    socket: Path
    name: str
    size: int
    bitmap: str | None = None


def opening(disks: dict[DiskTarget, int], *, delta: bool = False) -> PointOpening:
    """A point of disks with these sizes."""
    return make_opening(POINT if delta else PARENT, disks, parent=PARENT if delta else None)


def run(*command: str | Path) -> str:
    """Run a tool; it must succeed."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


def make_disk(path: Path, size: int, writes: Iterable[str] = ()) -> Path:
    """Make a qcow2 disk and let qemu-io write on it."""
    run("qemu-img", "create", "-q", "-f", "qcow2", path, str(size))
    change(path, writes)
    return path


def change(path: Path, writes: Iterable[str]) -> None:
    """Let qemu-io do these commands on a disk."""
    commands = [part for write in writes for part in ("-c", write)]
    if commands:
        run("qemu-io", "-f", "qcow2", "-d", "unmap", *commands, path)


def track(path: Path) -> None:
    """Begin to record changes."""
    run("qemu-img", "bitmap", "--add", path, BITMAP)


def noise(directory: Path, size: int) -> Path:
    """A file that does not compress."""
    path = directory / "noise"
    path.write_bytes(random.Random(size).randbytes(size))
    return path


@contextmanager
def served(path: Path, listen: Path, *, bitmap: str | None = None) -> Iterator[View]:
    """Serve a disk read-only over NBD on a unix socket."""
    size = json.loads(run("qemu-img", "info", "-U", "--output=json", path))["virtual-size"]
    with serving(listen, "-f", "qcow2", *(["-B", bitmap] if bitmap else []), str(path)):
        yield View(listen, "", size, bitmap)


@contextmanager
def serving(listen: Path, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run an NBD server with these arguments."""
    with subprocess.Popen(["qemu-nbd", "-r", "-t", "-e", "16", "-k", str(listen), *arguments]) as server:
        try:
            _await(listen, server)
            yield server
        finally:
            server.kill()
            server.wait()
            listen.unlink(missing_ok=True)


def build_image(point: SpoolPoint, target: DiskTarget, path: Path, backing: Path | None = None) -> Path:
    """Make the image that a replica would make of what waits in the spool."""
    records: list[Records] = []
    disk = point.disk(target)
    with path.open("w+b") as image:
        for number in disk.waiting():
            segment = parse_waiting(point, disk, number)
            os.pwrite(image.fileno(), segment[1], segment[2])
            records.append(segment[0])
        name = None if backing is None else str(backing)
        write_tables(image.fileno(), size=disk.size, data_end=disk.data_offset, records=records, backing=name)
    return path


def parse_waiting(point: SpoolPoint, disk: SpoolDisk, number: int) -> tuple[Records, memoryview, int]:
    """Records, data and data offset of a waiting segment, every rule checked."""
    segment = parse(
        segment_of(disk, number),
        point=point.opening.point,
        target=disk.target,
        number=number,
        clusters=clusters_of(disk.size),
    )
    return segment.records, segment.data, segment.head.data_offset


def assert_same(image: Path, disk: Path) -> None:
    """The two read alike in every byte, says QEMU, and the image is sound."""
    assert "identical" in run("qemu-img", "compare", "-f", "qcow2", "-F", "qcow2", image, disk)
    run("qemu-img", "check", "-q", "-f", "qcow2", image)


def carried(point: SpoolPoint, target: DiskTarget) -> tuple[int, int]:
    """How many clusters the waiting segments carry as data, and how many as zeroes."""
    data = zeroes = 0
    disk = point.disk(target)
    for number in disk.waiting():
        for _, length, kind in parse_waiting(point, disk, number)[0].tolist():
            data += kind == 1
            zeroes += length if kind != 1 else 0
    return data, zeroes


def guest_clusters(point: SpoolPoint) -> int:
    """Clusters that a finished point says it read."""
    assert point.closing is not None
    return point.closing.guest_bytes // CLUSTER


def _await(path: Path, server: subprocess.Popen[bytes]) -> None:
    """Wait until the server accepts: the socket's file is there a moment before it listens."""
    deadline = time.monotonic() + 20
    while not _accepts(path):
        assert server.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _accepts(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0
