"""Patches in segments: what is kept, and every rule a hostile sender may break."""

import os
import random
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from segment_kit import CLUSTERS, FRAME, SIZE, Rows, body_of, read, refusal, signed

from vmreplica.model.errors import Corrupt
from vmreplica.model.units import CLUSTER
from vmreplica.qcow2 import frames
from vmreplica.qcow2.layout import patch_bitmaps
from vmreplica.qcow2.patching import write_patches
from vmreplica.qcow2.segment import (
    BLOCK,
    BLOCKS,
    DATA_START,
    KIND_ZERO,
    KIND_ZSTD,
    MAX_PATCHES,
    WHOLE_MASK,
    max_data_end,
    patch_blocks,
    patch_kind,
    patch_masks,
    record_ends,
)

pytestmark = pytest.mark.seeding

#: The patch of three blocks.
PATCH = frames.encode_patch(memoryview(b"x" * BLOCK + bytes(BLOCK) + random.Random(1).randbytes(BLOCK)), 1)
MASK = 0b1000_0000_0001_0010
ROW = (9, len(PATCH), patch_kind(MASK))


def good() -> bytearray:
    """A cluster, a patch, zeroes, a patch, a cluster."""
    rows = [(3, SIZE, KIND_ZSTD), (5, *ROW[1:]), (6, 40, KIND_ZERO), (60, *ROW[1:]), (61, SIZE, KIND_ZSTD)]
    return body_of(rows, FRAME * 2, [PATCH, PATCH])


def test_a_segment_with_patches_is_read_as_it_was_packed() -> None:
    segment = read(good())
    assert bytes(segment.data) == FRAME * 2
    assert bytes(segment.patches) == PATCH * 2
    assert (segment.head.patch_count, segment.head.patch_length) == (2, 2 * len(PATCH))
    assert segment.head.payload == 2 * SIZE + 2 * len(PATCH)
    assert record_ends(segment.records).tolist() == [4, 6, 46, 61, 62]
    assert patch_masks(segment.records).tolist() == [0, MASK, 0, MASK, 0]
    assert patch_blocks(segment.records).tolist() == [0, 3, 0, 3, 0]


def test_patches_stand_from_the_next_border_on_one_host_cluster_each() -> None:
    head = read(good()).head
    assert head.patches_at == -(-(DATA_START + 2 * SIZE) // CLUSTER) * CLUSTER
    assert head.data_end == head.patches_at + 2 * CLUSTER
    alone = read(body_of([ROW], b"", [PATCH], number=1, offset=DATA_START + 1), number=1).head
    assert alone.data_end == 3 * CLUSTER
    aligned = read(body_of([ROW], b"", [PATCH])).head
    assert aligned.data_end == 2 * CLUSTER


def test_every_flipped_bit_and_every_cut_is_noticed() -> None:
    body = good()
    for position in range(len(body)):
        body[position] ^= 4
        assert refusal(body).startswith("segment-")
        body[position] ^= 4
    for length in range(0, len(body), 7):
        assert refusal(body[:length]) in {"segment-size", "segment-head"}
    read(body)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda body: struct.pack_into("<I", body, 104, 2 * len(PATCH) - 1), "segment-size"),
        (lambda body: struct.pack_into("<I", body, 104, 0), "segment-size"),
        (lambda body: struct.pack_into("<I", body, 104, 2**32 - 1), "segment-size"),
        (lambda body: struct.pack_into("<I", body, 108, 0), "segment-record"),
        (lambda body: struct.pack_into("<I", body, 108, 1), "segment-record"),
        (lambda body: struct.pack_into("<I", body, 108, 3), "segment-record"),
        (lambda body: struct.pack_into("<I", body, 108, 2**32 - 1), "segment-size"),
        (lambda body: struct.pack_into("<II", body, 32, 2 * SIZE + 1, 0), "segment-size"),
        # The border between data and patches moved: the sum still fits.
        (lambda body: _lengths(body, 2 * SIZE + 15, 2 * len(PATCH) - 15), "segment-record"),
    ],
)
def test_a_head_that_lies_about_patches_is_refused_though_its_digest_is_true(
    change: Callable[[bytearray], None], code: str
) -> None:
    body = good()
    change(body)
    assert refusal(signed(body)) == code


def _lengths(body: bytearray, data: int, patches: int) -> None:
    struct.pack_into("<I", body, 32, data)
    struct.pack_into("<I", body, 104, patches)


@pytest.mark.parametrize(
    ("row", "code"),
    [
        ((9, len(PATCH), patch_kind(0)), "segment-record"),
        ((9, len(PATCH), patch_kind(WHOLE_MASK)), "segment-record"),
        ((9, len(PATCH), MASK << 16 | KIND_ZSTD), "segment-record"),
        ((9, len(PATCH), MASK << 16 | KIND_ZERO), "segment-record"),
        ((9, len(PATCH), MASK << 16 | 4), "segment-record"),
        ((9, len(PATCH), patch_kind(0b11)), "segment-frame"),
        ((9, len(PATCH), patch_kind(0b1111)), "segment-frame"),
        ((9, len(PATCH) + 1, patch_kind(MASK)), "segment-record"),
        ((9, frames.MIN_FRAME - 1, patch_kind(MASK)), "segment-record"),
        ((9, 3 * BLOCK + frames.FRAMING + 1, patch_kind(MASK)), "segment-record"),
        ((CLUSTERS, len(PATCH), patch_kind(MASK)), "segment-range"),
        ((2**64 - 1, len(PATCH), patch_kind(MASK)), "segment-range"),
    ],
)
def test_a_patch_that_lies_is_refused(row: tuple[int, int, int], code: str) -> None:
    assert refusal(body_of([row], b"", [PATCH])) == code


