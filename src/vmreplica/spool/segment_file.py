"""A segment in the spool as a body: read as it is sent, never as a whole."""

import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from vmreplica.model.body import Buffer
from vmreplica.model.errors import Corrupt
from vmreplica.model.units import KiB

#: So little that what was read is in the processor's cache when it is encrypted.
_PIECE: Final = 256 * KiB


class SegmentFile:
    """Implements ``Body``; for one thread, until the ``with`` block ends.

    Raises:
        FileNotFoundError: it is not there (any more).
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.size = os.fstat(self._fd).st_size

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._fd)

    def pieces(self) -> Iterator[Buffer]:
        """Read the segment, all pieces into the same memory.

        Raises:
            Corrupt: ``spool-damaged``: it cannot be read, or not to its end.
        """
        buffer = memoryview(bytearray(min(_PIECE, self.size)))
        position = 0
        while position < self.size:
            count = self._read(buffer[: self.size - position], position)
            yield buffer[:count]
            position += count

    def _read(self, buffer: memoryview, position: int) -> int:
        # Whoever sends takes an OSError for one of the line.
        try:
            count = os.preadv(self._fd, [buffer], position)
        except OSError as error:
            raise Corrupt("spool-damaged", f"{self._path} cannot be read: {error.strerror}") from error
        if not count:
            raise Corrupt("spool-damaged", f"{self._path} ends at {position}, not at {self.size}")
        return count
