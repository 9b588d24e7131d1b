"""Segments: the self-describing unit that is spooled, sent and stored (docs/design/format.md, "Segment").

``pack`` makes one, ``parse`` believes none: a peer's segment is checked against every rule before its first
byte reaches a file. Records are numpy arrays throughout, so that checking 65 536 of them costs no loop.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
import xxhash

from vmreplica.model.errors import Corrupt
from vmreplica.model.ids import DiskTarget, PointId
from vmreplica.qcow2 import frames
from vmreplica.qcow2.head import (
    BLOCK,
    BLOCKS,
    DATA_START,
    DIGEST,
    FIELDS,
    HEAD,
    KIND_PATCH,
    KIND_ZERO,
    KIND_ZSTD,
    MAGIC,
    MAX_DATA,
    MAX_PATCHES,
    MAX_RECORDS,
    PATCH_FIELDS,
    RECORD,
    SEGMENT_BYTES,
    WHOLE_MASK,
    Records,
    Segment,
    SegmentHead,
    clusters_of,
    is_patch,
    max_data_end,
    patch_blocks,
    patch_kind,
    patch_masks,
    record_ends,
    split,
)
from vmreplica.qcow2.index import append_head, index_entry, read_heads, recover_index

__all__ = [
    "BLOCK", "BLOCKS", "DATA_START", "HEAD", "KIND_PATCH", "KIND_ZERO", "KIND_ZSTD", "MAX_BODY", "MAX_DATA",
    "MAX_PATCHES", "MAX_RECORDS", "RECORD", "SEGMENT_BYTES", "WHOLE_MASK", "Records", "Segment", "SegmentHead",
    "append_head", "clusters_of", "index_entry", "is_patch", "max_data_end", "merged_head", "pack", "parse",
    "patch_blocks", "patch_kind", "patch_masks", "read_heads", "record_ends", "recover_index", "split",
]  # fmt: skip

MAX_BODY: Final = HEAD + MAX_RECORDS * RECORD.itemsize + MAX_DATA


def pack(
    *,
    point: PointId,
    target: DiskTarget,
    number: int,
    data_offset: int,
    next_cluster: int,
    records: Records,
    data: Sequence[bytes | memoryview],
    patches: Sequence[bytes | memoryview] = (),
) -> tuple[SegmentHead, list[bytes | memoryview]]:
    """Make a segment.

    Args:
        point: the point it belongs to.
        target: the disk it belongs to.
        number: 0, 1, 2... within the disk.
        data_offset: bytes; where its data will stand in the image.
        next_cluster: first guest cluster that nothing is said about yet.
        records: of dtype RECORD.
        data: the frames of whole clusters in the order of their records.
        patches: the frames of patches in the order of their records, at most MAX_PATCHES.

    Returns:
        Its head, and the buffers to write one after the other.
    """
    body, patch_body = _joined(data), _joined(patches)
    start = FIELDS.pack(
        MAGIC, number, len(records), data_offset, next_cluster, len(body), 0, point.encode(), target.encode()
    )
    table = np.ascontiguousarray(records, RECORD).tobytes()
    digest = _digest(start, table, body, patch_body)
    sizes = len(patch_body), len(patches)
    head = SegmentHead(number, len(records), data_offset, next_cluster, len(body), point, target, digest, *sizes)
    fixed = (start + digest + PATCH_FIELDS.pack(*sizes)).ljust(HEAD, b"\0")
    return head, [fixed + table, body, patch_body]


def parse(body: memoryview | bytes, *, point: PointId, target: DiskTarget, number: int, clusters: int) -> Segment:
    """Check an untrusted segment against every rule of the format.

    Args:
        body: the whole segment.
        point: the point it must belong to.
        target: the disk it must belong to.
        number: the number it must have.
        clusters: guest clusters of the disk.

    Raises:
        Corrupt: ``segment-size``, ``-head``, ``-other``, ``-offset``, ``-digest``, ``-record``, ``-order``,
            ``-range`` or ``-frame``; the message names point, disk and number.
    """
    view = memoryview(body).cast("B")
    what = f"segment {number} of disk {target} at point {point}"
    head, records, head_bytes = split(view, what)
    if (head.point, head.target, head.number) != (point, target, number):
        raise Corrupt("segment-other", f"{what} says it is {head.number} of {head.target} at {head.point}")
    payload = view[len(head_bytes) :]
    if len(payload) != head.payload:
        raise Corrupt("segment-size", f"{what} has {len(payload)} bytes of data, its head says {head.payload}")
    if _digest(view[: DIGEST.start], head_bytes[HEAD:], payload) != head.digest:
        raise Corrupt(
            "segment-digest",
            f"{what} does not have its digest",
            hint="it will be sent again",
            kind="transient",
        )
    _check_place(head, clusters, what)
    _check_records(head, records, clusters, what)
    data, patches = payload[: head.data_length], payload[head.data_length :]
    _check_frames(records[records["kind"] == KIND_ZSTD], data, None, what)
    _check_frames(records[is_patch(records)], patches, head.patch_count, what)
    return Segment(head, records, data, patches, head_bytes)


def merged_head(head: SegmentHead, records: Records) -> bytes:
    """Make head and records of a segment of a merged image; the head's digest is zero: its data came from elsewhere."""
    start = FIELDS.pack(
        MAGIC, head.number, len(records), head.data_offset, head.next_cluster, head.data_length, 0,
        head.point.encode(), head.target.encode(),
    )  # fmt: skip
    fixed = start + head.digest + PATCH_FIELDS.pack(head.patch_length, head.patch_count)
    return fixed.ljust(HEAD, b"\0") + np.ascontiguousarray(records, RECORD).tobytes()


