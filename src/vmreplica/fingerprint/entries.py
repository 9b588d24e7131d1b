"""Staged hashes: entries in an append-only file, absolute values, so writing or merging one twice does no harm.

An entry is ``first block: u64, count: u32, kind: u32``, then for kind 0 ``count`` hashes, for kind 1 (blocks of zeroes)
nothing, then the xxh3-64 of all that; little-endian. Only its end can be torn: a killed process leaves the rest whole.
"""

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple

import numpy as np
import xxhash

from vmreplica.fingerprint.blocks import Hashes
from vmreplica.model.errors import Corrupt

_HEAD: Final = struct.Struct("<QII")
_SUM: Final = 8
_HASHES: Final = 0
_ZEROES: Final = 1
#: Most hashes of one entry, and of one array that is given out: 512 KiB.
MAX_HASHES: Final = 1 << 16
_MAX_ZEROES: Final = (1 << 32) - 1


class _Entry(NamedTuple):
    first: int
    blocks: int
    #: None for blocks of zeroes.
    hashes: Hashes | None


def hash_entries(first: int, hashes: Hashes) -> bytes:
    """Make the entries of blocks from ``first`` on."""
    made = bytearray()
    for start in range(0, len(hashes), MAX_HASHES):
        piece = hashes[start : start + MAX_HASHES]
        made += _sealed(_HEAD.pack(first + start, len(piece), _HASHES) + piece.astype("<u8").tobytes())
    return bytes(made)


def zero_entries(first: int, count: int) -> bytes:
    """Make the entries of so many blocks of zeroes."""
    made = bytearray()
    while count:
        piece = min(count, _MAX_ZEROES)
        made += _sealed(_HEAD.pack(first, piece, _ZEROES))
        first, count = first + piece, count - piece
    return bytes(made)


def read_entries(path: Path) -> Iterator[tuple[int, Hashes]]:
    """Read a file of entries, in order, at most MAX_HASHES at a time; nothing when there is no file.

    Raises:
        Corrupt: ``fingerprint-damaged``; an entry is incomplete or does not have its checksum.
    """
    if not path.exists():
        return
    with path.open("rb") as fh:
        while (entry := _read(fh, path)) is not None:
            if entry.hashes is not None:
                yield entry.first, entry.hashes
                continue
            for start in range(0, entry.blocks, MAX_HASHES):
                yield entry.first + start, np.zeros(min(MAX_HASHES, entry.blocks - start), np.uint64)


def recover_entries(path: Path) -> None:
    """Cut an incomplete or damaged end off a file of entries, if there is one."""
    if not path.exists():
        return
    with path.open("r+b") as fh:
        valid = 0
        try:
            while _read(fh, path) is not None:
                valid = fh.tell()
        except Corrupt:
            os.ftruncate(fh.fileno(), valid)


def _sealed(entry: bytes) -> bytes:
    return entry + xxhash.xxh3_64_digest(entry)


def _read(fh: BinaryIO, path: Path) -> _Entry | None:
    head = fh.read(_HEAD.size)
    if not head:
        return None
    first, count, kind = _HEAD.unpack(head) if len(head) == _HEAD.size else (0, MAX_HASHES + 1, _HASHES)
    if kind > _ZEROES or (kind == _HASHES and count > MAX_HASHES):
        raise _damaged(path)
    size = count * 8 if kind == _HASHES else 0
    rest = fh.read(size + _SUM)
    if len(rest) != size + _SUM or xxhash.xxh3_64_digest(head + rest[:size]) != rest[size:]:
        raise _damaged(path)
    hashes = np.frombuffer(rest, "<u8", count) if kind == _HASHES else None
    return _Entry(first, count, hashes)


def _damaged(path: Path) -> Corrupt:
    return Corrupt("fingerprint-damaged", f"{path} is damaged: an entry does not have its checksum")
