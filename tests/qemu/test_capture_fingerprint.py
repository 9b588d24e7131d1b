"""Capture against a fingerprint: only blocks that differ are carried, and copy and fingerprint are always right."""

import random
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from capture_kit import BITMAP, View, make_disk, noise, opening, parse_waiting, run, served, track
from fingerprint_kit import KEY, LATEST, Carried, Copy, capture, empty_copy, next_cycle, next_raw_cycle
from machine_kit import child

from vmreplica.capture import DiskPlan, Mode, capture_point
from vmreplica.fingerprint import Fingerprint
from vmreplica.model.errors import Conflict
from vmreplica.model.units import CLUSTER, KiB, MiB, TiB
from vmreplica.qcow2.segment import KIND_ZERO, KIND_ZSTD
from vmreplica.spool import Spool, SpoolPoint

pytestmark = pytest.mark.seeding

#: Neither a multiple of the cluster size nor of the block size.
SIZE = 40 * MiB + 5 * 4096 + 512
TAIL = SIZE // CLUSTER * CLUSTER
BASE = ("write -P 7 0 9M", "write -P 8 20M 3M", f"write -P 10 {TAIL} {SIZE - TAIL}", "write -z 30M 2M")
CHANGING: tuple[Mode, ...] = ("delta", "compare")


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = make_disk(tmp_path / "vda.qcow2", SIZE, BASE)
    track(path)
    return path


@pytest.fixture
def copy(tmp_path: Path) -> Iterator[Copy]:
    made = empty_copy(tmp_path, SIZE)
    yield made
    made.fingerprint.close()


@pytest.fixture
def seeded(copy: Copy, disk: Path) -> Copy:
    """A copy of the disk as it stands."""
    next_cycle(copy, disk, "whole")
    copy.assert_same(disk)
    return copy


def _writes(rng: random.Random) -> list[str]:
    """Writes, rewrites, zeroes and discards of odd sizes at odd places."""
    found = []
    for _ in range(rng.randint(1, 25)):
        start = rng.randrange(0, SIZE - 512, 512)
        size = min(512 * rng.choice([1, 7, 8, 9, 127, 128, 129, 1000, 9000]), SIZE - start)
        kind = rng.choice(["write -q -P 7", "write -q -P 9", "write -q -P 0", "write -q -z", "discard -q"])
        found.append(f"{kind} {start} {size}")
    return found


@pytest.mark.parametrize("seed", range(3))
def test_copy_and_fingerprint_stay_right_whatever_is_written_and_however_it_is_read(
    copy: Copy, disk: Path, seed: int
) -> None:
    rng = random.Random(seed)
    next_cycle(copy, disk, rng.choice(["whole", "compare"]))
    for _ in range(6):
        next_cycle(copy, disk, rng.choice(["whole", "delta", "delta", "compare", "compare"]), writes=_writes(rng))
        copy.assert_same(disk)


@pytest.mark.parametrize("mode", CHANGING)
def test_only_the_blocks_that_differ_are_carried(seeded: Copy, disk: Path, mode: Mode) -> None:
    writes = ("write -P 21 64k 4k", "write -P 22 73k 512", "write -P 23 1M 64k", f"write -P 24 {TAIL + 20480} 512")
    carried, guest_bytes = next_cycle(seeded, disk, mode, writes=writes)
    tail = TAIL // CLUSTER
    assert carried.patches == {1: 0b101, tail: 1 << 5}
    assert (carried.whole, carried.zeroes) == (1, 0)
    assert guest_bytes == CLUSTER + 3 * 4096
    seeded.assert_same(disk)


@pytest.mark.parametrize("mode", CHANGING)
def test_a_last_cluster_all_of_whose_blocks_changed_is_carried_whole(seeded: Copy, disk: Path, mode: Mode) -> None:
    carried, _ = next_cycle(seeded, disk, mode, writes=[f"write -P 31 {TAIL} {SIZE - TAIL}"])
    assert (carried.whole, carried.patches) == (1, {})
    seeded.assert_same(disk)


