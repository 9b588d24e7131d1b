"""Capture from a real NBD server with a real dirty bitmap, judged by qemu-img compare."""

import threading
from pathlib import Path

import pytest
from capture_kit import (
    BITMAP,
    View,
    assert_same,
    build_image,
    carried,
    change,
    guest_clusters,
    make_disk,
    noise,
    opening,
    served,
    track,
)

from vmreplica.capture import capture_point
from vmreplica.model.errors import Conflict, HypervisorError
from vmreplica.model.units import CLUSTER, GiB, MiB
from vmreplica.spool import Spool, SpoolPoint

pytestmark = pytest.mark.main_job

#: Not a multiple of the cluster size.
SIZE = 300 * MiB + 5 * 512
TAIL = SIZE // CLUSTER * CLUSTER
BASE = (
    "write -P 7 0 9M",
    "write -P 8 20480k 3M",
    "write -P 0 40M 4M",
    "write -P 9 100000k 17k",
    f"write -P 10 {TAIL} 2560",
    "write -z 60M 2M",
)


def _capture(point: SpoolPoint, **views: View) -> list[tuple[int, int]]:
    told: list[tuple[int, int]] = []
    capture_point(views, point, cancel=threading.Event(), progress=lambda done, total: told.append((done, total)))
    return told


def _point(spool: Path, *, delta: bool = False, **sizes: int) -> SpoolPoint:
    return Spool(spool, 10 * GiB).create(opening(sizes or {"vda": SIZE}, delta=delta))


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    return make_disk(tmp_path / "vda.qcow2", SIZE, BASE)


@pytest.fixture
def socket(tmp_path: Path) -> Path:
    return tmp_path / "nbd.sock"


@pytest.fixture
def base(tmp_path: Path, disk: Path, socket: Path) -> Path:
    """The image of a whole copy; changes of the disk are tracked from then on."""
    track(disk)
    point = _point(tmp_path / "base")
    with served(disk, socket) as view:
        _capture(point, vda=view)
    return build_image(point, "vda", tmp_path / "base.qcow2")


def test_a_whole_copy_equals_its_disk_and_carries_no_zeroes(tmp_path: Path, disk: Path, socket: Path) -> None:
    point = _point(tmp_path / "spool")
    with served(disk, socket) as view:
        told = _capture(point, vda=view)
    assert_same(build_image(point, "vda", tmp_path / "image.qcow2"), disk)
    assert carried(point, "vda") == (12 * 16 + 2, 0)
    assert guest_clusters(point) == 12 * 16 + 2
    assert told == sorted(told)
    assert told[-1] == (16 * MiB + 2 * CLUSTER, 16 * MiB + 2 * CLUSTER)


def test_a_delta_carries_only_what_changed_and_trimmed_space_as_zeroes(
    tmp_path: Path, disk: Path, socket: Path, base: Path
) -> None:
    change(
        disk,
        (
            "write -P 21 100k 4k",
            "discard 20480k 3M",
            "write -P 22 200M 5M",
            "write -P 0 1M 64k",
            f"write -P 23 {TAIL + 512} 512",
        ),
    )
    point = _point(tmp_path / "delta", delta=True)
    with served(disk, socket, bitmap=BITMAP) as view:
        told = _capture(point, vda=view)
    assert_same(build_image(point, "vda", tmp_path / "delta.qcow2", base), disk)
    assert carried(point, "vda") == (5 * 16 + 2, 3 * 16 + 1)
    assert told[-1] == ((8 * 16 + 3) * CLUSTER, (8 * 16 + 3) * CLUSTER)


def test_a_delta_of_very_many_small_changes_misses_none(tmp_path: Path, disk: Path, socket: Path, base: Path) -> None:
    change(disk, [f"write -q -P {1 + place % 250} {200 * place}k 4k" for place in range(1100)])
    point = _point(tmp_path / "delta", delta=True)
    with served(disk, socket, bitmap=BITMAP) as view:
        told = _capture(point, vda=view)
    assert_same(build_image(point, "vda", tmp_path / "delta.qcow2", base), disk)
    assert carried(point, "vda") == (1100, 0)
    assert told[-1] == (1100 * CLUSTER, 1100 * CLUSTER)


