"""Retention: what is kept, what is folded, and that no crash in between costs a point."""

import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
from machine_kit import leave_free, small_file_system
from point_kit import VM as THE_VM
from repository_kit import (
    SIZE,
    Killed,
    Primary,
    check_all,
    fill,
    kill_at,
    new_replica,
    noise,
    open_repository,
)

from vmreplica.model.errors import NoSpace, VmReplicaError
from vmreplica.model.units import CLUSTER
from vmreplica.repository import folding
from vmreplica.repository.layout import Layout

pytestmark = pytest.mark.main_job


def test_only_the_newest_points_stay_and_all_of_them_read_right(tmp_path: Path) -> None:
    replica, primary = new_replica(tmp_path, keep=3), Primary({"vda": SIZE, "vdb": 10 * CLUSTER + 512})
    fill(replica, primary, 8)
    assert replica.apply_retention() == 5
    assert check_all(replica, primary) == sorted(primary.expected)[-3:]
    assert replica.apply_retention() == 0
    assert check_all(open_repository(tmp_path).replica(THE_VM), primary) == sorted(primary.expected)[-3:]


def test_one_point_may_be_kept_alone(tmp_path: Path) -> None:
    replica, primary = new_replica(tmp_path, keep=1), Primary()
    for _ in range(4):
        fill(replica, primary, 1)
        replica.apply_retention()
        assert check_all(replica, primary) == [primary.latest]
    assert replica.point(str(primary.latest)).folded


def test_points_without_any_change_are_folded_too(tmp_path: Path) -> None:
    replica, primary = new_replica(tmp_path, keep=2), Primary()
    primary.send(replica, {"vda": {3: noise(3)}})
    for _ in range(4):
        primary.send(replica, {})
    before = replica.points()[-1].stored_bytes
    replica.apply_retention()
    assert check_all(replica, primary) == sorted(primary.expected)[-2:]
    assert replica.points()[-1].stored_bytes == before


@pytest.mark.parametrize(
    "step",
    [
        "prepare vda", "prepare vdb", "commit", "hide", "switch vda", "rename vda", "switch vdb", "rename vdb",
        "reclaim", "manifest", "remove", "end",
    ],
)  # fmt: skip
def test_a_crash_at_any_step_of_a_fold_costs_no_point(step: str, tmp_path: Path) -> None:
    replica, primary = new_replica(tmp_path, keep=2), Primary({"vda": SIZE, "vdb": SIZE})
    fill(replica, primary, 4)
    replica.before_fold_step = kill_at(step)
    with pytest.raises(Killed):
        replica.apply_retention()
    listed = check_all(replica, primary)
    assert listed[-3:] == sorted(primary.expected)[-3:], "whoever looks meanwhile sees readable points"
    again = open_repository(tmp_path).replica(THE_VM)
    assert check_all(again, primary)[-3:] == sorted(primary.expected)[-3:]
    assert not Layout(tmp_path / THE_VM).fold.exists()
    again.apply_retention()
    assert check_all(again, primary) == sorted(primary.expected)[-2:]
    assert not again.position().complaints


@pytest.mark.parametrize("step", ["switch vda", "rename vda", "reclaim", "manifest", "remove"])
def test_a_fold_that_was_interrupted_twice_is_still_finished(step: str, tmp_path: Path) -> None:
    replica, primary = new_replica(tmp_path, keep=2), Primary()
    fill(replica, primary, 3)
    replica.before_fold_step = kill_at("end")
    with pytest.raises(Killed):
        replica.apply_retention()
    twin, copy = new_replica(tmp_path / "twin", keep=2), Primary()
    fill(twin, copy, 3)
    twin.before_fold_step = kill_at(step)
    with pytest.raises(Killed):
        twin.apply_retention()
    assert twin.apply_retention() == 0, "the fold is settled first, then nothing is left to do"
    assert check_all(twin, copy) == sorted(copy.expected)[-2:]


def test_a_held_point_and_all_it_stands_on_stay(tmp_path: Path) -> None:
    replica, primary = new_replica(tmp_path, keep=1), Primary()
    fill(replica, primary, 4)
    point = sorted(primary.expected)[2]
    hold = replica.hold(point, "failover", "it runs")
    assert replica.apply_retention() == 0
    assert replica.points()[1].holds == ("failover: it runs",)
    again = open_repository(tmp_path).replica(THE_VM)
    assert again.apply_retention() == 0
    again.release(hold)
    again.release(hold)
    again.release("../../replica")
    assert again.apply_retention() == 3
    assert check_all(again, primary) == [primary.latest]


def test_a_hold_stops_a_fold_under_way(tmp_path: Path) -> None:
    replica, primary = new_replica(tmp_path, keep=1), Primary()
    fill(replica, primary, 3)
    with ThreadPoolExecutor(1) as pool:
        holds: list[Future[str]] = []

        def someone_comes(step: str) -> None:
            if step == "prepare vda" and not holds:
                holds.append(pool.submit(replica.hold, min(primary.expected), "failover", "it runs"))
                while not replica._stop_fold.is_set():
                    time.sleep(0.001)

        replica.before_fold_step = someone_comes
        assert replica.apply_retention() == 0
        replica.release(holds[0].result(timeout=10))
    assert len(check_all(replica, primary)) == 3
    assert replica.apply_retention() == 2
    assert check_all(replica, primary) == [primary.latest]


