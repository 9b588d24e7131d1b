"""Block hashes that are staged with a disk's segments, and patches in them, over kills and full file systems."""

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from machine_kit import child, small_file_system
from point_kit import VM, segment_of
from spool_kit import POINT, add_segment, content, opening

from vmreplica.fingerprint import Hashes, hash_blocks
from vmreplica.model.errors import Conflict, NoSpace
from vmreplica.model.units import CLUSTER, GiB, MiB, TiB
from vmreplica.qcow2 import frames
from vmreplica.qcow2.segment import KIND_ZERO, KIND_ZSTD, RECORD, clusters_of, parse, patch_kind
from vmreplica.spool import Spool, SpoolDisk, SpoolPoint

pytestmark = pytest.mark.seeding


def _hashes(first: int, count: int) -> Hashes:
    return np.arange(first + 1, first + count + 1, dtype=np.uint64)


def _reopened(directory: Path) -> SpoolPoint:
    point = Spool(directory, GiB).point(VM)
    assert point is not None
    return point


def _staged(disk: SpoolDisk) -> list[tuple[int, list[int]]]:
    return [(first, hashes.tolist()) for first, hashes in disk.staged()]


def _file(directory: Path) -> Path:
    return directory / VM / POINT / "vda" / "staged.fp"


def test_staged_hashes_are_read_back_in_order_also_after_reopening(tmp_path: Path) -> None:
    disk = Spool(tmp_path, GiB).create(opening()).disk("vda")
    assert _staged(disk) == []
    disk.stage(5, _hashes(5, 3))
    disk.stage_zeroes(100, 4)
    add_segment(disk)
    disk.stage(6, _hashes(60, 1))
    disk.finish()
    wanted = [(5, [6, 7, 8]), (100, [0] * 4), (6, [61])]
    assert _staged(disk) == wanted
    assert _staged(_reopened(tmp_path).disk("vda")) == wanted


def test_a_huge_trimmed_disk_takes_few_bytes_and_is_given_out_in_pieces(tmp_path: Path) -> None:
    disk = Spool(tmp_path, GiB).create(opening(size=16 * TiB)).disk("vda")
    disk.stage_zeroes(0, 1 << 32)
    disk.finish()
    assert _file(tmp_path).stat().st_size < 100
    pieces = disk.staged()
    for number in range(1000):
        first, hashes = next(pieces)
        assert first == number << 16
        assert hashes.size == 1 << 16
    assert sum(hashes.size for _, hashes in disk.staged()) == 1 << 32


def test_many_hashes_do_not_stay_in_memory_until_the_segment_is_full(tmp_path: Path) -> None:
    disk = Spool(tmp_path, GiB).create(opening(size=TiB)).disk("vda")
    for first in range(0, 1 << 18, 512):
        disk.stage(first, _hashes(first, 512))
    assert _file(tmp_path).stat().st_size >= 8 * (1 << 18) - (1 << 20)


def test_an_entry_torn_at_any_byte_is_cut_off_and_those_before_it_stay(tmp_path: Path) -> None:
    disk = Spool(tmp_path, GiB).create(opening()).disk("vda")
    disk.stage(0, _hashes(0, 2))
    disk.stage_zeroes(9, 3)
    disk.finish()
    whole = _file(tmp_path).read_bytes()
    entries = [(0, [1, 2]), (9, [0, 0, 0])]
    ends = [0, 16 + 16 + 8, len(whole)]
    for length in range(len(whole) + 1):
        _file(tmp_path).write_bytes(whole[:length])
        complete = sum(end <= length for end in ends) - 1
        assert _staged(_reopened(tmp_path).disk("vda")) == entries[:complete]
        assert _file(tmp_path).stat().st_size == ends[complete]


def test_a_flipped_bit_ends_what_is_believed(tmp_path: Path) -> None:
    disk = Spool(tmp_path, GiB).create(opening()).disk("vda")
    disk.stage(0, _hashes(0, 2))
    disk.stage(2, _hashes(2, 2))
    disk.finish()
    raw = bytearray(_file(tmp_path).read_bytes())
    raw[-12] ^= 4
    _file(tmp_path).write_bytes(raw)
    assert _staged(_reopened(tmp_path).disk("vda")) == [(0, [1, 2])]


