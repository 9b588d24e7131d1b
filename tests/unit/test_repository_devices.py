"""Bases on block devices: moved there once, folded there for ever, and no crash in between costs a point."""

import contextlib
import os
import subprocess
from pathlib import Path

import pytest
from base_kit import SIZE, MakeDevice, fill, new_replica, on_device, open_store, raw_bytes
from device_kit import detach
from machine_kit import leave_free, small_file_system
from point_kit import VM
from repository_kit import Killed, Primary, check_all, kill_at, noise, read_image

from vmreplica.model.errors import Corrupt, NoSpace, VmReplicaError
from vmreplica.model.units import CLUSTER, MiB
from vmreplica.repository import Replica
from vmreplica.repository.layout import Layout

pytestmark = [
    pytest.mark.seeding,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root may make block devices"),
]

#: More than one L2 table.
LARGE = 520 * MiB


@pytest.mark.parametrize("sector", [512, 4096])
def test_a_base_moves_to_its_device_and_every_point_reads_right_for_ever(
    tmp_path: Path, device: MakeDevice, sector: int
) -> None:
    loop = device(4 * MiB, sector=sector)
    replica, primary = new_replica(tmp_path, {"vda": (loop, SIZE)}), Primary({"vda": SIZE, "vdb": SIZE}, patches=True)
    for turn in range(6):
        fill(replica, primary, 1, seed=turn)
        replica.apply_retention()
        listed = check_all(replica, primary)
        assert on_device(replica, listed[0]) == {"vda"}
        assert raw_bytes(loop, SIZE) == primary.expected[listed[0]]["vda"]
    assert listed == sorted(primary.expected)[-2:]
    assert raw_bytes(loop, 4 * MiB)[SIZE:] == b"\xee" * (4 * MiB - SIZE), "nothing behind the disk is touched"
    again = open_store(tmp_path).replica(VM)
    assert check_all(again, primary) == listed
    assert not again.position().complaints
    again.verify_devices()
    assert replica.image(listed[0], "vda").stat().st_blocks * 512 < 8 * CLUSTER, "the base takes no room in the store"


STEPS = ["land vda", "landed vda", "land shim vda", "land manifest", "land end"]
FOLD_STEPS = [
    "hide",
    "write vda",
    "sync vda",
    "shim vda",
    "manifest",
    *(
        pytest.param(step, marks=pytest.mark.slow)
        for step in ("prepare vda", "commit", "switch vdb", "rename vdb", "reclaim", "remove", "end")
    ),
]


def killed_at(replica: Replica, step: str) -> None:
    replica.before_fold_step = kill_at(step)
    with pytest.raises(Killed):
        replica.apply_retention()


@pytest.mark.parametrize("step", STEPS)
def test_a_crash_while_a_base_moves_to_its_device_costs_nothing(tmp_path: Path, device: MakeDevice, step: str) -> None:
    loop = device(4 * MiB)
    replica, primary = new_replica(tmp_path, {"vda": (loop, SIZE)}), Primary({"vda": SIZE}, patches=True)
    fill(replica, primary, 2)
    killed_at(replica, step)
    assert check_all(replica, primary) == sorted(primary.expected), "whoever looks meanwhile sees readable points"
    again = open_store(tmp_path).replica(VM)
    assert check_all(again, primary) == sorted(primary.expected)
    again.apply_retention()
    assert check_all(again, primary) == sorted(primary.expected)
    assert on_device(again, min(primary.expected)) == {"vda"}
    assert not Layout(tmp_path / VM).landing.exists()
    again.verify_devices()


