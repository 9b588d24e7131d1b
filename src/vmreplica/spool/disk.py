"""One disk of a pending point: segments in the order of their numbers, written by capture and taken by shipping."""

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Final

from vmreplica.fingerprint import Hashes
from vmreplica.fsio import publish_bytes
from vmreplica.model.errors import Conflict, NoSpace
from vmreplica.model.ids import DiskTarget
from vmreplica.model.point import DiskClosing, DiskSpec
from vmreplica.model.verified import Proof
from vmreplica.qcow2.index import index_entry
from vmreplica.qcow2.segment import Records, SegmentHead, pack
from vmreplica.spool.recover import (
    CLOSING,
    SHIPPED,
    Recovered,
    guest_bytes_of,
    read_head_bytes,
    recover_disk,
    segment_path,
)
from vmreplica.spool.room import Room
from vmreplica.spool.segment_file import SegmentFile
from vmreplica.spool.spares import Spares
from vmreplica.spool.staging import Staging, append_file

#: Seconds that an append waits for room before it gives up: longer than a slow line needs for one segment.
PATIENCE: Final = 600.0


class SpoolDisk:
    """Thread-safe between one writer (capture) and several takers (shipping).

    Args:
        directory: of this disk in the spool.
        point: id and name for errors of the point it belongs to.
        spec: target and virtual size.
        room: shared by the whole spool.
        alone: tells whether its point has nothing waiting.
    """

    def __init__(
        self, directory: Path, point: tuple[str, str], spec: DiskSpec, room: Room, alone: Callable[[], bool]
    ) -> None:
        self._directory = directory
        self._point, vm_name = point
        self._what = f"disk {spec.target} of {vm_name}"
        self._room = room
        self._alone = alone
        self._lock = threading.Lock()
        self._discarded = False
        self.target: DiskTarget = spec.target
        self.size = spec.size
        directory.mkdir(exist_ok=True)
        self._state: Recovered = recover_disk(directory, self._point, spec)
        self._staging = Staging(directory)
        self._spares = Spares(directory)

    @property
    def next_segment(self) -> int:
        """Number of the segment that capture writes next."""
        return self._state.next_segment

    @property
    def next_cluster(self) -> int:
        """First guest cluster that no segment says anything about yet: capture goes on there."""
        return self._state.next_cluster

    @property
    def data_offset(self) -> int:
        """Where the data of the next segment will stand in the image."""
        return self._state.data_offset

    @property
    def guest_bytes(self) -> int:
        """Guest bytes that the segments so far carry as data, the ones already shipped included."""
        return self._state.guest_bytes

    @property
    def closing(self) -> DiskClosing | None:
        """Set when the disk was read to its end."""
        return self._state.closing

    def waiting(self) -> tuple[int, ...]:
        """List the numbers of the segments that the replica has not acknowledged, ascending."""
        with self._lock:
            return tuple(self._state.waiting)

    def has_waiting(self) -> bool:
        """Tell whether anything waits to be shipped."""
        return bool(self._state.waiting)

    def waiting_bytes(self) -> int:
        """Tell the bytes that wait to be shipped."""
        with self._lock:
            return sum(self._state.waiting.values())

    def append(
        self,
        records: Records,
        data: Sequence[bytes | memoryview],
        next_cluster: int,
        *,
        patches: Sequence[bytes | memoryview] = (),
        cancel: threading.Event | None = None,
        patience: float = PATIENCE,
    ) -> None:
        """Write the next segment; waits while the spool is at its cap or its file system full.

        Args:
            records: of dtype RECORD.
            data: frames of whole clusters in the order of their records, in as many buffers as suits.
            next_cluster: first guest cluster that nothing is said about after this segment.
            patches: frames of patches in the order of their records.
            cancel: ends the wait.
            patience: seconds to wait for room.

        Raises:
            NoSpace: ``spool-full`` or ``no-space`` (file system); nothing was written, the same call may follow.
            Conflict: ``cancelled``, or ``point-discarded``.
        """
        state = self._state
        head, buffers = pack(
            point=self._point,
            target=self.target,
            number=state.next_segment,
            data_offset=state.data_offset,
            next_cluster=next_cluster,
            records=records,
            data=data,
            patches=patches,
        )
        # First the hashes: what a segment carries is staged, whenever the process is killed.
        self._write_staged(cancel, patience)
        size = sum(len(buffer) for buffer in buffers)
        path = segment_path(self._directory, head.number)
        write = partial(publish_bytes, path, *buffers, durable=False)
        self._patiently(size, lambda: write(over=self._spares.take()), cancel, patience)
        self._take_in(head, size, guest_bytes_of(records))
        self._room.tell()

    def stage(
        self,
        first_block: int,
        hashes: Hashes,
        *,
        cancel: threading.Event | None = None,
        patience: float = PATIENCE,
    ) -> None:
        """Keep the hashes of blocks that the next segment carries, for the fingerprint.

        Args:
            first_block: of the hashes.
            hashes: absolute values; of one block the last ones hold.
            cancel: ends a wait for room on the file system.
            patience: seconds to wait for it.

        Raises:
            NoSpace: the file system is full; the hashes are kept in memory, and written by the next call.
            Conflict: ``cancelled``, or ``point-discarded``.
        """
        self._staging.add(first_block, hashes)
        if self._staging.full:
            self._write_staged(cancel, patience)

    def stage_zeroes(self, first_block: int, count: int) -> None:
        """Keep that so many blocks are zero; written with the next segment."""
        self._staging.add_zeroes(first_block, count)

    def staged(self) -> Iterator[tuple[int, Hashes]]:
        """Read the hashes staged so far, (first block, hashes), in order; all of them once the disk is closed.

        Raises:
            Corrupt: ``fingerprint-damaged``.
        """
        return self._staging.read()

    def finish(self, proof: Callable[[], Proof | None] = lambda: None) -> DiskClosing:
        """Say that the disk was read to its end.

        Args:
            proof: tells, once all hashes are staged, what the whole disk holds.

        Raises:
            NoSpace: the file system is full; the same call may follow.
        """
        self._spares.end()
        self._staging.flush()
        state = self._state
        closing = DiskClosing(
            target=self.target, segments=state.next_segment, data_end=state.data_offset, proof=proof()
        )
        publish_bytes(self._directory / CLOSING, closing.model_dump_json().encode(), durable=False)
        with self._lock:
            state.closing = closing
        self._room.tell()
        return closing

    def body(self, number: int) -> SegmentFile:
        """Open a waiting segment, to be closed before it is acknowledged.

        Raises:
            Conflict: ``point-discarded``.
        """
        try:
            return SegmentFile(segment_path(self._directory, number))
        except FileNotFoundError:
            self._require_alive()
            raise

    def acknowledge(self, number: int) -> None:
        """Drop a segment that the replica holds durably, keeping its head; again is harmless.

        Raises:
            Conflict: ``point-discarded``.
        """
        with self._lock:
            size = self._state.waiting.get(number)
            if size is None:
                return
            self._require_alive()
            self._keep_head(segment_path(self._directory, number))
            del self._state.waiting[number]
        self._room.release(size)

    def forget(self) -> None:
        """Give back the room of everything that waits: the point was discarded."""
        with self._lock:
            self._discarded = True
            size = sum(self._state.waiting.values())
            self._state.waiting.clear()
        self._spares.end()
        self._room.release(size)

    def _take_in(self, head: SegmentHead, size: int, guest_bytes: int) -> None:
        with self._lock:
            if not self._discarded:
                self._state.waiting[head.number] = size
                self._state.advance(head, guest_bytes)
                return
        self._room.release(size)
        self._require_alive()

    def _write_staged(self, cancel: threading.Event | None, patience: float) -> None:
        if self._staging.pending:
            self._patiently(0, self._staging.flush, cancel, patience)

    def _patiently(self, size: int, write: Callable[[], None], cancel: threading.Event | None, patience: float) -> None:
        """Write so many bytes within the cap.

        A full file system is waited for as long as segments of ours may still leave it: shipping makes that room.
        """
        while True:
            seen = self._room.reserve(size, self._what, may=self._alone, cancel=cancel, patience=patience)
            try:
                self._require_alive()
                write()
            except NoSpace:
                self._room.release(size)
                if not self._spares.drop() and not self._room.await_release(seen + 1, self._what, cancel, patience):
                    raise
            except BaseException:
                self._room.release(size)
                self._require_alive()
                raise
            else:
                return

    def _keep_head(self, path: Path) -> None:
        """Move a segment's head into the index of what was shipped, and drop its file.

        On a full file system the file is cut down to its head instead: that always works and gives room, and a file
        without its data counts as acknowledged when the spool is opened again.
        """
        head = read_head_bytes(path)
        try:
            append_file(self._directory / SHIPPED, index_entry(head))
        except NoSpace:
            os.truncate(path, len(head))
        else:
            self._spares.keep(path)

    def _require_alive(self) -> None:
        if self._discarded:
            raise Conflict("point-discarded", f"{self._what}: its pending point was discarded", kind="transient")