_CHILD = """
import sys
from pathlib import Path
import numpy as np
from spool_kit import add_segment, opening
from vmreplica.spool import Spool
disk = Spool(Path(sys.argv[1]), 1 << 40).create(opening()).disk("vda")
for number in range(200):
    first = disk.next_cluster * 16
    disk.stage(first, np.arange(first + 1, first + 65, dtype=np.uint64))
    add_segment(disk)
    print(number, flush=True)
"""


@pytest.mark.parametrize("after", [0, 1, 17, 60])
def test_whatever_a_segment_carries_is_staged_when_the_process_is_killed(tmp_path: Path, after: int) -> None:
    with child(_CHILD, tmp_path) as writer:
        assert writer.stdout is not None
        assert any(int(line) == after for line in writer.stdout)
        writer.kill()
    disk = _reopened(tmp_path).disk("vda")
    assert disk.next_segment > after
    known = {block for first, values in _staged(disk) for block, _ in enumerate(values, first)}
    assert known >= set(range(disk.next_cluster * 16))
    disk.stage(3, _hashes(3, 1))
    disk.finish()
    assert _staged(disk)[-1] == (3, [4])


def test_a_segment_with_patches_is_whole_and_counts_its_blocks_also_after_reopening(tmp_path: Path) -> None:
    disk = Spool(tmp_path, GiB).create(opening()).disk("vda")
    (_, whole), patches = content(0, 2)[1], [frames.encode_patch(memoryview(bytes([7]) * 8192), 1)] * 2
    for number in range(2):
        first = 10 * number
        rows = [
            (first, len(patches[0]), patch_kind(0b1010)),
            (first + 1, len(whole), KIND_ZSTD),
            (first + 2, 5, KIND_ZERO),
            (first + 7, len(patches[1]), patch_kind(0x8001)),
        ]
        disk.append(np.array(rows, RECORD), [whole], first + 8, patches=patches)
    disk.acknowledge(0)
    again = _reopened(tmp_path).disk("vda")
    assert again.guest_bytes == disk.guest_bytes == 2 * (CLUSTER + 4 * 4096)
    assert (again.data_offset, again.next_cluster, again.waiting()) == (disk.data_offset, 18, (1,))
    assert again.data_offset % CLUSTER == 0
    segment = parse(segment_of(again, 1), point=POINT, target="vda", number=1, clusters=clusters_of(64 * MiB))
    assert (bytes(segment.data), bytes(segment.patches)) == (whole, b"".join(patches))


@pytest.fixture
def small_fs(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    with small_file_system(tmp_path, 1) as mounted:
        yield mounted


def _stage_until_full(disk: SpoolDisk, hashes: Hashes, places: list[int]) -> None:
    for first in range(0, 1 << 18, hashes.size):
        places.append(first)
        disk.stage(first, hashes, patience=0.05)


def test_staging_waits_on_a_full_file_system_for_what_is_shipped_and_loses_nothing(small_fs: Path) -> None:
    disk = Spool(small_fs, GiB).create(opening(size=GiB)).disk("vda")
    add_segment(disk, 8)
    hashes = hash_blocks(memoryview(bytes(range(1, 256)) * 4096 * 9), 1)
    places: list[int] = []
    with pytest.raises(NoSpace, match="small"):
        _stage_until_full(disk, hashes, places)
    before = _file(small_fs).stat().st_size if _file(small_fs).exists() else 0
    assert before % (hashes.size * 8 + 24) == 0
    shipping = threading.Timer(0.3, disk.acknowledge, [0])
    shipping.start()
    disk.stage(places[-1] + hashes.size, hashes, patience=20)
    shipping.join()
    assert [place for place, _ in _staged(disk)] == [*places, places[-1] + hashes.size]


def test_staging_for_a_discarded_point_says_so(tmp_path: Path) -> None:
    point = Spool(tmp_path, GiB).create(opening())
    disk = point.disk("vda")
    disk.stage(0, _hashes(0, 3))
    point.discard()
    with pytest.raises(Conflict) as gone:
        add_segment(disk)
    assert gone.value.code == "point-discarded"
