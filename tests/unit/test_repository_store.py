"""The repository as a whole: accepting, removing, finding again, and files that somebody damaged."""

import json
import stat
from pathlib import Path

import pytest
from point_kit import OTHER_VM, VM
from repository_kit import OWNER, SIZE, STRANGER, Primary, check_all, fill, new_replica, noise, offer, open_repository

from vmreplica.model.errors import Conflict, Corrupt, Internal, NotFound, Refused
from vmreplica.model.states import Event, State
from vmreplica.repository import FailoverRecord, Replica
from vmreplica.repository.manifests import spare_of

pytestmark = pytest.mark.main_job


def test_a_vm_is_accepted_once_per_owner_and_found_again(tmp_path: Path) -> None:
    repository = open_repository(tmp_path)
    replica = repository.create(VM, OWNER, offer(epoch=4))
    assert replica.record.state is State.WAITING
    assert repository.create(VM, OWNER, offer(keep=9, name="web2")) is replica
    with pytest.raises(Refused) as caught:
        repository.create(VM, STRANGER, offer())
    assert caught.value.code == "replica-of-another-host"
    again = open_repository(tmp_path)
    assert [found.record for found in again.replicas()] == [replica.record]
    assert (replica.record.keep.last, replica.record.name, replica.record.epoch) == (9, "web2", 4)
    with pytest.raises(NotFound) as missing:
        again.replica(OTHER_VM)
    assert missing.value.code == "replica-unknown"


def test_directories_let_qemu_pass_and_files_are_private(tmp_path: Path) -> None:
    replica, primary = new_replica(tmp_path / "store"), Primary()
    primary.send(replica, {"vda": {0: noise(0)}})
    for path in (tmp_path / "store").rglob("*"):
        expected = 0o711 if path.is_dir() else 0o600
        assert stat.S_IMODE(path.stat().st_mode) == expected, path


def test_the_first_point_ends_the_waiting_and_the_position_tells_it(tmp_path: Path) -> None:
    replica, primary = new_replica(tmp_path), Primary()
    assert replica.position().latest is None
    first = primary.send(replica, {"vda": {0: noise(0)}})
    second = primary.send(replica, {})
    position = replica.position()
    assert position.state == "replicating"
    assert position.latest == second == replica.points()[0]
    assert replica.points()[1] == first
    assert (position.points, position.complaints, position.incoming) == (2, (), None)
    again = open_repository(tmp_path).replica(VM)
    assert (again.points(), again.position().state) == (replica.points(), "replicating")
    assert replica.definition(second.point) == "<domain/>"
    with pytest.raises(NotFound, match="no point"):
        replica.definition("20200101T000000Z-00000000")
    with pytest.raises(NotFound, match="no disk"):
        replica.image(second.point, "vdz")


def test_states_and_changes_are_durable(tmp_path: Path) -> None:
    replica = new_replica(tmp_path)
    replica.move(Event.PAUSE)
    failover = FailoverRecord(point="20260101T000000Z-00000000", hold="0123456789abcdef", started=True)
    replica.update(network_map={"default": "lan"}, failover=failover)
    again = open_repository(tmp_path).replica(VM)
    assert again.record == replica.record
    assert again.record.failover == failover
    with pytest.raises(Conflict, match="cannot"):
        again.move(Event.PAUSE)


def test_a_replica_is_removed_whole_but_not_while_it_runs(tmp_path: Path) -> None:
    repository = open_repository(tmp_path)
    replica, primary = repository.create(VM, OWNER, offer()), Primary()
    primary.send(replica, {"vda": {0: noise(0)}})
    replica.open_point(primary.opening())
    failover = FailoverRecord(point=str(primary.latest), hold="0" * 16, started=True)
    replica.update(failover=failover)
    with pytest.raises(Conflict, match="runs here"):
        repository.remove(VM)
    replica.update(failover=None)
    repository.remove(VM)
    repository.remove(VM)
    assert list(tmp_path.iterdir()) == []
    assert repository.replicas() == []


def test_a_removal_that_a_crash_interrupted_is_finished(tmp_path: Path) -> None:
    replica = new_replica(tmp_path)
    replica.move(Event.REMOVE)
    (tmp_path / f".{OTHER_VM}.1234.gone").mkdir()
    (tmp_path / f".{OTHER_VM}.new").mkdir()
    assert open_repository(tmp_path).replicas() == []
    assert list(tmp_path.iterdir()) == []


def test_a_run_layer_is_thrown_away_whole(tmp_path: Path) -> None:
    replica = new_replica(tmp_path)
    replica.remove_run_layer()
    replica.run_dir.mkdir()
    (replica.run_dir / "vda.qcow2").write_text("x")
    replica.remove_run_layer()
    assert not replica.run_dir.exists()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"vm": 1}', b"\xff\xfe"])
