"""Where the bench writes, and what the plain reader reads."""

import subprocess
from pathlib import Path

import pytest
from bench.peers.plain_read import read_export
from bench.writes import BLOCK, scattered
from bench_kit import ThisMachine, served
from hypothesis import given
from hypothesis import strategies as st

pytestmark = pytest.mark.seeding

KiB = 1 << 10
MiB = 1 << 20

#: Ranges that do not overlap: (gap before, length), in sectors.
GAPS = st.lists(st.tuples(st.integers(0, 300), st.integers(1, 900)), min_size=1, max_size=6)


@given(GAPS, st.sampled_from([BLOCK, 64 * KiB]), st.integers(0, 50), st.integers(0, 3))
def test_scattered_blocks_lie_in_the_ranges_each_in_a_piece_of_its_own(
    gaps: list[tuple[int, int]], grain: int, count: int, seed: int
) -> None:
    ranges, at = [], 0
    for gap, length in gaps:
        ranges.append(((at + gap) * 512, length * 512))
        at += gap + length
    room = sum(max(0, (start + length) // grain - -(-start // grain)) for start, length in ranges)
    count = min(count, room)
    offsets = scattered(ranges, count, grain=grain, seed=seed)
    assert offsets == scattered(ranges, count, grain=grain, seed=seed)
    assert len({offset // grain for offset in offsets}) == count
    assert offsets == sorted(offsets)
    for offset in offsets:
        assert offset % BLOCK == 0
        assert any(start <= offset and offset + BLOCK <= start + length for start, length in ranges)


def test_more_blocks_than_there_is_room_for_are_refused() -> None:
    with pytest.raises(ValueError, match="Sample larger"):
        scattered([(0, 3 * 64 * KiB)], 4, grain=64 * KiB, seed=0)


def test_the_plain_reader_reads_what_is_allocated_and_no_more(tmp_path: Path) -> None:
    image = tmp_path / "disk.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", image, "64M"], check=True)
    writes = ["-c", "write -q -P 1 1M 5M", "-c", "write -q -P 2 40M 64k"]
    subprocess.run(["qemu-io", *writes, image], check=True)
    with served(ThisMachine(tmp_path / "a"), image) as socket:
        assert read_export(socket, "") == [(MiB, 5 * MiB), (40 * MiB, 64 * KiB)]
