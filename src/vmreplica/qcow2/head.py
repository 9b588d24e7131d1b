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
from vmreplica.model.units import CLUSTER, KiB, MiB
from vmreplica.qcow2 import frames

RECORD: Final = np.dtype([("cluster", "<u8"), ("length", "<u4"), ("kind", "<u4")])
KIND_ZSTD: Final = 1
KIND_ZERO: Final = 2
#: Some blocks of a cluster; the high 16 bits of the record's kind say which (see ``patch_kind``).
KIND_PATCH: Final = 3
#: Bytes of a block, the grain of patches, and blocks per cluster.
BLOCK: Final = 4 * KiB
BLOCKS: Final = CLUSTER // BLOCK
#: A mask with all blocks; such a cluster is sent whole.
WHOLE_MASK: Final = (1 << BLOCKS) - 1
#: Bytes of the fixed part of a head.
HEAD: Final = 128
#: Where the data of segment 0 stands in an image: right behind the header cluster.
DATA_START: Final = CLUSTER
#: A sender closes a segment when its data reaches this.
SEGMENT_BYTES: Final = 8 * MiB
MAX_RECORDS: Final = 65536
#: Frames of clusters and of patches together.
MAX_DATA: Final = 16 * MiB
#: Each patch takes a host cluster of its own in the image, and up to 60 KiB of decoded blocks.
MAX_PATCHES: Final = 4096
MAX_BODY: Final = HEAD + MAX_RECORDS * RECORD.itemsize + MAX_DATA

#: A one-dimensional array of dtype RECORD.
Records = npt.NDArray[np.void]

MAGIC: Final = b"VMRSEG1\0"
#: Magic, number, record count, data offset, next cluster, data length, flags, point, target.
FIELDS: Final = struct.Struct("<8sIIQQII32s16s")
DIGEST: Final = slice(88, 104)
#: Patch length, patch count: behind the digest. It need not cover them: body and records tell the same.
PATCH_FIELDS: Final = struct.Struct("<II")
#: Where the head's reserved zeroes begin.
_RESERVED: Final = DIGEST.stop + PATCH_FIELDS.size
_KIND_BITS: Final = 16
_KIND_MASK: Final = np.uint32((1 << _KIND_BITS) - 1)


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
    #: Bytes of the frames of its patches, behind the data, and how many they are.
    patch_length: int = 0
    patch_count: int = 0

    @property
    def payload(self) -> int:
        """Bytes behind head and records."""
        return self.data_length + self.patch_length

    @property
    def patches_at(self) -> int:
        """Where the host clusters of its patches begin in the image, if it has patches."""
        return -(-(self.data_offset + self.data_length) // CLUSTER) * CLUSTER

    @property
    def data_end(self) -> int:
        """Where its part of the image ends and the next segment's data begins."""
        if self.patch_count:
            return self.patches_at + self.patch_count * CLUSTER
        return self.data_offset + self.data_length


@dataclass(frozen=True, slots=True)
class Segment:
    """A whole segment that kept every rule."""

    head: SegmentHead
    records: Records
    #: Frames of whole clusters: what the image holds verbatim.
    data: memoryview
    #: Frames of patches, in the order of their records.
    patches: memoryview
    #: Head and records as they came: what the index keeps.
    head_bytes: bytes


def clusters_of(size: int) -> int:
    """Tell how many guest clusters a disk of so many bytes has."""
    return -(-size // CLUSTER)


def max_data_end(clusters: int) -> int:
    """Tell where the data of a disk ends at the latest: nothing beyond this offset can be true."""
    # A patch takes a host cluster, and less than another one to reach its border.
    return DATA_START + clusters * (frames.MAX_FRAME + CLUSTER)


def patch_kind(mask: int) -> int:
    """Make the kind field of a patch's record; bit n of the mask stands for the cluster's n-th block."""
    return mask << _KIND_BITS | KIND_PATCH


def is_patch(records: Records) -> npt.NDArray[np.bool_]:
    """Tell which records are patches."""
    found: npt.NDArray[np.bool_] = records["kind"] & _KIND_MASK == KIND_PATCH
    return found


def patch_masks(records: Records) -> npt.NDArray[np.uint32]:
    """Tell which blocks each record names: 0 for what is no patch."""
    masks: npt.NDArray[np.uint32] = records["kind"] >> np.uint32(_KIND_BITS)
    return masks


def patch_blocks(records: Records) -> npt.NDArray[np.int64]:
    """Tell how many blocks each record names: 0 for what is no patch."""
    masks = patch_masks(records)
    return sum(((masks >> np.uint32(bit)) & np.uint32(1) for bit in range(BLOCKS)), masks * 0).astype(np.int64)


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
    patch_length, patches = PATCH_FIELDS.unpack_from(raw, DIGEST.stop)
    if magic != MAGIC or flags or any(raw[_RESERVED:]):
        raise Corrupt("segment-head", f"{what} has a head that is not of this format")
    if count > MAX_RECORDS or length + patch_length > MAX_DATA or patches > min(count, MAX_PATCHES):
        size = f"{count} records, {patches} patches and {length + patch_length} bytes of data"
        raise Corrupt("segment-size", f"{what} says it has {size}")
    names = _name(point, what), _name(target, what)
    return SegmentHead(number, count, offset, following, length, *names, raw[DIGEST], patch_length, patches)


def _name(padded: bytes, what: str) -> str:
    name = padded.rstrip(b"\0")
    if not name or not name.isascii() or b"\0" in name:
        raise Corrupt("segment-head", f"{what} has a head with a broken name")
    return name.decode("ascii")


def record_ends(records: Records) -> npt.NDArray[np.int64]:
    """Tell the first guest cluster behind each record."""
    spans = np.where(records["kind"] == KIND_ZERO, records["length"], 1)
    ends: npt.NDArray[np.int64] = records["cluster"].astype(np.int64) + spans.astype(np.int64)
    return ends
