"""Making segments of what was found, as it comes, in the order of the disk."""

import threading
from typing import Final

import numpy as np

from vmreplica.capture.pieces import Piece
from vmreplica.fingerprint import BLOCKS_PER_CLUSTER, blocks_of
from vmreplica.qcow2.frames import MAX_FRAME
from vmreplica.qcow2.head import KIND_ZERO, KIND_ZSTD, MAX_PATCHES, MAX_RECORDS, RECORD, SEGMENT_BYTES
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
        # One buffer, used again: thousands of frames kept one by one would leave the heap in shreds.
        self._data = bytearray(SEGMENT_BYTES + MAX_FRAME)
        self._filled = 0
        self._patches: list[bytes] = []
        self._patch_bytes = 0

    def add(self, piece: Piece, end: int) -> None:
        """Add what was found up to a cluster.

        Args:
            piece: rows and hashes; hashes are staged before the first of its rows can be in a segment.
            end: cluster behind the last that was looked at.

        Raises:
            NoSpace: the spool is full.
            Conflict: ``cancelled``.
        """
        if len(piece.hashes):
            self._disk.stage(piece.first_block, piece.hashes, cancel=self._cancel, patience=self._patience)
        for cluster, kind, frame in piece.rows:
            if kind == KIND_ZERO:
                self.zeroes(cluster, 1)
            else:
                self._add_data(cluster, kind, frame)
                self._advance(cluster + 1)
        self._position = end

    def zeroes(self, first: int, count: int) -> None:
        """Add clusters that read as zeroes."""
        end = first + count
        while self._keep_zeroes and first < end:
            piece = min(end - first, _MAX_RUN)
            self._add_zeroes(first, piece)
            first += piece
            self._advance(first)
        self._position = end

    def newly_zero(self, first: int, count: int) -> None:
        """Add clusters that read as zeroes and did not before; the fingerprint is told."""
        first_block, end = first * BLOCKS_PER_CLUSTER, (first + count) * BLOCKS_PER_CLUSTER
        self._disk.stage_zeroes(first_block, min(end, blocks_of(self._disk.size)) - first_block)
        self.zeroes(first, count)

    def pass_by(self, end: int) -> None:
        """Go on to a cluster; what is before it has not changed."""
        self._position = end

    def flush(self) -> None:
        """Hand over what there is: at the end of the disk.

        Raises:
            NoSpace: the spool is full; the same call may follow.
            Conflict: ``cancelled``.
        """
        if not self._records:
            return
        self._disk.append(
            np.array(self._records, RECORD),
            [memoryview(self._data)[: self._filled]],
            self._position,
            patches=self._patches,
            cancel=self._cancel,
            patience=self._patience,
        )
        self._records, self._filled, self._patches, self._patch_bytes = [], 0, [], 0

    def _add_data(self, cluster: int, kind: int, frame: bytes) -> None:
        self._records.append((cluster, len(frame), kind))
        if kind == KIND_ZSTD:
            self._data[self._filled : self._filled + len(frame)] = frame
            self._filled += len(frame)
        else:
            self._patches.append(frame)
            self._patch_bytes += len(frame)

    def _add_zeroes(self, first: int, count: int) -> None:
        if self._records:
            begin, length, kind = self._records[-1]
            if kind == KIND_ZERO and begin + length == first and length + count <= _MAX_RUN:
                self._records[-1] = (begin, length + count, kind)
                return
        self._records.append((first, count, KIND_ZERO))

    def _advance(self, position: int) -> None:
        self._position = position
        if (
            self._filled + self._patch_bytes >= SEGMENT_BYTES
            or len(self._records) >= MAX_RECORDS
            or len(self._patches) >= MAX_PATCHES
        ):
            self.flush()
