"""The scheduler's promises, for any set of relationships."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmreplica.agent.schedule import Turn, missed_turns, next_due, next_wake, pick, retry_due

pytestmark = pytest.mark.main_job

TIMES = st.floats(0, 1e6)


@st.composite
def turns(draw: st.DrawFn) -> list[Turn]:
    ids = draw(st.lists(st.uuids(), unique=True, max_size=12))
    return [Turn(vm=str(vm), due=draw(TIMES), running=draw(st.booleans())) for vm in ids]


@given(TIMES, turns(), st.integers(1, 4))
def test_never_more_cycles_at_once_than_allowed(now: float, known: list[Turn], limit: int) -> None:
    running = sum(turn.running for turn in known)
    assert len(pick(now, known, limit)) <= max(0, limit - running)


@given(TIMES, turns(), st.integers(1, 4))
def test_the_longest_overdue_goes_first_and_nothing_runs_twice(now: float, known: list[Turn], limit: int) -> None:
    chosen = pick(now, known, limit)
    by_vm = {turn.vm: turn for turn in known}
    assert len(set(chosen)) == len(chosen)
    assert not any(by_vm[vm].running or by_vm[vm].due > now for vm in chosen)
    left = [turn.due for turn in known if not turn.running and turn.due <= now and turn.vm not in chosen]
    assert all(by_vm[vm].due <= due for vm in chosen for due in left)


@given(TIMES, turns())
def test_the_scheduler_wakes_before_the_next_one_is_due(now: float, known: list[Turn]) -> None:
    wake = next_wake(now, known, 15.0)
    assert 0 <= wake <= 15
    assert all(turn.due >= now + wake for turn in known if not turn.running and turn.due > now)


@given(TIMES, st.floats(0, 1e5), st.floats(5, 86400))
def test_turns_keep_their_beat_and_never_pile_up(started: float, took: float, interval: float) -> None:
    now = started + took
    due = next_due(started, now, interval)
    assert due >= now
    if took <= interval:
        assert due == pytest.approx(started + interval)
    else:
        assert due == now
        assert missed_turns(started, now, interval) >= 1


@given(TIMES, st.integers(1, 1000), st.floats(5, 86400), st.floats(0, 1))
def test_a_retry_comes_soon_but_not_at_once(now: float, failures: int, interval: float, jitter: float) -> None:
    wait = retry_due(now, failures, interval, jitter) - now
    assert 0.7 <= wait <= 1.2 * max(1.0, min(60.0, interval)) + 1e-6
