"""The records of the lab's guest, read from images: which was last, is one missing or torn, do the disks agree.

The guest writes record n to vda, then to vdb and so on, each with fsync, and only then record n + 1. Therefore disks
taken at one instant differ by at most one record, and an earlier disk is never behind a later one. Records lie in a
ring of ``SLOTS`` slots, so the newest ``SLOTS`` of them can be checked.
"""

import hashlib
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from vmreplica.lab.commands import run
from vmreplica.lab.qemu_img import image_format
from vmreplica.model.errors import BadRequest
from vmreplica.model.shape import Shape
from vmreplica.model.units import KiB, MiB

#: Bytes of a record and of its slot.
RECORD: Final = 4 * KiB
#: Records that a disk holds; older ones are overwritten.
SLOTS: Final = 4096
#: Where the ring begins on the disk that boots, and on all others.
BOOT_DISK_RING: Final = 32 * MiB
DATA_DISK_RING: Final = MiB
RING: Final = SLOTS * RECORD

_HEAD = re.compile(rb"VMR1 ([0-9a-f]{64}) (([0-9]{12}) ([0-9a-f]{8}) ([0-9]{10})\n)")
_DIGESTED_FROM: Final = 70
_BOOT_SIGNATURE: Final = b"\x55\xaa"
_SECTOR: Final = 512


class DiskRecords(Shape):
    """What one disk's ring holds."""

    image: str
    #: Number of the newest valid record; 0 when there is none.
    last: int
    #: Valid records found.
    valid: int
    #: Numbers that should be in the ring and are not.
    missing: tuple[int, ...]
    #: Slots that hold something that is not a whole record.
    torn: tuple[int, ...]


class RecordsReport(Shape):
    """What the disks of one guest hold together."""

    disks: tuple[DiskRecords, ...]
    #: Newest record that is on every disk.
    last: int
    missing: int
    torn: int
    #: Whether the disks can be of one instant.
    one_instant: bool
    ok: bool


def check_records(images: Sequence[Path]) -> RecordsReport:
    """Read the records of one guest's images, in the order vda, vdb...; chains of qcow2 files are followed.

    Raises:
        BadRequest: no image was named (code ``lab-no-images``) or one does not exist (``lab-image-unknown``).
        HypervisorError: qemu-img cannot read an image.
    """
    if not images:
        raise BadRequest("lab-no-images", "no image was named", hint="name the guest's images: vda first, then vdb...")
    return summarise([_check_image(image) for image in images])


def last_record_finished_before(image: Path, moment: float) -> int:
    """Tell the newest record that was on every disk before a moment, 0 when there is none.

    A record is dated before it is written, and a guest on a busy machine takes seconds to write it to all its disks.
    It begins the next one only then: so the record before the newest that is dated before the moment was finished.

    Args:
        image: as for ``check_records``; it must hold what the guest wrote after the moment too.
        moment: seconds since 1970; the guest's clock has whole seconds.
    """
    ring = _read_ring(image)
    heads = (_HEAD.match(ring, slot * RECORD) for slot in range(SLOTS))
    begun = max((int(head[3]) for head in heads if head is not None and int(head[5]) < moment), default=0)
    return max(0, begun - 1)


def summarise(disks: Sequence[DiskRecords]) -> RecordsReport:
    """Put the findings on the disks together."""
    numbers = [disk.last for disk in disks]
    missing = sum(len(disk.missing) for disk in disks)
    torn = sum(len(disk.torn) for disk in disks)
    one_instant = numbers[0] - numbers[-1] <= 1 and numbers == sorted(numbers, reverse=True)
    return RecordsReport(
        disks=tuple(disks),
        last=min(numbers),
        missing=missing,
        torn=torn,
        one_instant=one_instant,
        ok=one_instant and missing == 0 and torn == 0,
    )


def parse_ring(ring: bytes, image: str) -> DiskRecords:
    """Judge a ring's bytes."""
    numbers: dict[int, int] = {}
    torn = []
    for slot in range(SLOTS):
        record = ring[slot * RECORD : (slot + 1) * RECORD]
        number = record_number(record)
        if number is not None and (number - 1) % SLOTS == slot:
            numbers[slot] = number
        elif record.strip(b"\0"):
            torn.append(slot)
    last = max(numbers.values(), default=0)
    expected = range(max(1, last - SLOTS + 1), last + 1)
    present = set(numbers.values())
    missing = tuple(n for n in expected if n not in present and (n - 1) % SLOTS not in torn)
    return DiskRecords(image=image, last=last, valid=len(numbers), missing=missing, torn=tuple(torn))


def record_number(record: bytes) -> int | None:
    """Tell the number of a whole record; None when the bytes are anything else."""
    head = _HEAD.match(record)
    if head is None or hashlib.sha256(record[_DIGESTED_FROM:]).hexdigest().encode() != head[1]:
        return None
    return int(head[3])


def _check_image(image: Path) -> DiskRecords:
    return parse_ring(_read_ring(image), str(image))


def _read_ring(image: Path) -> bytes:
    if not image.exists():
        raise BadRequest("lab-image-unknown", f"there is no image {image}")
    boots = _read(image, 0, _SECTOR)[-2:] == _BOOT_SIGNATURE
    return _read(image, BOOT_DISK_RING if boots else DATA_DISK_RING, RING)


def _read(image: Path, offset: int, length: int) -> bytes:
    """Read a guest's bytes from an image that may be in use, be a chain, or end before."""
    quoted = str(image).replace(",", ",,")
    window = f"driver=raw,offset={offset},size={length},file.driver={image_format(image)},file.file.filename={quoted}"
    with tempfile.NamedTemporaryFile(suffix=".raw") as file:
        run(["qemu-img", "convert", "-U", "--image-opts", window, "-O", "raw", file.name])
        return Path(file.name).read_bytes()
