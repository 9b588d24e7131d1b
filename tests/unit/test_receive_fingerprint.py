"""What a replica tells of the blocks it holds."""

import contextlib
import datetime as dt
import os
from pathlib import Path

import numpy as np
import pytest
from point_kit import VM
from repository_kit import OWNER, STRANGER, ZERO, Primary, check_all, new_replica, noise, open_repository, with_blocks

from vmreplica.fingerprint import Hashes, blocks_of, hash_blocks
from vmreplica.model.errors import BadRequest, Corrupt, HypervisorError, NotFound, Refused
from vmreplica.model.units import CLUSTER, GiB
from vmreplica.peer.wire import Hello, RunsHere
from vmreplica.receive import Receiver
from vmreplica.repository import Repository

pytestmark = pytest.mark.seeding

KEY = 0xFEDC_BA98_7654_3210
SIZE = 200 * CLUSTER + 3 * 512


def _receiver(repository: Repository) -> Receiver:
    hello = Hello(name="replica", host_id=OWNER, version="1", now=dt.datetime.now(dt.UTC), free_bytes=1)
    return Receiver(
        repository,
        hello=lambda: hello,
        runs_here=lambda _peer, vm: RunsHere(vm=vm, runs=False, epoch=0),
        on_published=lambda _vm, _summary: None,
    )


def _command_lines() -> str:
    """The command lines of all processes."""
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            lines.append(path.read_text(errors="replace"))
    return "\n".join(lines)


class Unremembering(Primary):
    """Does not remember what its points must read as: 4 GiB as bytes would be too much."""

    def _flat(self, target: str) -> bytes:
        return b"" if target in self.disks else super()._flat(target)


class Held:
    """A replica with a chain of whole clusters, patches and zeroes, and who answers for it."""

    def __init__(self, store: Path, size: int = SIZE) -> None:
        self.replica = new_replica(store, keep=1)
        self.primary = Primary({"vda": size}, patches=True)
        last = -(-size // CLUSTER) - 1
        tail = noise(99)[: (size - 1) % CLUSTER + 1].ljust(CLUSTER, b"\0")
        self.send({n: noise(n) for n in range(0, 40, 2)} | {last: tail})
        self.send({n: with_blocks(noise(n), n) for n in (0, 2, 4)} | {6: ZERO, 7: with_blocks(ZERO, 3)})
        self.send({0: with_blocks(self.primary.disks["vda"][0], 50), 2: ZERO, 30: noise(5)})
        self.receiver = _receiver(open_repository(store))

    def send(self, change: dict[int, bytes]) -> None:
        """Publish a point."""
        self.primary.send(self.replica, {"vda": change})

    @property
    def latest(self) -> str:
        """The newest point."""
        return self.replica.points()[0].point

    def ask(self, point: str, first: int, blocks: int) -> Hashes:
        """Ask as the primary does."""
        return self.receiver.fingerprint(OWNER, VM, point, "vda", KEY, first, blocks)

    def expected(self, point: str) -> Hashes:
        """What the point's disk hashes to."""
        return hash_blocks(memoryview(self.primary.expected[point]["vda"]), KEY)


@pytest.fixture
def held(tmp_path: Path) -> Held:
    return Held(tmp_path)


def test_the_hashes_of_every_point_are_those_of_its_disk(held: Held) -> None:
    for summary in held.replica.points():
        found = held.ask(summary.point, 0, blocks_of(SIZE))
        assert found.tolist() == held.expected(summary.point).tolist()


@pytest.mark.parametrize(
    ("first", "blocks"), [(0, 1), (17, 40), (1, 33), (blocks_of(SIZE) - 1, 1), (3000, 200), (5, 0)]
)
def test_any_range_may_be_asked_for(first: int, blocks: int, held: Held) -> None:
    found = held.ask(held.latest, first, blocks)
    assert found.tolist() == held.expected(held.latest)[first : first + blocks].tolist()


def test_a_huge_sparse_disk_is_hashed_without_reading_it(tmp_path: Path) -> None:
    replica, primary = new_replica(tmp_path), Unremembering({"vda": 4 * GiB})
    primary.send(replica, {"vda": {40_000: noise(1)}})
    receiver = _receiver(open_repository(tmp_path))
    found = receiver.fingerprint(OWNER, VM, replica.points()[0].point, "vda", KEY, 0, 1 << 20)
    expected = np.zeros(1 << 20, np.uint64)
    expected[640_000:640_016] = hash_blocks(memoryview(noise(1)), KEY)
    assert np.array_equal(found, expected)


def test_what_is_not_there_cannot_be_hashed(held: Held) -> None:
    with pytest.raises(BadRequest, match="were asked for"):
        held.ask(held.latest, 0, blocks_of(SIZE) + 1)
    with pytest.raises(NotFound, match="no point"):
        held.ask("20200101T000000Z-00000000", 0, 1)
    with pytest.raises(NotFound, match="no disk"):
        held.receiver.fingerprint(OWNER, VM, held.latest, "vdb", KEY, 0, 1)
    with pytest.raises(Refused):
        held.receiver.fingerprint(STRANGER, VM, held.latest, "vda", KEY, 0, 1)


@pytest.mark.parametrize("damage", ["missing", "flipped"])
def test_a_damaged_chain_is_told_and_the_point_is_free_again(damage: str, held: Held) -> None:
    oldest = held.replica.points()[-1].point
    image = held.replica.image(oldest, "vda")
    if damage == "missing":
        image.unlink()
    else:
        with image.open("r+b") as fh:
            fh.seek(CLUSTER + 10 * (CLUSTER + 16))
            fh.write(os.urandom(CLUSTER))
    with pytest.raises(Corrupt) as caught:
        held.ask(held.latest, 0, blocks_of(SIZE))
    assert caught.value.code == "image-unreadable"
    assert all(not point.holds for point in held.receiver.points(OWNER, VM).points)


def test_without_qemu_nbd_the_answer_says_what_to_install(held: Held, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(HypervisorError) as caught:
        held.ask(held.latest, 0, 1)
    assert (caught.value.code, caught.value.kind) == ("qemu-nbd-failed", "operator")


def test_asking_leaves_no_hold_no_process_and_nothing_in_the_way_of_folds(held: Held) -> None:
    held.ask(held.latest, 0, 10)
    assert list((held.replica.dir / "holds").iterdir()) == []
    assert held.replica.apply_retention() == 2
    assert check_all(held.replica, held.primary) == [held.latest]
    assert str(held.replica.dir) not in _command_lines()
    found = _receiver(open_repository(held.replica.dir.parent)).fingerprint(OWNER, VM, held.latest, "vda", KEY, 0, 700)
    assert found.tolist() == held.expected(held.latest)[:700].tolist()
