"""Points folded into old disks of the VM: whatever the disks are, whoever uses them, and killed at any step."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from adoption_kit import (
    SHAPES,
    SIZE,
    adopted,
    bitmaps,
    form_of,
    new_primary,
    old_disk,
    qemu_img,
    qemu_io,
    read_old,
    some_content,
)
from base_kit import fill
from point_kit import VM
from repository_kit import Killed, check_all, kill_at, noise, open_repository

from vmreplica.model.errors import Conflict, Corrupt, NotFound
from vmreplica.model.units import CLUSTER
from vmreplica.repository.layout import Layout

pytestmark = pytest.mark.failover

FOLD_STEPS = [
    "hide",
    "write vda",
    "shim vda",
    "manifest",
    *(
        pytest.param(step, marks=pytest.mark.slow)
        for step in ("prepare vda", "commit", "sync vda", "write vdb", "shim vdb", "reclaim", "remove", "end")
    ),
]


@pytest.mark.parametrize("step", FOLD_STEPS)
def test_a_crash_while_a_point_is_folded_into_old_disks_costs_only_the_point_that_went(
    tmp_path: Path, step: str
) -> None:
    content = {"vda": some_content(1), "vdb": some_content(2)}
    disks = {
        "vda": old_disk(tmp_path, "qcow2 over another", content["vda"], name="vda"),
        "vdb": old_disk(tmp_path, "raw", content["vdb"], name="vdb"),
    }
    replica, primary = adopted(tmp_path / "store", disks), new_primary(content)
    fill(replica, primary, 2)
    replica.before_fold_step = kill_at(step)
    with pytest.raises(Killed):
        replica.apply_retention()
    kept = sorted(primary.expected)[-2:]
    assert check_all(replica, primary)[-2:] == kept, "whoever looks meanwhile sees readable points"
    again = open_repository(tmp_path / "store").replica(VM)
    assert check_all(again, primary)[-2:] == kept
    fill(again, primary, 1, seed=3)
    again.apply_retention()
    assert check_all(again, primary) == sorted(primary.expected)[-2:]
    assert not Layout(tmp_path / "store" / VM).fold.exists()
    for target, path in disks.items():
        assert read_old(path) == primary.expected[sorted(primary.expected)[-2]][target]
    assert not again.position().complaints
    again.verify_devices()


def test_half_a_fold_waits_as_long_as_anybody_reads_and_then_goes_on(tmp_path: Path) -> None:
    content = some_content()
    old = old_disk(tmp_path, "qcow2", content)
    replica, primary = adopted(tmp_path / "store", {"vda": old}), new_primary({"vda": content})
    fill(replica, primary, 2)

    def ask(step: str) -> None:
        if step == "write vda":
            replica._stop_fold.ask()

    replica.before_fold_step = ask
    replica.apply_retention()
    replica._stop_fold.served()
    replica.before_fold_step = lambda _step: None
    fold, newest = Layout(tmp_path / "store" / VM).fold, max(primary.expected)
    assert fold.exists(), "the rest of it waits"
    hold = replica.hold(newest, "failover", "it runs")
    replica.apply_retention()
    assert fold.exists(), "QEMU of the VM that runs has the old disk open"
    assert check_all(replica, primary) == sorted(primary.expected)[-2:]
    replica.release(hold)
    replica.apply_retention()
    assert not fold.exists()
    assert check_all(replica, primary) == sorted(primary.expected)[-2:]
    assert read_old(old) == primary.expected[sorted(primary.expected)[-2]]["vda"]


@pytest.mark.parametrize("shape", SHAPES)
def test_a_disk_that_grew_at_the_new_primary_makes_the_old_one_grow(tmp_path: Path, shape: str) -> None:
    content = some_content()
    old = old_disk(tmp_path, shape, content)
    replica, primary = adopted(tmp_path / "store", {"vda": old}), new_primary({"vda": content})
    primary.sizes["vda"] = SIZE + 10 * CLUSTER
    primary.send(replica, {"vda": {45: noise(45)}})
    primary.send(replica, {"vda": {1: noise(1)}})
    replica.apply_retention()
    assert check_all(replica, primary) == sorted(primary.expected)[-2:]
    assert read_old(old) == primary.expected[sorted(primary.expected)[-2]]["vda"]


def test_a_disk_that_shrank_leaves_the_old_one_alone(tmp_path: Path) -> None:
    content, half = some_content(), 20 * CLUSTER
    old = old_disk(tmp_path, "qcow2", content)
    replica, primary = adopted(tmp_path / "store", {"vda": old}), new_primary({"vda": content})
    was = read_old(old)
    primary.sizes["vda"] = half
    primary.disks["vda"] = {3: noise(3)}
    opening = primary.opening().model_copy(update={"modes": {"vda": "whole"}})
    primary.send(replica, {"vda": {3: noise(3)}}, opening=opening)
    primary.send(replica, {"vda": {4: noise(4)}})
    replica.apply_retention()
    assert check_all(replica, primary) == sorted(primary.expected)[-2:]
    assert read_old(old) == was


@pytest.mark.parametrize("shape", SHAPES)
def test_an_old_disk_that_somebody_else_wrote_to_is_neither_written_nor_started_from(
    tmp_path: Path, shape: str
) -> None:
    content = some_content()
    old = old_disk(tmp_path, shape, content)
    replica, primary = adopted(tmp_path / "store", {"vda": old}), new_primary({"vda": content})
    fill(replica, primary, 2)
    replica.verify_devices()
    qemu_io(old, form_of(old), "write -P 7 1M 64k")
    was = read_old(old)
    with pytest.raises(Corrupt, match="somebody else") as caught:
        replica.verify_devices()
    assert caught.value.code == "adopted-base-changed"
    assert str(old) in replica.position().complaints[0]
    with pytest.raises(Corrupt, match="somebody else"):
        replica.apply_retention()
    assert len(replica.points()) == 3
    assert read_old(old) == was


def test_a_template_below_an_old_disk_that_somebody_wrote_to_is_noticed_too(tmp_path: Path) -> None:
    old = old_disk(tmp_path, "qcow2 over another", some_content())
    replica = adopted(tmp_path / "store", {"vda": old})
    qemu_io(old.with_name("old-template.qcow2"), "qcow2", "write -P 7 1M 64k")
    with pytest.raises(Corrupt, match="somebody else"):
        replica.verify_devices()


def test_an_old_disk_that_is_away_is_told_and_all_goes_on_when_it_is_back(tmp_path: Path) -> None:
    content = some_content()
    old = old_disk(tmp_path, "qcow2", content)
    replica, primary = adopted(tmp_path / "store", {"vda": old}), new_primary({"vda": content})
    fill(replica, primary, 2)
    away = old.rename(tmp_path / "away")
    assert "is not there" in replica.position().complaints[0]
    with pytest.raises(NotFound) as caught:
        replica.apply_retention()
    assert caught.value.code == "adopted-base-missing"
    away.rename(old)
    replica.apply_retention()
    assert check_all(replica, primary) == sorted(primary.expected)[-2:]


@pytest.mark.parametrize("shape", ["qcow2", "raw"])
def test_an_old_disk_that_a_vm_has_open_is_not_written(tmp_path: Path, shape: str) -> None:
    content = some_content()
    old = old_disk(tmp_path, shape, content)
    replica, primary = adopted(tmp_path / "store", {"vda": old}), new_primary({"vda": content})
    fill(replica, primary, 2)
    with machine(old, tmp_path):
        with pytest.raises(Conflict, match="in use") as caught:
            replica.apply_retention()
        assert caught.value.code == "adopted-base-in-use"
        assert "recovery points are not folded" in replica.position().complaints[-1]
        assert [point.point for point in replica.points()] == sorted(primary.expected)[:-3:-1]
    replica.apply_retention()
    assert check_all(replica, primary) == sorted(primary.expected)[-2:]
    assert not replica.position().complaints


@contextlib.contextmanager
def machine(disk: Path, directory: Path) -> Iterator[None]:
    """A VM that has the disk, as if somebody had started it by hand; it does nothing."""
    pid = directory / "machine.pid"
    drive = f"if=none,id=disk,file={disk},format={form_of(disk)}"
    command = ["qemu-system-x86_64", "-nodefaults", "-display", "none", "-m", "16", "-S", "-daemonize"]
    command += ["-pidfile", str(pid), "-drive", drive, "-device", "virtio-blk-pci,drive=disk"]
    subprocess.run(command, check=True, timeout=60)
    number = int(pid.read_text())
    try:
        yield
    finally:
        os.kill(number, signal.SIGTERM)
        while pid.exists():  # QEMU removes it at its very end
            time.sleep(0.02)


def broken_bitmap(disk: Path) -> None:
    """Leave in a disk what a killed QEMU leaves; the first cluster is changed meanwhile."""
    qemu_img("bitmap", "--add", str(disk), "broken")
    with subprocess.Popen(
        ["qemu-io", "-f", "qcow2", str(disk)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as program:
        assert program.stdin is not None
        assert program.stdout is not None
        program.stdin.write("write -P 1 0 64k\n")
        program.stdin.flush()
        while "wrote" not in program.stdout.readline():
            pass
        program.kill()
    assert bitmaps(disk) == {"broken": ["in-use", "auto"]}


def test_bitmaps_of_others_in_an_old_disk_stay_and_broken_ones_do_not_stop_a_fold(tmp_path: Path) -> None:
    content = some_content()
    old = old_disk(tmp_path, "qcow2", content)
    broken_bitmap(old)
    qemu_img("bitmap", "--add", str(old), "theirs")
    content = content | {0: b"\x01" * CLUSTER}
    replica, primary = adopted(tmp_path / "store", {"vda": old}), new_primary({"vda": content})
    fill(replica, primary, 3)
    replica.apply_retention()
    assert check_all(replica, primary) == sorted(primary.expected)[-2:]
    assert bitmaps(old) == {"broken": ["in-use", "auto"], "theirs": ["auto"]}
    primary.sizes["vda"] = SIZE + CLUSTER
    primary.send(replica, {"vda": {}})
    primary.send(replica, {"vda": {}})
    replica.apply_retention()
    assert check_all(replica, primary) == sorted(primary.expected)[-2:]
    assert bitmaps(old) == {"theirs": ["auto"]}, "a broken one would not let the disk grow"


AGENT = """
import sys
from pathlib import Path
from vmreplica.repository import Repository
replica = Repository(Path(sys.argv[1])).replicas()[0]
def before(step):
    if step == sys.argv[2]:
        print(step, flush=True)
        sys.stdin.read()
