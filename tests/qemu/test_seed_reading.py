"""Reading existing copies into a replica: every format, stopped, killed, given up, failed."""

import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from capture_kit import make_disk, noise, run
from point_kit import VM

from vmreplica.agent.seed_source import SeedRules
from vmreplica.agent.seeder import Seeder
from vmreplica.agent.seeding import SeedReading, SeedTools
from vmreplica.lab.waiting import until
from vmreplica.model.errors import Conflict
from vmreplica.model.policy import ReplicaOffer
from vmreplica.model.seed import SeedDisk, SeedFormat
from vmreplica.model.units import MiB
from vmreplica.repository import Replica, Repository, SeedRecord
from vmreplica.spool import Spool

pytestmark = pytest.mark.seeding

OWNER = "a" * 32
SIZE = 40 * MiB
POINT = "20260101T000000Z-00000001"
KINDS: dict[SeedFormat, str] = {
    "vhdx": "vhdx",
    "vmdk": "vmdk",
    "vdi": "vdi",
    "vhd": "vpc",
    "raw": "raw",
    "qcow2": "qcow2",
}


class Place:
    """A replica host without an agent: a repository, and what reading needs.

    Args:
        root: where everything is.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.seeds = root / "seeds"
        for directory in (self.seeds, root / "sockets"):
            directory.mkdir(exist_ok=True)
        self.repository = Repository(root / "store")
        self.repository.recover()
        offer = ReplicaOffer(name="web", interval=60, keep=24, epoch=0, disk_bytes=SIZE)
        self.replica = self.repository.create(VM, OWNER, offer)
        self.tools = SeedTools(
            rules=SeedRules(dirs=(self.seeds,), devices=("/dev/loop*",)),
            spool=Spool(root / "spool", 64 * MiB),
            sockets=root / "sockets",
            workers=2,
            level=1,
        )
        self.seeder = Seeder(self.repository, self.tools)

    def seed(self, path: Path | str, size: int = SIZE) -> SeedRecord:
        """A wish for one disk."""
        return SeedRecord(point=POINT, disks=(SeedDisk(target="vda", size=size, path=str(path)),))

    def read(self, seed: SeedRecord, stopped: threading.Event | None = None) -> None:
        """Read it in this thread."""
        SeedReading(self.replica, seed, self.tools, stopped or threading.Event()).run()

    def image(self, point: str = POINT) -> Path:
        """The image that was made."""
        return self.replica.image(point, "vda")

    def wait_ended(self) -> SeedRecord:
        """Wait until nothing is read any more."""
        assert until(lambda: self.record.stage != "reading", 60), self.replica.position()
        return self.record

    @property
    def record(self) -> SeedRecord:
        """What the replica's record says."""
        seed = self.replica.record.seed
        assert seed is not None
        return seed


class Gate:
    """The replica's own put_segment, with a door in front of it.

    Args:
        replica: whose.
        free: so many segments pass before the door is shut.
    """

    def __init__(self, replica: Replica, free: int) -> None:
        self._real = replica.put_segment
        self._free = free
        self.seen: list[tuple[str, int]] = []
        self.reached = threading.Event()
        self.door = threading.Event()
        setattr(replica, "put_segment", self._put)  # noqa: B010 - the real one, behind a door

    def _put(self, point: str, target: str, number: int, body: memoryview | bytes) -> None:
        if len(self.seen) >= self._free:
            self.reached.set()
            assert self.door.wait(60)
        self.seen.append((target, number))
        self._real(point, target, number, body)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    yield made
    made.seeder.stop()
    assert not list((tmp_path / "sockets").iterdir())


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("source")
    data = noise(directory, 20 * MiB)
    return make_disk(directory / "source.qcow2", SIZE, [f"write -q -s {data} 4M 20M", "write -q -P 7 30M 1M"])


def same(one: Path, other: Path) -> bool:
    """Compare what two images read as."""
    return subprocess.run(["qemu-img", "compare", "-q", str(one), str(other)], check=False).returncode == 0


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_copy_in_any_format_becomes_a_point_that_reads_the_same(place: Place, source: Path, kind: SeedFormat) -> None:
    copy = place.seeds / f"web.{kind}"
    run("qemu-img", "convert", "-O", KINDS[kind], source, copy)
    before = copy.stat().st_mtime_ns, copy.read_bytes()
    place.read(place.seed(copy))
    run("qemu-img", "check", "-q", place.image())
    assert same(place.image(), source)
    assert (copy.stat().st_mtime_ns, copy.read_bytes()) == before
    (point,) = place.replica.points()
    assert (point.kind, point.bootable, point.checkpoint) == ("seed", False, None)
    assert place.replica.position().points == 0
    assert place.replica.record.state == "waiting-for-initial"


def test_a_block_device_becomes_a_point_that_reads_the_same(place: Place, source: Path) -> None:
    raw = place.seeds / "under-the-device"
    run("qemu-img", "convert", "-O", "raw", source, raw)
    device = run("losetup", "--find", "--show", "--read-only", raw).strip()
    try:
        place.read(place.seed(device))
    finally:
        run("losetup", "--detach", device)
    assert same(place.image(), source)


