"""Stretches of disks against sets of bytes."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmreplica.repository.coverage import Ranges, joined, without

pytestmark = pytest.mark.points

places = st.integers(0, 60)
stretches = st.lists(st.tuples(places, places).map(lambda pair: (min(pair), max(pair))), max_size=8).map(joined)


def _bytes(ranges: Ranges) -> set[int]:
    return {place for low, high in ranges for place in range(low, high)}


@given(stretches, stretches)
def test_what_is_left_is_what_is_not_covered(ranges: Ranges, cover: Ranges) -> None:
    left = without(ranges, cover)
    assert _bytes(left) == _bytes(ranges) - _bytes(cover)
    assert joined(left) == left


@given(st.lists(st.tuples(places, places), max_size=8))
def test_joined_stretches_ascend_and_lie_apart(pairs: list[tuple[int, int]]) -> None:
    found = joined(pairs)
    assert _bytes(found) == _bytes([(low, high) for low, high in pairs if low < high])
    assert all(low < high for low, high in found)
    assert all(one[1] < other[0] for one, other in itertools.pairwise(found))
