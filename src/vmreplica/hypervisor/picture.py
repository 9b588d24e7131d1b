"""A screenshot as libvirt gives it (PPM, or PNG already) becomes a PNG. A guest drew it: read within bounds."""

import re
import struct
import zlib
from typing import Final

import numpy as np

from vmreplica.model.errors import Corrupt

#: The largest picture that is taken, bytes as libvirt gives it: an 8K screen.
MAX_PICTURE: Final = 7680 * 4320 * 3 + 100

_PNG: Final = b"\x89PNG\r\n\x1a\n"
_GAP: Final = rb"(?:\s|#[^\n]*\n)+"
_PPM: Final = re.compile(rb"P6" + _GAP + rb"(\d{1,6})" + _GAP + rb"(\d{1,6})" + _GAP + rb"255\s")
_TRUE_COLOUR: Final = 2
_CHANNELS: Final = 3


def to_png(picture: bytes) -> bytes:
    """Make a PNG.

    Args:
        picture: a PPM (P6, 8 bits), or a PNG, which stays as it is.

    Raises:
        Corrupt: ``picture-unknown``.
    """
    if picture.startswith(_PNG):
        return picture
    head = _PPM.match(picture)
    if head is None:
        raise Corrupt("picture-unknown", "libvirt's screenshot is neither PPM nor PNG")
    width, height = int(head[1]), int(head[2])
    pixels = picture[head.end() :]
    if not width or not height or len(pixels) < width * height * _CHANNELS:
        raise Corrupt("picture-unknown", f"libvirt's screenshot has not {width} times {height} pixels")
    # Each row of a PNG begins with a byte that names its filter; 0 is none.
    rows = np.zeros((height, width * _CHANNELS + 1), dtype=np.uint8)
    rows[:, 1:] = np.frombuffer(pixels, np.uint8, width * height * _CHANNELS).reshape(height, width * _CHANNELS)
    shape = struct.pack(">IIBBBBB", width, height, 8, _TRUE_COLOUR, 0, 0, 0)
    return b"".join(
        (_PNG, _chunk(b"IHDR", shape), _chunk(b"IDAT", zlib.compress(rows.tobytes(), 6)), _chunk(b"IEND", b""))
    )


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
