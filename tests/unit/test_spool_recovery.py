"""What the spool gives back after its process was killed, and after the machine was."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from machine_kit import child
from point_kit import OTHER_VM, VM, segment_of
from spool_kit import POINT, add_segment, fill, opening

from vmreplica.model.errors import Conflict, NotFound
from vmreplica.model.units import CLUSTER, GiB
from vmreplica.spool import Spool, SpoolPoint

pytestmark = pytest.mark.main_job

CAP = 10 * GiB


def _reopened(directory: Path) -> tuple[Spool, SpoolPoint]:
    spool = Spool(directory, CAP)
    point = spool.point(VM)
    assert point is not None
    return spool, point


def test_a_reopened_spool_goes_on_exactly_behind_its_last_segment(tmp_path: Path) -> None:
    disk = Spool(tmp_path, CAP).create(opening()).disk("vda")
    for _ in range(3):
        add_segment(disk)
    disk.acknowledge(1)
    disk.acknowledge(2)
    spool, point = _reopened(tmp_path)
    again = point.disk("vda")
    assert (again.next_segment, again.next_cluster) == (3, 12)
    assert (again.data_offset, again.guest_bytes) == (disk.data_offset, 12 * CLUSTER)
    assert again.waiting() == (0,)
    assert spool.used_bytes() == len(segment_of(again, 0))


def test_a_point_whose_segments_are_all_shipped_still_knows_where_it_stands(tmp_path: Path) -> None:
    disk = Spool(tmp_path, CAP).create(opening()).disk("vda")
    add_segment(disk)
    disk.acknowledge(0)
    disk.acknowledge(0)
    spool, point = _reopened(tmp_path)
    assert (point.disk("vda").next_segment, point.disk("vda").next_cluster) == (1, 4)
    assert spool.used_bytes() == 0


def test_the_closings_of_disks_and_point_survive(tmp_path: Path) -> None:
    point = Spool(tmp_path, CAP).create(opening("vda", "vdb"))
    fill(point)
    _, again = _reopened(tmp_path)
    assert again.closing == point.closing
    assert again.closing is not None
    assert again.closing.guest_bytes == 2 * 12 * CLUSTER
    assert [disk.segments for disk in again.closing.disks] == [3, 3]


def test_a_vm_has_at_most_one_pending_point_and_others_are_not_its_business(tmp_path: Path) -> None:
    spool = Spool(tmp_path, CAP)
    spool.create(opening())
    with pytest.raises(Conflict, match=POINT) as refusal:
        spool.create(opening(point="20260103T000000Z-00000001"))
    assert refusal.value.code == "point-pending"
    spool.create(opening(vm=OTHER_VM))
    with pytest.raises(NotFound, match="vdz"):
        spool.create(opening(vm="00000000-2222-3333-4444-555555555555")).disk("vdz")


def test_discarding_a_point_frees_its_room_and_its_place(tmp_path: Path) -> None:
    spool = Spool(tmp_path, CAP)
    point = spool.create(opening())
    add_segment(point.disk("vda"))
    point.discard()
    assert spool.used_bytes() == 0
    assert spool.point(VM) is None
    assert Spool(tmp_path, CAP).point(VM) is None
    with pytest.raises(Conflict, match="discarded"):
        add_segment(point.disk("vda"))
    with pytest.raises(Conflict, match="discarded"):
        point.wait(point.changes(), 5)
    spool.create(opening())


def test_a_spool_of_an_earlier_boot_is_discarded_since_it_was_never_synced(tmp_path: Path) -> None:
    add_segment(Spool(tmp_path, CAP, boot_id="one").create(opening()).disk("vda"))
    assert Spool(tmp_path, CAP, boot_id="one").point(VM) is not None
    spool = Spool(tmp_path, CAP, boot_id="two")
    assert spool.point(VM) is None
    assert spool.used_bytes() == 0
    assert [path.name for path in tmp_path.iterdir()] == ["boot_id"]


def _directory(spool: Path) -> Path:
    return spool / VM / POINT


def _lose_a_segment(spool: Path) -> None:
    (_directory(spool) / "vda" / "00000000.seg").unlink()


def _tear_a_segment(spool: Path) -> None:
    os.truncate(_directory(spool) / "vda" / "00000001.seg", 100_000)


def _swap_disks(spool: Path) -> None:
    (_directory(spool) / "vda" / "00000001.seg").replace(_directory(spool) / "vdb" / "00000001.seg")


def _lose_the_opening(spool: Path) -> None:
    (_directory(spool) / "opening.json").unlink()


def _spoil_the_opening(spool: Path) -> None:
    (_directory(spool) / "opening.json").write_text('{"vm": "../../etc"}')


def _spoil_a_closing(spool: Path) -> None:
    (_directory(spool) / "vda" / "closing.json").write_text('{"target":"vda","segments":7,"data_end":65536}')


def _spoil_the_closing(spool: Path) -> None:
    (_directory(spool) / "closing.json").write_text("{")


DAMAGES = [
    _lose_a_segment, _tear_a_segment, _swap_disks, _lose_the_opening, _spoil_the_opening, _spoil_a_closing,
    _spoil_the_closing,
]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_point_is_discarded_whole_rather_than_gone_on_with(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    fill(Spool(tmp_path, CAP).create(opening("vda", "vdb")))
    damage(tmp_path)
    spool = Spool(tmp_path, CAP)
    assert spool.point(VM) is None
    assert spool.used_bytes() == 0
    assert not (tmp_path / VM).exists()


def test_a_half_written_entry_of_the_shipped_index_counts_as_not_shipped(tmp_path: Path) -> None:
    disk = Spool(tmp_path, CAP).create(opening()).disk("vda")
    add_segment(disk)
    add_segment(disk)
    kept = segment_of(disk, 1)
    disk.acknowledge(0)
    disk.acknowledge(1)
    index = _directory(tmp_path) / "vda" / "shipped.index"
    os.truncate(index, index.stat().st_size - 3)
    (_directory(tmp_path) / "vda" / "00000001.seg").write_bytes(kept)
    _, point = _reopened(tmp_path)
    assert point.disk("vda").waiting() == (1,)
    assert point.disk("vda").next_segment == 2


def test_a_crash_between_index_and_deletion_sends_nothing_twice(tmp_path: Path) -> None:
    disk = Spool(tmp_path, CAP).create(opening()).disk("vda")
    add_segment(disk)
    kept = segment_of(disk, 0)
    disk.acknowledge(0)
    (_directory(tmp_path) / "vda" / "00000000.seg").write_bytes(kept)
    spool, point = _reopened(tmp_path)
    assert point.disk("vda").waiting() == ()
    assert spool.used_bytes() == 0


_WRITER = """
import sys
from pathlib import Path
from spool_kit import add_segment, opening
from vmreplica.spool import Spool
disk = Spool(Path(sys.argv[1]), 1 << 40).create(opening(size=1 << 40)).disk("vda")
while True:
    add_segment(disk, 16)
    print(disk.next_segment, flush=True)
    if disk.next_segment % 3 == 0:
        disk.acknowledge(disk.next_segment - 2)
"""


@pytest.mark.parametrize("after", [1, 4, 9])
def test_a_writer_killed_at_any_moment_leaves_a_spool_that_goes_on(tmp_path: Path, after: int) -> None:
    spool = tmp_path / "spool"
    with child(_WRITER, spool) as writer:
        assert writer.stdout is not None
        told = [int(writer.stdout.readline()) for _ in range(after)]
        writer.kill()
        told += [int(line) for line in writer.stdout]
    _, point = _reopened(spool)
    disk = point.disk("vda")
    assert disk.next_segment in {told[-1], told[-1] + 1}
    assert disk.next_cluster == 16 * disk.next_segment
    assert not list((_directory(spool) / "vda").glob(".*"))
    add_segment(disk)