@pytest.mark.parametrize("size", [24 * MiB, 64 * MiB])
def test_a_disk_that_has_grown_or_shrunk_since_is_read_as_far_as_both_go(place: Place, source: Path, size: int) -> None:
    copy = place.seeds / "web.qcow2"
    run("qemu-img", "convert", "-O", "qcow2", source, copy)
    place.read(place.seed(copy, size))
    least = min(size, SIZE)
    assert place.replica.points()[0].disks[0].size == least
    run("qemu-img", "resize", "-q", "--shrink", copy, str(least))
    assert same(place.image(), copy)


def test_a_reading_that_was_stopped_goes_on_where_it_was(place: Place, source: Path, tmp_path: Path) -> None:
    copy = place.seeds / "web.vdi"
    run("qemu-img", "convert", "-O", "vdi", source, copy)
    gate, stopped = Gate(place.replica, 1), threading.Event()
    reading = threading.Thread(target=lambda: _stopped(place, copy, stopped))
    reading.start()
    assert gate.reached.wait(60)
    stopped.set()
    gate.door.set()
    reading.join(60)
    assert not place.replica.points()

    again = Place(tmp_path)
    rest = Gate(again.replica, 100)
    again.read(again.seed(copy))
    assert len(gate.seen) >= 2
    assert not set(gate.seen) & set(rest.seen), "stored twice"
    assert same(again.image(), source)


def _stopped(place: Place, copy: Path, stopped: threading.Event) -> None:
    with pytest.raises(Conflict) as ended:
        place.read(place.seed(copy), stopped)
    assert ended.value.code == "cancelled"


def test_after_a_restart_the_seeder_takes_up_what_was_begun(place: Place, source: Path) -> None:
    copy = place.seeds / "web.qcow2"
    run("qemu-img", "convert", "-O", "qcow2", source, copy)
    place.replica.update(seed=place.seed(copy))
    place.seeder.start()
    assert place.wait_ended().stage == "done"
    assert same(place.image(), source)
    assert place.replica.position().seeding is None
    assert list((place.root / "spool").iterdir()) == [place.root / "spool" / "boot_id"]


def test_a_point_that_was_published_just_before_a_crash_is_not_read_again(place: Place, source: Path) -> None:
    copy = place.seeds / "web.qcow2"
    run("qemu-img", "convert", "-O", "qcow2", source, copy)
    place.read(place.seed(copy))
    copy.unlink()
    place.replica.update(seed=place.seed(copy))
    place.seeder.start()
    assert place.wait_ended().stage == "done"
    assert len(place.replica.points()) == 1
    assert place.tools.spool.point(VM) is None


def test_a_damaged_copy_is_told_to_the_primary_with_the_remedy(place: Place, source: Path) -> None:
    copy = place.seeds / "web.qcow2"
    run("qemu-img", "convert", "-O", "qcow2", source, copy)
    with copy.open("r+b") as image:
        image.truncate(copy.stat().st_size // 2)
    place.seeder.begin(place.replica, place.seed(copy).disks)
    assert place.wait_ended().stage == "failed"
    seeding = place.replica.position().seeding
    assert seeding is not None
    assert seeding.failed is not None
    assert seeding.failed.code == "seed-damaged"
    assert str(copy) in seeding.failed.message
    assert "--seed network" in seeding.failed.hint
    assert not place.replica.points()


@pytest.mark.parametrize("passed", [0, 1])
def test_what_is_given_up_in_the_middle_leaves_nothing(place: Place, source: Path, passed: int) -> None:
    copy = place.seeds / "web.qcow2"
    run("qemu-img", "convert", "-O", "qcow2", source, copy)
    gate = Gate(place.replica, passed)
    place.seeder.begin(place.replica, place.seed(copy).disks)
    assert gate.reached.wait(60)
    seeding = place.replica.position().seeding
    assert seeding is not None
    assert seeding.phase == "reading the existing copy"
    threading.Timer(0.5, gate.door.set).start()
    place.seeder.cancel(VM)
    position = place.replica.position()
    assert (position.latest, position.incoming, position.seeding) == (None, None, None)
    assert place.replica.record.seed is None
    assert place.tools.spool.point(VM) is None
    place.repository.remove(VM)


def test_a_full_store_is_waited_for(tmp_path: Path, source: Path) -> None:
    store = tmp_path / "store"
    store.mkdir()
    run("mount", "-t", "tmpfs", "-o", "size=10m", "store", store)
    try:
        place = Place(tmp_path)
        copy = place.seeds / "web.qcow2"
        run("qemu-img", "convert", "-O", "qcow2", source, copy)
        place.seeder.begin(place.replica, place.seed(copy).disks)
        assert until(lambda: place.replica.seeding.phase.startswith("waiting: "), 30), place.replica.position()
        run("mount", "-o", "remount,size=100m", store)
        assert place.wait_ended().stage == "done"
        assert same(place.image(place.record.point), source)
        place.seeder.stop()
    finally:
        run("umount", "--lazy", store)
