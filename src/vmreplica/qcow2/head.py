"""Heads of segments: their layout, and reading one (docs/design/format.md, "Segment").

Only the shape is checked here; whether what a head says may be believed is ``segment.parse``'s matter.
"""

import struct
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from vmreplica.model.errors import Corrupt
from vmreplica.model.ids import DiskTarget, PointId
from vmreplica.model.units import CLUSTER, MiB
from vmreplica.qcow2 import frames

RECORD: Final = np.dtype([("cluster", "<u8"), ("length", "<u4"), ("kind", "<u4")])
KIND_ZSTD: Final = 1
KIND_ZERO: Final = 2
#: Bytes of the fixed part of a head.
HEAD: Final = 128
#: Where the data of segment 0 stands in an image: right behind the header cluster.
DATA_START: Final = CLUSTER
#: A sender closes a segment when its data reaches this.
SEGMENT_BYTES: Final = 8 * MiB
MAX_RECORDS: Final = 65536
MAX_DATA: Final = 16 * MiB
MAX_BODY: Final = HEAD + MAX_RECORDS * RECORD.itemsize + MAX_DATA

#: A one-dimensional array of dtype RECORD.
Records = npt.NDArray[np.void]

MAGIC: Final = b"VMRSEG1\0"
#: Magic, number, record count, data offset, next cluster, data length, flags, point, target.
FIELDS: Final = struct.Struct("<8sIIQQII32s16s")
#: Where the digest stands; zeroes follow it.
DIGEST: Final = slice(88, 104)


@dataclass(frozen=True, slots=True)
class SegmentHead:
    """The fixed part of a segment's head; offsets and lengths in bytes."""

    number: int
    record_count: int
    data_offset: int
    next_cluster: int
    data_length: int
    point: PointId
    target: DiskTarget
    digest: bytes

    @property
    def data_end(self) -> int:
        """Where the next segment's data begins."""
        return self.data_offset + self.data_length


@dataclass(frozen=True, slots=True)
class Segment:
    """A whole segment that kept every rule."""

    head: SegmentHead
    records: Records
    data: memoryview
    #: Head and records as they came: what the index keeps.
    head_bytes: bytes


def clusters_of(size: int) -> int:
    """Tell how many guest clusters a disk of so many bytes has."""
    return -(-size // CLUSTER)


def max_data_end(clusters: int) -> int:
    """Tell where the data of a disk ends at the latest: nothing beyond this offset can be true."""
    return DATA_START + clusters * frames.MAX_FRAME


def split(body: memoryview | bytes, what: str = "a segment") -> tuple[SegmentHead, Records, bytes]:
    """Read head and records, and give them as bytes too, without looking at the data or the digest.

    Raises:
        Corrupt: ``segment-size`` or ``segment-head``.
    """
    head = read_head(body, what)
    end = HEAD + head.record_count * RECORD.itemsize
    if len(body) < end:
        raise Corrupt("segment-size", f"{what} ends within its records")
    head_bytes = bytes(body[:end])
    return head, np.frombuffer(head_bytes, RECORD, offset=HEAD), head_bytes


def read_head(body: memoryview | bytes, what: str) -> SegmentHead:
    """Read the fixed part of a head.

    Raises:
        Corrupt: ``segment-size`` or ``segment-head``.
    """
    if len(body) < HEAD:
        raise Corrupt("segment-size", f"{what} has {len(body)} bytes, a head alone has {HEAD}")
    raw = bytes(body[:HEAD])
    magic, number, count, offset, following, length, flags, point, target = FIELDS.unpack_from(raw)
    if magic != MAGIC or flags or any(raw[DIGEST.stop :]):
        raise Corrupt("segment-head", f"{what} has a head that is not of this format")
    if count > MAX_RECORDS or length > MAX_DATA:
        raise Corrupt("segment-size", f"{what} says it has {count} records and {length} bytes of data")
    names = _name(point, what), _name(target, what)
    return SegmentHead(number, count, offset, following, length, *names, raw[DIGEST])


def _name(padded: bytes, what: str) -> str:
    name = padded.rstrip(b"\0")
    if not name or not name.isascii() or b"\0" in name:
        raise Corrupt("segment-head", f"{what} has a head with a broken name")
    return name.decode("ascii")


def record_ends(records: Records) -> npt.NDArray[np.int64]:
    """Tell the first guest cluster behind each record."""
    spans = np.where(records["kind"] == KIND_ZSTD, 1, records["length"])
    ends: npt.NDArray[np.int64] = records["cluster"].astype(np.int64) + spans.astype(np.int64)
    return ends
