"""The fingerprint's file: what is read back, what a killed merge leaves, and how little it takes."""

import os
import random
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st
from machine_kit import child
from point_kit import OTHER_VM, VM

from vmreplica.fingerprint import BLOCK, Fingerprint, FingerprintStore, Hashes, blocks_of, hash_blocks
from vmreplica.model.errors import Corrupt, NoSpace
from vmreplica.model.units import GiB, MiB, TiB

pytestmark = pytest.mark.seeding

KEY = 0x1234_5678_9ABC_DEF0
POINT = "20260102T000000Z-00000001"
NEXT = "20260103T000000Z-00000001"


def _hashes(*values: int) -> Hashes:
    return np.array(values, np.uint64)


def _make(path: Path, size: int = 64 * MiB) -> Fingerprint:
    return Fingerprint.create(path / "vda.fp", key=KEY, size=size, target="vda")


def test_a_block_of_zeroes_has_the_hash_0_and_no_other_block_has() -> None:
    data = bytearray(random.Random(1).randbytes(5 * BLOCK + 100))
    data[2 * BLOCK : 3 * BLOCK] = bytes(BLOCK)
    found = hash_blocks(memoryview(data), KEY)
    padded = bytes(data).ljust(6 * BLOCK, b"\0")
    wanted = [xxhash.xxh3_64_intdigest(padded[start : start + BLOCK], KEY) for start in range(0, 6 * BLOCK, BLOCK)]
    wanted[2] = 0
    assert found.tolist() == wanted
    assert 0 not in wanted[:2] + wanted[3:]


def test_hashes_depend_on_the_key_and_large_pieces_are_hashed_like_small_ones() -> None:
    data = memoryview(random.Random(2).randbytes(5 * MiB + 4096))
    whole = hash_blocks(data, KEY)
    pieces = [hash_blocks(data[start : start + 3 * BLOCK], KEY) for start in range(0, len(data), 3 * BLOCK)]
    assert np.array_equal(whole, np.concatenate(pieces))
    assert not (whole == hash_blocks(data, KEY + 1)).any()
    assert hash_blocks(memoryview(b""), KEY).size == 0


def test_a_new_fingerprint_describes_no_point_and_is_all_zero(tmp_path: Path) -> None:
    with _make(tmp_path) as made:
        assert made.point is None
        assert not made.good_for("", 64 * MiB)
        assert not made.hashes(0, blocks_of(64 * MiB)).any()
        assert list(made.used(0, blocks_of(64 * MiB))) == []


def test_what_was_merged_is_read_back_and_believed_only_for_its_point_and_size(tmp_path: Path) -> None:
    with _make(tmp_path) as made:
        made.merge([(10, _hashes(1, 2, 3)), (16380, _hashes(7, 8, 9, 5)), (11, _hashes(0))], POINT)
    with Fingerprint.open(tmp_path / "vda.fp") as again:
        assert again.hashes(9, 6).tolist() == [0, 1, 0, 3, 0, 0]
        assert again.hashes(16382, 100).tolist() == [9, 5]
        assert again.hashes(20000, 5).size == 0
        assert again.good_for(POINT, 64 * MiB)
        assert not again.good_for(NEXT, 64 * MiB)
        assert not again.good_for(POINT, 65 * MiB)
        assert (again.key, again.size, again.target, again.point) == (KEY, 64 * MiB, "vda", POINT)


def test_a_hash_beyond_the_disk_is_refused_and_leaves_it_doubtful(tmp_path: Path) -> None:
    with _make(tmp_path) as made:
        with pytest.raises(Corrupt, match="vda") as refusal:
            made.merge([(16383, _hashes(1, 2))], POINT)
        assert refusal.value.code == "fingerprint-range"
        assert not made.good_for(POINT, 64 * MiB)


def test_a_merge_cut_short_is_doubtful_until_it_is_done_again(tmp_path: Path) -> None:
    def broken() -> Iterator[tuple[int, Hashes]]:
        yield 0, _hashes(4)
        raise Corrupt("fingerprint-damaged", "cut short")

    with _make(tmp_path) as made:
        made.merge([(0, _hashes(1)), (9, _hashes(2))], POINT)
        with pytest.raises(Corrupt):
            made.merge(broken(), NEXT)
    with Fingerprint.open(tmp_path / "vda.fp") as again:
        assert (again.clean, again.point) == (False, NEXT)
        assert not again.good_for(POINT, 64 * MiB)
        assert not again.good_for(NEXT, 64 * MiB)
        again.merge([(0, _hashes(4)), (9, _hashes(5))], NEXT)
        assert again.good_for(NEXT, 64 * MiB)
        assert again.hashes(0, 10)[[0, 9]].tolist() == [4, 5]


