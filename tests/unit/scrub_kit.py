"""Scrubbing by hand: tools without a limit, flipped bits, and what a consumer would have got."""

import random
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from vmreplica.model.report import TaskReport
from vmreplica.model.scrubbing import ScrubReport
from vmreplica.qcow2.checking import FrameReader
from vmreplica.repository import Replica
from vmreplica.repository.layout import Layout
from vmreplica.repository.scrub import Found, Tools, scrub_point


def anyway(*, even_damaged: bool) -> tuple[str, ...]:
    """What a small agent notes of a wish for a damaged point."""
    return ("even damaged",) if even_damaged else ()


class SmallScrubs:
    """The verb of scrub of a small agent: its report is given.

    Args:
        note: takes note of what is asked.
    """

    def __init__(self, note: Callable[..., None]) -> None:
        self._note = note
        self.report: ScrubReport | None = None

    def begin(self, vm: str, point: str | None) -> TaskReport:
        """Check points."""
        self._note("scrub", vm, point)
        return TaskReport(id="1" * 16, what=f"scrub of {vm}", done=True, scrubbed=self.report)


def tools(*, threads: int = 1, repair: bool = False) -> Tools:
    """Tools that read as fast as they can; without repair everything is found that can be."""
    return Tools(
        frames=FrameReader(threads),
        pace=lambda _size: None,
        reached=lambda _target, _table: None,
        begin=lambda _target: 0,
        repair=repair,
    )


def scrub(replica: Replica, point: str, *, threads: int = 1, repair: bool = False) -> Found:
    """Scrub one point of a replica."""
    return scrub_point(Layout(replica.dir), replica.point(point), tools(threads=threads, repair=repair))


@contextmanager
def flipped(path: Path, offset: int, bit: int) -> Iterator[None]:
    """Have one bit of a file wrong while the block lasts."""
    with path.open("r+b") as fh:
        fh.seek(offset)
        right = fh.read(1)
        fh.seek(offset)
        fh.write(bytes([right[0] ^ 1 << bit]))
    try:
        yield
    finally:
        if path.exists():
            with path.open("r+b") as fh:
                fh.seek(offset)
                fh.write(right)


def some_offsets(low: int, high: int, count: int, seed: int) -> list[int]:
    """Some places in [low, high), the first and last among them."""
    source = random.Random(seed)
    return sorted({low, high - 1, *(source.randrange(low, high) for _ in range(count))})


def reads(image: Path) -> bytes | None:
    """What a consumer gets of a disk through QEMU; None: an error."""
    raw = image.with_name(".consumer.raw")
    run = subprocess.run(
        ["qemu-img", "convert", "-U", "-f", "qcow2", "-O", "raw", str(image), str(raw)],
        capture_output=True,
        timeout=60,
        check=False,
    )
    try:
        return raw.read_bytes() if run.returncode == 0 else None
    finally:
        raw.unlink(missing_ok=True)
