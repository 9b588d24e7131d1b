"""How one disk is read: by its plan, against its fingerprint."""

from collections.abc import Iterator
from typing import Final

import structlog

from vmreplica.capture.build import SegmentBuilder
from vmreplica.capture.pieces import Piece, changed_piece, hashed_piece, whole_piece
from vmreplica.capture.plan import DiskPlan, Run, joined, reads, within
from vmreplica.capture.tail import tail_stands
from vmreplica.capture.view import DiskView
from vmreplica.fingerprint import BLOCKS_PER_CLUSTER, BlockSum, Fingerprint, blocks_of, sum_after
from vmreplica.model.verified import Proof
from vmreplica.qcow2.head import clusters_of
from vmreplica.spool import SpoolDisk

_log: Final = structlog.get_logger(__name__)


class DiskReader:
    """For one thread, except ``piece``.

    Args:
        disk: in the spool.
        view: its frozen view.
        plan: how to read it.
        fingerprint: of a whole disk only the key counts, and nothing is staged without one; of a delta it may be
            missing, then all of a changed cluster is carried.
        level: zstd level.

    Raises:
        ValueError: a comparison without a fingerprint.
        HypervisorError: ``backup-bitmap-missing``.
    """

    def __init__(
        self, disk: SpoolDisk, view: DiskView, plan: DiskPlan, fingerprint: Fingerprint | None, level: int
    ) -> None:
        if plan.mode == "compare" and fingerprint is None:
            raise ValueError(f"disk {disk.target} cannot be compared without a fingerprint")
        self.disk = disk
        self.view = view
        self._level = level
        self._key = fingerprint.key if fingerprint is not None and plan.mode == "whole" else None
        self._fingerprint = fingerprint if plan.mode != "whole" else None
        self._before = fingerprint
        self._whole = plan.mode != "delta"
        self._must = tuple(within(plan.must, 0, clusters_of(disk.size)))
        if plan.mode == "delta":
            view.go_by_bitmap(self._must)
            if fingerprint is not None and not tail_stands(view, fingerprint):
                self._distrust(fingerprint)

    def _distrust(self, fingerprint: Fingerprint) -> None:
        _log.warning("a disk lost what its bitmap says to be unchanged: it is compared", disk=fingerprint.target)
        self.view.go_by_allocation()
        self._whole = True

    def begin(self) -> None:
        """Stage, for a whole disk, that everything is zero which is not read from here on."""
        if self._key is not None:
            first = self.disk.next_cluster * BLOCKS_PER_CLUSTER
            self.disk.stage_zeroes(first, max(0, blocks_of(self.disk.size) - first))

    def runs(self) -> Iterator[Run]:
        """Tell what is to be read, and what is known to be zero, from where the spool stands."""
        return reads(self.view.runs(self.disk.next_cluster))

    def piece(self, run: Run) -> Piece | None:
        """Read a wanted run and find what the point carries of it; None for a run of zeroes. Any thread."""
        if not run.wanted:
            return None
        chunk = self.view.read(run)
        if self._key is not None:
            return hashed_piece(run, chunk, self._level, self._key, self.disk.size)
        if self._fingerprint is not None:
            must = tuple(within(self._must, run.first, run.end))
            return changed_piece(run, chunk, self._level, self._fingerprint, self.disk.size, must)
        return whole_piece(run, chunk, self._level)

    def add(self, run: Run, piece: Piece | None, builder: SegmentBuilder) -> None:
        """Put what was found into segments.

        Raises:
            NoSpace: the spool is full.
            Conflict: ``cancelled``.
        """
        if piece is not None:
            builder.add(piece, run.end)
        elif self._fingerprint is None:
            builder.zeroes(run.first, run.length)
        else:
            self._add_zeroes(run, self._fingerprint, builder)

    def proof(self) -> Proof | None:
        """Tell, when all is read, what the whole disk holds.

        None without a fingerprint, and for a disk read whole whose fingerprint was not begun anew.

        Raises:
            Corrupt: ``fingerprint-damaged``.
        """
        before = self._before
        if before is None or (self._key is not None and before.sum != BlockSum()):
            return None
        total = sum_after(before.require_sum(), before.hashes, self.disk.staged, before.key)
        return Proof(key=f"{before.key:016x}", sum=total.text, own=self._whole or before.own)

    def _add_zeroes(self, run: Run, fingerprint: Fingerprint, builder: SegmentBuilder) -> None:
        """Carry of a run of zeroes only what was not zero before, and what must be carried."""
        first, end = run.first * BLOCKS_PER_CLUSTER, run.end * BLOCKS_PER_CLUSTER
        used = (
            Run(low // BLOCKS_PER_CLUSTER, -(-high // BLOCKS_PER_CLUSTER) - low // BLOCKS_PER_CLUSTER, wanted=True)
            for low, high in fingerprint.used(first, end, BLOCKS_PER_CLUSTER)
        )
        for found in joined(used, tuple(within(self._must, run.first, run.end)), run.first):
            builder.newly_zero(found.first, found.length)
        builder.pass_by(run.end)
