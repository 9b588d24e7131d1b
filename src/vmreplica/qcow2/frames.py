"""Guest clusters as zstd frames, the content of qcow2 compressed clusters.

Every frame says its content size (65 536) and ends with a checksum that QEMU verifies on each read. All frames
have the same seven header bytes: single segment, content size in two bytes, checksum. So a whole segment is
checked at once.
"""

import threading
from typing import Final

import numpy as np
import numpy.typing as npt
import zstandard

from vmreplica.model.errors import Corrupt
from vmreplica.model.units import CLUSTER

#: Magic, frame header descriptor (2-byte content size, single segment, checksum), content size minus 256.
FRAME_HEADER: Final = b"\x28\xb5\x2f\xfd\x64\x00\xff"
#: Header, one block of one repeated byte, checksum: nothing valid is shorter.
MIN_FRAME: Final = len(FRAME_HEADER) + 4 + 4
#: Raw blocks and all framing: no encoder needs more for one cluster.
MAX_FRAME: Final = CLUSTER + 64

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


def decode(frame: bytes | memoryview) -> bytes:
    """Decompress one frame into the 65 536 bytes of its cluster, checking its checksum.

    Raises:
        Corrupt: ``frame-broken``.
    """
    if bytes(frame[: len(FRAME_HEADER)]) != FRAME_HEADER:
        raise Corrupt("frame-broken", "a compressed cluster has no frame header of ours")
    try:
        return zstandard.ZstdDecompressor().decompress(frame, max_output_size=CLUSTER, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise Corrupt("frame-broken", f"a compressed cluster cannot be decompressed: {error}") from error


def headers_ok(data: memoryview, starts: npt.NDArray[np.int64]) -> bool:
    """Tell whether a frame header stands at each of these offsets, each MIN_FRAME or more before the end."""
    if starts.size == 0:
        return True
    buffer = np.frombuffer(data, np.uint8)
    expected = np.frombuffer(FRAME_HEADER, np.uint8)
    return all(bool((buffer[starts + place] == byte).all()) for place, byte in enumerate(expected))


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
