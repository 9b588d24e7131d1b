"""Index files: the heads of a disk's segments, each followed by its xxh3-64 (docs/design/format.md, "Index").

An index is the receive journal of a point, and kept with it for good. It is only appended to; what a crash or
a full file system left incomplete at its end was never acknowledged and is cut off by ``recover_index``.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final

import xxhash

from vmreplica.model.errors import Corrupt
from vmreplica.qcow2.head import HEAD, RECORD, Records, Segment, SegmentHead, read_head, split

_SUM: Final = 8


def index_entry(head_bytes: bytes) -> bytes:
    """Make the entry of one segment from its head and records."""
    return head_bytes + xxhash.xxh3_64_digest(head_bytes)


def append_head(fh: BinaryIO, segment: Segment) -> None:
    """Append a segment's entry to an index, in one write when the file is unbuffered."""
    fh.write(index_entry(segment.head_bytes))


def read_heads(fh: BinaryIO) -> Iterator[tuple[SegmentHead, Records]]:
    """Read an index from where the file stands, one entry after the other.

    Raises:
        Corrupt: ``index-damaged``; the message names the file.
    """
    while (entry := read_entry(fh)) is not None:
        head, records, _head_bytes = split(entry)
        yield head, records


def read_entry(fh: BinaryIO) -> bytes | None:
    """Read one entry's head and records; None at the end of the file.

    Raises:
        Corrupt: ``index-damaged``.
    """
    start = fh.read(HEAD)
    if not start:
        return None
    name = getattr(fh, "name", "an index")
    try:
        rest_size = read_head(start, str(name)).record_count * RECORD.itemsize + _SUM
    except Corrupt as error:
        raise Corrupt("index-damaged", f"{name} is damaged: {error.message}") from error
    entry = start + fh.read(rest_size)
    if len(entry) != HEAD + rest_size or index_entry(entry[:-_SUM]) != entry:
        raise Corrupt("index-damaged", f"{name} is damaged: an entry does not have its checksum")
    return entry[:-_SUM]


def recover_index(path: Path) -> int:
    """Cut an incomplete or damaged end off an index.

    Returns:
        Bytes that are left.
    """
    with path.open("r+b") as fh:
        valid = 0
        try:
            while read_entry(fh) is not None:
                valid = fh.tell()
        except Corrupt:
            fh.truncate(valid)
            os.fsync(fh.fileno())
    return valid
