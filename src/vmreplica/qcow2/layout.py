"""What stands where in a qcow2 file of ours: header, descriptors, table sizes. Pure; no file is touched here.

The format is qcow2 v3 as QEMU's docs/interop/qcow2.txt describes it, always with 64 KiB clusters, 16-bit refcounts,
zstd compression, no snapshots, no encryption. Integers in it are big-endian.
"""

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from vmreplica.model.errors import Corrupt
from vmreplica.model.units import CLUSTER
from vmreplica.qcow2.head import BLOCKS, KIND_ZERO, KIND_ZSTD, Records, patch_masks, record_ends

#: Guest clusters per L2 table: one cluster of 8-byte entries.
L2_ENTRIES: Final = CLUSTER // 8
#: Bytes of an entry with and without extended L2, where a bitmap of 32 subclusters follows each descriptor.
_ENTRY: Final = 8
_EXTENDED_ENTRY: Final = 16
#: Host clusters per refcount block: one cluster of 2-byte entries.
REFCOUNTS: Final = CLUSTER // 2
COPIED: Final = 1 << 63
COMPRESSED: Final = 1 << 62
#: Host offsets in L1, L2 and refcount table entries.
OFFSET_MASK: Final = 0x00FF_FFFF_FFFF_FE00
#: An L2 entry that reads as zeroes, whatever the backing file has there.
READS_ZERO: Final = 1
UNALLOCATED: Final = 0
#: The same as READS_ZERO with extended L2: a bitmap where every subcluster reads as zeroes.
READS_ZERO_BITMAP: Final = 0xFFFF_FFFF << 32
#: Compressed descriptors with 64 KiB clusters: 54 bits of offset, 8 of further 512-byte sectors.
COMPRESSED_OFFSET_BITS: Final = 54
SECTOR_BITS: Final = 9
CLUSTER_BITS: Final = 16

#: Tables are big-endian in the file.
BIG64: Final = np.dtype(">u8")
BIG16: Final = np.dtype(">u2")

U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]
Batch = tuple[Records, I64]

_HEADER: Final = struct.Struct(">4sIQIIQIIQQIIQQQQIIB7x")
_MAGIC: Final = b"QFI\xfb"
_VERSION: Final = 3
_REFCOUNT_ORDER: Final = 4
_COMPRESSION_BIT: Final = 1 << 3
_EXTENDED_BIT: Final = 1 << 4
_ZSTD: Final = 1
_BACKING_FORMAT: Final = struct.pack(">II", 0xE2792ACA, 5) + b"qcow2\0\0\0"
_RAW_BACKING_FORMAT: Final = struct.pack(">II", 0xE2792ACA, 3) + b"raw\0\0\0\0\0"
_END: Final = bytes(8)
_MAX_BACKING: Final = 1023


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """The header's variable parts; offsets and size in bytes."""

    size: int
    l1_offset: int
    l1_entries: int
    refcount_offset: int
    refcount_clusters: int
    backing: str | None = None
    #: Whether L2 entries are extended; the tables of such an image, an overlay, are never read by this program.
    extended: bool = False
    #: Whether the backing file is raw, a device for example, instead of qcow2.
    raw_backing: bool = False

    def pack(self) -> bytes:
        """Render the header cluster's used part."""
        name = (self.backing or "").encode()
        if len(name) > _MAX_BACKING:
            raise ValueError("a backing name is at most 1023 bytes")
        backing_format = _RAW_BACKING_FORMAT if self.raw_backing else _BACKING_FORMAT
        extensions = (backing_format if name else b"") + _END
        name_offset = _HEADER.size + len(extensions) if name else 0
        features = _COMPRESSION_BIT | (_EXTENDED_BIT if self.extended else 0)
        fixed = _HEADER.pack(
            _MAGIC, _VERSION, name_offset, len(name), CLUSTER_BITS, self.size, 0, self.l1_entries, self.l1_offset,
            self.refcount_offset, self.refcount_clusters, 0, 0, features, 0, 0, _REFCOUNT_ORDER,
            _HEADER.size, _ZSTD,
        )  # fmt: skip
        return fixed + extensions + name

    @staticmethod
    def unpack(raw: bytes, name: str, *, overlay: bool = False) -> "Header":
        """Read back a header of ours.

        Args:
            raw: the file's first cluster or less.
            name: of the file, for the error.
            overlay: it may have extended L2 entries.

        Raises:
            Corrupt: ``image-damaged``: it is no header of ours.
        """
        if len(raw) < _HEADER.size:
            raise Corrupt("image-damaged", f"{name} has no whole qcow2 header")
        (
            magic, version, backing_at, backing_size, bits, size, crypt, l1_entries, l1_offset, refcount_offset,
            refcount_clusters, snapshots, _, incompatible, _, _, order, length, compression,
        ) = _HEADER.unpack_from(raw)  # fmt: skip
        extended = overlay and bool(incompatible & _EXTENDED_BIT)
        features = _COMPRESSION_BIT | (_EXTENDED_BIT if extended else 0)
        ours = (_MAGIC, _VERSION, CLUSTER_BITS, 0, 0, features, _REFCOUNT_ORDER, _HEADER.size, _ZSTD)
        if (magic, version, bits, crypt, snapshots, incompatible, order, length, compression) != ours:
            raise Corrupt("image-damaged", f"{name} has no qcow2 header that this program writes")
        backing = raw[backing_at : backing_at + backing_size].decode("utf-8", "replace") if backing_at else None
        return Header(
            size=size,
            l1_offset=l1_offset,
            l1_entries=l1_entries,
            refcount_offset=refcount_offset,
            refcount_clusters=refcount_clusters,
            backing=backing,
            extended=extended,
            raw_backing=Header.is_raw_backed(raw),
        )

    @staticmethod
    def backing_of(raw: bytes) -> str | None:
        """Tell the backing file that a qcow2 header at the start of these bytes names, extended or not; None: none."""
        if not raw.startswith(_MAGIC) or len(raw) < _HEADER.size:
            return None
        _magic, _version, place, size, *_rest = _HEADER.unpack_from(raw)
        return raw[place : place + size].decode("utf-8", "replace") if place else None

    @staticmethod
    def is_raw_backed(raw: bytes) -> bool:
        """Tell whether a header of ours, at the start of these bytes, names a raw backing file."""
        return raw.startswith(_MAGIC) and raw.startswith(_RAW_BACKING_FORMAT, _HEADER.size)


