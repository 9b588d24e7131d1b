"""Guest clusters as zstd frames, the content of qcow2 compressed clusters; and patches, which are some of their blocks.

Every frame says its content size (65 536, or 4096 for each block of a patch) and ends with a checksum; that of whole
clusters is verified by QEMU on each read, that of patches once, by the replica. All frames have a header of seven
bytes: single segment, content size in two bytes, checksum. So a whole segment is checked at once.
"""

import threading
from typing import Final

import numpy as np
import numpy.typing as npt
import zstandard

from vmreplica.model.errors import Corrupt
from vmreplica.model.units import CLUSTER, KiB

#: Magic, frame header descriptor (2-byte content size, single segment, checksum); the content size minus 256 follows.
_HEADER_START: Final = b"\x28\xb5\x2f\xfd\x64"
_SIZE_BASE: Final = 256
#: Of the frame of a whole cluster.
FRAME_HEADER: Final = _HEADER_START + (CLUSTER - _SIZE_BASE).to_bytes(2, "little")
#: Header, one block of one repeated byte, checksum: nothing valid is shorter.
MIN_FRAME: Final = len(FRAME_HEADER) + 4 + 4
#: More than header, block headers and checksum take.
FRAMING: Final = 64
#: Bytes of a block of a patch.
_BLOCK: Final = 4 * KiB
#: Raw blocks and all framing: no encoder needs more for one cluster.
MAX_FRAME: Final = CLUSTER + FRAMING

_local = threading.local()


def encode(chunk: memoryview, level: int) -> list[bytes | None]:
    """Compress guest data cluster by cluster.

    Args:
        chunk: guest bytes from a cluster boundary on; a last incomplete cluster is padded with zeroes.
        level: zstd level, negative ones are faster.

    Returns:
        One frame per cluster; None where the cluster is all zero.
    """
    compress = _compressor(level).compress
    whole = len(chunk) // CLUSTER * CLUSTER
    frames = [
        compress(chunk[number * CLUSTER : (number + 1) * CLUSTER]) if used else None
        for number, used in enumerate(_used_clusters(chunk[:whole]))
    ]
    if whole < len(chunk):
        tail = bytes(chunk[whole:]).ljust(CLUSTER, b"\0")
        frames.append(compress(tail) if tail.strip(b"\0") else None)
    return frames


def decode(frame: bytes | memoryview, *, padded: bool = False) -> bytes:
    """Decompress one frame into the 65 536 bytes of its cluster, checking its checksum.

    Args:
        frame: the frame.
        padded: whether anything may stand behind it, as a qcow2 descriptor tells its end only to a sector.

    Raises:
        Corrupt: ``frame-broken``.
    """
    return _decoded(frame, CLUSTER, padded=padded)


def encode_patch(blocks: memoryview, level: int) -> bytes:
    """Compress the changed blocks of one cluster, which stand one behind the other.

    Args:
        blocks: 4096 bytes for each block.
        level: zstd level, negative ones are faster.
    """
    return _compressor(level).compress(blocks)


def decode_patch(frame: bytes | memoryview, blocks: int) -> bytes:
    """Decompress a patch's frame into its blocks, 4096 bytes each, checking its checksum.

    Raises:
        Corrupt: ``frame-broken``; also when it does not hold exactly so many blocks.
    """
    return _decoded(frame, blocks * _BLOCK)


def headers_ok(data: memoryview, starts: npt.NDArray[np.int64], blocks: npt.NDArray[np.int64] | int) -> bool:
    """Tell whether a header of a frame stands at each of these offsets, each MIN_FRAME or more before the end.

    Args:
        data: the frames.
        starts: offsets in it.
        blocks: how many blocks of 4096 bytes each frame must hold.
    """
    if starts.size == 0:
        return True
    buffer = np.frombuffer(data, np.uint8)
    sizes = np.broadcast_to(np.asarray(blocks, np.int64) * _BLOCK - _SIZE_BASE, starts.shape)
    expected = [*_HEADER_START, sizes & 0xFF, sizes >> 8]
    return all(bool((buffer[starts + place] == byte).all()) for place, byte in enumerate(expected))


def _decoded(frame: bytes | memoryview, size: int, *, padded: bool = False) -> bytes:
    header = _HEADER_START + (size - _SIZE_BASE).to_bytes(2, "little")
    if bytes(frame[: len(header)]) != header:
        raise Corrupt("frame-broken", "a compressed cluster has no frame header of ours")
    try:
        # The header just checked tells the decompressor how much it may give out.
        return _decompressor().decompress(frame, max_output_size=size, allow_extra_data=padded)
    except zstandard.ZstdError as error:
        raise Corrupt("frame-broken", f"a compressed cluster cannot be decompressed: {error}") from error


def _used_clusters(chunk: memoryview) -> list[bool]:
    words = np.frombuffer(chunk, np.uint64).reshape(-1, CLUSTER // 8)
    used: list[bool] = (np.bitwise_or.reduce(words, axis=1) != 0).tolist()
    return used


def _compressor(level: int) -> zstandard.ZstdCompressor:
    """One compressor per thread and level: making one costs more than a cluster."""
    made: dict[int, zstandard.ZstdCompressor] = _local.__dict__.setdefault("compressors", {})
    if level not in made:
        made[level] = zstandard.ZstdCompressor(level=level, write_checksum=True, write_content_size=True)
    return made[level]


def _decompressor() -> zstandard.ZstdDecompressor:
    """One decompressor per thread."""
    local = _local.__dict__
    if "decompressor" not in local:
        local["decompressor"] = zstandard.ZstdDecompressor()
    made: zstandard.ZstdDecompressor = local["decompressor"]
    return made