@pytest.mark.parametrize("mode", CHANGING)
def test_what_is_rewritten_unchanged_is_not_carried(seeded: Copy, disk: Path, mode: Mode) -> None:
    carried, guest_bytes = next_cycle(seeded, disk, mode, writes=("write -P 7 0 9M", "write -P 0 12M 3M", *BASE[1:3]))
    assert (carried, guest_bytes) == (Carried(), 0)
    seeded.assert_same(disk)


@pytest.mark.parametrize("mode", CHANGING)
def test_zeroes_and_discards_are_carried_as_such_and_only_where_something_was(
    seeded: Copy, disk: Path, mode: Mode
) -> None:
    writes = ("write -P 0 0 128k", "discard 2M 16M", "write -z 20M 1M", "write -P 0 21M 4k", "discard 25M 4M")
    carried, guest_bytes = next_cycle(seeded, disk, mode, writes=writes)
    assert (carried.whole, carried.zeroes) == (0, 2 + 7 * 16 + 16)
    assert carried.patches == {21 * 16: 1}
    assert guest_bytes == 4096
    seeded.assert_same(disk)


@pytest.mark.parametrize("mode", CHANGING)
def test_damaged_clusters_are_carried_whole_whatever_the_fingerprint_says_and_nothing_else(
    seeded: Copy, disk: Path, mode: Mode
) -> None:
    next_cycle(seeded, disk, mode, writes=["discard 8M 1M"])
    data, zeroes, tail = 1, 8 * 16 + 3, TAIL // CLUSTER
    for cluster in (data, data + 1, zeroes, tail):
        seeded.content[cluster * CLUSTER + 5000] ^= 1
    must = ((data, data + 2), (zeroes, zeroes + 1), (tail, tail + 100))
    carried, _ = next_cycle(seeded, disk, mode, writes=["write -P 9 2M 4k"], must=must)
    assert carried.patches == {2 * 16: 1}
    assert (carried.whole, carried.zeroes) == (3, 1)
    seeded.assert_same(disk)


