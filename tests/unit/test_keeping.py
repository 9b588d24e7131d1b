"""Which points stay: what must hold for any history and any rules, and what people mean by a day."""

import datetime as dt
import itertools
import random
from collections.abc import Sequence
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st
from keep_kit import NOW, fact, histories, rules

from vmreplica.model.keep import PERIODS, Keep
from vmreplica.model.keeping import PointFacts, Verdict, judge_points
from vmreplica.model.units import MiB

pytestmark = pytest.mark.points

BERLIN = ZoneInfo("Europe/Berlin")


def judge(points: Sequence[PointFacts], keep: Keep, now: dt.datetime = NOW) -> dict[str, Verdict]:
    return judge_points(points, keep, now=now, zone=dt.UTC)


def kept(points: Sequence[PointFacts], keep: Keep, now: dt.datetime = NOW) -> list[str]:
    verdicts = judge(points, keep, now)
    return [point.id for point in points if verdicts[point.id].keep]


def firm(points: Sequence[PointFacts]) -> set[str]:
    return {point.id for point in points if point.pins or point.holds}


# --- for any history and any rules


@given(histories(), rules())
def test_each_point_has_a_verdict_with_a_reason(points: list[PointFacts], keep: Keep) -> None:
    verdicts = judge(points, keep)
    assert set(verdicts) == {point.id for point in points}
    assert all(verdict.reasons for verdict in verdicts.values())
    assert all(verdict.keep for verdict in verdicts.values() if verdict.lasting)


@given(histories(), rules())
def test_the_newest_pinned_and_held_points_stay_whatever_the_rules_say(points: list[PointFacts], keep: Keep) -> None:
    if points:
        assert {points[-1].id, *firm(points)} <= set(kept(points, keep))


@given(histories(), rules())
def test_no_more_points_stay_than_the_rules_count(points: list[PointFacts], keep: Keep) -> None:
    stay = set(kept(points, keep)) - firm(points)
    recent = [point for point in points if keep.within and point.instant.timestamp() >= NOW.timestamp() - keep.within]
    assert len(stay) <= 1 + (keep.last or 0) + len(recent) + sum(keep.periods.values())


@given(histories(), rules(space=False), st.sampled_from([*PERIODS, "last", "within"]))
def test_a_more_generous_rule_keeps_no_point_less(points: list[PointFacts], keep: Keep, rule: str) -> None:
    more = keep.model_copy(update={rule: (getattr(keep, rule) or 0) + 3})
    assert set(kept(points, keep)) <= set(kept(points, more))


@given(histories(), rules(space=False))
def test_when_what_goes_is_gone_all_others_stay_for_the_same_reasons(points: list[PointFacts], keep: Keep) -> None:
    stay = set(kept(points, keep))
    rest = [point for point in points if point.id in stay]
    before, after = judge(points, keep), judge(rest, keep)
    assert all(after[point.id] == before[point.id] for point in rest)


@given(histories(), rules(space=False), st.integers(1, 100_000))
def test_a_point_that_goes_is_never_wanted_again_when_newer_ones_come(
    points: list[PointFacts], keep: Keep, seconds: int
) -> None:
    later = NOW + dt.timedelta(seconds=seconds)
    gone = {point.id for point in points} - set(kept(points, keep))
    assert not gone & set(kept([*points, fact(later)], keep, later))


@given(histories(), rules(), st.integers(0, 1000))
def test_the_order_in_which_points_come_does_not_matter(points: list[PointFacts], keep: Keep, seed: int) -> None:
    shuffled = random.Random(seed).sample(points, len(points))
    assert judge(shuffled, keep) == judge(points, keep)


@given(histories(), rules())
def test_space_only_takes_away_and_only_the_oldest(points: list[PointFacts], keep: Keep) -> None:
    free = keep.model_copy(update={"space": None})
    with_space, without = kept(points, keep), kept(points, free)
    assert set(with_space) <= set(without)
    taken = [at for at, point in enumerate(without) if point not in with_space]
    stayed = [at for at, point in enumerate(without) if point in with_space and point not in firm(points)]
    stayed.append(len(without))
    assert not taken or max(taken) < min(stayed)


@given(histories(), rules())
def test_what_stays_fits_its_space_or_nothing_more_can_go(points: list[PointFacts], keep: Keep) -> None:
    if keep.space is None or not points:
        return
    chosen = set(kept(points, keep))
    stay = [point for point in points if point.id in chosen]
    total = points[0].stored_bytes + sum(point.stored_bytes for point in stay[1:])
    assert total <= keep.space or all(point.pins or point.holds for point in stay[:-1])


@given(histories(), rules(), st.integers(-400 * 86400, 400 * 86400))
def test_a_clock_that_is_wrong_costs_no_point(points: list[PointFacts], keep: Keep, wrong: int) -> None:
    assert set(kept(points, keep)) <= set(kept(points, keep, NOW + dt.timedelta(seconds=wrong)))


