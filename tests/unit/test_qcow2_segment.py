"""Segments from an untrusted peer: every rule of the format, broken once."""

import struct
from collections.abc import Callable

import numpy as np
import pytest
from segment_kit import CLUSTERS, FRAME, SIZE, Rows, body_of, read, refusal, signed

from vmreplica.model.errors import Corrupt
from vmreplica.model.units import CLUSTER
from vmreplica.qcow2 import frames
from vmreplica.qcow2.segment import (
    DATA_START,
    HEAD,
    KIND_ZERO,
    KIND_ZSTD,
    MAX_BODY,
    MAX_DATA,
    MAX_RECORDS,
    max_data_end,
)

pytestmark = pytest.mark.main_job


def good() -> bytearray:
    """Two compressed clusters around a run of zeroes."""
    return body_of([(3, SIZE, KIND_ZSTD), (4, 90, KIND_ZERO), (94, SIZE, KIND_ZSTD)], FRAME * 2)


def test_a_good_segment_is_read_as_it_was_packed() -> None:
    segment = read(good())
    assert segment.records.tolist() == [(3, SIZE, 1), (4, 90, 2), (94, SIZE, 1)]
    assert bytes(segment.data) == FRAME * 2
    assert segment.head.data_end == DATA_START + 2 * SIZE
    assert segment.head_bytes == bytes(good())[: HEAD + 3 * 16]


def test_every_single_flipped_bit_is_noticed() -> None:
    body = good()
    for position in range(len(body)):
        for bit in (1, 128):
            body[position] ^= bit
            assert refusal(body).startswith("segment-")
            body[position] ^= bit
    read(body)


def test_every_cut_is_noticed() -> None:
    body = bytes(good())
    for length in range(len(body)):
        assert refusal(body[:length]) in {"segment-size", "segment-head"}
    assert refusal(body + b"\0") == "segment-size"


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda body: struct.pack_into("<8s", body, 0, b"VMRSEG2\0"), "segment-head"),
        (lambda body: struct.pack_into("<I", body, 8, 1), "segment-other"),
        (lambda body: struct.pack_into("<I", body, 12, MAX_RECORDS + 1), "segment-size"),
        (lambda body: struct.pack_into("<I", body, 12, 4), "segment-size"),
        (lambda body: struct.pack_into("<Q", body, 16, 0), "segment-offset"),
        (lambda body: struct.pack_into("<Q", body, 16, 2 * CLUSTER), "segment-offset"),
        (lambda body: struct.pack_into("<Q", body, 24, CLUSTERS + 1), "segment-range"),
        (lambda body: struct.pack_into("<Q", body, 24, 94), "segment-range"),
        (lambda body: struct.pack_into("<I", body, 32, MAX_DATA + 1), "segment-size"),
        (lambda body: struct.pack_into("<I", body, 32, 0), "segment-size"),
        (lambda body: struct.pack_into("<I", body, 36, 1), "segment-head"),
        (lambda body: struct.pack_into("<32s", body, 40, b"20260101T000000Z-00000001"), "segment-other"),
        (lambda body: struct.pack_into("<32s", body, 40, b""), "segment-head"),
        (lambda body: struct.pack_into("<32s", body, 40, b"a\0b"), "segment-head"),
        (lambda body: struct.pack_into("<16s", body, 72, b"vdb"), "segment-other"),
        (lambda body: struct.pack_into("<16s", body, 72, b"\xffda"), "segment-head"),
        (lambda body: struct.pack_into("<I", body, 104, 1), "segment-size"),
        (lambda body: struct.pack_into("<I", body, 108, 1), "segment-record"),
        (lambda body: struct.pack_into("<B", body, 112, 1), "segment-head"),
        (lambda body: struct.pack_into("<B", body, 127, 1), "segment-head"),
    ],
)
def test_a_head_that_lies_is_refused_though_its_digest_is_true(change: Callable[[bytearray], None], code: str) -> None:
    body = good()
    change(body)
    assert refusal(signed(body)) == code


