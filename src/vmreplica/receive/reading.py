"""Reading a published point's disk through its whole chain, as QEMU sees it, and hashing what it holds."""

import contextlib
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

import nbd
import numpy as np

from vmreplica.fingerprint import BLOCK, Hashes, blocks_of, hash_blocks
from vmreplica.model.errors import BadRequest, Corrupt, HypervisorError, TimedOut
from vmreplica.model.units import GiB, MiB

#: Blocks of one request at most: 8 MiB of hashes, 4 GiB of disk.
MAX_BLOCKS: Final = 1 << 20
#: Seconds for one read; a store that needs longer stands still.
_TIME_LIMIT: Final = 120.0
_POLL_MS: Final = 1000
#: Bytes read at once; QEMU decompresses the clusters of one read in parallel.
_PIECE: Final = 4 * MiB
#: Reads that are under way while the bytes of one are hashed.
_AHEAD: Final = 2
#: Bytes that one question for extents covers; the protocol takes less than 4 GiB.
_ASKED: Final = 1 * GiB


def hash_image(image: Path, *, size: int, key: int, first_block: int, blocks: int) -> Hashes:
    """Hash a range of a disk's blocks; what is not allocated anywhere in the chain costs no reading.

    Args:
        image: of a point that is held: nothing may change its chain meanwhile.
        size: of its disk, bytes.
        key: of the hashes.
        first_block: where to begin.
        blocks: how many.

    Raises:
        BadRequest: ``blocks-out-of-range``.
        Corrupt: ``image-unreadable``: an image of the chain is missing or damaged.
        HypervisorError: ``qemu-nbd-failed``: it is not installed.
        TimedOut: ``image-read-timeout``.
    """
    if blocks > MAX_BLOCKS or first_block + blocks > blocks_of(size):
        raise BadRequest(
            "blocks-out-of-range",
            f"blocks {first_block} to {first_block + blocks} of a disk of {blocks_of(size)} were asked for",
            hint=f"ask for at most {MAX_BLOCKS} blocks at once",
        )
    hashes = np.zeros(blocks, np.uint64)
    begin, end = first_block * BLOCK, min(size, (first_block + blocks) * BLOCK)
    with contextlib.closing(_Reader(image)) as reader:
        for start, piece in reader.pieces(begin, end):
            place = (start - begin) // BLOCK
            hashes[place : place + blocks_of(len(piece))] = hash_blocks(piece, key)
    return hashes


class _Reader:
    """A qemu-nbd of its own, over a socket that only the two know; it ends with the connection, also by a crash."""

    def __init__(self, image: Path) -> None:
        if shutil.which("qemu-nbd") is None:
            hint = "apt install qemu-utils"
            raise HypervisorError("qemu-nbd-failed", "qemu-nbd is not installed", hint=hint, kind="operator")
        self._image = image
        self._handle = nbd.NBD()
        with self._errors():
            self._handle.set_pread_initialize(request=False)
            self._handle.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
            arguments = ["qemu-nbd", "--read-only", "--format=qcow2", str(image.absolute())]
            self._handle.aio_connect_systemd_socket_activation(arguments)
            self._wait(lambda: not self._handle.aio_is_connecting() and not self._handle.aio_is_negotiating())

    def close(self) -> None:
        """Hang up and end the server."""
        # libnbd ends the server of a handle that nobody holds any more; a fresh one has none.
        self._handle = nbd.NBD()

    def data(self, begin: int, end: int) -> Iterator[tuple[int, int]]:
        """List what is no hole and no run of zeroes in [begin, end), widened to whole blocks of the disk."""
        with self._errors():
            size = self._handle.get_size()
        end, done = min(end, size), begin
        while done < end:
            for length, flags in self._extents(done, min(end - done, _ASKED)):
                low, high = done, min(done + length, end)
                done = high
                if low < high and not flags & nbd.STATE_ZERO:
                    yield low // BLOCK * BLOCK, min(-(-high // BLOCK) * BLOCK, end)

    def pieces(self, begin: int, end: int) -> Iterator[tuple[int, memoryview]]:
        """Read what is data in [begin, end): (offset, bytes), in order; they hold until the next ones are asked for.

        The server reads on while the caller works on them.
        """
        places = (
            (start, min(_PIECE, high - start))
            for low, high in self.data(begin, end)
            for start in range(low, high, _PIECE)
        )
        buffers = [memoryview(bytearray(min(_PIECE, max(end - begin, 1)))) for _ in range(_AHEAD + 1)]
        under_way: deque[tuple[int, int, memoryview]] = deque()
        for number, (start, length) in enumerate(places):
            buffer = buffers[number % len(buffers)][:length]
            under_way.append((start, self._ask(buffer, start), buffer))
            if len(under_way) > _AHEAD:
                yield self._next(under_way)
        while under_way:
            yield self._next(under_way)

    def _ask(self, buffer: memoryview, offset: int) -> int:
        with self._errors():
            # The memory itself, not an nbd.Buffer made of it: that is never freed again (libnbd 1.14).
            return self._handle.aio_pread(buffer, offset)

    def _next(self, under_way: deque[tuple[int, int, memoryview]]) -> tuple[int, memoryview]:
        start, cookie, buffer = under_way.popleft()
        with self._errors():
            self._complete(cookie)
        return start, buffer

    def _extents(self, offset: int, count: int) -> Sequence[tuple[int, int]]:
        found: list[tuple[int, int]] = []

        def keep(_context: str, _offset: int, entries: Sequence[int], _error: int) -> int:
            found.extend(zip(entries[::2], entries[1::2], strict=True))
            return 0

        with self._errors():
            self._complete(self._handle.aio_block_status(count, offset, keep))
        if not found:
            raise self._unreadable("it does not tell what is allocated")
        return found

    def _complete(self, cookie: int) -> None:
        self._wait(lambda: self._handle.aio_command_completed(cookie))

    def _wait(self, done: Callable[[], bool]) -> None:
        deadline = time.monotonic() + _TIME_LIMIT
        while not done():
            if time.monotonic() > deadline:
                raise TimedOut(
                    "image-read-timeout",
                    f"{self._image} could not be read for {_TIME_LIMIT:.0f} s",
                    hint="look at the store's disks and the kernel log",
                )
            self._handle.poll(_POLL_MS)

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except nbd.Error as error:
            raise self._unreadable(str(error)) from error

    def _unreadable(self, why: str) -> Corrupt:
        return Corrupt(
            "image-unreadable",
            f"{self._image} or an image below it cannot be read: {why}",
            hint="the next cycle makes a whole copy of this disk",
        )
