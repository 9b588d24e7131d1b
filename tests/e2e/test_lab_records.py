"""What the checker says of rings of records, whole and spoiled."""

import hashlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmreplica.lab import check_records
from vmreplica.lab.records import (
    BOOT_DISK_RING,
    DATA_DISK_RING,
    RECORD,
    RING,
    SLOTS,
    DiskRecords,
    last_record_finished_before,
    parse_ring,
    record_number,
    summarise,
)
from vmreplica.model.errors import BadRequest

pytestmark = pytest.mark.main_job

_EPOCH = 1_700_000_000


def make_record(number: int, boot: str = "0123abcd") -> bytes:
    words = f"{number:012d} {boot} {_EPOCH + number:010d}"
    rest = f"{words}\n{(words + ' ') * 128:.3992}\n".encode()
    return b"VMR1 " + hashlib.sha256(rest).hexdigest().encode() + b" " + rest


def make_ring(last: int) -> bytearray:
    ring = bytearray(RING)
    for number in range(max(1, last - SLOTS + 1), last + 1):
        slot = (number - 1) % SLOTS
        ring[slot * RECORD : (slot + 1) * RECORD] = make_record(number)
    return ring


def write_data_disk(path: Path, ring: bytearray) -> Path:
    path.write_bytes(bytes(DATA_DISK_RING) + ring)
    return path


@pytest.mark.parametrize("last", [0, 1, 17, SLOTS, SLOTS + 1, 3 * SLOTS - 5])
def test_a_whole_ring_misses_nothing(last: int) -> None:
    found = parse_ring(bytes(make_ring(last)), "vda")
    assert found == DiskRecords(image="vda", last=last, valid=min(last, SLOTS), missing=(), torn=())


def test_a_record_that_was_never_written_is_missing() -> None:
    ring = make_ring(20)
    ring[9 * RECORD : 10 * RECORD] = bytes(RECORD)
    assert parse_ring(bytes(ring), "vda").missing == (10,)


def test_a_record_of_the_lap_before_in_place_of_a_newer_one_is_missing() -> None:
    ring = make_ring(SLOTS + 20)
    ring[9 * RECORD : 10 * RECORD] = make_record(10)
    found = parse_ring(bytes(ring), "vda")
    assert (found.last, found.missing, found.torn) == (SLOTS + 20, (SLOTS + 10,), ())


@given(st.integers(0, RECORD - 1), st.integers(1, 255))
def test_any_changed_byte_makes_a_record_torn(position: int, change: int) -> None:
    record = bytearray(make_record(7))
    record[position] ^= change
    assert record_number(bytes(record)) is None


def test_a_half_written_record_is_torn_and_not_missing_as_well() -> None:
    ring = make_ring(20)
    ring[19 * RECORD + 2048 : 20 * RECORD] = bytes(2048)
    found = parse_ring(bytes(ring), "vda")
    assert (found.last, found.missing, found.torn) == (19, (), (19,))


def test_a_record_in_a_wrong_slot_does_not_count() -> None:
    ring = make_ring(5)
    ring[100 * RECORD : 101 * RECORD] = make_record(7)
    assert parse_ring(bytes(ring), "vda").torn == (100,)


@pytest.mark.parametrize(
    ("numbers", "one_instant"), [([8], True), ([8, 8], True), ([9, 8], True), ([9, 9, 8], True), ([10, 8], False),
                                 ([8, 9], False), ([9, 8, 9], False)],
)  # fmt: skip
def test_disks_of_one_instant_differ_by_one_record_at_most_and_only_downwards(
    numbers: list[int], one_instant: bool
) -> None:
    disks = [DiskRecords(image=str(n), last=n, valid=n, missing=(), torn=()) for n in numbers]
    report = summarise(disks)
    assert (report.one_instant, report.ok, report.last) == (one_instant, one_instant, min(numbers))


def test_images_of_a_boot_disk_and_a_data_disk_are_read_at_their_own_places(tmp_path: Path) -> None:
    boot = tmp_path / "vda.raw"
    boot.write_bytes(bytes(510) + b"\x55\xaa" + bytes(BOOT_DISK_RING - 512) + make_ring(12))
    data = write_data_disk(tmp_path / "vdb.raw", make_ring(11))
    report = check_records([boot, data])
    assert (report.ok, report.last, [disk.last for disk in report.disks]) == (True, 11, [12, 11])


def test_a_record_is_known_to_be_finished_when_the_next_was_begun(tmp_path: Path) -> None:
    disk = write_data_disk(tmp_path / "vdb.raw", make_ring(50))
    assert last_record_finished_before(disk, _EPOCH + 30) == 28
    assert last_record_finished_before(disk, _EPOCH) == 0


def test_an_image_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match=r"nowhere\.qcow2"):
        check_records([tmp_path / "nowhere.qcow2"])


def test_checking_no_image_at_all_is_a_clear_error() -> None:
    with pytest.raises(BadRequest, match="no image"):
        check_records([])
