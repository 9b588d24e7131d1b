"""Reading the tables of images that this program wrote; everything is checked, disks rot."""

import os
from pathlib import Path

import numpy as np
import numpy.typing as npt
import xxhash

from vmreplica.model.errors import Corrupt
from vmreplica.model.units import CLUSTER
from vmreplica.qcow2.layout import BIG16, BIG64, OFFSET_MASK, REFCOUNTS, U64, Header, l1_entries_of, table_clusters
from vmreplica.qcow2.rawio import pread_exact


class Image:
    """The tables of one open image; memory: the L1 table and the refcount table.

    Raises:
        Corrupt: ``image-damaged`` from everything here.
    """

    def __init__(self, fd: int, path: Path) -> None:
        self._fd = fd
        self._path = path
        self.bytes = os.fstat(fd).st_size
        self.header = Header.unpack(os.pread(fd, CLUSTER, 0), str(path))
        if self.header.l1_entries < l1_entries_of(self.header.size):
            raise Corrupt("image-damaged", f"the L1 table of {path} is too small for its disk")
        self.l1 = self._table(self.header.l1_offset, self.header.l1_entries)
        self.refcount_table = self._table(
            self.header.refcount_offset, self.header.refcount_clusters * CLUSTER // BIG64.itemsize
        )

        if not self.refcount_table.any():
            raise Corrupt("image-damaged", f"{path} has no refcounts")

    @property
    def l1_clusters(self) -> int:
        """Host clusters of the L1 table."""
        return table_clusters(self.header.l1_entries)

    def l2(self, number: int) -> U64:
        """Read one L2 table; all zero where there is none."""
        offset = int(self.l1[number]) & OFFSET_MASK if number < len(self.l1) else 0
        if not offset:
            return np.zeros(CLUSTER // BIG64.itemsize, np.uint64)
        return self._table(offset, CLUSTER // BIG64.itemsize)

    def refcounts(self, capacity: int) -> npt.NDArray[np.uint16]:
        """Read all refcounts.

        Args:
            capacity: clusters to make room for beyond those of the file.
        """
        clusters = self.bytes // CLUSTER
        counts = np.zeros(clusters + capacity, np.uint16)
        for block, entry in enumerate(self.refcount_table.tolist()):
            low = block * REFCOUNTS
            if entry and low < clusters:
                raw = pread_exact(self._fd, CLUSTER, entry & OFFSET_MASK, self._path)
                part = counts[low : min(low + REFCOUNTS, clusters)]
                part[:] = np.frombuffer(raw, BIG16)[: len(part)]
        return counts

    def raw_table(self, offset: int) -> bytes:
        """Read a table of one cluster as it stands in the file."""
        return self._raw(offset, 1)

    def raw_l1(self) -> bytes:
        """Read the L1 table with its padding."""
        return self._raw(self.header.l1_offset, self.l1_clusters)

    def raw_refcount_table(self) -> bytes:
        """Read the refcount table."""
        return self._raw(self.header.refcount_offset, self.header.refcount_clusters)

    def _raw(self, offset: int, clusters: int) -> bytes:
        if not offset or offset % CLUSTER or offset + clusters * CLUSTER > self.bytes:
            raise Corrupt("image-damaged", f"{self._path} names a table at {offset}, outside of itself")
        return pread_exact(self._fd, clusters * CLUSTER, offset, self._path)

    def _table(self, offset: int, entries: int) -> U64:
        if not offset or offset % CLUSTER or offset + entries * BIG64.itemsize > self.bytes:
            raise Corrupt("image-damaged", f"{self._path} names a table at {offset}, outside of itself")
        raw = pread_exact(self._fd, entries * BIG64.itemsize, offset, self._path)
        return np.frombuffer(raw, BIG64).astype(np.uint64)


def header_digest(path: Path) -> str:
    """Tell the xxh3-128 (hex) of the header of a folded image: what its manifest has as the digest.

    Raises:
        Corrupt: ``image-damaged``.
    """
    with path.open("rb") as fh:
        return xxhash.xxh3_128_hexdigest(Header.unpack(fh.read(CLUSTER), str(path)).pack())
