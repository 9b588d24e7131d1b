"""Segments that go from hand to hand, in memory: what a file is made of, what a kill costs, what a full disk does."""

import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from machine_kit import child, small_file_system
from point_kit import VM
from spool_kit import POINT, add_segment, opening

from vmreplica.model.units import CLUSTER, GiB, MiB
from vmreplica.qcow2.segment import clusters_of, parse
from vmreplica.spool import Spool, SpoolDisk, SpoolPoint

pytestmark = pytest.mark.main_job

CAP = 10 * GiB


@pytest.fixture
def small_fs(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB."""
    with small_file_system(tmp_path, 2) as mounted:
        yield mounted


def _files(directory: Path) -> list[str]:
    return sorted(path.name for path in (directory / VM / POINT / "vda").glob("*.seg"))


def _reopened(directory: Path) -> SpoolPoint:
    point = Spool(directory, CAP).point(VM)
    assert point is not None
    return point


def _require_whole(disk: SpoolDisk) -> None:
    for number in disk.waiting():
        body = b"".join(disk.body(number))
        parse(body, point=POINT, target="vda", number=number, clusters=clusters_of(disk.size))


def test_only_what_is_too_much_for_the_hands_is_written(tmp_path: Path) -> None:
    spool = Spool(tmp_path, CAP)
    point = spool.create(opening())
    disk = point.disk("vda")
    with point.handing_over(2):
        for _ in range(4):
            add_segment(disk)
        assert _files(tmp_path) == ["00000002.seg", "00000003.seg"]
        _require_whole(disk)
        disk.acknowledge(0)
        assert _files(tmp_path) == ["00000002.seg", "00000003.seg"]
        disk.acknowledge(2)
        assert _files(tmp_path) == ["00000001.seg", "00000003.seg"], "a kill must not lose what is before"
        add_segment(disk)
        assert _files(tmp_path) == ["00000001.seg", "00000003.seg"]
        assert spool.used_bytes() == sum(len(b"".join(disk.body(number))) for number in (1, 3, 4))
    assert _files(tmp_path) == ["00000001.seg", "00000003.seg", "00000004.seg"], "nobody takes them any more"
    _require_whole(disk)
    again = _reopened(tmp_path).disk("vda")
    assert (again.next_segment, again.waiting()) == (5, (1, 3, 4))


def test_a_finished_disk_has_nothing_left_in_memory(tmp_path: Path) -> None:
    point = Spool(tmp_path, CAP).create(opening())
    with point.handing_over(2):
        add_segment(point.disk("vda"))
        assert not _files(tmp_path)
        point.disk("vda").finish()
        assert _files(tmp_path) == ["00000000.seg"]


@settings(deadline=None, max_examples=60)
@given(st.lists(st.sampled_from("wa"), min_size=1, max_size=24), st.integers(1, 3), st.randoms())
def test_after_a_kill_capture_goes_on_at_the_first_segment_that_is_nowhere(
    tmp_path_factory: pytest.TempPathFactory, acts: list[str], hands: int, chance: random.Random
) -> None:
    directory = tmp_path_factory.mktemp("spool")
    point = Spool(directory, CAP).create(opening())
    disk = point.disk("vda")
    taken: set[int] = set()
    disk.hand_over(hands)
    for act in acts:
        if act == "w":
            add_segment(disk, 1)
        elif disk.waiting():
            number = chance.choice(disk.waiting())
            disk.acknowledge(number)
            taken.add(number)
    there = taken | {int(name.removesuffix(".seg")) for name in _files(directory)}
    first = next(number for number in range(len(acts) + 1) if number not in there)
    again = _reopened(directory).disk("vda")
    assert (again.next_segment, again.next_cluster, again.guest_bytes) == (first, first, first * CLUSTER)
    assert set(again.waiting()) == {number for number in there if number < first} - taken
    add_segment(again, 1)
    for number in again.waiting():
        again.acknowledge(number)
    assert _reopened(directory).disk("vda").next_segment == first + 1
    shutil.rmtree(directory)


_WRITER = """
import sys
from pathlib import Path
from spool_kit import add_segment, opening
from vmreplica.spool import Spool
point = Spool(Path(sys.argv[1]), 1 << 40).create(opening(size=1 << 40))
disk = point.disk("vda")
with point.handing_over(2):
    while True:
        add_segment(disk, 16)
        print(disk.next_segment, flush=True)
        if disk.next_segment % 3 == 0:
            disk.acknowledge(disk.next_segment - 1)
"""


@pytest.mark.parametrize("after", [2, 7])
def test_a_writer_killed_while_it_hands_over_leaves_a_spool_that_goes_on(tmp_path: Path, after: int) -> None:
    spool = tmp_path / "spool"
    with child(_WRITER, spool) as writer:
        assert writer.stdout is not None
        for _ in range(after):
            writer.stdout.readline()
        writer.kill()
    disk = _reopened(spool).disk("vda")
    assert disk.next_cluster == 16 * disk.next_segment
    add_segment(disk)
    _require_whole(disk)


def test_what_is_taken_from_memory_needs_no_room(small_fs: Path) -> None:
    spool = Spool(small_fs / "spool", GiB)
    point = spool.create(opening())
    disk = point.disk("vda")
    ballast = small_fs / "ballast"
    with point.handing_over(2):
        add_segment(disk, 8)
        add_segment(disk, 8)
        with ballast.open("wb", buffering=0) as fh:
            while shutil.disk_usage(small_fs).free >= 4096:
                fh.write(bytes(min(MiB, shutil.disk_usage(small_fs).free)))
        disk.acknowledge(0)
        assert disk.waiting() == (1,)
    _require_whole(disk)
    assert not _files(small_fs / "spool")
    ballast.unlink()
    disk.finish()
    again = Spool(small_fs / "spool", GiB).point(VM)
    assert again is not None
    assert (again.disk("vda").next_segment, again.disk("vda").waiting()) == (2, (1,))