@pytest.mark.parametrize("step", FOLD_STEPS)
def test_a_crash_while_a_point_is_folded_into_a_device_costs_only_the_point_that_went(
    tmp_path: Path, device: MakeDevice, step: str
) -> None:
    loop = device(4 * MiB)
    replica, primary = new_replica(tmp_path, {"vda": (loop, SIZE)}), Primary({"vda": SIZE, "vdb": SIZE}, patches=True)
    fill(replica, primary, 1)
    replica.apply_retention()
    fill(replica, primary, 2, seed=2)
    killed_at(replica, step)
    kept = sorted(primary.expected)[-2:]
    assert check_all(replica, primary)[-2:] == kept, "whoever looks meanwhile sees readable points"
    again = open_store(tmp_path).replica(VM)
    assert check_all(again, primary)[-2:] == kept
    fill(again, primary, 1, seed=3)
    again.apply_retention()
    assert check_all(again, primary) == sorted(primary.expected)[-2:]
    assert not Layout(tmp_path / VM).fold.exists()
    assert raw_bytes(loop, SIZE) == primary.expected[sorted(primary.expected)[-2]]["vda"]
    assert not again.position().complaints
    again.verify_devices()


def test_writing_to_the_device_twice_in_part_and_then_whole_is_the_same_as_once(
    tmp_path: Path, device: MakeDevice
) -> None:
    loop = device(4 * MiB)
    replica, primary = new_replica(tmp_path, {"vda": (loop, SIZE)}), Primary({"vda": SIZE}, each=2, patches=True)
    fill(replica, primary, 1)
    replica.apply_retention()
    fill(replica, primary, 2, seed=2)
    # Half of what the next point says is on the device already, as a power cut may leave it.
    oldest = sorted(primary.expected)[1]
    with loop.open("r+b", buffering=0) as raw:
        for number, data in list(primary.disks["vda"].items())[::2]:
            changed = primary.expected[oldest]["vda"][number * CLUSTER : number * CLUSTER + len(data)]
            os.pwrite(raw.fileno(), changed, number * CLUSTER)
    replica.apply_retention()
    assert check_all(replica, primary) == sorted(primary.expected)[-2:]


def test_a_hold_does_not_wait_for_a_device_and_the_fold_goes_on_later(tmp_path: Path, device: MakeDevice) -> None:
    loop = device(4 * MiB)
    replica, primary = new_replica(tmp_path, {"vda": (loop, SIZE)}), Primary({"vda": SIZE}, patches=True)
    fill(replica, primary, 1)
    replica.apply_retention()
    fill(replica, primary, 2, seed=2)

    def ask(step: str) -> None:
        if step == "write vda":
            replica._stop_fold.ask()

    replica.before_fold_step = ask
    replica.apply_retention()
    replica._stop_fold.served()
    replica.before_fold_step = lambda _step: None
    assert Layout(tmp_path / VM).fold.exists(), "the rest of it waits"
    newest = max(primary.expected)
    hold = replica.hold(newest, "failover", "it runs")
    assert Layout(tmp_path / VM).fold.exists(), "a failover is not kept waiting"
    assert check_all(replica, primary) == sorted(primary.expected)[-2:]
    replica.release(hold)
    replica.apply_retention()
    assert not Layout(tmp_path / VM).fold.exists()
    assert check_all(replica, primary) == sorted(primary.expected)[-2:]
    assert raw_bytes(loop, SIZE) == primary.expected[sorted(primary.expected)[-2]]["vda"]


def test_what_is_written_to_a_device_keeps_to_the_limit(tmp_path: Path, device: MakeDevice) -> None:
    loop = device(4 * MiB)
    replica, primary = new_replica(tmp_path, {"vda": (loop, SIZE)}), Primary({"vda": SIZE}, patches=True)
    told: list[int] = []
    replica._chores._pace = told.append  # type: ignore[assignment]
    primary.send(replica, {"vda": {number: noise(number) for number in range(8)}})
    replica.apply_retention()
    assert sum(told) == 8 * CLUSTER, "the base moved there"
    fill(replica, primary, 2)
    primary.send(replica, {"vda": {number: noise(50 + number) for number in range(4)}})
    told.clear()
    replica.apply_retention()
    assert check_all(replica, primary) == sorted(primary.expected)[-2:]
    assert sum(told) > 0, "points were folded there"


