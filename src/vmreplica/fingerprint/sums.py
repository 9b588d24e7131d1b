"""One sum over all hashes of a disk, in any order: what it held at an instant (docs/design/fingerprint.md, "Sums").

Each block that is not zero counts with two 64-bit numbers mixed from its hash, its place and the key; they are added
modulo 2^64. So the sum of a changed disk follows from the changed blocks alone, and that of a region from its blocks.
"""

from collections.abc import Callable, Iterable
from typing import Final, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from vmreplica.fingerprint.blocks import Hashes

_MASK: Final = (1 << 64) - 1
_STEP: Final = 0x9E37_79B9_7F4A_7C15
_MIX_1: Final = np.uint64(0xBF58_476D_1CE4_E5B9)
_MIX_2: Final = np.uint64(0x94D0_49BB_1331_11EB)
_ODD: Final = np.uint64(0xD6E8_FEB8_6659_FD93)
_HALF: Final = np.uint64(32)
#: Hashes that are mixed at once: what is worked on stays in the processor's cache.
_WINDOW: Final = 1 << 15


class BlockSum(NamedTuple):
    """The sum of some blocks of a disk; of none it is zero."""

    low: int = 0
    high: int = 0

    def plus(self, other: "BlockSum") -> "BlockSum":
        """Add the sum of other blocks."""
        return BlockSum((self.low + other.low) & _MASK, (self.high + other.high) & _MASK)

    def minus(self, other: "BlockSum") -> "BlockSum":
        """Take the sum of some of its blocks away."""
        return BlockSum((self.low - other.low) & _MASK, (self.high - other.high) & _MASK)

    @property
    def text(self) -> str:
        """As 32 hexadecimal digits."""
        return f"{self.high:016x}{self.low:016x}"

    @classmethod
    def of_text(cls, text: str) -> Self:
        """Read what ``text`` spelt; the caller has checked that it is 32 hexadecimal digits."""
        return cls(int(text[16:], 16), int(text[:16], 16))


def sum_blocks(first: int, hashes: Hashes, key: int) -> BlockSum:
    """Sum up the hashes of neighbouring blocks.

    Args:
        first: number of the first block.
        hashes: of the blocks from there on.
        key: of the hashes.
    """
    low = high = 0
    for start in range(0, len(hashes), _WINDOW):
        piece = hashes[start : start + _WINDOW]
        places = np.flatnonzero(piece)
        if not len(places):
            continue
        numbers = places.astype(np.uint64) + np.uint64(first + start)
        one, other = _mixed(numbers, piece[places], key)
        low, high = low + int(np.add.reduce(one)), high + int(np.add.reduce(other))
    return BlockSum(low & _MASK, high & _MASK)


def sum_after(
    before: BlockSum,
    hashes: Callable[[int, int], Hashes],
    entries: Callable[[], Iterable[tuple[int, Hashes]]],
    key: int,
) -> BlockSum:
    """Tell the sum of a disk once staged hashes are merged, without merging them.

    Hashes are staged in the order of the disk. Where they begin again further ahead, a killed process was gone on with
    from there, or a disk read whole had begun as zeroes: what was staged before from that block on does not count.

    Args:
        before: sum of what they are merged into.
        hashes: reads what they are merged into: first block and count.
        entries: reads the staged hashes from their beginning; called twice.
        key: of the hashes.
    """
    limits, total = _restarts(entries()), before
    for number, (first, fresh) in enumerate(entries()):
        while limits and limits[0][0] <= number:
            limits.pop(0)
        valid = fresh[: max(0, min(limit for _, limit in limits) - first)] if limits else fresh
        # Behind the end of a disk that has grown there was nothing.
        old = sum_blocks(first, hashes(first, len(valid)), key)
        total = total.plus(sum_blocks(first, valid, key)).minus(old)
    return total


def _restarts(entries: Iterable[tuple[int, Hashes]]) -> list[tuple[int, int]]:
    """Find entries that begin before the end of the one before: (number, first block)."""
    found, end = [], 0
    for number, (first, hashes) in enumerate(entries):
        if first < end:
            found.append((number, first))
        end = first + len(hashes)
    return found


def _mixed(
    numbers: npt.NDArray[np.uint64], hashes: Hashes, key: int
) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]:
    place = _mix(numbers * np.uint64(_STEP) + np.uint64(key))
    turned = (place << _HALF) | (place >> _HALF)
    return _mix(hashes ^ place), _mix(hashes * _ODD + turned)


def _mix(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Scatter 64 bits over 64 bits (the finalizer of splitmix64)."""
    values = (values ^ (values >> np.uint64(30))) * _MIX_1
    values = (values ^ (values >> np.uint64(27))) * _MIX_2
    return values ^ (values >> np.uint64(31))
