"""Sums of fingerprints: of what was merged, of what will be, of any region; and whether all of it is the VM's own."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmreplica.fingerprint import BLOCK, BlockSum, Fingerprint, Hashes, sum_after, sum_blocks
from vmreplica.model.errors import Corrupt

pytestmark = pytest.mark.points

KEY = 0xFEDC_BA98_7654_3210
BLOCKS = 3000
POINT, NEXT = "20260102T000000Z-00000001", "20260103T000000Z-00000001"

Entries = list[tuple[int, Hashes]]


def _hashes(*values: int) -> Hashes:
    return np.array(values, np.uint64)


def _reckoned(hashes: Hashes, key: int = KEY) -> BlockSum:
    """The definition in plain integers, block by block."""
    mask, low, high = (1 << 64) - 1, 0, 0

    def mix(value: int) -> int:
        value = ((value ^ value >> 30) * 0xBF58476D1CE4E5B9) & mask
        value = ((value ^ value >> 27) * 0x94D049BB133111EB) & mask
        return value ^ value >> 31

    for number, value in enumerate(hashes.tolist()):
        if value:
            place = mix((number * 0x9E3779B97F4A7C15 + key) & mask)
            turned = (place << 32 | place >> 32) & mask
            low += mix(value ^ place)
            high += mix((value * 0xD6E8FEB86659FD93 + turned) & mask)
    return BlockSum(low & mask, high & mask)


def _make(directory: Path) -> Fingerprint:
    return Fingerprint.create(directory / "vda.fp", key=KEY, size=BLOCKS * BLOCK, target="vda")


@pytest.fixture(scope="module")
def fresh_dir(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Path]:
    return lambda: tmp_path_factory.mktemp("fingerprint")


def test_a_sum_is_what_its_definition_says_and_can_be_taken_in_parts() -> None:
    hashes = np.random.default_rng(1).integers(0, 1 << 64, 100_000, np.uint64)
    hashes[5000:40_000] = 0
    whole = sum_blocks(0, hashes, KEY)
    assert whole == _reckoned(hashes)
    assert sum_blocks(0, hashes[:777], KEY).plus(sum_blocks(777, hashes[777:], KEY)) == whole
    assert whole.minus(sum_blocks(777, hashes[777:], KEY)) == _reckoned(hashes[:777])
    assert BlockSum.of_text(whole.text) == whole
    assert sum_blocks(0, hashes, KEY + 1) != whole


@pytest.mark.parametrize("change", ["value", "swapped", "moved", "zero"])
def test_a_sum_tells_other_content_and_other_places(change: str) -> None:
    hashes = np.arange(1, 101, dtype=np.uint64)
    other = hashes.copy()
    if change == "value":
        other[50] ^= np.uint64(1 << 63)
    elif change == "swapped":
        other[[3, 4]] = other[[4, 3]]
    elif change == "zero":
        other[99] = 0
    first = 1 if change == "moved" else 0
    assert sum_blocks(first, other, KEY) != sum_blocks(0, hashes, KEY)


_entry = st.tuples(st.integers(0, 2999), st.integers(1, 200), st.integers(0, 3))


def _entries(drawn: list[tuple[int, int, int]]) -> Entries:
    made = []
    for first, count, kind in drawn:
        numbers = np.arange(first, min(first + count, BLOCKS), dtype=np.uint64)
        made.append((first, numbers * np.uint64(kind)))
    return made


def _ascending(entries: Entries) -> Entries:
    """As capture stages them: in the order of the disk, apart from each other."""
    kept, end = [], 0
    for first, hashes in sorted(entries, key=lambda entry: entry[0]):
        if first >= end:
            kept.append((first, hashes))
            end = first + len(hashes)
    return kept


@settings(deadline=None)
@given(st.lists(_entry, max_size=8), st.lists(_entry, max_size=8))
def test_a_fingerprint_keeps_the_sum_of_its_hashes_whatever_is_merged(
    fresh_dir: Callable[[], Path], one: list[tuple[int, int, int]], other: list[tuple[int, int, int]]
) -> None:
    directory = fresh_dir()
    with _make(directory) as made:
        made.merge(_entries(one), POINT)
        made.merge(_entries(other), NEXT)
        assert made.sum == sum_blocks(0, made.hashes(0, BLOCKS), KEY)
    with Fingerprint.open(directory / "vda.fp") as again:
        assert again.sum == _reckoned(again.hashes(0, BLOCKS))


@settings(deadline=None)
@given(st.lists(_entry, max_size=8), st.lists(_entry, max_size=8), st.data())
def test_the_sum_after_a_merge_is_known_before_it_also_when_capture_was_gone_on_with(
    fresh_dir: Callable[[], Path],
    before: list[tuple[int, int, int]],
    drawn: list[tuple[int, int, int]],
    data: st.DataObject,
) -> None:
    entries = _ascending(_entries(drawn))
    killed: bool = data.draw(st.booleans())
    # Killed behind the last segment, it stages the same again from some block on; cut at other places.
    if entries and killed:
        since = data.draw(st.integers(0, BLOCKS - 1))
        until = data.draw(st.integers(0, len(entries)))
        again = [(max(first, since), hashes[max(0, since - first) :]) for first, hashes in entries]
        entries = [*entries[:until], *((first, hashes) for first, hashes in again if len(hashes))]
        covered = {b for first, hashes in again for b in range(first, first + len(hashes))}
        lost = {b for first, hashes in entries[:until] for b in range(max(first, since), first + len(hashes))}
        assert lost <= covered
    with _make(fresh_dir()) as made:
        made.merge(_entries(before), POINT)
        foretold = sum_after(made.require_sum(), made.hashes, lambda: iter(entries), KEY)
        made.merge(entries, NEXT)
        assert made.sum == foretold


def test_a_whole_disk_begun_as_zeroes_has_the_sum_of_what_was_read(tmp_path: Path) -> None:
    entries = [
        (0, np.zeros(BLOCKS, np.uint64)),
        (10, _hashes(1, 2)),
        (0, np.zeros(BLOCKS, np.uint64)),
        (10, _hashes(7)),
    ]
    with _make(tmp_path) as made:
        foretold = sum_after(made.require_sum(), made.hashes, lambda: iter(entries), KEY)
        assert foretold == sum_blocks(10, _hashes(7), KEY)
        made.merge(entries, POINT)
        assert made.sum == foretold


def test_after_an_interrupted_merge_the_sum_is_unknown_and_reckoned_anew_by_the_next(tmp_path: Path) -> None:
    with _make(tmp_path) as made:
        made.merge([(3, _hashes(4, 5))], POINT)
        with pytest.raises(Corrupt):
            made.merge([(3, _hashes(9)), (BLOCKS, _hashes(1))], NEXT)
        assert made.sum is None
    with Fingerprint.open(tmp_path / "vda.fp") as again:
        assert again.sum is None
        again.merge([(3, _hashes(9))], NEXT)
        assert again.sum == sum_blocks(3, _hashes(9, 5), KEY)


def test_a_fingerprint_of_an_older_version_learns_its_sum_and_is_not_called_the_vms_own(tmp_path: Path) -> None:
    path = tmp_path / "vda.fp"
    with _make(tmp_path) as made:
        made.merge([(3, _hashes(4, 5))], POINT)
    with path.open("r+b") as fh:
        fh.seek(88)
        fh.write(bytes(40))
    with Fingerprint.open(path) as again:
        assert (again.sum, again.own, again.point) == (None, False, POINT)
        assert again.require_sum() == sum_blocks(3, _hashes(4, 5), KEY)
    with Fingerprint.open(path) as again:
        assert again.sum == sum_blocks(3, _hashes(4, 5), KEY)


def test_what_the_replica_told_is_not_the_vms_own_until_all_of_it_was_read(tmp_path: Path) -> None:
    with _make(tmp_path) as made:
        assert made.own
        made.merge([(0, _hashes(1))], POINT, own=False)
        assert not made.own
        made.merge([(0, _hashes(2))], NEXT)
        assert not made.own
        made.merge([(0, _hashes(2))], NEXT, own=True)
    with Fingerprint.open(tmp_path / "vda.fp") as again:
        assert again.own


def test_a_snapshot_stays_as_it_was_and_leaves_no_file(tmp_path: Path) -> None:
    with _make(tmp_path) as made:
        made.merge([(0, _hashes(1)), (2000, _hashes(3, 0, 4))], POINT)
        taken = made.snapshot()
        assert taken is not None
        made.merge([(0, _hashes(2))], NEXT)
        assert [path.name for path in tmp_path.iterdir()] == ["vda.fp"]
        with taken:
            assert (taken.point, taken.own, taken.size) == (POINT, True, BLOCKS * BLOCK)
            assert taken.sum == sum_blocks(0, taken.hashes(0, BLOCKS), KEY)
            assert taken.hashes(0, 1).tolist() == [1]
            assert taken.hashes(1999, 5).tolist() == [0, 3, 0, 4, 0]


def test_of_a_fingerprint_that_is_being_changed_there_is_no_snapshot(tmp_path: Path) -> None:
    with _make(tmp_path) as made, Fingerprint.open(tmp_path / "vda.fp") as seen:
        made.merge([(0, _hashes(1))], POINT)
        assert seen.snapshot() is None, "it was another point's when it was opened"
        with pytest.raises(Corrupt):
            made.merge([(BLOCKS, _hashes(1))], NEXT)
        assert made.snapshot() is None
