"""From extents to reads: whatever a server answers, every byte that matters is read, once, in order."""

from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmreplica.capture.plan import Extent, Run, cluster_runs, reads, walk_extents
from vmreplica.model.errors import HypervisorError
from vmreplica.model.units import CLUSTER

pytestmark = pytest.mark.main_job

#: Lengths that hit, miss and straddle cluster borders.
LENGTHS = st.sampled_from([512, 1024, 4096, CLUSTER - 512, CLUSTER, CLUSTER + 4096, 3 * CLUSTER])
MAPS = st.lists(st.tuples(LENGTHS, st.sampled_from([0, 1, 2, 3])), min_size=1, max_size=20)


def _extents(disk: Sequence[tuple[int, int]]) -> list[Extent]:
    found, position = [], 0
    for length, flags in disk:
        found.append(Extent(position, position + length, flags))
        position += length
    return found


def _clusters(runs: Sequence[Run]) -> list[tuple[int, bool]]:
    return [(cluster, run.wanted) for run in runs for cluster in range(run.first, run.end)]


@given(MAPS, st.integers(0, 4))
def test_a_cluster_is_read_exactly_when_any_byte_of_it_is_wanted(disk: list[tuple[int, int]], first: int) -> None:
    extents = [extent for extent in _extents(disk) if extent.end > first * CLUSTER]
    end = -(-max([extent.end for extent in extents], default=first * CLUSTER) // CLUSTER)
    runs = list(cluster_runs(extents, lambda flags: flags == 1, first, end))
    touched = {
        cluster
        for extent in extents
        if extent.flags == 1
        for cluster in range(extent.start // CLUSTER, -(-extent.end // CLUSTER))
    }
    assert _clusters(runs) == [(cluster, cluster in touched) for cluster in range(first, end)]


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 90), st.booleans()), max_size=20), st.integers(1, 40))
def test_reads_keep_order_and_content_and_are_bounded(rows: list[tuple[int, int, bool]], most: int) -> None:
    runs, position = [], 0
    for gap, length, wanted in rows:
        position += gap
        runs.append(Run(position, length, wanted))
        position += length
    found = list(reads(runs, most))
    assert _clusters(found) == _clusters(runs)
    assert all(run.length <= most for run in found if run.wanted)
    wanted_runs = [run for run in found if run.wanted]
    assert all(
        not (left.end == right.first and left.length + right.length <= most) for left, right in pairwise(wanted_runs)
    )


@given(MAPS, st.integers(1, 5), st.integers(1, 4), st.booleans())
def test_short_and_overlong_answers_give_the_same_extents(
    disk: list[tuple[int, int]], step: int, most: int, overlong: bool
) -> None:
    whole = _extents(disk)
    size = whole[-1].end

    def fetch(offset: int, count: int) -> list[tuple[int, int]]:
        stop = size if overlong else offset + count
        pieces = [
            (min(extent.end, stop) - max(extent.start, offset), extent.flags)
            for extent in whole
            if extent.end > offset and extent.start < stop
        ]
        return pieces[:most]

    found = list(walk_extents(fetch, 0, size, step=step * CLUSTER, what="disk vda of web"))
    assert [extent.start for extent in found[1:]] == [extent.end for extent in found[:-1]]
    assert (found[0].start, found[-1].end) == (0, size)
    for extent in found:
        holder = next(one for one in whole if one.start <= extent.start < one.end)
        assert extent.end <= holder.end
        assert extent.flags == holder.flags


@given(st.lists(st.just((0, 1)), max_size=5), st.integers(0, 300))
def test_a_server_that_does_not_get_on_is_an_error_and_no_endless_loop(
    nothing: list[tuple[int, int]], crumb: int
) -> None:
    with pytest.raises(HypervisorError, match="disk vda of web") as stuck:
        list(
            walk_extents(
                lambda _offset, _count: [*nothing, (crumb, 0)], 0, 1 << 40, step=1 << 30, what="disk vda of web"
            )
        )
    assert stuck.value.code == "backup-extents-broken"


def test_a_fully_allocated_disk_is_read_before_its_map_is_known_to_the_end() -> None:
    asked = 0

    def fetch(_offset: int, count: int) -> list[tuple[int, int]]:
        nonlocal asked
        asked += 1
        return [(count, 0)]

    size = 1000 * CLUSTER
    extents = walk_extents(fetch, 0, size, step=10 * CLUSTER, what="disk vda of web")
    first = next(reads(cluster_runs(extents, lambda _flags: True, 0, 1000), most=32))
    assert first == Run(0, 32, wanted=True)
    assert asked <= 4