def test_a_damaged_record_is_named_and_costs_the_other_replicas_nothing(content: bytes, tmp_path: Path) -> None:
    repository = open_repository(tmp_path)
    repository.create(OTHER_VM, OWNER, offer())
    broken = repository.create(VM, OWNER, offer())
    (broken.dir / "replica.json").write_bytes(content)
    again = open_repository(tmp_path)
    assert [replica.record.vm for replica in again.replicas()] == [OTHER_VM]
    assert "replica.json" in again.damaged[VM].message
    with pytest.raises(Corrupt):
        again.create(VM, OWNER, offer())
    assert (broken.dir / "points").is_dir()


def _spoil(replica: Replica, where: str, changes: dict[str, object]) -> None:
    path = replica.dir / "points" / where / "manifest.json"
    manifest = json.loads(path.read_bytes())
    manifest["disks"][0].update({key: value for key, value in changes.items() if key in manifest["disks"][0]})
    manifest.update({key: value for key, value in changes.items() if key in manifest})
    for both in (path, spare_of(path)):
        both.write_text(json.dumps({**manifest, "digest": ""}))


@pytest.mark.parametrize(
    "changes",
    [
        {"file": "/etc/shadow"}, {"file": "../x/vda.qcow2"}, {"file": ""}, {"file_bytes": -1}, {"file_bytes": 2**70},
        {"file_bytes": 5}, {"size": -512}, {"size": 513}, {"size": 2**63}, {"target": "../../a"}, {"segments": -1},
        {"vm": OTHER_VM}, {"point": "20200101T000000Z-00000000"}, {"parent": "../../x"}, {"format": "other"},
    ],
)  # fmt: skip
def test_a_manifest_that_lies_hides_its_point_and_says_why(changes: dict[str, object], tmp_path: Path) -> None:
    replica, primary = new_replica(tmp_path), Primary()
    first = primary.send(replica, {"vda": {0: noise(0)}})
    second = primary.send(replica, {"vda": {1: noise(1)}})
    _spoil(replica, second.point, changes)
    again = open_repository(tmp_path).replica(VM)
    assert [point.point for point in again.points()] == [first.point]
    assert second.point in again.position().complaints[0]
    with pytest.raises(Conflict):
        again.open_point(primary.opening())
    primary.send(again, {}, whole=True)
    assert check_all(again, primary) == [first.point, primary.latest]


@pytest.mark.parametrize("spoiled", ["manifest.json", "manifest.spare.json"])
def test_one_wrong_byte_in_a_manifest_costs_nothing(spoiled: str, tmp_path: Path) -> None:
    replica, primary = new_replica(tmp_path), Primary()
    fill(replica, primary, 3)
    path = replica.dir / "points" / min(primary.expected) / spoiled
    raw = path.read_bytes()
    for place in range(0, len(raw), 7):
        path.write_bytes(raw[:place] + bytes([raw[place] ^ 0x04]) + raw[place + 1 :])
        again = open_repository(tmp_path).replica(VM)
        assert [m.point for m in again.manifests()] == sorted(primary.expected), (place, raw[place - 9 : place + 9])
        assert again.manifests() == replica.manifests(), place
    path.unlink()
    assert len(open_repository(tmp_path).replica(VM).points()) == (0 if spoiled == "manifest.json" else 3)


def test_points_on_a_damaged_one_are_not_listed_either(tmp_path: Path) -> None:
    replica, primary = new_replica(tmp_path), Primary()
    for number in range(3):
        primary.send(replica, {"vda": {number: noise(number)}})
    middle = sorted(primary.expected)[1]
    replica.image(middle, "vda").unlink()
    again = open_repository(tmp_path).replica(VM)
    assert check_all(again, primary) == sorted(primary.expected)[:1]
    assert len(again.position().complaints) == 2


def test_a_broken_incoming_point_is_swept_away(tmp_path: Path) -> None:
    replica, primary = new_replica(tmp_path), Primary()
    old = primary.opening()
    primary.send(replica, {"vda": {0: noise(0)}})
    for name, content in (("broken", "{"), (old.point, old.model_dump_json())):
        directory = replica.dir / "incoming" / name
        directory.mkdir()
        (directory / "opening.json").write_text(content)
    again = open_repository(tmp_path).replica(VM)
    assert again.position().incoming is None
    assert list((again.dir / "incoming").iterdir()) == []


def test_a_store_that_cannot_be_used_says_so(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("a file")
    with pytest.raises(Internal, match="store"):
        open_repository(tmp_path / "store")


def test_an_empty_disk_of_many_terabytes_is_no_burden(tmp_path: Path) -> None:
    replica, primary = new_replica(tmp_path), Primary({"vda": SIZE})
    opening = primary.opening()
    huge = opening.model_copy(update={"disks": (opening.disks[0].model_copy(update={"size": 8 << 40}),)})
    replica.open_point(huge)
    _, closing = primary.write(opening, {})
    summary = replica.complete(opening.point, closing)
    assert summary.stored_bytes < 1 << 20
