"""From extents, as an NBD server tells them, to cluster-aligned reads: pure, streaming, never the whole map at once."""

import heapq
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

from vmreplica.model.errors import HypervisorError
from vmreplica.model.units import CLUSTER, MiB

#: Most guest bytes of one read.
READ_BYTES: Final = 2 * MiB
READ_CLUSTERS: Final = READ_BYTES // CLUSTER
#: A server whose extents advance by less than a sector says nothing.
_SECTOR: Final = 512


#: whole: everything that is allocated is carried. delta: the bitmap says which clusters may have changed, and the
#: fingerprint, when there is one, which of their blocks have. compare: everything that is allocated is read, and the
#: fingerprint says what has changed.
Mode = Literal["whole", "delta", "compare"]


@dataclass(frozen=True, slots=True)
class DiskPlan:
    """How a disk is read."""

    mode: Mode
    #: Clusters (first, end), ascending and apart, that are carried whole whatever is known of them: the replica holds
    #: something else there than it should.
    must: tuple[tuple[int, int], ...] = ()


class Extent(NamedTuple):
    """Guest bytes ``start`` to ``end`` of which a server said the same."""

    start: int
    end: int
    flags: int


class Run(NamedTuple):
    """``length`` guest clusters from ``first`` on: to be read, or known to be of no interest (clean, or zero)."""

    first: int
    length: int
    wanted: bool

    @property
    def end(self) -> int:
        """First cluster behind it."""
        return self.first + self.length


#: Asks a server for (length, flags) pairs from a byte offset on, for about so many bytes.
Fetch = Callable[[int, int], Sequence[tuple[int, int]]]


def walk_extents(fetch: Fetch, start: int, end: int, *, step: int, what: str) -> Iterator[Extent]:
    """Ask for extents request by request; they come ascending, without gaps, and clipped to the range.

    A server may answer for less than it was asked, or for more.

    Args:
        fetch: one request.
        start: byte offset.
        end: byte offset behind the last.
        step: bytes asked for at once.
        what: names the disk, for errors.

    Raises:
        HypervisorError: ``backup-extents-broken``; the server does not get on.
    """
    position = start
    while position < end:
        asked = min(step, end - position)
        reached = position
        for length, flags in fetch(position, asked):
            following = min(reached + length, position + asked)
            if following > reached:
                yield Extent(reached, following, flags)
            reached = following
        if reached < min(position + _SECTOR, end):
            raise HypervisorError(
                "backup-extents-broken",
                f"{what}: the backup export does not tell its extents at byte {position}",
                hint="the next cycle tries again; `virsh domjobinfo` shows whether the backup job still runs",
            )
        position = reached


def cluster_runs(extents: Iterable[Extent], wanted: Callable[[int], bool], first: int, end: int) -> Iterator[Run]:
    """Round extents to clusters: a cluster is wanted when any byte of it is.

    Args:
        extents: ascending, not overlapping.
        wanted: judges the flags of an extent.
        first: cluster where the runs begin.
        end: cluster behind the last.

    Returns:
        Runs that cover ``first`` to ``end`` without gaps, in order.
    """
    position = first
    for extent in extents:
        if not wanted(extent.flags):
            continue
        begins = max(position, extent.start // CLUSTER)
        ends = min(end, -(-extent.end // CLUSTER))
        if begins >= ends:
            continue
        if begins > position:
            yield Run(position, begins - position, wanted=False)
        yield Run(begins, ends - begins, wanted=True)
        position = ends
    if position < end:
        yield Run(position, end - position, wanted=False)


def joined(runs: Iterable[Run], must: Sequence[tuple[int, int]], first: int) -> Iterator[Run]:
    """Add clusters that must be read to wanted runs.

    Args:
        runs: wanted ones only, ascending, from ``first`` on.
        must: ranges of clusters (first, end), ascending and apart.
        first: nothing before this cluster is added.
    """
    added = (Run(max(low, first), high - max(low, first), wanted=True) for low, high in must if high > first)
    waiting: Run | None = None
    for run in heapq.merge(runs, added, key=lambda run: run.first):
        if waiting is None or run.first > waiting.end:
            if waiting is not None:
                yield waiting
            waiting = run
        else:
            waiting = Run(waiting.first, max(waiting.end, run.end) - waiting.first, wanted=True)
    if waiting is not None:
        yield waiting


def within(ranges: Iterable[tuple[int, int]], first: int, end: int) -> Iterator[tuple[int, int]]:
    """Cut ranges to what lies between ``first`` and ``end``."""
    return ((max(low, first), min(high, end)) for low, high in ranges if low < end and high > first)


def reads(runs: Iterable[Run], most: int = READ_CLUSTERS) -> Iterator[Run]:
    """Cut and join wanted runs into reads of at most so many clusters; the others pass as they are, all in order."""
    first, count = 0, 0
    for run in runs:
        if count and not (run.wanted and run.first == first + count):
            yield Run(first, count, wanted=True)
            count = 0
        if not run.wanted:
            yield run
            continue
        first, count = (first, count + run.length) if count else (run.first, run.length)
        while count >= most:
            yield Run(first, most, wanted=True)
            first, count = first + most, count - most
    if count:
        yield Run(first, count, wanted=True)
