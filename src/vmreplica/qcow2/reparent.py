"""Giving an image another backing file: a new header, nothing else of it changes.

The header is made here and written by ``fold.switch``; whoever does it has it in a journal before, and writes it again
after a crash.
"""

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import xxhash

from vmreplica.model.errors import Corrupt
from vmreplica.model.units import CLUSTER, MiB
from vmreplica.qcow2.head import DATA_START
from vmreplica.qcow2.index import read_heads
from vmreplica.qcow2.layout import Header, round_up
from vmreplica.qcow2.rawio import pread_exact

_PIECE: Final = 4 * MiB
_BUFFER: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class NewHeader:
    """A header to be written, and the digest (hex) of the image's tables and header after that."""

    header: bytes
    tables_digest: str


def reparented(image: Path, index: Path, backing: str) -> NewHeader:
    """Make the header that gives an overlay another backing file.

    Args:
        image: the overlay, as ``write_tables`` made it.
        index: of it.
        backing: name of the new backing file, qcow2, as it shall stand in the header.

    Raises:
        Corrupt: ``image-damaged``, ``index-damaged``. So it is if the image has no backing file: what it does not say
            reads as zeroes, which no header can change; merge it alone onto the new backing file.
    """
    with image.open("rb") as fh:
        raw = fh.read(CLUSTER)
    old = Header.unpack(raw, str(image), overlay=True)
    if old.backing is None:
        raise Corrupt("image-damaged", f"{image} has no backing file that could be exchanged")
    packed = old.pack()
    if raw[: len(packed)] != packed:
        raise Corrupt("image-damaged", f"the header of {image} has more than this program writes")
    header = replace(old, backing=backing, raw_backing=False).pack()
    return NewHeader(header, tables_digest(image, index, header))


def tables_digest(image: Path, index: Path, header: bytes | None = None) -> str:
    """Compute the digest of an image's tables and header that ``write_tables`` told when it made them.

    Args:
        image: with an index.
        index: of it.
        header: that it shall have; None: the one it has.

    Raises:
        Corrupt: ``image-damaged``, ``index-damaged``.
    """
    start = round_up(_data_end(index))
    fd = os.open(image, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if header is None:
            header = Header.unpack(os.pread(fd, CLUSTER, 0), str(image), overlay=True).pack()
        hasher, size = xxhash.xxh3_128(), os.fstat(fd).st_size
        for offset in range(start, size, _PIECE):
            hasher.update(pread_exact(fd, min(_PIECE, size - offset), offset, image))
        hasher.update(header)
        return hasher.hexdigest()
    finally:
        os.close(fd)


def _data_end(index: Path) -> int:
    end = DATA_START
    with index.open("rb", buffering=_BUFFER) as fh:
        for head, _records in read_heads(fh):
            end = head.data_end
    return end