_CHILD = """
import sys
from pathlib import Path
import numpy as np
from vmreplica.fingerprint import Fingerprint
def entries():
    for first in range(0, 1 << 18, 512):
        yield first, np.full(512, first + 7, np.uint64)
        print(first, flush=True)
with Fingerprint.open(Path(sys.argv[1])) as found:
    found.merge(entries(), sys.argv[2])
print("done", flush=True)
"""


@pytest.mark.parametrize("after", ["0", "65536", "200192", "done"])
def test_a_fingerprint_whose_merge_was_killed_is_never_believed(tmp_path: Path, after: str) -> None:
    with _make(tmp_path, GiB) as made:
        made.merge([(5, _hashes(6))], POINT)
    with child(_CHILD, tmp_path / "vda.fp", NEXT) as merger:
        assert merger.stdout is not None
        assert any(line.strip() == after for line in merger.stdout)
        merger.kill()
    with Fingerprint.open(tmp_path / "vda.fp") as again:
        assert not again.good_for(POINT, GiB)
        assert again.point == NEXT
        assert again.good_for(NEXT, GiB) == (after == "done")


@pytest.mark.parametrize("place", [0, 9, 20, 24, 40, 70, 85])
def test_a_damaged_head_is_not_believed(tmp_path: Path, place: int) -> None:
    _make(tmp_path).close()
    path = tmp_path / "vda.fp"
    raw = bytearray(path.read_bytes())
    raw[place] ^= 1
    path.write_bytes(raw)
    with pytest.raises(Corrupt) as refusal:
        Fingerprint.open(path)
    assert refusal.value.code == "fingerprint-damaged"


@pytest.mark.parametrize("length", [0, 50, 4096, 4096 + 8 * 16383])
def test_a_file_cut_short_is_not_believed(tmp_path: Path, length: int) -> None:
    _make(tmp_path).close()
    os.truncate(tmp_path / "vda.fp", length)
    with pytest.raises(Corrupt):
        Fingerprint.open(tmp_path / "vda.fp")


def test_a_grown_disk_keeps_its_hashes_and_what_is_new_is_zero(tmp_path: Path) -> None:
    with _make(tmp_path) as made:
        made.merge([(16383, _hashes(3))], POINT)
        made.resize(128 * MiB)
        assert made.hashes(16383, 1 << 20).tolist() == [3] + [0] * 16384
        assert made.good_for(POINT, 128 * MiB)
    with Fingerprint.open(tmp_path / "vda.fp") as again:
        assert again.size == 128 * MiB


def test_a_shrunk_disk_leaves_no_point_and_its_old_hashes_never_come_back(tmp_path: Path) -> None:
    with _make(tmp_path) as made:
        made.merge([(10000, _hashes(3))], POINT)
        made.resize(32 * MiB)
        assert made.point is None
        made.resize(64 * MiB)
        assert not made.hashes(0, 16384).any()


def test_the_file_takes_a_quarter_percent_of_the_disk_at_most_and_nothing_where_it_is_zero(tmp_path: Path) -> None:
    with _make(tmp_path, TiB) as made:
        half = np.zeros(1 << 16, np.uint64)
        half[1 << 15 :] = 1
        made.merge([(1 << 27, half)], POINT)
    stat = (tmp_path / "vda.fp").stat()
    assert stat.st_size <= 0.0025 * TiB
    assert stat.st_blocks * 512 <= 8 * (1 << 15) + 64 * 1024
    with Fingerprint.open(tmp_path / "vda.fp") as again:
        again.merge([(1 << 27, np.zeros(1 << 16, np.uint64))], NEXT)
    assert (tmp_path / "vda.fp").stat().st_blocks * 512 <= 64 * 1024