def test_one_who_has_what_it_asked_for_lets_no_fold_begin_before_another_has(tmp_path: Path) -> None:
    replica, primary = new_replica(tmp_path, keep=1), Primary()
    fill(replica, primary, 3)
    replica._stop_fold.ask()
    with replica.still():
        assert replica._stop_fold.is_set(), "somebody else waits still"
    assert replica.apply_retention() == 0
    replica._stop_fold.served()
    assert replica.apply_retention() == 2


def test_an_end_is_for_good_whoever_wants_it_to_be_still_later(tmp_path: Path) -> None:
    replica, primary = new_replica(tmp_path, keep=1), Primary()
    fill(replica, primary, 3)
    replica.interrupt()
    replica.release(replica.hold(str(primary.latest), "failover", "it runs"))
    assert replica.apply_retention() == 0
    assert len(check_all(replica, primary)) == 3


def test_a_damaged_hold_holds_everything(tmp_path: Path) -> None:
    replica, primary = new_replica(tmp_path, keep=1), Primary()
    fill(replica, primary, 2)
    hold = replica.hold(str(primary.latest), "a person", "pinned")
    (replica.dir / "holds" / f"{hold}.json").write_text("{")
    again = open_repository(tmp_path).replica(THE_VM)
    assert again.apply_retention() == 0


def test_an_older_chain_is_deleted_when_it_expires_and_the_newer_one_is_folded(tmp_path: Path) -> None:
    replica, primary = new_replica(tmp_path, keep=3), Primary()
    fill(replica, primary, 3)
    primary.send(replica, {"vda": {1: noise(77)}}, whole=True)
    for _ in range(5):
        replica.apply_retention()
        assert check_all(replica, primary) == sorted(primary.expected)[-3:]
        fill(replica, primary, 1, seed=primary.count)
    assert replica.apply_retention() == 1


def test_a_disk_may_come_and_go_between_points(tmp_path: Path) -> None:
    replica, primary = new_replica(tmp_path, keep=2), Primary({"vda": SIZE, "vdb": SIZE})
    fill(replica, primary, 2)
    del primary.sizes["vdb"], primary.disks["vdb"]
    fill(replica, primary, 1)
    primary.sizes["vdc"], primary.disks["vdc"] = SIZE, {}
    primary.send(replica, {"vdc": {2: noise(1), 3: noise(2)}})
    replica.apply_retention()
    assert check_all(replica, primary) == sorted(primary.expected)[-2:]
    fill(replica, primary, 3)
    replica.apply_retention()
    assert check_all(replica, primary) == sorted(primary.expected)[-2:]
    assert [disk.target for disk in replica.points()[0].disks] == ["vda", "vdc"]


def test_a_disk_may_grow_between_points(tmp_path: Path) -> None:
    replica, primary = new_replica(tmp_path, keep=1), Primary({"vda": 5 * CLUSTER + 512})
    primary.send(replica, {"vda": {0: noise(1)}})
    primary.sizes["vda"] = 9 * CLUSTER
    primary.send(replica, {})
    primary.send(replica, {"vda": {8: noise(2)}})
    replica.apply_retention()
    assert check_all(replica, primary) == [primary.latest]


def test_a_damaged_index_fails_the_fold_and_costs_nothing(tmp_path: Path) -> None:
    replica, primary = new_replica(tmp_path, keep=1), Primary()
    fill(replica, primary, 2)
    index = replica.image(str(primary.latest), "vda").with_suffix(".index")
    content = bytearray(index.read_bytes())
    content[200] ^= 1
    index.write_bytes(content)
    with pytest.raises(VmReplicaError, match="damaged"):
        replica.apply_retention()
    assert len(check_all(replica, primary)) == 2


@pytest.fixture
def small_fs(tmp_path: Path) -> Iterator[Path]:
    with small_file_system(tmp_path, 64) as mounted:
        yield mounted


def test_a_fold_without_room_costs_nothing(small_fs: Path) -> None:
    replica, primary = new_replica(small_fs, keep=1), Primary({"vda": 512 * CLUSTER})
    primary.send(replica, {"vda": {n: noise(n) for n in range(100)}})
    primary.send(replica, {"vda": {n: noise(500 + n) for n in range(100)}})
    ballast = small_fs / "ballast"
    leave_free(ballast, 8 << 20)
    with pytest.raises(NoSpace):
        replica.apply_retention()
    assert len(replica.points()) == 2
    ballast.unlink()
    assert replica.apply_retention() == 1
    assert check_all(replica, primary) == [primary.latest]


@pytest.mark.parametrize("left", [0, 8 << 10, 256 << 10, 3 << 20, 6 << 20])
def test_a_fold_during_which_the_store_fills_up_costs_nothing(
    left: int, small_fs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check of the room before is taken out: something else fills the store just after it."""
    replica, primary = new_replica(small_fs, keep=1), Primary({"vda": 512 * CLUSTER})
    primary.send(replica, {"vda": {n: noise(n) for n in range(100)}})
    primary.send(replica, {"vda": {n: noise(500 + n) for n in range(100)}})
    monkeypatch.setattr(folding, "require_free", lambda _path, _needed, _what: None)
    leave_free(small_fs / "ballast", left)
    with pytest.raises(NoSpace):
        replica.apply_retention()
    (small_fs / "ballast").unlink()
    assert check_all(replica, primary) == sorted(primary.expected)
    assert replica.apply_retention() == 1
    assert check_all(replica, primary) == [primary.latest]
