"""Finding out what a killed process left of a disk's segments: the exact position where capture goes on."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
from pydantic import ValidationError

from vmreplica.model.errors import Corrupt
from vmreplica.model.point import DiskClosing, DiskSpec
from vmreplica.model.units import CLUSTER
from vmreplica.qcow2.head import (
    BLOCK,
    DATA_START,
    HEAD,
    KIND_ZSTD,
    RECORD,
    Records,
    SegmentHead,
    patch_blocks,
    read_head,
    split,
)
from vmreplica.qcow2.index import read_heads, recover_index

CLOSING: Final = "closing.json"
SHIPPED: Final = "shipped.index"
_SEGMENT: Final = re.compile(r"([0-9]{8,10})\.seg")


@dataclass(slots=True)
class Recovered:
    """What is there of a disk, and where the next segment goes."""

    next_segment: int = 0
    next_cluster: int = 0
    data_offset: int = DATA_START
    #: Guest bytes that its segments carry as data.
    guest_bytes: int = 0
    #: Number -> bytes of the file, ascending.
    waiting: dict[int, int] = field(default_factory=dict)
    closing: DiskClosing | None = None

    def advance(self, head: SegmentHead, guest_bytes: int) -> None:
        """Go on behind a segment."""
        self.next_segment = head.number + 1
        self.next_cluster = head.next_cluster
        self.data_offset = head.data_end
        self.guest_bytes += guest_bytes


@dataclass(slots=True)
class _Tally:
    """Adds up heads that come in any order."""

    point: str
    target: str
    segments: int = 0
    image_bytes: int = 0
    guest_bytes: int = 0
    last: SegmentHead | None = None

    def add(self, head: SegmentHead, records: Records) -> None:
        if (head.point, head.target) != (self.point, self.target):
            raise Corrupt("spool-damaged", f"the spool of disk {self.target} holds a segment of {head.target}")
        self.segments += 1
        self.image_bytes += head.data_end - head.data_offset
        self.guest_bytes += guest_bytes_of(records)
        if self.last is None or head.number > self.last.number:
            self.last = head

    def result(self, waiting: dict[int, int]) -> Recovered:
        found = Recovered(waiting=dict(sorted(waiting.items())), guest_bytes=self.guest_bytes)
        if self.last is None:
            return found
        found.advance(self.last, 0)
        if found.next_segment != self.segments or found.data_offset != DATA_START + self.image_bytes:
            raise Corrupt("spool-damaged", f"the spool of disk {self.target} lacks a segment")
        return found


def segment_path(directory: Path, number: int) -> Path:
    """Name a segment's file."""
    return directory / f"{number:08d}.seg"


def guest_bytes_of(records: Records) -> int:
    """Tell how many guest bytes records carry as data: whole clusters, and blocks of patches."""
    whole = int(np.count_nonzero(records["kind"] == KIND_ZSTD))
    return whole * CLUSTER + int(patch_blocks(records).sum()) * BLOCK


def read_head_bytes(path: Path) -> bytes:
    """Read a segment file's head and records, not its data.

    Raises:
        Corrupt: it is no segment.
    """
    with path.open("rb") as fh:
        start = fh.read(HEAD)
        count = read_head(start, str(path)).record_count
        return start + fh.read(count * RECORD.itemsize)


def recover_disk(directory: Path, point: str, spec: DiskSpec) -> Recovered:
    """Read what is there of a disk.

    Raises:
        Corrupt: ``spool-damaged`` or a broken head; such a point can only be discarded.
    """
    for leftover in directory.glob(".*.tmp"):
        leftover.unlink()
    tally = _Tally(point, spec.target)
    present = {int(match[1]): path for path in directory.iterdir() if (match := _SEGMENT.fullmatch(path.name))}
    _add_shipped(directory / SHIPPED, tally, present)
    waiting: dict[int, int] = {}
    for number, path in present.items():
        if size := _add_present(number, path, tally):
            waiting[number] = size
    found = tally.result(waiting)
    found.closing = _read_closing(directory / CLOSING, found)
    return found


def _add_shipped(index: Path, tally: _Tally, present: dict[int, Path]) -> None:
    """Add what the index says; a segment that is in it needs no file any more."""
    if not index.exists():
        return
    recover_index(index)
    with index.open("rb") as fh:
        for head, records in read_heads(fh):
            tally.add(head, records)
            if (path := present.pop(head.number, None)) is not None:
                path.unlink()


def _add_present(number: int, path: Path, tally: _Tally) -> int:
    """Add a segment's file; returns its size, or 0 when it was cut down to its head: it was acknowledged then."""
    head_bytes = read_head_bytes(path)
    head, records, _ = split(head_bytes, str(path))
    size = path.stat().st_size
    if head.number != number:
        raise Corrupt("spool-damaged", f"{path} says it is segment {head.number}")
    tally.add(head, records)
    if size == len(head_bytes) + head.payload:
        return size
    if size != len(head_bytes):
        raise Corrupt("spool-damaged", f"{path} has {size} bytes, not what its head says")
    return 0


def _read_closing(path: Path, found: Recovered) -> DiskClosing | None:
    if not path.exists():
        return None
    try:
        closing = DiskClosing.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise Corrupt("spool-damaged", f"{path} is damaged: {error}") from error
    if (closing.segments, closing.data_end) != (found.next_segment, found.data_offset):
        raise Corrupt("spool-damaged", f"{path} does not fit the segments beside it")
    return closing