def _joined(buffers: Sequence[bytes | memoryview]) -> bytes | memoryview:
    return buffers[0] if len(buffers) == 1 else b"".join(buffers)


def _digest(*parts: bytes | memoryview) -> bytes:
    hasher = xxhash.xxh3_128()
    for part in parts:
        hasher.update(part)
    return hasher.digest()


def _check_place(head: SegmentHead, clusters: int, what: str) -> None:
    wrong = head.data_offset != DATA_START if head.number == 0 else head.data_offset < DATA_START
    if wrong or head.data_end > max_data_end(clusters):
        raise Corrupt("segment-offset", f"{what} claims the place {head.data_offset} in the image")
    if head.next_cluster > clusters:
        raise Corrupt("segment-range", f"{what} goes on at cluster {head.next_cluster} of {clusters}")


def _check_records(head: SegmentHead, records: Records, clusters: int, what: str) -> None:
    """Check kinds, lengths, range and order. Range first: sums cannot overflow after it."""
    first, length, masks = records["cluster"], records["length"], patch_masks(records)
    zstd, zero, patch = records["kind"] == KIND_ZSTD, records["kind"] == KIND_ZERO, is_patch(records)
    if not (zstd | zero | patch & (masks != 0) & (masks != WHOLE_MASK)).all():
        raise Corrupt("segment-record", f"{what} has a record of an unknown kind")
    least = np.where(zero, 1, frames.MIN_FRAME)
    most = np.where(zero, clusters, np.where(zstd, BLOCKS, patch_blocks(records)) * BLOCK + frames.FRAMING)
    if ((length < least) | (length > most)).any():
        raise Corrupt("segment-record", f"{what} has a record of an impossible length")
    if (first >= clusters).any():
        raise Corrupt("segment-range", f"{what} reaches beyond the disk's {clusters} clusters")
    end = record_ends(records)
    if (first[1:].astype(np.int64) < end[:-1]).any():
        raise Corrupt("segment-order", f"{what} has records out of order or overlapping")
    if len(end) and end[-1] > head.next_cluster:
        raise Corrupt("segment-range", f"{what} reaches cluster {end[-1]}, it may reach {head.next_cluster}")


def _check_frames(records: Records, data: memoryview, count: int | None, what: str) -> None:
    """Check one kind of frames against their records, and the number of these if the head tells it."""
    lengths = records["length"].astype(np.int64)
    if count not in {None, len(records)} or int(lengths.sum()) != len(data):
        raise Corrupt("segment-record", f"{what} has records of {lengths.sum()} bytes for {len(data)} bytes of data")
    blocks = BLOCKS if count is None else patch_blocks(records)
    if not frames.headers_ok(data, np.cumsum(lengths) - lengths, blocks):
        raise Corrupt("segment-frame", f"{what} has data that is no compressed cluster")