def round_up(offset: int) -> int:
    """Round bytes up to a host cluster."""
    return -(-offset // CLUSTER) * CLUSTER


def l2_entries_of(*, extended: bool) -> int:
    """Tell how many guest clusters an L2 table describes."""
    return CLUSTER // (_EXTENDED_ENTRY if extended else _ENTRY)


def l1_entries_of(size: int, *, extended: bool = False) -> int:
    """Tell how many L1 entries a disk of so many bytes has."""
    return -(-size // (CLUSTER * l2_entries_of(extended=extended)))


def table_clusters(entries: int) -> int:
    """Tell how many host clusters a table of 8-byte entries takes."""
    return -(-entries // L2_ENTRIES)


def descriptors(offsets: I64, lengths: I64) -> U64:
    """Make the L2 entries of compressed clusters from their host offsets and lengths in bytes."""
    further = ((offsets + lengths - 1) >> SECTOR_BITS) - (offsets >> SECTOR_BITS)
    entries: U64 = ((further << COMPRESSED_OFFSET_BITS) | offsets).astype(np.uint64) | np.uint64(COMPRESSED)
    return entries


def described(entries: U64) -> tuple[I64, I64]:
    """Tell first byte and end (rounded up to a sector) of the host ranges that compressed descriptors name."""
    offsets = (entries & np.uint64((1 << COMPRESSED_OFFSET_BITS) - 1)).astype(np.int64)
    further = ((entries & np.uint64(COMPRESSED - 1)) >> np.uint64(COMPRESSED_OFFSET_BITS)).astype(np.int64)
    return offsets, ((offsets >> SECTOR_BITS) + further + 1) << SECTOR_BITS


def count_frames(refcounts: npt.NDArray[np.uint16], starts: I64, ends: I64, step: int) -> None:
    """Add ``step`` to the refcount of each host cluster for each range [start, end) that touches it."""
    first, last = starts >> CLUSTER_BITS, (ends - 1) >> CLUSTER_BITS
    for place in range(int((last - first).max(initial=-1)) + 1):
        touched = (first + place)[first + place <= last]
        low = int(touched.min())
        counts = np.bincount(touched - low)
        part = refcounts[low : low + len(counts)]
        part += (counts * step).astype(np.uint16)  # wraps around for a negative step, as meant


def patch_bitmaps(masks: npt.NDArray[np.uint32]) -> U64:
    """Make the subcluster bitmaps of patches from their masks: a block is two subclusters."""
    bitmaps = np.zeros(len(masks), np.uint64)
    for bit in range(BLOCKS):
        bitmaps |= ((masks >> np.uint32(bit)) & np.uint32(1)).astype(np.uint64) * np.uint64(3 << 2 * bit)
    return bitmaps


def touched_l2(records: Records, *, extended: bool = False) -> I64:
    """Tell which L2 tables records touch, ascending."""
    per_table = l2_entries_of(extended=extended)
    first = records["cluster"].astype(np.int64) // per_table
    last = (record_ends(records) - 1) // per_table
    long = last > first
    spans = [np.arange(low, high + 1) for low, high in zip(first[long], last[long], strict=True)]
    return np.unique(np.concatenate([first, *spans]))


def l2_tables(
    batches: Iterable[Batch], zero: int, *, extended: bool = False
) -> Iterator[tuple[int, U64, npt.NDArray[np.bool_]]]:
    """Turn records into L2 tables, one after the other.

    Args:
        batches: records, ascending over all batches, with the host offsets of those that have data.
        zero: the entry for clusters that read as zeroes; with extended L2, its bitmap.
        extended: make extended entries; only these can describe patches.

    Yields:
        Number of the table, its 8192 words, and which of its entries the records say something about.

    Raises:
        Corrupt: ``index-order``: the records do not ascend.
    """
    per_table = l2_entries_of(extended=extended)
    current, entries, said = -1, np.zeros((0, 0), np.uint64), np.zeros(0, np.bool_)
    for records, offsets in batches:
        batch = _worked_out(records, offsets, zero, extended=extended)
        for number in touched_l2(records, extended=extended).tolist():
            if number != current:
                if current >= 0:
                    yield current, entries.reshape(-1), said
                if number < current:
                    raise Corrupt("index-order", "the records of a disk do not ascend")
                current, said = number, np.zeros(per_table, np.bool_)
                entries = np.zeros((per_table, L2_ENTRIES // per_table), np.uint64)
            _fill(entries, said, number * per_table, batch)
    if current >= 0:
        yield current, entries.reshape(-1), said


class _Batch(NamedTuple):
    """Records with what is worked out once for all tables they touch."""

    records: Records
    ends: I64
    #: One row of one or two words for each record.
    values: U64


def _worked_out(records: Records, offsets: I64, zero: int, *, extended: bool) -> _Batch:
    values = np.zeros((len(records), 2 if extended else 1), np.uint64)
    zstd, data = records["kind"] == KIND_ZSTD, records["kind"] != KIND_ZERO
    values[~data, -1] = zero
    values[zstd, 0] = descriptors(offsets[zstd[data]], records["length"][zstd].astype(np.int64))
    patch = data & ~zstd
    if patch.any():
        if not extended:
            raise ValueError("patches need extended L2 entries")
        values[patch, 0] = offsets[patch[data]].astype(np.uint64) | np.uint64(COPIED)
        values[patch, 1] = patch_bitmaps(patch_masks(records)[patch])
    return _Batch(records, record_ends(records), values)


def _fill(entries: U64, said: npt.NDArray[np.bool_], base: int, batch: _Batch) -> None:
    """Put into one table what the records say about its guest clusters, the first of which is ``base``."""
    low = int(np.searchsorted(batch.ends, base, "right"))
    high = int(np.searchsorted(batch.records["cluster"], np.uint64(base + len(said)), "left"))
    part, ends, values = batch.records[low:high], batch.ends[low:high], batch.values[low:high]
    data = part["kind"] != KIND_ZERO
    places = part["cluster"][data].astype(np.int64) - base
    entries[places] = values[data]
    said[places] = True
    zeroes = covered(part["cluster"][~data].astype(np.int64) - base, ends[~data] - base, len(said))
    if zeroes is not None:
        entries[zeroes] = values[~data][0]
        said[zeroes] = True


def covered(starts: I64, ends: I64, size: int) -> npt.NDArray[np.bool_] | None:
    """Make a mask of ``size`` entries from disjoint runs, cut to these; None when there are no runs."""
    if not len(starts):
        return None
    edges = np.zeros(size + 1, np.int8)
    edges[np.maximum(starts, 0)] += 1
    edges[np.minimum(ends, size)] -= 1
    mask: npt.NDArray[np.bool_] = np.cumsum(edges[:-1], dtype=np.int8) > 0
    return mask
