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
    DATA_START,
    DIGEST,
    FIELDS,
    HEAD,
    KIND_ZERO,
    KIND_ZSTD,
    MAGIC,
    MAX_DATA,
    MAX_RECORDS,
    RECORD,
    SEGMENT_BYTES,
    Records,
    Segment,
    SegmentHead,
    clusters_of,
    max_data_end,
    record_ends,
    split,
)  # fmt: skip
from vmreplica.qcow2.index import append_head, index_entry, read_heads, recover_index

__all__ = [
    "DATA_START", "HEAD", "KIND_ZERO", "KIND_ZSTD", "MAX_BODY", "MAX_DATA", "MAX_RECORDS", "RECORD", "SEGMENT_BYTES",
    "Records", "Segment", "SegmentHead", "append_head", "clusters_of", "index_entry", "max_data_end", "pack", "parse",
    "read_heads", "record_ends", "recover_index", "split",
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
) -> tuple[SegmentHead, list[bytes]]:
    """Make a segment.

    Args:
        point: the point it belongs to.
        target: the disk it belongs to.
        number: 0, 1, 2... within the disk.
        data_offset: bytes; where its data will stand in the image.
        next_cluster: first guest cluster that nothing is said about yet.
        records: of dtype RECORD.
        data: the frames in the order of their records.

    Returns:
        Its head, and the buffers to write one after the other.
    """
    body = b"".join(data)
    start = FIELDS.pack(
        MAGIC, number, len(records), data_offset, next_cluster, len(body), 0, point.encode(), target.encode()
    )
    table = np.ascontiguousarray(records, RECORD).tobytes()
    digest = _digest(start, table, body)
    head = SegmentHead(number, len(records), data_offset, next_cluster, len(body), point, target, digest)
    return head, [(start + digest).ljust(HEAD, b"\0") + table, body]


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
    data = view[len(head_bytes) :]
    if len(data) != head.data_length:
        raise Corrupt("segment-size", f"{what} has {len(data)} bytes of data, its head says {head.data_length}")
    if _digest(view[: DIGEST.start], head_bytes[HEAD:], data) != head.digest:
        raise Corrupt(
            "segment-digest",
            f"{what} does not have its digest",
            hint="it will be sent again",
            kind="transient",
        )
    _check_place(head, clusters, what)
    _check_records(head, records, clusters, what)
    _check_frames(records, data, what)
    return Segment(head, records, data, head_bytes)


def _digest(start: bytes | memoryview, table: bytes, data: bytes | memoryview) -> bytes:
    hasher = xxhash.xxh3_128(start)
    hasher.update(table)
    hasher.update(data)
    return hasher.digest()


def _check_place(head: SegmentHead, clusters: int, what: str) -> None:
    wrong = head.data_offset != DATA_START if head.number == 0 else head.data_offset < DATA_START
    if wrong or head.data_end > max_data_end(clusters):
        raise Corrupt("segment-offset", f"{what} claims the place {head.data_offset} in the image")
    if head.next_cluster > clusters:
        raise Corrupt("segment-range", f"{what} goes on at cluster {head.next_cluster} of {clusters}")


def _check_records(head: SegmentHead, records: Records, clusters: int, what: str) -> None:
    """Check kinds, lengths, range and order. Range first: sums cannot overflow after it."""
    first, length, zstd = records["cluster"], records["length"], records["kind"] == KIND_ZSTD
    if not (zstd | (records["kind"] == KIND_ZERO)).all():
        raise Corrupt("segment-record", f"{what} has a record of an unknown kind")
    least, most = np.where(zstd, frames.MIN_FRAME, 1), np.where(zstd, frames.MAX_FRAME, clusters)
    if ((length < least) | (length > most)).any():
        raise Corrupt("segment-record", f"{what} has a record of an impossible length")
    if (first >= clusters).any():
        raise Corrupt("segment-range", f"{what} reaches beyond the disk's {clusters} clusters")
    end = record_ends(records)
    if (first[1:].astype(np.int64) < end[:-1]).any():
        raise Corrupt("segment-order", f"{what} has records out of order or overlapping")
    if len(end) and end[-1] > head.next_cluster:
        raise Corrupt("segment-range", f"{what} reaches cluster {end[-1]}, it may reach {head.next_cluster}")


def _check_frames(records: Records, data: memoryview, what: str) -> None:
    lengths = records["length"][records["kind"] == KIND_ZSTD].astype(np.int64)
    if int(lengths.sum()) != len(data):
        raise Corrupt("segment-record", f"{what} has records of {lengths.sum()} bytes for {len(data)} bytes of data")
    if not frames.headers_ok(data, np.cumsum(lengths) - lengths):
        raise Corrupt("segment-frame", f"{what} has data that is no compressed cluster")