@pytest.mark.parametrize(
    "rows",
    [[ROW, ROW], [(10, *ROW[1:]), ROW], [(5, 5, KIND_ZERO), ROW, ROW], [(9, SIZE, KIND_ZSTD), ROW, (10, *ROW[1:])]],
)
def test_patches_neither_overlap_nor_go_backwards(rows: Rows) -> None:
    data = FRAME if any(kind == KIND_ZSTD for _, _, kind in rows) else b""
    assert refusal(body_of(rows, data, [PATCH] * 2)) == "segment-order"


def test_a_whole_cluster_is_no_patch_and_a_patch_no_whole_cluster() -> None:
    assert refusal(body_of([(9, SIZE, patch_kind(MASK))], b"", [FRAME])) == "segment-frame"
    assert refusal(body_of([(9, len(PATCH), KIND_ZSTD)], PATCH, [])) == "segment-frame"


def test_the_number_of_patches_is_bounded() -> None:
    small = frames.encode_patch(memoryview(b"y" * BLOCK), 1)
    rows = [(n, len(small), patch_kind(1)) for n in range(MAX_PATCHES + 1)]
    read(body_of(rows[:-1], b"", [small] * MAX_PATCHES))
    assert refusal(body_of(rows, b"", [small] * (MAX_PATCHES + 1))) == "segment-size"


def test_no_disk_that_can_be_reaches_beyond_the_bound_of_its_image_and_nothing_else_passes() -> None:
    last = (max_data_end(CLUSTERS) // CLUSTER - 1) * CLUSTER
    read(body_of([ROW], b"", [PATCH], number=1, offset=last), number=1)
    for offset in (last + 1, 2**63, 2**64 - 1):
        assert refusal(body_of([ROW], b"", [PATCH], number=1, offset=offset), number=1) == "segment-offset"
    # The worst that a true sender can make: each cluster of the disk a segment of its own, ending on no border.
    place, turns = DATA_START, [(frames.MAX_FRAME, 0), (0, 1)] * 50
    for data, patches in turns:
        place += data
        place = -(-place // CLUSTER) * CLUSTER + CLUSTER if patches else place
    assert place <= max_data_end(len(turns))


@given(st.integers(1, WHOLE_MASK - 1), st.integers(0))
def test_blocks_survive_their_patch(mask: int, seed: int) -> None:
    count = mask.bit_count()
    source = random.Random(seed)
    blocks = b"".join(source.choice([bytes(BLOCK), b"z" * BLOCK, source.randbytes(BLOCK)]) for _ in range(count))
    for level in (-5, 1, 3):
        frame = frames.encode_patch(memoryview(blocks), level)
        assert frames.MIN_FRAME <= len(frame) <= count * BLOCK + frames.FRAMING
        assert frames.decode_patch(frame, count) == blocks
        for other in {count - 1, count + 1} - {0}:
            with pytest.raises(Corrupt, match="frame header"):
                frames.decode_patch(frame, other)


def test_a_frame_that_inflates_to_more_than_it_says_is_refused() -> None:
    bomb = bytearray(zstandard.ZstdCompressor(write_checksum=True).compress(bytes(60_000_000)))
    header = frames.encode_patch(memoryview(b"x" * BLOCK), 1)[:7]
    with pytest.raises(Corrupt):
        frames.decode_patch(bytes(bomb), 1)
    with pytest.raises(Corrupt):
        frames.decode_patch(header + bytes(bomb[9:]), 1)
    for broken in (b"", PATCH[:-1], PATCH + b"\0", PATCH[:-1] + bytes([PATCH[-1] ^ 1])):
        with pytest.raises(Corrupt):
            frames.decode_patch(broken, 3)


def test_the_bitmap_of_a_patch_allocates_two_subclusters_per_block() -> None:
    masks = np.array([1, 0b10, 0x8000, MASK], np.uint32)
    expected = [0b11, 0b1100, 0b11 << 30, sum(0b11 << 2 * n for n in range(BLOCKS) if MASK >> n & 1)]
    assert patch_bitmaps(masks).tolist() == expected


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40)
@given(masks=st.lists(st.integers(1, WHOLE_MASK - 1), min_size=1, max_size=5))
def test_blocks_stand_in_their_places_in_the_image_and_nothing_else_does(masks: list[int], tmp_path: Path) -> None:
    source, patches, rows = random.Random(str(masks)), [], []
    expected = bytearray(len(masks) * CLUSTER)
    for number, mask in enumerate(masks):
        blocks = source.randbytes(mask.bit_count() * BLOCK)
        patches.append(frames.encode_patch(memoryview(blocks), 1))
        rows.append((number, len(patches[-1]), patch_kind(mask)))
        for place, block in enumerate(n for n in range(BLOCKS) if mask >> n & 1):
            start = number * CLUSTER + block * BLOCK
            expected[start : start + BLOCK] = blocks[place * BLOCK : (place + 1) * BLOCK]
    segment = read(body_of(rows, b"", patches))
    with (tmp_path / "image").open("w+b") as fh:
        write_patches(fh.fileno(), segment)
        fh.truncate(segment.head.data_end)
        written = os.pread(fh.fileno(), len(expected), segment.head.patches_at)
        assert os.pread(fh.fileno(), CLUSTER, 0) == bytes(CLUSTER)
    assert written == expected