def test_a_delta_without_changes_has_no_segments(tmp_path: Path, disk: Path, socket: Path, base: Path) -> None:
    assert base.exists()
    point = _point(tmp_path / "delta", delta=True)
    with served(disk, socket, bitmap=BITMAP) as view:
        assert _capture(point, vda=view) == []
    assert point.closing is not None
    assert (point.closing.disks[0].segments, point.closing.guest_bytes) == (0, 0)


def test_a_whole_disk_in_a_delta_hides_all_of_its_parent(tmp_path: Path, disk: Path, socket: Path, base: Path) -> None:
    change(disk, ("discard 0 9M", "write -P 31 150M 1M"))
    point = _point(tmp_path / "delta", delta=True)
    with served(disk, socket) as view:
        _capture(point, vda=view)
    assert_same(build_image(point, "vda", tmp_path / "delta.qcow2", base), disk)


def test_all_disks_of_a_point_are_captured(tmp_path: Path, disk: Path, socket: Path) -> None:
    second = make_disk(tmp_path / "vdb.qcow2", 64 * MiB, ("write -P 3 63M 1M",))
    point = _point(tmp_path / "spool", vda=SIZE, vdb=64 * MiB)
    with served(disk, socket) as one, served(second, tmp_path / "two.sock") as two:
        _capture(point, vda=one, vdb=two)
    assert_same(build_image(point, "vda", tmp_path / "a.qcow2"), disk)
    assert_same(build_image(point, "vdb", tmp_path / "b.qcow2"), second)


def test_a_cancelled_capture_goes_on_where_it_stopped(tmp_path: Path, socket: Path) -> None:
    disk = make_disk(tmp_path / "vda.qcow2", 256 * MiB)
    change(disk, (f"write -s {noise(tmp_path, 40 * MiB)} 3M 40M",))
    point = _point(tmp_path / "spool", vda=256 * MiB)
    cancel = threading.Event()
    with served(disk, socket) as view:
        with pytest.raises(Conflict) as end:
            capture_point(
                {"vda": view},
                point,
                cancel=cancel,
                progress=lambda done, _: cancel.set() if done > 20 * MiB else None,
            )
        assert end.value.code == "cancelled"
        before = point.disk("vda").waiting()
        assert len(before) == 2
        told = _capture(point, vda=view)
    assert told[0][0] > 16 * MiB
    assert point.disk("vda").waiting()[:2] == before
    assert_same(build_image(point, "vda", tmp_path / "image.qcow2"), disk)


def test_a_finished_point_is_not_read_again(tmp_path: Path, disk: Path, socket: Path) -> None:
    point = _point(tmp_path / "spool")
    with served(disk, socket) as view:
        _capture(point, vda=view)
    assert _capture(point, vda=view) == []


def test_nobody_at_the_socket_is_a_lost_view_naming_disk_and_vm(tmp_path: Path) -> None:
    point = _point(tmp_path / "spool")
    with pytest.raises(HypervisorError, match="disk vda of web") as lost:
        _capture(point, vda=View(tmp_path / "none.sock", "", SIZE))
    assert (lost.value.code, lost.value.kind) == ("backup-export-lost", "transient")


def test_a_disk_that_is_not_in_the_view_is_named(tmp_path: Path) -> None:
    with pytest.raises(HypervisorError, match="disk vda of web is not in the frozen view"):
        _capture(_point(tmp_path / "spool"))


def test_an_unknown_export_is_a_lost_view(tmp_path: Path, disk: Path, socket: Path) -> None:
    point = _point(tmp_path / "spool")
    with served(disk, socket) as view, pytest.raises(HypervisorError) as lost:
        _capture(point, vda=View(view.socket, "vdz", SIZE))
    assert lost.value.code == "backup-export-lost"


def test_a_missing_bitmap_is_never_taken_for_no_changes(tmp_path: Path, disk: Path, socket: Path) -> None:
    point = _point(tmp_path / "spool", delta=True)
    with served(disk, socket) as view, pytest.raises(HypervisorError) as missing:
        _capture(point, vda=View(view.socket, "", SIZE, "another"))
    assert missing.value.code == "backup-bitmap-missing"
    assert point.closing is None


def test_a_disk_that_was_resized_meanwhile_is_refused(tmp_path: Path, disk: Path, socket: Path) -> None:
    point = _point(tmp_path / "spool", vda=SIZE - 512)
    with served(disk, socket) as view, pytest.raises(HypervisorError) as resized:
        _capture(point, vda=view)
    assert resized.value.code == "disk-resized"
    assert point.disk("vda").next_segment == 0
