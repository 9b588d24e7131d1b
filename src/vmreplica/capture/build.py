"""Making segments of compressed clusters as they come, in the order of the disk."""

import threading
from collections.abc import Sequence
from typing import Final

import numpy as np

from vmreplica.qcow2.head import KIND_ZERO, KIND_ZSTD, MAX_RECORDS, RECORD, SEGMENT_BYTES
from vmreplica.spool import SpoolDisk

#: Longest run of zeroes in one record; its field has 32 bits.
_MAX_RUN: Final = 1 << 31


class SegmentBuilder:
    """Collects one segment at a time and hands it to the spool when it is full.

    Args:
        disk: where segments go.
        keep_zeroes: write ZERO records (a delta hides its parent's data with them); a whole copy leaves them out.
        cancel: ends a wait for room in the spool.
        patience: seconds to wait for room.
    """

    def __init__(self, disk: SpoolDisk, *, keep_zeroes: bool, cancel: threading.Event, patience: float) -> None:
        self._disk = disk
        self._keep_zeroes = keep_zeroes
        self._cancel = cancel
        self._patience = patience
        self._position = disk.next_cluster
        self._records: list[tuple[int, int, int]] = []
        # One growing buffer: thousands of frames kept one by one would leave the heap in shreds.
        self._data = bytearray()

    def clusters(self, first: int, frames: Sequence[bytes | None]) -> None:
        """Add clusters that were read; None is one of zeroes."""
        for cluster, frame in enumerate(frames, first):
            if frame is None:
                self.zeroes(cluster, 1)
            else:
                self._records.append((cluster, len(frame), KIND_ZSTD))
                self._data += frame
                self._advance(cluster + 1)

    def zeroes(self, first: int, count: int) -> None:
        """Add clusters that read as zeroes."""
        end = first + count
        while self._keep_zeroes and first < end:
            piece = min(end - first, _MAX_RUN)
            self._add_zeroes(first, piece)
            first += piece
            self._advance(first)
        self._position = end

    def flush(self) -> None:
        """Hand over what there is: at the end of the disk.

        Raises:
            NoSpace: the spool is full; the same call may follow.
            Conflict: ``cancelled``.
        """
        if not self._records:
            return
        records = np.array(self._records, RECORD)
        data = [memoryview(self._data)]
        self._disk.append(records, data, self._position, cancel=self._cancel, patience=self._patience)
        self._records, self._data = [], bytearray()

    def _add_zeroes(self, first: int, count: int) -> None:
        if self._records:
            begin, length, kind = self._records[-1]
            if kind == KIND_ZERO and begin + length == first and length + count <= _MAX_RUN:
                self._records[-1] = (begin, length + count, kind)
                return
        self._records.append((first, count, KIND_ZERO))

    def _advance(self, position: int) -> None:
        self._position = position
        if len(self._data) >= SEGMENT_BYTES or len(self._records) >= MAX_RECORDS:
            self.flush()
