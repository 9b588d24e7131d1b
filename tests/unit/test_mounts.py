"""Points over NBD: what is read is the point, nothing changes below it meanwhile, and nothing outlives the agent."""

import os
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import nbd
import pytest
from repository_kit import SIZE, Primary, check_all, fill, new_replica

from vmreplica.agent.mounts import Mounts
from vmreplica.model.errors import Conflict, HypervisorError, NotFound
from vmreplica.model.taking import PointMount
from vmreplica.model.units import CLUSTER
from vmreplica.repository import Replica

pytestmark = pytest.mark.points


@pytest.fixture
def primary() -> Primary:
    return Primary({"vda": SIZE, "vdb": 10 * CLUSTER + 512})


@pytest.fixture
def replica(tmp_path: Path, primary: Primary) -> Replica:
    (tmp_path / "store").mkdir()
    replica = new_replica(tmp_path / "store", keep=1)
    fill(replica, primary, 4)
    return replica


@pytest.fixture
def runtime() -> Iterator[Path]:
    """A directory with a name short enough for sockets."""
    with tempfile.TemporaryDirectory(prefix="m-", dir="/tmp") as directory:
        yield Path(directory) / "mounts"


@pytest.fixture
def mounts(runtime: Path) -> Iterator[Mounts]:
    mounts = Mounts(runtime)
    yield mounts
    mounts.stop()


def read(uri: str) -> bytes:
    handle = nbd.NBD()
    handle.connect_uri(uri)
    assert handle.is_read_only()
    content = bytes(handle.pread(handle.get_size(), 0))
    handle.shutdown()
    return content


def content(mount: PointMount) -> dict[str, bytes]:
    return {disk.target: read(disk.uri) for disk in mount.disks}


def test_a_mounted_point_reads_as_it_is_while_nothing_below_it_is_merged(
    replica: Replica, primary: Primary, mounts: Mounts
) -> None:
    point = replica.points()[1].point
    mount = mounts.begin(replica, point, seconds=600, warnings=())
    assert "mount: readable over NBD until" in replica.points()[1].holds[0]
    fill(replica, primary, 2, seed=2)
    replica.apply_retention()
    assert content(mount) == primary.expected[point]
    assert point in check_all(replica, primary)
    assert mounts.of(replica.record.vm) == (mount,)
    assert mounts.end(replica, None) == (point,)
    replica.apply_retention()
    assert check_all(replica, primary) == [primary.latest]
    assert not any(Path(disk.socket).exists() for disk in mount.disks)


def test_several_readers_may_come_and_go(replica: Replica, primary: Primary, mounts: Mounts) -> None:
    mount = mounts.begin(replica, str(primary.latest), seconds=600, warnings=())
    assert [content(mount) for _ in range(2)] == [primary.expected[mount.point]] * 2


def test_a_mount_ends_when_its_time_is_over(replica: Replica, primary: Primary, mounts: Mounts) -> None:
    mounts.begin(replica, str(primary.latest), seconds=1, warnings=())
    _wait(lambda: not mounts.of(replica.record.vm))
    assert replica.points()[0].holds == ()


def test_a_mount_whose_server_was_killed_is_over(replica: Replica, primary: Primary, mounts: Mounts) -> None:
    mount = mounts.begin(replica, str(primary.latest), seconds=600, warnings=())
    os.kill(int(Path(mount.disks[0].socket).with_suffix(".pid").read_text()), signal.SIGKILL)
    _wait(lambda: not mounts.of(replica.record.vm))
    assert replica.points()[0].holds == ()
    mounts.begin(replica, str(primary.latest), seconds=600, warnings=())


def test_what_is_mounted_is_not_mounted_again_nor_unmounted_twice(
    replica: Replica, primary: Primary, mounts: Mounts
) -> None:
    mounts.begin(replica, str(primary.latest), seconds=600, warnings=())
    with pytest.raises(Conflict) as again:
        mounts.begin(replica, str(primary.latest), seconds=600, warnings=())
    assert again.value.code == "already-mounted"
    assert len(replica.points()[0].holds) == 1
    with pytest.raises(NotFound) as other:
        mounts.end(replica, replica.points()[1].point)
    assert other.value.code == "not-mounted"
    mounts.end(replica, primary.latest)
    with pytest.raises(NotFound):
        mounts.end(replica, None)


def test_points_that_are_read_are_not_deleted_with_their_replica(
    replica: Replica, primary: Primary, mounts: Mounts
) -> None:
    mounts.begin(replica, str(primary.latest), seconds=600, warnings=())
    with pytest.raises(Conflict) as told:
        replica.require_unread()
    assert (told.value.code, "vmreplica points unmount web" in told.value.hint) == ("points-in-use", True)
    mounts.stop()
    replica.require_unread()


def test_an_image_that_cannot_be_served_leaves_nothing(replica: Replica, primary: Primary, mounts: Mounts) -> None:
    replica.image(str(primary.latest), "vdb").write_bytes(b"no image at all")
    with pytest.raises(HypervisorError, match=r"qemu-nbd cannot serve vdb: .*qcow2") as told:
        mounts.begin(replica, str(primary.latest), seconds=600, warnings=())
    assert told.value.code == "qemu-nbd-failed"
    assert (mounts.of(replica.record.vm), replica.points()[0].holds) == ((), ())


def test_what_a_killed_agent_left_is_ended_at_the_next_start(
    replica: Replica, primary: Primary, mounts: Mounts, runtime: Path
) -> None:
    mount = mounts.begin(replica, str(primary.latest), seconds=600, warnings=())
    pids = [int(Path(disk.socket).with_suffix(".pid").read_text()) for disk in mount.disks]
    assert all(_lives(pid) for pid in pids)
    stranger = runtime / "other"
    stranger.mkdir()
    (stranger / "vda.pid").write_text(f"{os.getpid()}\n")
    Mounts(runtime).recover()
    _wait(lambda: not any(_lives(pid) for pid in pids))
    assert list(runtime.iterdir()) == []


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def _wait(done: object) -> None:
    deadline = time.monotonic() + 30
    while not done():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.05)