@pytest.mark.parametrize("mode", CHANGING)
def test_random_small_writes_cost_little_more_than_themselves(
    tmp_path: Path, seeded: Copy, disk: Path, mode: Mode
) -> None:
    source = noise(tmp_path, 4 * KiB)
    blocks = random.Random(3).sample(range(SIZE // 4096), 400)
    writes = [f"write -q -s {source} {block * 4096} 4k" for block in blocks]
    carried, _ = next_cycle(seeded, disk, mode, writes=writes)
    assert carried.wire <= 1.15 * 400 * 4096
    seeded.assert_same(disk)


def test_a_raw_disk_is_replicated_by_comparison(tmp_path: Path) -> None:
    disk = tmp_path / "vda.raw"
    run("qemu-img", "create", "-q", "-f", "raw", disk, str(SIZE // 512 * 512))
    copy = empty_copy(tmp_path, SIZE // 512 * 512)
    for writes in (("write -P 5 1M 3M",), ("write -P 6 2052k 4k", "discard 1M 64k", f"write -P 9 {TAIL} 512")):
        run("qemu-io", "-f", "raw", "-d", "unmap", *(part for write in writes for part in ("-c", write)), disk)
        carried = next_raw_cycle(copy, disk)
        copy.assert_same(disk, "raw")
    assert (carried.whole, carried.zeroes, carried.patches) == (0, 1, {2048 // 64: 2, TAIL // CLUSTER: 1})
    copy.fingerprint.close()


@pytest.mark.parametrize("mode", CHANGING)
def test_a_grown_disk_is_read_against_the_fingerprint_of_the_smaller_one(seeded: Copy, disk: Path, mode: Mode) -> None:
    run("qemu-img", "resize", "-q", "-f", "qcow2", disk, str(SIZE + 10 * MiB))
    carried, _ = next_cycle(
        seeded, disk, mode, writes=[f"write -P 41 {SIZE - 512} 1024", f"write -P 42 {SIZE + MiB} 1M"]
    )
    assert len(carried.patches) + carried.whole <= 19
    seeded.assert_same(disk)


def test_a_whole_copy_leads_to_the_right_fingerprint_from_any_other(seeded: Copy, disk: Path) -> None:
    wrong = [(0, seeded.fingerprint.hashes(0, 10000)[::-1].copy())]
    seeded.fingerprint.merge(wrong, "20250101T000000Z-00000001")
    seeded.content[:] = bytes(SIZE)
    next_cycle(seeded, disk, "whole", writes=("discard 1M 2M",))
    seeded.assert_same(disk)


def test_the_map_of_a_huge_sparse_disk_is_compared_in_no_time(tmp_path: Path) -> None:
    size = 16 * TiB
    disk = make_disk(tmp_path / "vda.qcow2", size, (f"write -P 3 {size - CLUSTER} 64k",))
    point = Spool(tmp_path / "spool", TiB).create(opening({"vda": size}, delta=True))
    socket = tmp_path / "nbd.sock"
    with (
        Fingerprint.create(tmp_path / "vda.fp", key=KEY, size=size, target="vda") as fingerprint,
        served(disk, socket) as view,
    ):
        fingerprint.merge([(1 << 30, np.array([5], np.uint64))], LATEST)
        capture(point, view, "compare", fingerprint)
    (number,) = point.disk("vda").waiting()
    segment = parse_waiting(point, point.disk("vda"), number)
    assert [(cluster, kind) for cluster, _, kind in segment[0].tolist()] == [
        (1 << 26, KIND_ZERO),
        (size // CLUSTER - 1, KIND_ZSTD),
    ]


def test_progress_counts_what_is_read_in_a_comparison(seeded: Copy, disk: Path) -> None:
    point = Spool(seeded.spool(), TiB).create(opening({"vda": SIZE}, delta=True))
    with served(disk, seeded.directory / "nbd.sock") as view:
        told = capture(point, view, "compare", seeded.fingerprint)
    total = 12 * MiB + CLUSTER
    assert told == sorted(told)
    assert told[-1] == (total, total)


def test_a_comparison_needs_a_fingerprint(tmp_path: Path, disk: Path) -> None:
    point = Spool(tmp_path / "spool", TiB).create(opening({"vda": SIZE}, delta=True))
    with served(disk, tmp_path / "nbd.sock") as view, pytest.raises(ValueError, match="vda"):
        capture(point, view, "compare", None)


def test_without_a_fingerprint_a_delta_carries_whole_clusters_and_stages_nothing(
    tmp_path: Path, seeded: Copy, disk: Path
) -> None:
    run("qemu-io", "-f", "qcow2", "-c", "write -P 21 64k 4k", disk)
    point = Spool(tmp_path / "spool", TiB).create(opening({"vda": SIZE}, delta=True))
    with served(disk, tmp_path / "nbd.sock", bitmap=BITMAP) as view:
        capture(point, view, "delta", None)
    assert point.closing is not None
    assert point.closing.guest_bytes == CLUSTER
    assert list(point.disk("vda").staged()) == []
    assert seeded.cycles == 1


_CHILD = """
import sys
from pathlib import Path
from capture_kit import BITMAP, View, opening
from vmreplica.capture import DiskPlan, capture_point
from vmreplica.fingerprint import Fingerprint
from vmreplica.qcow2.segment import KIND_ZERO, KIND_ZSTD
from vmreplica.spool import Spool
import threading
spool, socket, size, mode, fingerprint = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), *sys.argv[4:]
point = Spool(spool, 1 << 40).create(opening({"vda": size}, delta=True))
view = View(socket, "", size, BITMAP if mode == "delta" else None)
capture_point(
    {"vda": view}, point, plans={"vda": DiskPlan(mode)}, fingerprints={"vda": Fingerprint.open(Path(fingerprint))},
    cancel=threading.Event(), progress=lambda done, _: print(done, flush=True),
)
"""


@pytest.mark.parametrize("mode", ["whole", "delta", "compare"])
@pytest.mark.parametrize("after", [1 * MiB, 12 * MiB])
def test_a_capture_killed_in_any_mode_goes_on_and_loses_no_hash(
    tmp_path: Path, seeded: Copy, disk: Path, mode: Mode, after: int
) -> None:
    source = noise(tmp_path, 32 * MiB)
    run("qemu-io", "-f", "qcow2", "-c", f"write -s {source} 3M 32M", "-c", "discard 0 1M", disk)
    with served(disk, tmp_path / "nbd.sock", bitmap=BITMAP if mode == "delta" else None) as view:
        _capture_and_kill(seeded, view, mode, after)
        point = _reopened(seeded.spool())
        before = point.disk("vda").waiting()
        assert before or after < 12 * MiB
        carried = point.guest_bytes
        told = capture(point, view, mode, seeded.fingerprint)
    assert point.disk("vda").waiting()[: len(before)] == before
    assert not told or told[0][0] >= carried
    assert point.closing is not None
    assert point.closing.guest_bytes >= 32 * MiB
    seeded.publish(point)
    seeded.assert_same(disk)


def _capture_and_kill(copy: Copy, view: View, mode: str, after: int) -> None:
    fingerprint = copy.directory / "vda.fp"
    with child(_CHILD, copy.spool(), view.socket, view.size, mode, fingerprint) as reader:
        assert reader.stdout is not None
        assert any(int(line) >= after for line in reader.stdout)
        reader.kill()


def _reopened(spool: Path) -> SpoolPoint:
    point = Spool(spool, TiB).point(opening({"vda": SIZE}).vm)
    assert point is not None
    return point


def test_a_capture_may_be_gone_on_with_by_another_plan(tmp_path: Path, seeded: Copy, disk: Path) -> None:
    """As after a restart of the agent that finds the bitmap gone: what a delta began a whole copy may finish."""
    source = noise(tmp_path, 32 * MiB)
    run("qemu-io", "-f", "qcow2", "-c", f"write -s {source} 3M 20M", "-c", "discard 30M 4M", disk)
    point = Spool(seeded.spool(), TiB).create(opening({"vda": SIZE}, delta=True))
    cancel = threading.Event()
    with served(disk, tmp_path / "nbd.sock", bitmap=BITMAP) as view:
        with pytest.raises(Conflict):
            capture_point(
                {"vda": view},
                point,
                plans={"vda": DiskPlan("delta")},
                fingerprints={"vda": seeded.fingerprint},
                cancel=cancel,
                progress=lambda done, _: cancel.set() if done > 12 * MiB else None,
            )
        assert 0 < point.disk("vda").next_cluster < 20 * 16
        capture(point, view, "whole", seeded.fingerprint)
    seeded.publish(point)
    seeded.assert_same(disk)


@pytest.mark.parametrize("cut", [3 * MiB, 10 * MiB + 12 * 1024, 12 * MiB + CLUSTER - 4096])
def test_what_a_disk_lost_that_shrank_and_grew_again_is_carried_although_its_bitmap_is_clean(
    seeded: Copy, disk: Path, cut: int
) -> None:
    used = next(seeded.fingerprint.used_backwards(16))[-1][1] * 4096
    assert cut < used, "something is lost"
    run("qemu-img", "resize", "-q", "--shrink", "-f", "qcow2", disk, str(cut))
    run("qemu-img", "resize", "-q", "-f", "qcow2", disk, str(SIZE))
    next_cycle(seeded, disk, "delta", writes=("write -P 51 64k 4k",))
    seeded.assert_same(disk)
    next_cycle(seeded, disk, "delta", writes=("write -P 52 128k 4k",))
    seeded.assert_same(disk)


def test_a_delta_whose_tail_is_written_or_unchanged_reads_no_more_than_before(seeded: Copy, disk: Path) -> None:
    with served(disk, seeded.directory / "nbd.sock", bitmap=BITMAP) as view:
        point = Spool(seeded.spool(), TiB).create(opening({"vda": SIZE}, delta=True))
        assert capture(point, view, "delta", seeded.fingerprint) == []
        point.discard()
    last = next(seeded.fingerprint.used_backwards(16))[-1][1] * 4096
    carried, _ = next_cycle(seeded, disk, "delta", writes=(f"write -P 61 {last - CLUSTER} 4k",))
    assert len(carried.patches) + carried.whole == 1
    seeded.assert_same(disk)
