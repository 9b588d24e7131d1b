"""Segments that may say what they like under a true digest, and what a replica makes of them."""

from collections.abc import Sequence

import numpy as np
import pytest
import xxhash

from vmreplica.model.errors import Corrupt
from vmreplica.model.units import CLUSTER
from vmreplica.qcow2 import frames
from vmreplica.qcow2.segment import DATA_START, HEAD, RECORD, Segment, pack, parse

POINT, TARGET, CLUSTERS = "20260101T000000Z-00000000", "vda", 6000
#: The frame of a cluster that is not zero.
FRAME = frames.encode_patch(memoryview(b"some text " * 7000)[:CLUSTER], 1)
SIZE = len(FRAME)

Rows = Sequence[tuple[int, int, int]]


def body_of(
    rows: Rows, data: bytes, patches: Sequence[bytes] = (), *, number: int = 0, offset: int = DATA_START
) -> bytearray:
    """A segment with a true digest, whatever it says."""
    _, buffers = pack(
        point=POINT,
        target=TARGET,
        number=number,
        data_offset=offset,
        next_cluster=CLUSTERS,
        records=np.array(rows, RECORD),
        data=[data],
        patches=patches,
    )
    return bytearray(b"".join(buffers))


def signed(body: bytearray) -> bytes:
    """Make the digest true again after a change."""
    body[88:104] = xxhash.xxh3_128_digest(bytes(body[:88]) + bytes(body[HEAD:]))
    return bytes(body)


def read(body: bytes | bytearray, *, number: int = 0) -> Segment:
    """Parse as the replica does."""
    return parse(bytes(body), point=POINT, target=TARGET, number=number, clusters=CLUSTERS)


def refusal(body: bytes | bytearray, *, number: int = 0) -> str:
    """The code of the error that a segment meets."""
    with pytest.raises(Corrupt) as caught:
        read(body, number=number)
    return caught.value.code
