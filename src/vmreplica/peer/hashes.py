"""Block hashes on the wire: 64-bit little-endian integers as one zstd frame, which makes next to nothing of zeroes."""

from typing import Final

import numpy as np
import numpy.typing as npt
import zstandard

#: One hash per block, in the order of the blocks; 0 is a block of zeroes.
Hashes = npt.NDArray[np.uint64]

#: Hashes of one request at most: 8 MiB.
MAX_HASHES: Final = 1 << 20
_WIRE: Final = np.dtype("<u8")
_LEVEL: Final = 1


def pack_hashes(hashes: Hashes) -> bytes:
    """Spell hashes for the wire."""
    return zstandard.ZstdCompressor(level=_LEVEL).compress(hashes.astype(_WIRE).tobytes())


def unpack_hashes(body: bytes, count: int) -> Hashes:
    """Read exactly so many hashes; memory is bounded by their number, whatever a peer sends.

    Raises:
        ValueError: that is not what it holds.
    """
    size = count * _WIRE.itemsize
    try:
        if zstandard.get_frame_parameters(body).content_size != size:
            raise ValueError("another number of hashes")
        raw = zstandard.ZstdDecompressor().decompress(body, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise ValueError("no zstd frame") from error
    return np.frombuffer(raw, _WIRE).astype(np.uint64)
