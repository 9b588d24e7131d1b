"""Patches in files: their blocks in a host cluster of an image, and put into a cluster of the base by a fold."""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np

from vmreplica.model.errors import Corrupt
from vmreplica.model.units import CLUSTER
from vmreplica.qcow2 import frames
from vmreplica.qcow2.head import BLOCK, BLOCKS, Records, Segment, is_patch, patch_masks
from vmreplica.qcow2.layout import COMPRESSED, L2_ENTRIES, READS_ZERO, U64, described
from vmreplica.qcow2.rawio import pread_exact, pwrite_all
from vmreplica.qcow2.reader import Image
from vmreplica.qcow2.sums import Sums, agree, block_sums

#: Of the base's frames, which are read far more often than they are made.
_LEVEL: Final = 3
#: Host clusters of patches read at once.
_READ: Final = 64


def write_patches(fd: int, segment: Segment) -> Sums:
    """Write the blocks of a segment's patches to their places in the image; the rest of their clusters stay holes.

    Returns:
        The sums of the blocks, taken before they were written.

    Raises:
        Corrupt: ``frame-broken``.
        OSError: also when the file system is full; a part may have been written.
    """
    records = segment.records[is_patch(segment.records)]
    start, place = 0, segment.head.patches_at
    sums = [block_sums(b"")]
    for length, mask in zip(records["length"].tolist(), patch_masks(records).tolist(), strict=True):
        blocks = memoryview(frames.decode_patch(segment.patches[start : start + length], mask.bit_count()))
        sums.append(block_sums(blocks))
        done = 0
        for low, high in mask_runs(mask):
            size = (high - low) * BLOCK
            pwrite_all(fd, blocks[done : done + size], place + low * BLOCK)
            done += size
        start, place = start + length, place + CLUSTER
    return np.concatenate(sums)


def stored_sums(fd: int, records: Records, patches_at: int, path: Path) -> Sums:
    """Sum the blocks of a segment's patches as they stand in the image.

    Args:
        fd: of the image.
        records: of the segment.
        patches_at: where the host cluster of the first patch stands; the others follow.
        path: of the image, for the error.

    Raises:
        Corrupt: ``image-damaged``: the file ends before.
    """
    masks = patch_masks(records)[is_patch(records)]
    sums = [block_sums(b"")]
    for low in range(0, len(masks), _READ):
        part = masks[low : low + _READ]
        raw = pread_exact(fd, len(part) * CLUSTER, patches_at + low * CLUSTER, path)
        chosen = ((part[:, None] >> np.arange(BLOCKS, dtype=np.uint32)) & 1 == 1).reshape(-1)
        blocks = np.frombuffer(raw, np.uint8).reshape(-1, BLOCK)[chosen]
        sums.append(block_sums(memoryview(blocks.reshape(-1))))
    return np.concatenate(sums)


def mask_runs(mask: int) -> Iterator[tuple[int, int]]:
    """List the runs of set bits as half-open ranges, ascending."""
    low = 0
    while mask >> low:
        low += ((mask >> low) & -(mask >> low)).bit_length() - 1
        rest = ~(mask >> low)
        high = low + (rest & -rest).bit_length() - 1
        yield low, high
        low = high


class Patcher:
    """Puts an overlay's patches into the clusters of its base, in memory. For ascending clusters.

    Args:
        image: the base.
        base: its file.
        overlay: file of the image over it.
        path: of the overlay, for errors.
    """

    def __init__(self, image: Image, base: int, overlay: int, path: Path) -> None:
        self._image = image
        self._base = base
        self._overlay = overlay
        self._path = path
        self._table: tuple[int, U64] = (-1, np.zeros(0, np.uint64))

    def frames(self, patches: Records, offset: int, sums: Sums) -> list[bytes | None]:
        """Make the frames of patched clusters; None for one that became all zero.

        Args:
            patches: their records.
            offset: bytes; where the host cluster of the first one stands in the overlay, the others follow.
            sums: of their blocks.

        Raises:
            Corrupt: ``image-damaged`` or ``frame-broken``.
        """
        made: list[bytes | None] = []
        known = 0
        rows = zip(patches["cluster"].tolist(), patch_masks(patches).tolist(), strict=True)
        for place, (number, mask) in enumerate(rows):
            raw = pread_exact(self._overlay, CLUSTER, offset + place * CLUSTER, self._path)
            cluster = bytearray(self._cluster(number))
            chosen = (mask >> np.arange(BLOCKS)) & 1 == 1
            blocks = np.frombuffer(raw, np.uint8).reshape(BLOCKS, BLOCK)[chosen]
            if not agree(blocks.tobytes(), sums[known : known + len(blocks)]):
                # In the new frame nobody could see any more that it had gone bad.
                raise Corrupt("image-damaged", f"{self._path} has a changed block of {number} that has not its sum")
            np.frombuffer(cluster, np.uint8).reshape(BLOCKS, BLOCK)[chosen] = blocks
            known += len(blocks)
            made += frames.encode(memoryview(cluster), _LEVEL)
        return made

    def _cluster(self, number: int) -> bytes:
        """Read what the base holds of a guest cluster."""
        table, place = divmod(number, L2_ENTRIES)
        if self._table[0] != table:
            self._table = table, self._image.l2(table)
        entry = self._table[1][place : place + 1]
        if int(entry[0]) in {0, READS_ZERO}:
            return bytes(CLUSTER)
        if not int(entry[0]) & COMPRESSED:
            raise Corrupt("image-damaged", f"the base of {self._path} has an entry that is not ours for {number}")
        (start,), (end,) = described(entry)
        raw = pread_exact(self._base, int(end - start), int(start), self._path)
        return frames.decode(raw, padded=True)
