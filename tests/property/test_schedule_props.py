"""The scheduler's promises, for any set of relationships."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmreplica.agent.schedule import (
    Turn,
    begin_due,
    long_slots,
    may_go_long,
    missed_turns,
    next_due,
    next_wake,
    pick,
    retry_due,
)

pytestmark = pytest.mark.main_job

TIMES = st.floats(0, 1e6)


@st.composite
def turns(draw: st.DrawFn) -> list[Turn]:
    ids = draw(st.lists(st.uuids(), unique=True, max_size=12))
    return [Turn(vm=str(vm), due=draw(TIMES), running=draw(st.booleans())) for vm in ids]


@st.composite
def mixed(draw: st.DrawFn) -> list[Turn]:
    """Draw turns of which some read whole disks, or wait for leave to."""
    found: list[Turn] = []
    for turn in draw(turns()):
        long, queued = turn.running and draw(st.booleans()), not turn.running and draw(st.booleans())
        found.append(Turn(vm=turn.vm, due=turn.due, running=turn.running, long=long, queued=queued))
    return found


@given(TIMES, turns(), st.integers(1, 4))
def test_never_more_cycles_at_once_than_allowed(now: float, known: list[Turn], limit: int) -> None:
    running = sum(turn.running for turn in known)
    assert len(pick(now, known, limit, 1)) <= max(0, limit - running)


@given(TIMES, turns(), st.integers(1, 4))
def test_the_longest_overdue_goes_first_and_nothing_runs_twice(now: float, known: list[Turn], limit: int) -> None:
    chosen = pick(now, known, limit, 1)
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


@given(TIMES, mixed(), st.integers(1, 6), st.integers(1, 6))
def test_no_more_of_the_queued_begin_than_there_are_slots(
    now: float, known: list[Turn], limit: int, slots: int
) -> None:
    by_vm = {turn.vm: turn for turn in known}
    queued = [by_vm[vm] for vm in pick(now, known, limit, slots) if by_vm[vm].queued]
    assert len(queued) <= max(0, slots - sum(turn.long for turn in known))
    left = [turn.due for turn in known if turn.queued and turn.due <= now and turn not in queued]
    assert all(turn.due <= due for turn in queued for due in left), "the queue keeps its order"


@given(TIMES, mixed(), st.integers(1, 6), st.integers(1, 6))
def test_a_queue_for_slots_never_keeps_a_delta_waiting(now: float, known: list[Turn], limit: int, slots: int) -> None:
    deltas = [turn for turn in known if not turn.queued and not turn.running and turn.due <= now]
    room = max(0, limit - sum(turn.running for turn in known))
    chosen = pick(now, known, limit, slots)
    by_vm = {turn.vm: turn for turn in known}
    free = max(0, slots - sum(turn.long for turn in known))
    assert sum(not by_vm[vm].queued for vm in chosen) >= min(len(deltas), room - min(room, free))


@given(st.integers(1, 64), st.integers(1, 64))
def test_one_place_is_always_left_for_deltas_if_there_are_two(wanted: int, limit: int) -> None:
    assert 1 <= long_slots(wanted, limit) <= max(1, limit - 1)
    assert long_slots(wanted, limit) <= wanted


@given(mixed(), TIMES, st.integers(1, 6))
def test_leave_is_given_within_the_slots_and_to_who_waited_longest(others: list[Turn], due: float, slots: int) -> None:
    own = Turn(vm="own", due=due, running=True)
    earlier = sum(turn.queued and turn.due < due for turn in others)
    leave = may_go_long([*others, own], "own", slots)
    assert leave == (sum(turn.long for turn in others) + earlier < slots) or any(turn.due == due for turn in others)


@given(TIMES, TIMES, st.floats(-1e6, 1e6))
def test_what_begins_later_is_not_due_before(due: float, now: float, ahead: float) -> None:
    assert begin_due(due, now, ahead) >= max(due, now + ahead)
    assert begin_due(due, now, -1.0) >= due