replica.before_fold_step = before
replica.apply_retention()
"""


def test_an_agent_killed_while_it_writes_to_an_old_disk_leaves_it_sound_with_the_bitmaps_of_others(
    tmp_path: Path,
) -> None:
    content = some_content()
    old = old_disk(tmp_path, "qcow2", content)
    qemu_img("bitmap", "--add", str(old), "theirs")
    replica, primary = adopted(tmp_path / "store", {"vda": old}), new_primary({"vda": content})
    fill(replica, primary, 2)
    agent = [sys.executable, "-c", AGENT, str(tmp_path / "store"), "sync vda"]
    with subprocess.Popen(agent, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "sync vda\n"
        assert bitmaps(old) == {"theirs": ["in-use", "auto"]}, "it is open"
        process.kill()
    wait_for(lambda: subprocess.run(["qemu-img", "check", old], check=False, capture_output=True).returncode == 0)
    assert bitmaps(old) == {"theirs": ["auto"]}
    again = open_repository(tmp_path / "store").replica(VM)
    assert check_all(again, primary) == sorted(primary.expected)[-2:]
    again.apply_retention()
    assert check_all(again, primary) == sorted(primary.expected)[-2:]
    assert not Layout(tmp_path / "store" / VM).fold.exists()
    assert read_old(old) == primary.expected[sorted(primary.expected)[-2]]["vda"]


def wait_for(ready: Callable[[], bool]) -> None:
    """Wait until something has happened."""
    deadline = time.monotonic() + 30
    while not ready():
        assert time.monotonic() < deadline
        time.sleep(0.02)
