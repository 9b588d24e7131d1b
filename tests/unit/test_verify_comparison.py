"""A point compared with its primary's fingerprint and sum: right, wrong, unreadable; what the replica keeps of it."""

import contextlib
import datetime as dt
import itertools
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from point_kit import VM
from repository_kit import OWNER, START, STRANGER, ZERO, Primary, new_replica, noise, open_repository, with_blocks

from vmreplica.agent.comparing import Comparison, Stretches, again_possible, coarse, summed_up, unproven
from vmreplica.agent.meter import Meter
from vmreplica.fingerprint import BLOCK, Fingerprint, Hashes, blocks_of, hash_blocks, sum_blocks
from vmreplica.model.errors import Conflict, NotFound, Refused
from vmreplica.model.ids import DiskTarget, PointId, VmId
from vmreplica.model.units import CLUSTER
from vmreplica.model.verified import MAX_RANGES, DiskVerdict, Proof, Verified, WrongRange
from vmreplica.peer.proving import RegionSums
from vmreplica.peer.wire import Hello, RunsHere
from vmreplica.receive import Proving, Receiver
from vmreplica.repository import Replica

pytestmark = pytest.mark.points

KEY = 0xFEDC_BA98_7654_3210
#: More than a region of 512 MiB, and no multiple of a block.
SIZE = 8200 * CLUSTER + 3 * 512
FAR = 8195
NOW = START + dt.timedelta(days=1)


class There:
    """The replica as its primary reaches it, without a network."""

    def __init__(self, store: Path, lease: float = 60.0) -> None:
        self.repository = open_repository(store)
        hello = Hello(name="replica", host_id=OWNER, version="1", now=NOW, free_bytes=1)
        receiver = Receiver(
            self.repository,
            hello=lambda: hello,
            runs_here=lambda _peer, vm: RunsHere(vm=vm, runs=False, epoch=0),
            on_published=lambda _vm, _summary: None,
        )
        self.released: list[str] = []
        self.proving = Proving(self.repository, receiver.fingerprint, self.released.append, lease=lease)
        self.receiver = receiver
        self.asked = 0

    @property
    def replica(self) -> Replica:
        """What it holds."""
        return self.repository.replica(VM)

    def keep_still(self, vm: VmId, point: PointId) -> None:
        """As its client."""
        self.proving.keep_still(OWNER, vm, point)

    def sums(  # noqa: PLR0917
        self, vm: VmId, point: PointId, target: DiskTarget, key: int, first_block: int, blocks: int
    ) -> RegionSums:
        """As its client."""
        return self.proving.sums(OWNER, vm, point, target, key, first_block, blocks)

    def fingerprint(  # noqa: PLR0917
        self, vm: VmId, point: PointId, target: DiskTarget, key: int, first_block: int, blocks: int
    ) -> Hashes:
        """As its client; counted."""
        self.asked += 1
        return self.receiver.fingerprint(OWNER, vm, point, target, key, first_block, blocks)

    def held(self, point: PointId) -> bool:
        """Whether anybody holds a point."""
        return any(known.holds for known in self.replica.points() if known.point == point)


class Sparse(Primary):
    """Remembers the hashes of its disk at each point: all of its bytes would be too many."""

    def _flat(self, target: str) -> bytes:
        return b"" if target in self.disks else super()._flat(target)

    def hashes(self) -> Hashes:
        """Hash the disk as it is now."""
        found = np.zeros(blocks_of(SIZE), np.uint64)
        for number, data in self.disks["vda"].items():
            piece = hash_blocks(memoryview(data), KEY)
            place = number * len(piece)
            found[place : place + len(piece)] = piece[: len(found) - place]
        return found


