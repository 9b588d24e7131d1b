"""The newest of several points compared with its fingerprint, beside reading the same chain over NBD and no more."""

import contextlib
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from bench.content import system_disk
from bench.lab import BenchLab
from bench.peers.plain_read import read_export
from bench.report import Measure, measure, middle, spread
from bench.writes import BLOCK, scattered, write_blocks

MiB = 1 << 20
_GUEST = "verify"
#: Least speed of ours, as a part of the plain reading's.
_SPEED = 0.6
_DELTAS = 4
_PATIENCE = 10.0


def run(lab: BenchLab, *, quick: bool) -> Measure:
    """Verify several times, in turns with the peer; both read a chain of five points that the kernel has in memory."""
    size, used, repetitions = (1024 * MiB, 512 * MiB, 3) if quick else (2048 * MiB, 1536 * MiB, 5)
    lab.add_guest(_GUEST, content=system_disk(size=size, used=used))
    lab.primary.vmreplica("enable", _GUEST, "--to", lab.replica.name, "--every", "24h", "--exclude-disk", "vda")
    for number in range(_DELTAS):
        write_blocks(lab.primary, _GUEST, "vdb", scattered([(0, size)], 500, grain=BLOCK, seed=number))
        point = lab.cycle(_GUEST, "delta").point
    (image,) = lab.replica.lab_host.layout.store.glob(f"*/points/{point}/vdb.qcow2")
    ours: list[float] = []
    theirs: list[float] = []
    copied: list[float] = []
    for _ in range(repetitions):
        seconds, extents = _read(image)
        theirs.append(seconds)
        copied.append(_copy(image))
        ours.append(_verify(lab, point))
    lab.primary.vmreplica("disable", _GUEST, "--delete-copy", "--yes")
    return _measure(ours, theirs, copied, sum(length for _, length in extents))


def _measure(ours: Sequence[float], theirs: Sequence[float], copied: Sequence[float], read_bytes: int) -> Measure:
    return measure(
        ours={
            "seconds": middle(ours),
            "all_seconds": spread(ours),
            "read_bytes_per_second": int(read_bytes / middle(ours)),
        },
        peer="plain_read",
        theirs={
            "seconds": middle(theirs),
            "all_seconds": spread(theirs),
            "read_bytes_per_second": int(read_bytes / middle(theirs)),
            "read_bytes": read_bytes,
            "nbdcopy_seconds": middle(copied),
        },
        ratio=middle(ours) / middle(theirs),
        goal=round(1 / _SPEED, 3),
    )


def _verify(lab: BenchLab, point: str) -> float:
    """Verify the newest point; tell the seconds from the request to the verdict."""
    report = lab.primary.vmreplica("verify", _GUEST)["verified"]
    (disk,) = report["verified"]["disks"]
    if (report["verified"]["point"], disk["verdict"], disk["how"]) != (point, "equal", "blocks"):
        raise RuntimeError(f"the point was not proven block by block: {report}")
    return float(report["seconds"])


def _read(image: Path) -> tuple[float, Sequence[tuple[int, int]]]:
    """Read all that a chain has allocated; tell the seconds, the server's start included, and the extents."""
    begun = time.perf_counter()
    with _served(image) as socket:
        extents = read_export(socket, "")
    return time.perf_counter() - begun, extents


def _copy(image: Path) -> float:
    """Let nbdcopy read the chain with all that it has: many requests at a time."""
    begun = time.perf_counter()
    with _served(image) as socket:
        subprocess.run(["nbdcopy", f"nbd+unix:///?socket={socket}", "null:"], check=True, timeout=600)
    return time.perf_counter() - begun


@contextmanager
def _served(image: Path) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="vmr-bench-"))
    socket = folder / "nbd"
    command = ["qemu-nbd", "--read-only", "--format=qcow2", f"--socket={socket}", "--persistent", "--shared=8"]
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, folder)
        server = stack.enter_context(subprocess.Popen([*command, str(image)]))
        stack.callback(server.terminate)
        deadline = time.monotonic() + _PATIENCE
        while not socket.exists():
            if server.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"qemu-nbd does not serve {image}")
            time.sleep(0.005)
        yield socket
