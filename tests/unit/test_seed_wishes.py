"""Which wishes for an existing copy a replica grants, and what its points and its primary see of a seed."""

from pathlib import Path

import pytest
from point_kit import VM
from repository_kit import OWNER, START, Primary, new_replica, noise, offer, open_repository

from vmreplica.model.errors import Conflict, Refused
from vmreplica.model.seed import SeedDisk
from vmreplica.peer.wire import Hello, RunsHere
from vmreplica.receive import Receiver
from vmreplica.receive.seeds import judge_wish
from vmreplica.repository import Replica, Repository, SeedRecord

pytestmark = pytest.mark.seeding

DISKS = (SeedDisk(target="vda", size=1 << 20, path="/srv/web.qcow2"),)
OTHERS = (SeedDisk(target="vda", size=1 << 20, path="/srv/older.qcow2"),)
READING = SeedRecord(point="20250101T000000Z-00000001", disks=DISKS)
FAILED = READING.model_copy(update={"stage": "failed"})
DONE = READING.model_copy(update={"stage": "done"})


class Reader:
    """Notes what it is asked to read, and reads nothing."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.refuses = False

    def check(self, disks: tuple[SeedDisk, ...]) -> None:
        """Refuse if told so."""
        if self.refuses:
            raise Refused("seed-path-forbidden", disks[0].path)

    def begin(self, replica: Replica, disks: tuple[SeedDisk, ...]) -> None:
        """Note it."""
        self.asked.append("begin")
        replica.update(seed=READING.model_copy(update={"disks": disks}))

    def cancel(self, vm: str) -> None:
        """Note it."""
        self.asked.append(f"cancel {vm}")


def receiver(repository: Repository, reader: Reader | None) -> Receiver:
    return Receiver(
        repository,
        hello=lambda: Hello(name="b", host_id=OWNER, version="1", now=START, free_bytes=0),
        runs_here=lambda _peer, vm: RunsHere(vm=vm, runs=False, epoch=0),
        on_published=lambda _vm, _point: None,
        seeds=reader,
    )


def test_a_wish_is_granted_once_and_another_one_replaces_it(tmp_path: Path) -> None:
    assert judge_wish(None, DISKS) == "begin"
    assert judge_wish(None, ()) == "keep"
    replica = new_replica(tmp_path)
    for seed, same, other, none in (
        (None, "begin", "begin", "keep"),
        (READING, "keep", "begin", "drop"),
        (FAILED, "begin", "begin", "drop"),
        (DONE, "keep", "begin", "keep"),
    ):
        replica.update(seed=seed)
        assert [judge_wish(replica, wish) for wish in (DISKS, OTHERS, ())] == [same, other, none]


def test_where_points_are_no_copy_is_read(tmp_path: Path) -> None:
    replica = new_replica(tmp_path)
    Primary().send(replica, {"vda": {0: noise(1)}})
    with pytest.raises(Conflict) as refused:
        judge_wish(replica, DISKS)
    assert refused.value.code == "replica-has-points"
    assert "disable web --delete-copy" in refused.value.hint
    replica.update(seed=DONE)
    assert judge_wish(replica, DISKS) == "keep", "the offer that led to them, again"
    assert judge_wish(replica, ()) == "keep"


def test_a_refused_copy_leaves_no_replica_behind(tmp_path: Path) -> None:
    repository, reader = open_repository(tmp_path), Reader()
    reader.refuses = True
    wish = offer().model_copy(update={"seed": DISKS})
    for service in (receiver(repository, reader), receiver(repository, None)):
        with pytest.raises(Refused):
            service.offer(OWNER, VM, wish)
    assert repository.replicas() == []
    assert reader.asked == []


def test_an_offer_begins_keeps_and_gives_up(tmp_path: Path) -> None:
    repository, reader = open_repository(tmp_path), Reader()
    service = receiver(repository, reader)
    for seed, asked in (
        (DISKS, ["begin"]),
        (DISKS, []),
        (None, []),
        (OTHERS, ["begin"]),
        ((), [f"cancel {VM}"]),
    ):
        reader.asked.clear()
        service.offer(OWNER, VM, offer().model_copy(update={"seed": seed}))
        assert reader.asked == asked
    reader.asked.clear()
    service.remove(OWNER, VM, delete_copy=True)
    assert reader.asked == [f"cancel {VM}"]


@pytest.mark.parametrize("seed", [READING, FAILED])
def test_no_point_is_taken_while_a_copy_is_read_or_a_person_has_to_decide(tmp_path: Path, seed: SeedRecord) -> None:
    repository = open_repository(tmp_path)
    replica = repository.create(VM, OWNER, offer())
    replica.update(seed=seed)
    service, opening = receiver(repository, Reader()), Primary().opening()
    with pytest.raises(Conflict) as refused:
        service.open_point(OWNER, opening)
    assert (refused.value.code, refused.value.kind) == ("replica-seeding", "transient")
    replica.update(seed=DONE)
    service.open_point(OWNER, opening)


def test_no_primary_sends_a_seed(tmp_path: Path) -> None:
    repository = open_repository(tmp_path)
    repository.create(VM, OWNER, offer())
    opening = Primary().opening().model_copy(update={"kind": "seed"})
    with pytest.raises(Conflict, match="reads itself"):
        receiver(repository, Reader()).open_point(OWNER, opening)
