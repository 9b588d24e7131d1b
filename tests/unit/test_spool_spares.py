"""Files of acknowledged segments that are written over by the next ones: nothing of the old content may be left."""

import shutil
from pathlib import Path

import pytest
from machine_kit import small_file_system
from point_kit import VM, segment_of
from spool_kit import POINT, add_segment, opening

from vmreplica.model.units import CLUSTER, GiB
from vmreplica.qcow2.segment import clusters_of, parse
from vmreplica.spool import Spool, SpoolDisk

pytestmark = pytest.mark.main_job


def _file(home: Path, number: int) -> Path:
    return home / VM / POINT / "vda" / f"{number:08d}.seg"


def _spares(home: Path) -> list[Path]:
    return list(home.rglob(".spare-*.tmp"))


def _require_sound(disk: SpoolDisk, number: int) -> None:
    parse(segment_of(disk, number), point=POINT, target="vda", number=number, clusters=clusters_of(disk.size))


@pytest.mark.parametrize("clusters", [2, 4, 7])
def test_the_next_segment_shorter_or_longer_is_written_over_one_that_was_sent(tmp_path: Path, clusters: int) -> None:
    disk = Spool(tmp_path, GiB).create(opening()).disk("vda")
    add_segment(disk, 4)
    sent = _file(tmp_path, 0).stat().st_ino
    disk.acknowledge(0)
    assert not _file(tmp_path, 0).exists()
    add_segment(disk, clusters)
    assert _file(tmp_path, 1).stat().st_ino == sent
    _require_sound(disk, 1)
    assert not _spares(tmp_path)


def test_few_are_kept_and_none_once_the_disk_is_read(tmp_path: Path) -> None:
    disk = Spool(tmp_path, GiB).create(opening()).disk("vda")
    for _ in range(6):
        add_segment(disk, 1)
    for number in range(4):
        disk.acknowledge(number)
    assert len(_spares(tmp_path)) == 2
    disk.finish()
    assert not _spares(tmp_path)
    disk.acknowledge(4)
    assert not _spares(tmp_path)
    assert disk.waiting() == (5,)
    _require_sound(disk, 5)


def test_what_a_killed_process_kept_is_gone_and_nothing_is_missed(tmp_path: Path) -> None:
    disk = Spool(tmp_path, GiB).create(opening()).disk("vda")
    add_segment(disk)
    add_segment(disk)
    disk.acknowledge(0)
    assert _spares(tmp_path)
    again = Spool(tmp_path, GiB).point(VM)
    assert again is not None
    assert not _spares(tmp_path)
    assert (again.disk("vda").waiting(), again.disk("vda").next_segment) == ((1,), 2)


def test_on_a_full_file_system_their_room_is_used(tmp_path: Path) -> None:
    with small_file_system(tmp_path, 2) as small:
        disk = Spool(small / "spool", GiB).create(opening()).disk("vda")
        add_segment(disk, 8)
        add_segment(disk, 8)
        disk.acknowledge(0)
        disk.acknowledge(1)
        assert len(_spares(small)) == 2
        assert shutil.disk_usage(small).free < 18 * CLUSTER
        add_segment(disk, 26, patience=0)
        _require_sound(disk, 2)
        assert not _spares(small)
