"""What is sent to a peer or written to a directory: so many bytes, given piece by piece."""

from collections.abc import Iterator, Sequence
from typing import Protocol

Buffer = bytes | bytearray | memoryview


class Body(Protocol):
    """Bytes that may be asked for again, when a connection that was idle turns out to be closed."""

    @property
    def size(self) -> int:
        """Bytes in all."""
        ...

    def pieces(self) -> Iterator[Buffer]:
        """Give the bytes in order. A piece holds until the next one is taken."""
        ...


class Buffers:
    """A body in memory, in buffers that stand one behind the other."""

    def __init__(self, *buffers: Buffer) -> None:
        self._buffers: Sequence[memoryview] = tuple(memoryview(buffer).cast("B") for buffer in buffers)
        self.size = sum(len(buffer) for buffer in self._buffers)

    def pieces(self) -> Iterator[Buffer]:
        """Give the buffers."""
        return iter(self._buffers)


def joined(body: Body) -> bytes:
    """Copy a whole body into memory."""
    return b"".join(bytes(piece) for piece in body.pieces())