# --- what people mean


def every(minutes: int, count: int, end: dt.datetime = NOW) -> list[PointFacts]:
    return [fact(end - dt.timedelta(minutes=minutes * ago)) for ago in reversed(range(count))]


def test_the_default_keeps_the_last_hour_a_day_of_hours_and_a_week_of_days() -> None:
    points = every(5, 10 * 288)
    stay = set(kept(points, Keep(within=3600, hourly=24, daily=7)))
    # Two of the hours are within the last one, and two of the days have their newest point among the hours.
    assert len(stay) == 13 + 22 + 5
    ages = [(NOW - point.instant).total_seconds() / 60 for point in points if point.id in stay]
    assert [age for age in ages if age <= 60] == list(range(60, -1, -5))
    assert all(older - younger == 60 for older, younger in itertools.pairwise(ages) if 120 < younger < older < 1320)


def test_reasons_name_the_rule_and_its_period() -> None:
    points = [fact(NOW - dt.timedelta(hours=hours)) for hours in (50, 25, 2, 1, 0)]
    told = [judge(points, Keep(last=2, within=3600, hourly=2, daily=2))[point.id] for point in points]
    assert [verdict.reasons for verdict in told] == [
        ("no rule keeps it",),
        ("day 2026-11-21",),
        ("no rule keeps it",),
        ("last 2 of 2", "within 1h", "hour 2026-11-22 13:00"),
        ("newest", "last 1 of 2", "within 1h", "hour 2026-11-22 14:00", "day 2026-11-22"),
    ]
    assert [verdict.lasting for verdict in told] == [False, True, False, True, False]


def test_weeks_and_months_are_those_of_the_calendar() -> None:
    points = every(24 * 60, 70)
    told = judge(points, Keep(weekly=2, monthly=2))
    assert {reason for verdict in told.values() if verdict.keep for reason in verdict.reasons} == {
        "newest", "week 2026-W47", "week 2026-W46", "month 2026-11", "month 2026-10",
    }  # fmt: skip
    assert told[points[-23].id].reasons == ("month 2026-10",)


def test_days_begin_at_midnight_where_the_replica_stands() -> None:
    late = fact(dt.datetime(2026, 11, 21, 22, 30, tzinfo=dt.UTC))
    night = fact(dt.datetime(2026, 11, 21, 23, 30, tzinfo=dt.UTC))
    noon = fact(dt.datetime(2026, 11, 22, 11, 0, tzinfo=dt.UTC))
    points = [late, night, noon]
    there = judge_points(points, Keep(daily=3), now=NOW, zone=BERLIN)
    assert [there[point.id].keep for point in points] == [True, False, True]
    assert there[late.id].reasons == ("day 2026-11-21",)
    here = judge_points(points, Keep(daily=3), now=NOW, zone=dt.UTC)
    assert [here[point.id].keep for point in points] == [False, True, True]


def test_the_hour_that_is_shown_twice_when_summer_time_ends_is_two_hours() -> None:
    start = dt.datetime(2026, 10, 24, 22, 30, tzinfo=dt.UTC)
    points = [fact(start + dt.timedelta(hours=hours)) for hours in range(5)]
    verdicts = judge_points(points, Keep(hourly=5), now=start + dt.timedelta(hours=4), zone=BERLIN)
    assert all(verdict.keep for verdict in verdicts.values())


def test_no_point_of_the_last_hour_goes_while_the_primary_is_dead() -> None:
    points = every(5, 13)
    assert len(kept(points, Keep(within=3600), NOW + dt.timedelta(days=30))) == 13


def test_a_copy_to_begin_with_goes_as_soon_as_there_is_a_point() -> None:
    seed = fact(NOW - dt.timedelta(minutes=5), kind="seed")
    assert judge([seed], Keep(last=5))[seed.id].reasons == ("newest",)
    verdict = judge([seed, fact(NOW)], Keep(last=5, within=3600, daily=7))[seed.id]
    assert verdict == Verdict(keep=False, reasons=("a copy to begin with is no recovery point",))


def test_space_takes_the_oldest_but_never_a_pinned_one() -> None:
    points = [
        fact(
            NOW - dt.timedelta(minutes=9 - n),
            stored=100 * MiB if n == 0 else 10 * MiB,
            pins=("audit",) if n == 3 else (),
        )
        for n in range(10)
    ]
    keep = Keep(last=10, space=150 * MiB)
    verdicts = judge(points, keep)
    assert [n for n, point in enumerate(points) if verdicts[point.id].keep] == [3, 5, 6, 7, 8, 9]
    assert verdicts[points[4].id].reasons == ("space: more than 150.0 MiB with it",)
    assert verdicts[points[3].id].reasons[0] == "pinned: audit"
