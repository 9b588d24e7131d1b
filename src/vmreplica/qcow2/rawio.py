"""Whole reads and writes at an offset, and holes: what the operating system does in parts, done to the end."""

import ctypes
import errno
import os
from pathlib import Path
from typing import Final

from vmreplica.model.errors import Corrupt

_KEEP_SIZE: Final = 0x01
_PUNCH_HOLE: Final = 0x02
_ZERO_RANGE: Final = 0x10
_SYNC_WRITE: Final = 0x02
_COPY_PIECE: Final = 8 << 20
_ZEROES: Final = bytes(1 << 20)
#: Of these the range is tried in another way: not supported, or not on the borders of the device's sectors.
_OTHERWISE: Final = frozenset({errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL})

_libc = ctypes.CDLL(None, use_errno=True)
_libc.sync_file_range.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


def pwrite_all(fd: int, data: bytes | memoryview, offset: int) -> None:
    """Write all of a buffer at an offset.

    Raises:
        OSError: also when the file system is full; a part may have been written.
    """
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view, offset = view[written:], offset + written


def pread_exact(fd: int, size: int, offset: int, path: Path) -> bytes:
    """Read exactly so many bytes at an offset.

    Raises:
        Corrupt: ``image-damaged``: the file ends before.
    """
    parts = []
    while size:
        part = os.pread(fd, size, offset)
        if not part:
            raise Corrupt("image-damaged", f"{path} ends at {offset}, its tables go on")
        parts.append(part)
        size, offset = size - len(part), offset + len(part)
    return b"".join(parts)


def pread_into(fd: int, view: memoryview, offset: int, path: Path) -> None:
    """Fill a buffer from an offset on.

    Raises:
        Corrupt: ``image-damaged``: the file ends before.
    """
    while view:
        count = os.preadv(fd, [view], offset)
        if not count:
            raise Corrupt("image-damaged", f"{path} ends at {offset}, its index goes on")
        view, offset = view[count:], offset + count


def begin_writing(fd: int, start: int, size: int) -> None:
    """Let the kernel begin to write what was written to a range, so that a later sync has less to wait for."""
    _libc.sync_file_range(fd, start, size, _SYNC_WRITE)  # only a hint: whatever fails comes again with the sync


def copy_range(source: int, target: int, *, start: int, to: int, size: int, path: Path) -> None:
    """Copy bytes between files in the kernel: shared instead of copied where the file system can.

    Raises:
        Corrupt: ``image-damaged``: the source (at ``path``) ends before.
        OSError: the target's file system is full.
    """
    while size:
        try:
            copied = os.copy_file_range(source, target, min(size, _COPY_PIECE), start, to)
        except OSError as error:
            if error.errno not in {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP}:
                raise
            piece = pread_exact(source, min(size, _COPY_PIECE), start, path)
            pwrite_all(target, piece, to)
            copied = len(piece)
        if not copied:
            raise Corrupt("image-damaged", f"{path} ends at {start}, its index goes on")
        start, to, size = start + copied, to + copied, size - copied


def punch(fd: int, start: int, size: int) -> None:
    """Give the space of a range back; where the file system cannot, nothing happens."""
    if _libc.fallocate(fd, _KEEP_SIZE | _PUNCH_HOLE, start, size) != 0:
        number = ctypes.get_errno()
        if number not in {errno.EOPNOTSUPP, errno.ENOSYS}:
            raise OSError(number, os.strerror(number))


def make_zero(fd: int, start: int, size: int) -> None:
    """Let a range of a device or file read as zeroes, giving its space back where that is possible.

    Raises:
        OSError: the device failed.
    """
    for mode in (_KEEP_SIZE | _PUNCH_HOLE, _ZERO_RANGE):
        if _libc.fallocate(fd, mode, start, size) == 0:
            return
        number = ctypes.get_errno()
        if number not in _OTHERWISE:
            raise OSError(number, os.strerror(number))
    for offset in range(0, size, len(_ZEROES)):
        pwrite_all(fd, memoryview(_ZEROES)[: min(len(_ZEROES), size - offset)], start + offset)