def test_a_move_that_was_interrupted_by_a_hold_goes_on_where_it_stopped(tmp_path: Path, device: MakeDevice) -> None:
    loop = device(LARGE, fill=b"")
    replica, primary = new_replica(tmp_path, {"vda": (loop, LARGE)}), Primary({"vda": LARGE})
    primary.send(replica, {"vda": {0: noise(1), 8191: noise(2), 8192: noise(3), LARGE // CLUSTER - 1: noise(4)}})
    seen: list[str] = []

    def ask(step: str) -> None:
        seen.append(step)
        if step == "landed table 1":
            replica._stop_fold.ask()

    replica.before_fold_step = ask
    replica.apply_retention()
    replica._stop_fold.served()
    assert seen == ["land vda", "landed table 1"]
    assert on_device(replica, str(primary.latest)) == set()
    replica.release(replica.hold(str(primary.latest), "test", "asked for it"))
    again = open_store(tmp_path).replica(VM)
    again.before_fold_step = seen.append
    again.apply_retention()
    assert seen[2:5] == ["land vda", "landed table 2", "landed vda"]
    assert on_device(again, str(primary.latest)) == {"vda"}
    image = again.image(str(primary.latest), "vda")
    compare = ["qemu-img", "compare", "-f", "qcow2", "-F", "raw", str(image), str(loop)]
    assert subprocess.run(compare, check=False, capture_output=True).returncode == 0
    for place, seed in ((0, 1), (8191, 2), (8192, 3), (LARGE // CLUSTER - 1, 4)):
        with loop.open("rb") as fh:
            fh.seek(place * CLUSTER)
            assert fh.read(CLUSTER) == noise(seed)


def test_a_held_point_keeps_its_base_where_it_is(tmp_path: Path, device: MakeDevice) -> None:
    loop = device(4 * MiB)
    replica, primary = new_replica(tmp_path, {"vda": (loop, SIZE)}), Primary({"vda": SIZE})
    fill(replica, primary, 2)
    hold = replica.hold(str(primary.latest), "failover", "it runs")
    replica.apply_retention()
    assert raw_bytes(loop, SIZE) == b"\xee" * SIZE
    replica.release(hold)
    replica.apply_retention()
    assert on_device(replica, min(primary.expected)) == {"vda"}


def test_a_grown_disk_is_folded_as_far_as_the_device_has_room_and_then_says_so(
    tmp_path: Path, device: MakeDevice
) -> None:
    grown, too_big = SIZE + 10 * CLUSTER, 5 * MiB
    loop = device(4 * MiB)
    replica, primary = new_replica(tmp_path, {"vda": (loop, SIZE)}), Primary({"vda": SIZE})
    fill(replica, primary, 1)
    replica.apply_retention()
    primary.sizes["vda"] = grown
    primary.send(replica, {"vda": {45: noise(45)}})
    primary.send(replica, {"vda": {1: noise(1)}})
    replica.apply_retention()
    assert check_all(replica, primary) == sorted(primary.expected)[-2:]
    assert raw_bytes(loop, grown) == primary.expected[sorted(primary.expected)[-2]]["vda"]

    primary.sizes["vda"] = too_big
    primary.send(replica, {"vda": {70: noise(70)}})
    assert "does not fit" in replica.position().complaints[0]
    primary.send(replica, {"vda": {71: noise(71)}})
    with pytest.raises(NoSpace, match="not folded any more") as caught:
        replica.apply_retention()
    assert "lvextend -L 5120K" in caught.value.hint
    assert caught.value.code == "base-device-small"
    assert check_all(replica, primary)[-2:] == sorted(primary.expected)[-2:]


def test_a_device_that_became_another_one_is_neither_written_nor_started_from(
    tmp_path: Path, device: MakeDevice
) -> None:
    loop = device(4 * MiB)
    replica, primary = new_replica(tmp_path, {"vda": (loop, SIZE)}), Primary({"vda": SIZE})
    fill(replica, primary, 1)
    replica.apply_retention()
    fill(replica, primary, 2, seed=2)
    detach(loop)
    with pytest.raises(VmReplicaError):
        replica.apply_retention()
    assert replica.position().complaints
    stranger = tmp_path / "stranger"
    stranger.write_bytes(b"\xdd" * 4 * MiB)
    subprocess.run(["losetup", str(loop), str(stranger)], check=True)
    assert "another device" in replica.position().complaints[0]
    with pytest.raises(Corrupt, match="another device"):
        replica.apply_retention()
    with pytest.raises(Corrupt, match="another device"):
        replica.verify_devices()
    detach(loop)
    assert stranger.read_bytes() == b"\xdd" * 4 * MiB
    subprocess.run(["losetup", str(loop), str(tmp_path / "device0")], check=True)
    replica.apply_retention()
    assert check_all(replica, primary) == sorted(primary.expected)[-2:]


def test_a_device_that_somebody_else_wrote_to_is_not_started_from(tmp_path: Path, device: MakeDevice) -> None:
    loop = device(4 * MiB)
    replica, primary = new_replica(tmp_path, {"vda": (loop, SIZE)}), Primary({"vda": SIZE})
    fill(replica, primary, 1)
    replica.apply_retention()
    replica.verify_devices()
    subprocess.run(["mkfs.ext4", "-q", "-F", str(loop)], check=True)
    with pytest.raises(Corrupt, match="somebody else"):
        replica.verify_devices()


def test_a_base_moves_to_its_device_although_the_store_has_no_room_to_fold(tmp_path: Path, device: MakeDevice) -> None:
    loop = device(4 * MiB)
    with small_file_system(tmp_path, 40) as mounted:
        replica, primary = new_replica(mounted / "store", {"vda": (loop, SIZE)}, keep=1), Primary({"vda": SIZE})
        fill(replica, primary, 2)
        leave_free(mounted / "ballast", 2 * MiB)
        with contextlib.suppress(NoSpace):
            replica.apply_retention()
        assert on_device(replica, min(primary.expected)) == {"vda"}
        assert check_all_there(replica, primary, tmp_path)


def check_all_there(replica: Replica, primary: Primary, scratch: Path) -> bool:
    """Read all points by way of files elsewhere."""
    return all(
        read_image(replica.image(point.point, "vda"), scratch) == primary.expected[point.point]["vda"]
        for point in replica.points()
    )


def test_a_whole_copy_takes_the_device_only_when_the_old_base_is_gone(tmp_path: Path, device: MakeDevice) -> None:
    loop = device(4 * MiB)
    replica, primary = new_replica(tmp_path, {"vda": (loop, SIZE)}), Primary({"vda": SIZE})
    fill(replica, primary, 1)
    replica.apply_retention()
    primary.send(replica, {"vda": {0: noise(7)}}, whole=True)
    replica.apply_retention()
    assert [on_device(replica, point) for point in sorted(primary.expected)] == [{"vda"}, set()]
    fill(replica, primary, 1, seed=3)
    replica.apply_retention()
    assert check_all(replica, primary) == sorted(primary.expected)[-2:]
    assert on_device(replica, sorted(primary.expected)[-2]) == {"vda"}


def test_a_disk_that_shrank_leaves_its_device_and_takes_it_again(tmp_path: Path, device: MakeDevice) -> None:
    loop, half = device(4 * MiB), 20 * CLUSTER
    replica, primary = new_replica(tmp_path, {"vda": (loop, SIZE)}, keep=1), Primary({"vda": SIZE})
    fill(replica, primary, 1)
    replica.apply_retention()
    primary.sizes["vda"] = half
    primary.disks["vda"] = {3: noise(3)}
    opening = primary.opening().model_copy(update={"modes": {"vda": "whole"}})
    primary.send(replica, {"vda": {3: noise(3)}}, opening=opening)
    replica.apply_retention()
    assert check_all(replica, primary) == [primary.latest]
    assert on_device(replica, str(primary.latest)) == {"vda"}
    assert raw_bytes(loop, half) == primary.expected[str(primary.latest)]["vda"], "no old byte is left"
    primary.sizes["vda"] = SIZE
    primary.send(replica, {"vda": {}})
    replica.apply_retention()
    assert raw_bytes(loop, SIZE) == primary.expected[str(primary.latest)]["vda"], "none comes back when it grows"
    assert check_all(replica, primary) == [primary.latest]
