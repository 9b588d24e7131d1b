"""The spool's bound: the cap, a full file system, and who waits for whom."""

import contextlib
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from machine_kit import small_file_system
from point_kit import OTHER_VM, VM, segment_of
from spool_kit import add_segment, opening

from vmreplica.model.errors import Conflict, NoSpace
from vmreplica.model.units import CLUSTER, GiB, MiB
from vmreplica.spool import Spool, SpoolDisk

pytestmark = pytest.mark.main_job


@pytest.fixture
def small_fs(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB."""
    with small_file_system(tmp_path, 2) as mounted:
        yield mounted


def _append_until_full(disk: SpoolDisk) -> None:
    for _ in range(10):
        add_segment(disk, 8, patience=0.05)


def _use_up(ballast: Path) -> None:
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as fh:
        while True:
            fh.write(bytes(4096))
    assert shutil.disk_usage(ballast).free < 4096


def test_an_append_at_the_cap_waits_until_the_replica_took_something(tmp_path: Path) -> None:
    spool = Spool(tmp_path, 600_000)
    disk = spool.create(opening()).disk("vda")
    add_segment(disk)
    add_segment(disk)
    writer = threading.Thread(target=add_segment, args=(disk,))
    writer.start()
    writer.join(0.3)
    assert writer.is_alive()
    assert spool.used_bytes() <= 600_000
    disk.acknowledge(0)
    writer.join(20)
    assert not writer.is_alive()
    assert disk.waiting() == (1, 2)


def test_the_cap_counts_all_vms_but_each_may_have_one_segment(tmp_path: Path) -> None:
    spool = Spool(tmp_path, 1)
    first, second = (spool.create(opening(vm=vm)).disk("vda") for vm in (VM, OTHER_VM))
    add_segment(first, patience=0)
    add_segment(second, patience=0)
    with pytest.raises(NoSpace, match="cap") as full:
        add_segment(second, patience=0.05)
    assert (full.value.code, full.value.kind) == ("spool-full", "transient")
    assert second.waiting() == (0,)
    second.acknowledge(0)
    add_segment(second, patience=0)
    assert second.waiting() == (1,)


def test_a_wait_at_the_cap_ends_soon_when_cancelled(tmp_path: Path) -> None:
    disk = Spool(tmp_path, 1).create(opening()).disk("vda")
    add_segment(disk)
    cancel = threading.Event()
    timer = threading.Timer(0.1, cancel.set)
    timer.start()
    started = time.monotonic()
    with pytest.raises(Conflict) as end:
        add_segment(disk, cancel=cancel, patience=60)
    assert end.value.code == "cancelled"
    assert time.monotonic() - started < 5
    assert disk.next_segment == 1
    timer.join()


def test_a_full_file_system_leaves_nothing_torn_and_names_itself(small_fs: Path) -> None:
    spool = Spool(small_fs / "spool", GiB)
    disk = spool.create(opening()).disk("vda")
    with pytest.raises(NoSpace, match=str(small_fs)) as full:
        _append_until_full(disk)
    assert full.value.code == "no-space"
    assert not list((small_fs / "spool").rglob(".*.tmp"))
    assert spool.used_bytes() == sum(len(segment_of(disk, number)) for number in disk.waiting()) < 2 * MiB
    position = (disk.next_segment, disk.next_cluster)
    for number in disk.waiting():
        disk.acknowledge(number)
    add_segment(disk, 8, patience=0)
    assert (disk.next_segment - 1, disk.next_cluster - 8) == position


def test_an_append_to_a_full_file_system_waits_for_shipping_to_make_room(small_fs: Path) -> None:
    disk = Spool(small_fs / "spool", GiB).create(opening()).disk("vda")
    for _ in range(3):
        add_segment(disk, 8)
    writer = threading.Thread(target=add_segment, args=(disk, 12))
    writer.start()
    writer.join(0.3)
    assert writer.is_alive()
    disk.acknowledge(0)
    disk.acknowledge(1)
    writer.join(20)
    assert not writer.is_alive()
    assert disk.waiting() == (2, 3)


def test_an_acknowledgement_never_needs_room_that_is_not_there(small_fs: Path) -> None:
    spool = Spool(small_fs / "spool", GiB)
    disk = spool.create(opening()).disk("vda")
    add_segment(disk, 8)
    add_segment(disk, 8)
    ballast = small_fs / "ballast"
    _use_up(ballast)
    disk.acknowledge(0)
    assert disk.waiting() == (1,)
    ballast.unlink()
    again = Spool(small_fs / "spool", GiB).point(VM)
    assert again is not None
    assert again.disk("vda").waiting() == (1,)
    assert (again.disk("vda").next_segment, again.disk("vda").guest_bytes) == (2, 16 * CLUSTER)


def test_a_full_file_system_leaves_no_half_made_point(small_fs: Path) -> None:
    spool = Spool(small_fs / "spool", GiB)
    _use_up(small_fs / "ballast")
    with pytest.raises(NoSpace):
        spool.create(opening())
    assert spool.point(VM) is None
    (small_fs / "ballast").unlink()
    spool.create(opening())
