"""Host clusters of an image that is being changed: which are free, which are taken, which blocks of counts changed.

Only clusters that were free before are given out: what is freed meanwhile still belongs to the old state of the file,
which stays valid until the new header is written.
"""

from collections import deque
from typing import Final

import numpy as np
import numpy.typing as npt

from vmreplica.model.units import CLUSTER
from vmreplica.qcow2.layout import CLUSTER_BITS, I64, REFCOUNTS, count_frames

#: Shorter free runs take single tables, longer ones take data.
_DATA_RUN: Final = 16
#: Data grows the file by at most so many clusters at once.
_GROWTH: Final = 256
#: More free runs than this are left for another time: bounded memory.
_MAX_RUNS: Final = 65536


class HostSpace:
    """Refcounts of an image and its free clusters. Offsets in bytes, counts in clusters."""

    def __init__(self, counts: npt.NDArray[np.uint16], clusters: int) -> None:
        self.counts = counts
        self.clusters = clusters
        self.dirty: set[int] = set()
        starts, lengths = free_runs(counts[:clusters])
        runs: list[tuple[int, int]] = list(zip(starts[:_MAX_RUNS].tolist(), lengths[:_MAX_RUNS].tolist(), strict=True))
        self._long = deque(run for run in runs if run[1] >= _DATA_RUN)
        self._short = deque(run for run in runs if run[1] < _DATA_RUN)

    def data_run(self, wanted: int) -> tuple[int, int]:
        """Give out room for data: offset and end of a free run, which may be shorter than the bytes wanted."""
        if self._long:
            start, length = self._long.popleft()
        else:
            length = min(_GROWTH, -(-wanted // CLUSTER))
            start = self._grow(length)
        return start * CLUSTER, (start + length) * CLUSTER

    def table(self, clusters: int) -> int:
        """Take adjacent clusters for a table; tell their offset."""
        start = self._take(clusters)
        self.counts[start : start + clusters] = 1
        self._touch(np.array([start, start + clusters - 1]))
        return start * CLUSTER

    def drop_table(self, offset: int, clusters: int) -> None:
        """Free the clusters of a table."""
        start = offset // CLUSTER
        self.counts[start : start + clusters] = 0
        self._touch(np.array([start, start + clusters - 1]))

    def count(self, starts: I64, ends: I64, step: int) -> None:
        """Count compressed clusters in (1) or out (-1) by their host byte ranges."""
        count_frames(self.counts, starts, ends, step)
        self._touch(starts >> CLUSTER_BITS)
        self._touch((ends - 1) >> CLUSTER_BITS)

    def _take(self, clusters: int) -> int:
        for runs in (self._short, self._long):
            for place, (start, length) in enumerate(runs):
                if length >= clusters:
                    del runs[place]
                    if length > clusters:
                        self._short.appendleft((start + clusters, length - clusters))
                    return start
        return self._grow(clusters)

    def _grow(self, clusters: int) -> int:
        start = self.clusters
        self.clusters += clusters
        if self.clusters > len(self.counts):
            more = np.zeros(self.clusters - len(self.counts) + REFCOUNTS, np.uint16)
            self.counts = np.concatenate([self.counts, more])
        return start

    def _touch(self, clusters: I64) -> None:
        self.dirty.update(np.unique(clusters // REFCOUNTS).tolist())


def free_runs(counts: npt.NDArray[np.uint16]) -> tuple[I64, I64]:
    """Tell starts and lengths of all runs of free clusters, ascending."""
    free = np.concatenate([[False], counts == 0, [False]])
    edges = np.flatnonzero(free[1:] != free[:-1]).astype(np.int64)
    return edges[::2], edges[1::2] - edges[::2]
