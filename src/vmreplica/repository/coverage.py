"""Which stretches of a disk an image of a chain says itself: what lies below there is not read."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from vmreplica.model.units import CLUSTER
from vmreplica.qcow2.head import BLOCK, Records, is_patch, patch_masks, record_ends
from vmreplica.qcow2.index import read_heads
from vmreplica.qcow2.patching import mask_runs

#: Half-open stretches in bytes, ascending and apart from each other.
Ranges = list[tuple[int, int]]
_BUFFER = 1 << 20


def joined(ranges: Iterable[tuple[int, int]]) -> Ranges:
    """Sort stretches and join what touches."""
    found: Ranges = []
    for low, high in sorted(ranges):
        if found and low <= found[-1][1]:
            found[-1] = found[-1][0], max(high, found[-1][1])
        elif low < high:
            found.append((low, high))
    return found


def without(ranges: Ranges, cover: Ranges) -> Ranges:
    """Cut what is covered out of stretches."""
    left: Ranges = []
    for low, high in ranges:
        at = low
        for start, end in cover:
            if end <= at or start >= high:
                continue
            if start > at:
                left.append((at, start))
            at = end
        if at < high:
            left.append((at, high))
    return left


def said_by(index: Path, ranges: Ranges, *, whole: bool = False) -> Ranges:
    """Tell which parts of these stretches an image says itself.

    Args:
        index: of the image.
        ranges: of its disk.
        whole: count whole clusters only, patches not.

    Raises:
        Corrupt: ``index-damaged``.
        OSError: it cannot be read.
    """
    if not ranges:
        return []
    found: Ranges = []
    low, high = ranges[0][0] // CLUSTER, -(-ranges[-1][1] // CLUSTER)
    with index.open("rb", buffering=_BUFFER) as fh:
        for _head, records in read_heads(fh):
            near = records[(record_ends(records) > low) & (records["cluster"] < high)]
            found += _stretches(near, whole=whole)
    return joined(found)


def _stretches(records: Records, *, whole: bool) -> Ranges:
    patches = is_patch(records)
    plain = records[~patches]
    starts, ends = plain["cluster"].astype(np.int64) * CLUSTER, record_ends(plain) * CLUSTER
    found = list(zip(starts.tolist(), ends.tolist(), strict=True))
    if not whole:
        rows = records[patches]
        for cluster, mask in zip(rows["cluster"].tolist(), patch_masks(rows).tolist(), strict=True):
            found += [(cluster * CLUSTER + a * BLOCK, cluster * CLUSTER + b * BLOCK) for a, b in mask_runs(mask)]
    return found
