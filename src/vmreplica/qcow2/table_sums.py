"""Checksums of a folded image's tables (docs/design/format.md, "Table sums").

The tables of an image that came as a point have one digest in the manifest. Folding replaces some of them; so beside a
folded image stands ``<target>.tsums`` with the xxh3-64 of each table by itself: L1, refcount table, each L2 table, each
refcount block. It is written anew with each fold, the sums of untouched tables are carried over.
"""

import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import xxhash

from vmreplica.fsio import publish_bytes
from vmreplica.model.errors import Corrupt
from vmreplica.qcow2.layout import OFFSET_MASK, U64
from vmreplica.qcow2.reader import Image

_MAGIC: Final = b"VMRTSUM1"
#: Magic, L1 entries, refcount table entries, sum of the L1 table, sum of the refcount table.
_FIELDS: Final = struct.Struct("<8sIIQQ")
_ITEM: Final = np.dtype("<u8")
_SUM: Final = 8
#: Of a table that there is not.
NONE: Final = 0


def table_sum(raw: bytes) -> int:
    """Sum a table, padded to whole clusters as it stands in the file; never NONE."""
    return xxhash.xxh3_64_intdigest(raw) or 1


@dataclass(slots=True)
class TableSums:
    """The sums of one image's tables."""

    l1: int
    refcount_table: int
    l2: U64
    blocks: U64

    def pack(self) -> bytes:
        """Render the file."""
        start = _FIELDS.pack(_MAGIC, len(self.l2), len(self.blocks), self.l1, self.refcount_table)
        body = start + self.l2.astype(_ITEM).tobytes() + self.blocks.astype(_ITEM).tobytes()
        return body + xxhash.xxh3_64_digest(body)

    def resize(self, l1_entries: int, blocks: int) -> None:
        """Make room for more tables."""
        self.l2 = _longer(self.l2, l1_entries)
        self.blocks = _longer(self.blocks, blocks)


def read_table_sums(path: Path) -> TableSums | None:
    """Read the sums beside an image; None: there are none.

    Raises:
        Corrupt: ``sums-damaged``.
    """
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return None
    body = raw[:-_SUM]
    if len(raw) < _FIELDS.size + _SUM or raw[-_SUM:] != xxhash.xxh3_64_digest(body):
        raise Corrupt("sums-damaged", f"{path} is damaged: it does not have its checksum")
    _magic, entries, blocks, l1, table = _FIELDS.unpack_from(body)
    items = np.frombuffer(body, _ITEM, offset=_FIELDS.size).astype(np.uint64)
    return TableSums(l1, table, items[:entries].copy(), items[entries : entries + blocks].copy())


def write_table_sums(path: Path, sums: TableSums) -> None:
    """Put the sums of an image's tables in place, durably.

    Raises:
        NoSpace: the file system is full; what was there stays.
    """
    publish_bytes(path, sums.pack())


def sums_of_tables(image: Image) -> TableSums:
    """Sum all tables as they stand in the file.

    Raises:
        Corrupt: ``image-damaged``: one lies outside of the file.
    """
    l1, table = image.raw_l1(), image.raw_refcount_table()
    sums = TableSums(table_sum(l1), table_sum(table), np.zeros(0, np.uint64), np.zeros(0, np.uint64))
    sums.resize(len(image.l1), len(image.refcount_table))
    for numbers, entries in ((sums.l2, image.l1), (sums.blocks, image.refcount_table)):
        for place in np.flatnonzero(entries).tolist():
            numbers[place] = table_sum(image.raw_table(int(entries[place]) & OFFSET_MASK))
    return sums


def carry_table_sums(image: Path, old: Path, new: Path) -> None:
    """Give an image that is only renamed its sums at its new place.

    Raises:
        Corrupt: ``sums-damaged``, ``image-damaged``.
        NoSpace: the file system is full.
    """
    sums = read_table_sums(old)
    if sums is None:
        fd = os.open(image, os.O_RDONLY | os.O_CLOEXEC)
        try:
            sums = sums_of_tables(Image(fd, image))
        finally:
            os.close(fd)
    write_table_sums(new, sums)


class SummedTables:
    """The tables of an open image, each checked when it is read.

    Args:
        image: the image.
        sums: of its tables.
        name: of the image, for errors.
    """

    def __init__(self, image: Image, sums: TableSums, name: str) -> None:
        self.image = image
        self.sums = sums
        self._name = name

    def l2(self, number: int) -> U64:
        """Read one L2 table; all zero where there is none.

        Raises:
            Corrupt: ``image-damaged``: it is not what it was when it was written.
        """
        entry = int(self.image.l1[number]) & OFFSET_MASK if number < len(self.image.l1) else 0
        known = int(self.sums.l2[number]) if number < len(self.sums.l2) else NONE
        if (not entry) != (known == NONE):
            raise self._damaged(f"L1 entry {number}")
        if entry and table_sum(self.image.raw_table(entry)) != known:
            raise self._damaged(f"L2 table {number}")
        return self.image.l2(number)

    def check_rest(self) -> None:
        """Check all tables but those of level 2.

        Raises:
            Corrupt: ``image-damaged``: the first one that is wrong.
        """
        if table_sum(self.image.raw_l1()) != self.sums.l1:
            raise self._damaged("the L1 table")
        self.check_refcounts()

    def check_refcounts(self) -> None:
        """Check refcount table and blocks.

        Raises:
            Corrupt: ``image-damaged``.
        """
        if table_sum(self.image.raw_refcount_table()) != self.sums.refcount_table:
            raise self._damaged("the refcount table")
        for block, entry in enumerate(self.image.refcount_table.tolist()):
            known = int(self.sums.blocks[block]) if block < len(self.sums.blocks) else NONE
            if entry and table_sum(self.image.raw_table(entry & OFFSET_MASK)) != known:
                raise self._damaged(f"refcount block {block}")

    def _damaged(self, what: str) -> Corrupt:
        return Corrupt("image-damaged", f"{self._name} is damaged: {what} is not as it was written")


def _longer(items: U64, size: int) -> U64:
    grown = np.zeros(max(size, len(items)), np.uint64)
    grown[: len(items)] = items
    return grown