def test_what_is_used_of_a_huge_disk_is_found_without_reading_it_all(tmp_path: Path) -> None:
    with _make(tmp_path, 256 * TiB) as made:
        last = blocks_of(256 * TiB) - 1
        made.merge([(1 << 30, _hashes(1)), (last, _hashes(2))], POINT)
        assert list(made.used(0, last + 1, 16)) == [(1 << 30, (1 << 30) + 16), (last - 15, last + 1)]


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3000), st.integers(1, 700), st.booleans()), max_size=8), st.data())
def test_used_runs_are_exactly_the_groups_that_are_not_zero(
    fresh_dir: Callable[[], Path], writes: list[tuple[int, int, bool]], data: st.DataObject
) -> None:
    model = np.zeros(3701, np.uint64)
    entries = []
    for first, count, zero in writes:
        hashes = np.zeros(count, np.uint64) if zero else np.arange(1, count + 1, dtype=np.uint64)
        model[first : first + count] = hashes
        entries.append((first, hashes))
    grain = data.draw(st.sampled_from([1, 16, 512]))
    first = data.draw(st.integers(0, 3700 // grain)) * grain
    end = data.draw(st.integers(first, 4000))
    with _make(fresh_dir(), 3701 * BLOCK - 512) as made:
        made.merge(entries, POINT)
        assert np.array_equal(made.hashes(0, 5000), model)
        found = [block for low, high in made.used(first, end, grain) for block in range(low, high)]
    groups = [range(start, min(start + grain, end, 3701)) for start in range(first, min(end, 3701), grain)]
    assert found == [block for group in groups if model[list(group)].any() for block in group]


@pytest.fixture(scope="module")
def fresh_dir(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Path]:
    return lambda: tmp_path_factory.mktemp("fingerprint")


def test_a_full_file_system_leaves_it_doubtful_and_the_merge_can_be_repeated(tmp_path: Path) -> None:
    where = tmp_path / "small"
    where.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(where)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        entries = [(0, np.ones(1 << 16, np.uint64))]
        with _make(where, GiB) as made:
            (where / "ballast").write_bytes(bytes(600 * 1024))
            with pytest.raises(NoSpace, match="small"):
                made.merge(entries, POINT)
            assert not made.clean
            (where / "ballast").unlink()
            made.merge(entries, POINT)
            assert made.good_for(POINT, GiB)
    finally:
        subprocess.run(["umount", "-l", str(where)], check=True)


def test_a_store_has_one_key_per_vm_and_keeps_it(tmp_path: Path) -> None:
    key = FingerprintStore(tmp_path).key(VM)
    store = FingerprintStore(tmp_path)
    assert store.key(VM) == key != store.key(OTHER_VM)
    assert store.open(VM, "vda") is None
    store.create(VM, "vda", GiB).close()
    found = store.open(VM, "vda")
    assert found is not None
    assert (found.key, found.size, found.target) == (key, GiB, "vda")
    found.close()


def test_a_fingerprint_of_a_lost_key_or_another_disk_or_damaged_is_none(tmp_path: Path) -> None:
    store = FingerprintStore(tmp_path)
    store.create(VM, "vda", GiB).close()
    (tmp_path / VM / "vdb.fp").write_bytes((tmp_path / VM / "vda.fp").read_bytes())
    assert store.open(VM, "vdb") is None
    (tmp_path / VM / "key").unlink()
    assert store.open(VM, "vda") is None
    (tmp_path / VM / "vda.fp").write_bytes(b"nonsense")
    assert store.open(VM, "vda") is None


def test_removing_forgets_a_disk_or_a_vm_with_its_key(tmp_path: Path) -> None:
    store = FingerprintStore(tmp_path)
    key = store.key(VM)
    for target in ("vda", "vdb"):
        store.create(VM, target, GiB).close()
    store.remove(VM, "vda")
    assert store.open(VM, "vda") is None
    other = store.open(VM, "vdb")
    assert other is not None
    other.close()
    store.remove(VM)
    store.remove(VM)
    assert list(tmp_path.iterdir()) == []
    assert store.key(VM) != key


@settings(deadline=None)
@given(st.lists(st.integers(0, (1 << 18) // 16 - 1), max_size=12))
def test_what_is_used_is_found_from_the_end_as_from_the_beginning(
    fresh_dir: Callable[[], Path], clusters: list[int]
) -> None:
    with Fingerprint.create(fresh_dir() / "vda.fp", key=1, size=(1 << 18) * 4096 - 512, target="vda") as made:
        made.merge([(16 * cluster, _hashes(5)) for cluster in clusters], POINT)
        windows = list(made.used_backwards(16))
        assert all(windows)
        found = {group for window in windows for low, high in window for group in range(low // 16, -(-high // 16))}
        assert found == set(clusters)
        assert windows == sorted(windows, reverse=True)
