"""The slow line's arithmetic, without a clock."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmreplica.lab.relay import Line

pytestmark = pytest.mark.main_job


def test_frames_leave_no_faster_than_the_bandwidth_and_no_earlier_than_the_delay() -> None:
    line = Line(bytes_per_second=1000.0, delay=0.5)
    assert line.put(bytes(100), now=10.0)
    assert line.put(bytes(100), now=10.0)
    assert line.take(10.59) is None
    assert line.take(10.61) == bytes(100)
    assert line.take(10.69) is None
    assert line.take(10.71) == bytes(100)


def test_an_idle_line_saves_up_no_bandwidth() -> None:
    line = Line(bytes_per_second=1000.0, delay=0.0)
    line.put(bytes(100), now=0.0)
    assert line.take(0.11) is not None
    line.put(bytes(100), now=50.0)
    assert line.due() == pytest.approx(50.1)


def test_a_full_queue_loses_frames_and_takes_them_again_when_it_has_drained() -> None:
    line = Line(bytes_per_second=1e6, delay=0.0)
    taken = sum(line.put(bytes(64_000), now=0.0) for _ in range(100))
    assert 4 <= taken <= 6
    assert line.put(bytes(64_000), now=1.0)


@given(st.lists(st.tuples(st.floats(0, 0.1), st.integers(1, 65_000)), max_size=50))
def test_frames_keep_their_order(arrivals: list[tuple[float, int]]) -> None:
    line, now = Line(bytes_per_second=1e6, delay=0.01), 0.0
    put: list[bytes] = []
    for gap, size in arrivals:
        now += gap
        frame = len(put).to_bytes(4, "big").ljust(size + 4, b"\0")
        if line.put(frame, now):
            put.append(frame)
    taken = []
    while (arrived := line.take(float("inf"))) is not None:
        taken.append(arrived)
    assert taken == put
