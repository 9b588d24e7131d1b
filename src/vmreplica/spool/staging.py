"""The block hashes that go with a disk's segments, kept until the replica has the point: ``staged.fp``."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from vmreplica.fingerprint import Hashes, hash_entries, read_entries, recover_entries, zero_entries
from vmreplica.fsio import no_space
from vmreplica.model.units import KiB

_NAME: Final = "staged.fp"
#: Bytes collected before they are to be written.
_FULL: Final = 512 * KiB


class Staging:
    """Entries collected in memory, written by ``flush``; for one writer.

    Args:
        directory: of the disk in the spool. What a killed process left incomplete at the end is cut off.
    """

    def __init__(self, directory: Path) -> None:
        self._path = directory / _NAME
        self._pending = bytearray()
        recover_entries(self._path)

    @property
    def pending(self) -> int:
        """Bytes not written yet."""
        return len(self._pending)

    @property
    def full(self) -> bool:
        """Whether it is time to write."""
        return len(self._pending) >= _FULL

    def add(self, first: int, hashes: Hashes) -> None:
        """Collect the hashes of blocks from ``first`` on."""
        self._pending += hash_entries(first, hashes)

    def add_zeroes(self, first: int, count: int) -> None:
        """Collect so many blocks of zeroes."""
        self._pending += zero_entries(first, count)

    def flush(self) -> None:
        """Write what was collected.

        Raises:
            NoSpace: the file system is full; nothing was written, the same call may follow.
        """
        if self._pending:
            append_file(self._path, self._pending)
            self._pending = bytearray()

    def read(self) -> Iterator[tuple[int, Hashes]]:
        """Read what was written, in order; of one block the last entry holds.

        Raises:
            Corrupt: ``fingerprint-damaged``.
        """
        return read_entries(self._path)


def append_file(path: Path, data: bytes | bytearray) -> None:
    """Append to a file, all or nothing.

    Raises:
        NoSpace: the file system is full.
    """
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        before = os.fstat(fd).st_size
        try:
            with no_space(path):
                view = memoryview(data)
                while view:
                    view = view[os.write(fd, view) :]
        except BaseException:
            os.ftruncate(fd, before)
            raise
    finally:
        os.close(fd)
