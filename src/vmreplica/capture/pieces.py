"""What was found in a piece of a disk: which of its clusters the point carries, as what, and the hashes to stage.

A cluster is carried whole, as a patch of some of its blocks, or as zeroes. Pure work on bytes, done by the workers.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from vmreplica.capture.plan import Run
from vmreplica.fingerprint import BLOCK, BLOCKS_PER_CLUSTER, Fingerprint, Hashes, blocks_of, hash_blocks
from vmreplica.model.units import CLUSTER
from vmreplica.qcow2.frames import encode, encode_patch
from vmreplica.qcow2.head import KIND_ZERO, KIND_ZSTD, patch_kind

_ALL: Final = (1 << BLOCKS_PER_CLUSTER) - 1


class Row(NamedTuple):
    """One cluster that the point carries."""

    cluster: int
    #: As in a record: KIND_ZSTD, KIND_ZERO (no frame), or a patch with its mask.
    kind: int
    frame: bytes


class Piece(NamedTuple):
    """What a read run contributes, in the order of the disk."""

    rows: list[Row]
    #: Block of the first of the hashes.
    first_block: int
    #: To be staged; may be empty.
    hashes: Hashes


_NO_HASHES: Final = np.empty(0, np.uint64)


def whole_piece(run: Run, chunk: memoryview, level: int) -> Piece:
    """Carry every cluster, without hashes.

    Args:
        run: what was read.
        chunk: its bytes, whole clusters.
        level: zstd level.
    """
    return Piece(_rows(run, encode(chunk, level)), 0, _NO_HASHES)


def hashed_piece(run: Run, chunk: memoryview, level: int, key: int, size: int) -> Piece:
    """Carry every cluster, and stage the hashes from the first that is not zero to the last.

    Args:
        run: what was read.
        chunk: its bytes, whole clusters.
        level: zstd level.
        key: of the hashes.
        size: of the disk in bytes.
    """
    hashes = hash_blocks(chunk, key)
    frames = [
        encode_patch(chunk[place * CLUSTER : (place + 1) * CLUSTER], level) if used else None
        for place, used in enumerate(_used_clusters(hashes))
    ]
    return Piece(_rows(run, frames), *_trimmed(run, hashes, hashes != 0, size))


def changed_piece(  # noqa: PLR0917 - in the order of the other kinds of pieces
    run: Run,
    chunk: memoryview,
    level: int,
    fingerprint: Fingerprint,
    size: int,
    must: Sequence[tuple[int, int]] = (),
) -> Piece:
    """Carry what differs from the fingerprint, block by block, and some clusters whole.

    Args:
        run: what was read.
        chunk: its bytes, whole clusters.
        level: zstd level.
        fingerprint: of what the replica holds; behind its end, as on a disk that has grown, are zeroes.
        size: of the disk in bytes.
        must: clusters (first, end) within the run that are carried whole, whatever the fingerprint says.
    """
    now = hash_blocks(chunk, fingerprint.key)
    differs = now != _padded(fingerprint.hashes(run.first * BLOCKS_PER_CLUSTER, len(now)), len(now))
    for low, high in must:
        differs[(low - run.first) * BLOCKS_PER_CLUSTER : (high - run.first) * BLOCKS_PER_CLUSTER] = True
    if not differs.any():
        return Piece([], 0, _NO_HASHES)
    masks = np.packbits(differs, bitorder="little").view("<u2")
    used = _used_clusters(now)
    rows = []
    for place in np.flatnonzero(masks).tolist():
        cluster = chunk[place * CLUSTER : (place + 1) * CLUSTER]
        if not used[place]:
            rows.append(Row(run.first + place, KIND_ZERO, b""))
        else:
            rows.append(_changed_row(run.first + place, cluster, int(masks[place]), level, size))
    return Piece(rows, *_trimmed(run, now, differs, size))


def _changed_row(number: int, cluster: memoryview, mask: int, level: int, size: int) -> Row:
    """Carry a cluster as a patch, or whole when each of its blocks has changed (the last cluster may have fewer)."""
    blocks = min(BLOCKS_PER_CLUSTER, blocks_of(size) - number * BLOCKS_PER_CLUSTER)
    existing = _ALL >> (BLOCKS_PER_CLUSTER - blocks)
    if mask & existing == existing:
        return Row(number, KIND_ZSTD, encode_patch(cluster, level))
    changed = [cluster[at * BLOCK : (at + 1) * BLOCK] for at in range(blocks) if mask >> at & 1]
    body = changed[0] if len(changed) == 1 else memoryview(b"".join(changed))
    return Row(number, patch_kind(mask), encode_patch(body, level))


def _used_clusters(hashes: Hashes) -> list[bool]:
    used: list[bool] = (np.bitwise_or.reduce(hashes.reshape(-1, BLOCKS_PER_CLUSTER), axis=1) != 0).tolist()
    return used


def _rows(run: Run, frames: list[bytes | None]) -> list[Row]:
    return [
        Row(cluster, KIND_ZERO, b"") if frame is None else Row(cluster, KIND_ZSTD, frame)
        for cluster, frame in enumerate(frames, run.first)
    ]


def _trimmed(run: Run, hashes: Hashes, wanted: npt.NDArray[np.bool_], size: int) -> tuple[int, Hashes]:
    """Cut hashes down to those from the first wanted one to the last, and to the disk."""
    first_block = run.first * BLOCKS_PER_CLUSTER
    places = np.flatnonzero(wanted[: blocks_of(size) - first_block])
    if not len(places):
        return first_block, _NO_HASHES
    low, high = int(places[0]), int(places[-1]) + 1
    return first_block + low, hashes[low:high]


def _padded(hashes: Hashes, count: int) -> Hashes:
    if len(hashes) == count:
        return hashes
    return np.concatenate([hashes, np.zeros(count - len(hashes), np.uint64)])