class Both:
    """A replica with a chain of two points, and what its primary knows of the newest."""

    def __init__(self, directory: Path) -> None:
        replica = new_replica(directory / "store", keep=5)
        primary = Sparse({"vda": SIZE}, patches=True)
        last = -(-SIZE // CLUSTER) - 1
        tail = noise(99)[: (SIZE - 1) % CLUSTER + 1].ljust(CLUSTER, b"\0")
        self.hashes: dict[PointId, Hashes] = {}
        at_first = {0: noise(0), 1: noise(1), 2: noise(2), FAR: noise(3), last: tail}
        for change in (at_first, {1: with_blocks(noise(1), 5), 2: ZERO}):
            point = primary.send(replica, {"vda": change}).point
            self.hashes[point] = primary.hashes()
        self.there = There(directory / "store")
        self.older, self.newest = sorted(self.hashes)
        self.path = directory / "vda.fp"
        self.write(self.hashes[self.newest])

    def write(self, hashes: Hashes, *, own: bool = True) -> None:
        """Let the primary know these hashes of the newest point."""
        with Fingerprint.create(self.path, key=KEY, size=SIZE, target="vda") as made:
            made.merge([(0, hashes)], self.newest, own=own)

    def proof(self, point: PointId, *, own: bool = True) -> Proof:
        """What the primary made of a point when it was taken."""
        return Proof(key=f"{KEY:016x}", sum=sum_blocks(0, self.hashes[point], KEY).text, own=own)

    def comparison(self, point: PointId, halt: threading.Event | None = None, rate: int | None = None) -> Comparison:
        """Prepare to compare a point."""
        return Comparison(self.there, VM, point, Meter(), SIZE, halt or threading.Event(), rate)

    def by_blocks(self, proof: Proof | None = None) -> DiskVerdict:
        """Compare the newest point."""
        with Fingerprint.open(self.path) as known:
            return self.comparison(self.newest).by_blocks("vda", known, proof)


@pytest.fixture
def both(tmp_path: Path) -> Both:
    return Both(tmp_path)


def test_a_right_point_is_equal_block_by_block_and_by_its_sum(both: Both) -> None:
    found = both.by_blocks(both.proof(both.newest))
    assert (found.verdict, found.how, found.wrong) == ("equal", "blocks", ())
    assert found.read_bytes == int((both.hashes[both.newest] != 0).sum()) * BLOCK
    assert both.there.asked == 0, "sums were enough"
    for point in (both.older, both.newest):
        told = both.comparison(point).by_sum("vda", SIZE, both.proof(point))
        assert (told.verdict, told.how) == ("equal", "sum")
    assert both.comparison(both.older).by_sum("vda", SIZE, both.proof(both.newest)).verdict == "wrong"


def test_wrong_blocks_are_named_exactly_also_in_other_regions_and_where_nothing_should_be(both: Both) -> None:
    hashes = both.hashes[both.newest].copy()
    last = blocks_of(SIZE) - 1
    for block in (3, 4, 5 * 16, FAR * 16 + 7, last):
        hashes[block] ^= np.uint64(1)
    both.write(hashes)
    found = both.by_blocks(both.proof(both.older))
    ranges = [(place.offset // BLOCK, place.length) for place in found.wrong]
    assert ranges == [(3, 2 * BLOCK), (80, BLOCK), (FAR * 16 + 7, BLOCK), (last, SIZE - last * BLOCK)]
    assert (found.verdict, found.wrong_bytes) == ("wrong", sum(length for _, length in ranges))


def test_a_fingerprint_that_rotted_is_told_from_a_wrong_replica_by_the_sum_of_the_point(both: Both) -> None:
    hashes = both.hashes[both.newest].copy()
    hashes[3] ^= np.uint64(1)
    both.write(hashes)
    found = both.by_blocks(both.proof(both.newest))
    assert (found.verdict, found.how) == ("equal", "sum")
    assert "fingerprint" in found.why


def test_what_the_replica_had_told_itself_is_no_proof_but_wrong_is_wrong(both: Both) -> None:
    both.write(both.hashes[both.newest], own=False)
    assert both.by_blocks().verdict == "unproven"
    told = both.comparison(both.older).by_sum("vda", SIZE, both.proof(both.older, own=False))
    assert told.verdict == "unproven"
    assert "--repair" in told.why
    hashes = both.hashes[both.newest].copy()
    hashes[0] ^= np.uint64(1)
    both.write(hashes, own=False)
    assert both.by_blocks().verdict == "wrong"


def test_what_qemu_cannot_read_is_narrowed_down_to_its_cluster(both: Both) -> None:
    image = both.there.replica.image(both.older, "vda")
    raw = image.read_bytes()
    place = raw.index(noise(0)[:1000])
    with image.open("r+b") as fh:
        fh.seek(place + 100)
        fh.write(b"not what was there")
    found = both.by_blocks()
    assert [(place.offset, place.length) for place in found.wrong] == [(0, CLUSTER)]
    assert both.comparison(both.older).by_sum("vda", SIZE, both.proof(both.older)).verdict == "wrong"


def test_zeroes_that_cannot_be_read_are_wrong_though_the_sum_of_nothing_is_right(tmp_path: Path) -> None:
    replica, primary = new_replica(tmp_path / "store"), Sparse({"vda": SIZE})
    point = primary.send(replica, {"vda": {}}).point
    with Fingerprint.create(tmp_path / "vda.fp", key=KEY, size=SIZE, target="vda") as made:
        made.merge([(0, primary.hashes())], point, own=True)
    proof = Proof(key=f"{KEY:016x}", sum=sum_blocks(0, primary.hashes(), KEY).text, own=True)
    there = There(tmp_path / "store")
    there.replica.image(point, "vda").write_bytes(b"no image any more".ljust(CLUSTER))
    with Fingerprint.open(tmp_path / "vda.fp") as known:
        comparison = Comparison(there, VM, point, Meter(), SIZE, threading.Event(), None)
        found = comparison.by_blocks("vda", known, proof)
    assert (found.verdict, found.how, found.wrong_bytes) == ("wrong", "blocks", SIZE)


def test_only_when_each_doubted_disk_is_known_by_its_places_is_nothing_but_them_brought_again() -> None:
    wrong, summed, right = _disk_verdict("vda", (0, 4096)), _disk_verdict("vdb"), _disk_verdict("vdc", right=True)
    doubted = unproven("vdb", "no fingerprint")
    point = "20261122T100000Z-00c0ffee"
    assert again_possible(summed_up(point, [wrong, right]))
    for disks in ([wrong, summed], [wrong, doubted], [summed], [doubted, right], [right], []):
        assert not again_possible(summed_up(point, disks))


def test_stretches_that_were_wrong_are_looked_at_again_alone(both: Both) -> None:
    with Fingerprint.open(both.path) as known:
        places = [WrongRange(offset=BLOCK, length=BLOCK), WrongRange(offset=FAR * CLUSTER, length=CLUSTER)]
        right = both.comparison(both.newest).again("vda", known, places)
        assert (right.verdict, right.wrong) == ("equal", ())
        wrong = both.comparison(both.older).again("vda", known, [WrongRange(offset=CLUSTER, length=CLUSTER)])
        assert wrong.verdict == "wrong"
    both.write(both.hashes[both.newest], own=False)
    with Fingerprint.open(both.path) as known:
        assert both.comparison(both.newest).again("vda", known, places).verdict == "unproven", "the rest is not proven"
    assert summed_up(both.newest, [right], repaired=True).verdict == "repaired"
    assert summed_up(both.newest, [right, wrong], repaired=True).verdict == "wrong"
    assert summed_up(both.newest, []).verdict == "unproven"


def test_a_halted_comparison_ends_and_a_rate_is_kept(both: Both) -> None:
    halt = threading.Event()
    halt.set()
    with pytest.raises(Conflict) as caught:
        both.comparison(both.newest, halt).by_sum("vda", SIZE, both.proof(both.newest))
    assert caught.value.code == "verify-cancelled"
    began = time.monotonic()
    read = both.comparison(both.older, rate=1 << 20).by_sum("vda", SIZE, both.proof(both.older)).read_bytes
    assert time.monotonic() - began >= read / (1 << 20)


def test_a_point_stays_as_it_is_while_it_is_compared_and_is_free_afterwards(both: Both) -> None:
    there = both.there
    both.by_blocks()
    assert there.held(both.newest)
    assert not list((there.replica.dir / "holds").iterdir()), "it does not outlive the process"
    there.proving.let_go(OWNER, VM, both.newest)
    there.proving.let_go(OWNER, VM, both.newest)
    assert not there.held(both.newest)
    assert there.released == [VM]


def test_a_point_of_a_primary_that_is_not_heard_of_any_more_is_free_by_itself(tmp_path: Path) -> None:
    replica, primary = new_replica(tmp_path), Primary()
    primary.send(replica, {"vda": {0: noise(0)}})
    there, (point,) = There(tmp_path, lease=0.5), primary.expected
    there.keep_still(VM, point)
    time.sleep(0.3)
    there.keep_still(VM, point)
    time.sleep(0.3)
    assert there.held(point), "asked again, for as long again"
    deadline = time.monotonic() + 10
    while there.held(point) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not there.held(point)
    assert there.released == [VM]


def test_nobody_but_its_primary_compares_a_point_and_an_unknown_one_is_none(both: Both) -> None:
    proving = both.there.proving
    for act in (proving.keep_still, proving.let_go):
        with pytest.raises(Refused):
            act(STRANGER, VM, both.newest)
    with pytest.raises(Refused):
        proving.keep_verdict(STRANGER, VM, _verdict(both.newest))
    with pytest.raises(NotFound):
        proving.keep_still(OWNER, VM, "20200101T000000Z-00000000")
    with pytest.raises(NotFound):
        proving.keep_verdict(OWNER, VM, _verdict("20200101T000000Z-00000000"))


def _verdict(point: PointId, *wrong: tuple[int, int], how: str = "blocks", right: bool = False) -> Verified:
    disk = _disk_verdict("vda", *wrong, how=how, right=right)
    return Verified(point=point, when=NOW, verdict=disk.verdict, disks=(disk,))


def _disk_verdict(target: str, *wrong: tuple[int, int], how: str = "blocks", right: bool = False) -> DiskVerdict:
    verdict = "equal" if right else "wrong"
    places = tuple(WrongRange(offset=offset, length=length) for offset, length in wrong)
    return DiskVerdict.model_validate({"target": target, "verdict": verdict, "how": how, "wrong": places})


def test_what_is_wrong_is_quarantined_asked_for_again_and_survives_a_scrub_and_a_restart(both: Both) -> None:
    there = both.there
    there.proving.keep_verdict(OWNER, VM, _verdict(both.newest, (CLUSTER + BLOCK, BLOCK), (FAR * CLUSTER, CLUSTER)))
    there.replica.damages.record(both.newest, [], NOW)
    for known in (there, There(there.replica.dir.parent)):
        newest, older = known.replica.points()
        assert newest.verified is not None
        assert newest.verified.verdict == "wrong"
        assert len(newest.damaged) == 2
        assert (older.damaged, older.verified) == ((), None)
        asked = known.replica.position().repairs
        assert [(repair.first, repair.clusters) for repair in asked] == [(1, 1), (FAR, 1)]
    there.proving.keep_verdict(OWNER, VM, _verdict(both.newest, right=True))
    newest = there.replica.points()[0]
    assert (newest.damaged, there.replica.position().repairs) == ((), ())


def test_a_point_that_is_wrong_somewhere_is_damaged_and_nothing_is_asked_for(both: Both) -> None:
    there = both.there
    there.proving.keep_verdict(OWNER, VM, _verdict(both.older, how="sum"))
    newest, older = there.replica.points()
    assert older.damaged
    assert not newest.damaged
    assert there.replica.position().repairs == ()


def test_a_verdict_that_cannot_be_read_counts_as_none_and_places_beyond_the_disk_are_passed_over(both: Both) -> None:
    there = both.there
    there.proving.keep_verdict(OWNER, VM, _verdict(both.newest, (SIZE - 512, 4096), (SIZE + CLUSTER, 4096)))
    assert len(there.replica.points()[0].damaged) == 1
    (there.replica.dir / "points" / both.newest / "verified.json").write_text("{}")
    assert There(there.replica.dir.parent).replica.points()[0].verified is None


def test_many_wrong_places_are_told_as_fewer_that_cover_them() -> None:
    found = Stretches()
    for number in range(5 * MAX_RANGES):
        found.add(number * 10, number * 10 + 1)
    ranges = found.ranges(1 << 40)
    assert len(ranges) <= MAX_RANGES
    covered = {b for place in ranges for b in range(place.offset // BLOCK, (place.offset + place.length) // BLOCK)}
    assert covered >= {number * 10 for number in range(5 * MAX_RANGES)}


@given(st.sets(st.integers(0, 400), min_size=1), st.integers(1, 20))
def test_joined_stretches_cover_all_and_no_more_than_is_needed(blocks: set[int], most: int) -> None:
    stretches = Stretches()
    for block in sorted(blocks):
        stretches.add(block, block + 1)
    apart = [(place.offset // BLOCK, (place.offset + place.length) // BLOCK) for place in stretches.ranges(1 << 40)]
    assert {b for first, end in apart for b in range(first, end)} == blocks
    found = coarse(apart, most)
    assert len(found) == min(len(apart), most)
    assert {b for first, end in found for b in range(first, end)} >= blocks
    gaps = sorted(later[0] - before[1] for before, later in itertools.pairwise(apart))
    surplus = sum(end - first for first, end in found) - len(blocks)
    assert surplus == sum(gaps[: max(0, len(apart) - most)])


def test_a_rate_and_a_halt_do_not_wait_for_each_other(both: Both) -> None:
    halt = threading.Event()
    threading.Timer(0.5, halt.set).start()
    began = time.monotonic()
    with contextlib.suppress(Conflict):
        both.comparison(both.newest, halt, rate=1 << 10).by_sum("vda", SIZE, both.proof(both.newest))
    assert time.monotonic() - began < 30
