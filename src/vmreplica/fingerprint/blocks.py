"""The hash of a block, and how many blocks there are."""

from functools import cache
from typing import Final

import numpy as np
import numpy.typing as npt
import xxhash

from vmreplica.model.units import CLUSTER, KiB, MiB

#: Guest bytes per hash.
BLOCK: Final = 4 * KiB
BLOCKS_PER_CLUSTER: Final = CLUSTER // BLOCK

#: Block hashes in the order of their blocks; 0 is a block of zeroes.
Hashes = npt.NDArray[np.uint64]

_ZEROES: Final = bytes(BLOCK)
#: Made once: making a slice takes as long as hashing half a block.
_SLICES: Final = tuple(slice(start, start + BLOCK) for start in range(0, 2 * MiB, BLOCK))


def blocks_of(size: int) -> int:
    """Tell how many blocks a disk of so many bytes has."""
    return -(-size // BLOCK)


def hash_blocks(data: memoryview, key: int) -> Hashes:
    """Hash guest data block by block.

    Args:
        data: guest bytes from a block boundary on; a last incomplete block is padded with zeroes.
        key: of the VM, 64 bits.

    Returns:
        One hash per block: 0 for a block of zeroes, never for another (but for one in 2^64).
    """
    hashes = np.empty(blocks_of(len(data)), np.uint64)
    for first in range(0, len(hashes), len(_SLICES)):
        piece = data[first * BLOCK : (first + len(_SLICES)) * BLOCK]
        found = _digests(piece, key)
        hashes[first : first + len(found)] = found
    zero = hashes == _hash_of_zeroes(key)
    # In this order: should the hash of zeroes itself be 0, a block of zeroes still gets 0.
    hashes[hashes == 0] = 1
    hashes[zero] = 0
    return hashes


def _digests(piece: memoryview, key: int) -> list[int]:
    digest = xxhash.xxh3_64_intdigest
    whole = len(piece) // BLOCK
    found = [digest(piece[place], key) for place in _SLICES[:whole]]
    if whole * BLOCK < len(piece):
        found.append(digest(bytes(piece[whole * BLOCK :]).ljust(BLOCK, b"\0"), key))
    return found


@cache
def _hash_of_zeroes(key: int) -> np.uint64:
    return np.uint64(xxhash.xxh3_64_intdigest(_ZEROES, key))