@pytest.mark.parametrize(
    ("rows", "code"),
    [
        ([(3, SIZE, 0)], "segment-record"),
        ([(3, SIZE, 3)], "segment-record"),
        ([(3, SIZE, 2**32 - 1)], "segment-record"),
        ([(3, 0, KIND_ZERO), (4, SIZE, KIND_ZSTD)], "segment-record"),
        ([(3, SIZE, KIND_ZSTD), (4, 0, KIND_ZSTD)], "segment-record"),
        ([(3, frames.MAX_FRAME + 1, KIND_ZSTD)], "segment-record"),
        ([(3, SIZE - 1, KIND_ZSTD)], "segment-record"),
        ([(3, SIZE + 1, KIND_ZSTD)], "segment-record"),
        ([(CLUSTERS, SIZE, KIND_ZSTD)], "segment-range"),
        ([(2**64 - 1, SIZE, KIND_ZSTD)], "segment-range"),
        ([(3, SIZE, KIND_ZSTD), (4, CLUSTERS - 3, KIND_ZERO)], "segment-range"),
        ([(3, SIZE, KIND_ZSTD), (4, 2**32 - 1, KIND_ZERO)], "segment-record"),
        ([(2**64 - 1, 2, KIND_ZERO), (3, SIZE, KIND_ZSTD)], "segment-range"),
        ([(3, SIZE, KIND_ZSTD), (3, 1, KIND_ZERO)], "segment-order"),
        ([(3, 5, KIND_ZERO), (7, SIZE, KIND_ZSTD)], "segment-order"),
        ([(9, 1, KIND_ZERO), (3, SIZE, KIND_ZSTD)], "segment-order"),
    ],
)
def test_records_that_lie_are_refused(rows: Rows, code: str) -> None:
    assert refusal(body_of(rows, FRAME)) == code


@pytest.mark.parametrize("place", range(len(frames.FRAME_HEADER)))
def test_data_that_is_no_frame_of_the_right_size_is_refused(place: int) -> None:
    data = bytearray(FRAME * 2)
    data[SIZE + place] ^= 0x20
    assert refusal(body_of([(3, SIZE, KIND_ZSTD), (4, SIZE, KIND_ZSTD)], bytes(data))) == "segment-frame"


def test_a_place_beyond_all_that_the_disk_can_hold_is_refused() -> None:
    rows = [(3, SIZE, KIND_ZSTD)]
    last = max_data_end(CLUSTERS) - SIZE
    read(body_of(rows, FRAME, number=1, offset=last), number=1)
    for offset in (last + 1, 2**63, 2**64 - 1):
        assert refusal(body_of(rows, FRAME, number=1, offset=offset), number=1) == "segment-offset"


def test_the_largest_allowed_segment_fits_the_limit_of_a_body() -> None:
    assert MAX_BODY == HEAD + 16 * 65536 + (16 << 20)


def test_clusters_survive_their_frames_and_zeroes_need_none() -> None:
    noise = np.random.default_rng(1).bytes(CLUSTER)
    chunk = noise + bytes(CLUSTER) + b"a" * CLUSTER + b"tail"
    encoded = frames.encode(memoryview(chunk), 1)
    assert encoded[1] is None
    decoded = [frames.decode(frame) if frame else bytes(CLUSTER) for frame in encoded]
    assert b"".join(decoded) == chunk.ljust(4 * CLUSTER, b"\0")
    assert max(len(frame) for frame in encoded if frame) <= frames.MAX_FRAME
    assert frames.encode(memoryview(bytes(100)), 1) == [None]
    assert frames.encode(memoryview(b""), 1) == []


def test_the_smallest_frame_is_not_below_the_allowed_minimum() -> None:
    sizes = [
        len(frame) for level in (-5, 1, 3, 19) for frame in frames.encode(memoryview(b"a" * CLUSTER), level) if frame
    ]
    assert min(sizes) >= frames.MIN_FRAME


@pytest.mark.parametrize("level", [-5, 1, 3])
def test_frames_of_every_level_have_the_one_header_that_is_accepted(level: int) -> None:
    chunk = (
        np.random.default_rng(2).bytes(CLUSTER // 2) + b"x" * (CLUSTER // 2) + np.random.default_rng(3).bytes(CLUSTER)
    )
    for frame in frames.encode(memoryview(chunk), level):
        assert frame is not None
        assert frame.startswith(frames.FRAME_HEADER)


def test_a_broken_frame_is_refused() -> None:
    for broken in (b"", FRAME[:-1], FRAME[:-1] + bytes([FRAME[-1] ^ 1]), FRAME + b"\0", b"\0" + FRAME[1:]):
        with pytest.raises(Corrupt, match="compressed cluster"):
            frames.decode(broken)
