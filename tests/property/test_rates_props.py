"""Rates by time of day: spelling, windows over midnight, summer time, and when the rate changes next."""

import datetime as dt
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmreplica.model.moments import LONGEST_AHEAD, parse_moment
from vmreplica.model.rates import (
    MIN_RATE,
    Limit,
    Window,
    format_limit,
    in_force,
    instant_of,
    parse_limit,
    parse_rate,
    rate_at,
)
from vmreplica.model.units import MiB

pytestmark = pytest.mark.seeding

BERLIN = ZoneInfo("Europe/Berlin")
ZONES = st.sampled_from([BERLIN, ZoneInfo("America/St_Johns"), ZoneInfo("Australia/Lord_Howe"), ZoneInfo("UTC")])
INSTANTS = st.datetimes(dt.datetime(2026, 1, 1), dt.datetime(2027, 12, 31), timezones=st.just(dt.UTC))  # noqa: DTZ001
RATES = st.none() | st.integers(MIN_RATE, 1 << 30)


@st.composite
def windows(draw: st.DrawFn) -> Window:
    days = tuple(sorted(draw(st.sets(st.integers(0, 6), min_size=1))))
    start = draw(st.integers(0, 1439))
    end = draw(st.integers(0, 1440).filter(lambda minute: minute != start))
    return Window(days=days, start=start, end=end, rate=draw(RATES))


LIMITS = st.builds(Limit, rate=RATES, windows=st.lists(windows(), max_size=4).map(tuple))


@pytest.mark.parametrize(
    ("text", "rate"),
    [("50M", 50 * MiB), ("50M/s", 50 * MiB), ("400Mbit", 50_000_000), ("1gbit/s", 125_000_000), ("none", None)],
)
def test_bytes_count_by_1024_and_bits_by_1000(text: str, rate: int | None) -> None:
    assert parse_rate(text) == rate


@pytest.mark.parametrize("text", ["", "fast", "-1M", "0", "7k", "50MB/h", "9999T", "mon 20M"])
def test_what_is_no_rate_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not"):
        parse_rate(text)


def test_windows_are_read_with_days_and_hours() -> None:
    limit = parse_limit(["mon-fri 08:00-18:00 20M", "sat,sun 22:00-06:00 none", "12:00-24:00 1M", "50M"])
    first, second, third = limit.windows
    assert (first.days, first.start, first.end, first.rate) == ((0, 1, 2, 3, 4), 480, 1080, 20 * MiB)
    assert (second.days, second.rate) == ((5, 6), None)
    assert (third.days, third.end) == (tuple(range(7)), 1440)
    assert limit.rate == 50 * MiB
    assert parse_limit(["fri-mon 10:00-11:00 1M"]).windows[0].days == (0, 4, 5, 6)


@pytest.mark.parametrize(
    "texts", [["1M", "2M"], ["mon 8-18 20M"], ["noday 08:00-18:00 20M"], ["08:00-25:00 1M"], ["08:00-08:00 1M"]]
)
def test_what_is_no_limit_is_refused(texts: list[str]) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_limit(texts)


def test_a_window_over_midnight_belongs_to_the_day_on_which_it_begins() -> None:
    limit = parse_limit(["fri 22:00-06:00 1M", "2M"])
    told = {
        (day, hour): rate_at(limit, dt.datetime(2026, 11, day, hour, 59))  # noqa: DTZ001 - a wall clock
        for day in (20, 21)
        for hour in (5, 21, 22, 6)
    }
    inside = {moment for moment, rate in told.items() if rate == MiB}
    assert inside == {(20, 22), (21, 5)}


def test_of_windows_that_overlap_the_first_counts() -> None:
    wall = dt.datetime(2026, 11, 20, 12)  # noqa: DTZ001 - a wall clock
    assert rate_at(parse_limit(["10:00-14:00 1M", "08:00-18:00 2M"]), wall) == MiB
    assert rate_at(parse_limit(["08:00-18:00 2M", "10:00-14:00 1M"]), wall) == 2 * MiB


def test_hours_are_those_of_the_wall_clock_on_both_sides_of_a_change_of_summer_time() -> None:
    limit = parse_limit(["08:00-18:00 1M", "2M"])
    for day in (dt.date(2026, 10, 24), dt.date(2026, 10, 26)):
        eight = dt.datetime.combine(day, dt.time(8), BERLIN)
        assert in_force(limit, eight - dt.timedelta(minutes=1), BERLIN).until == eight
        assert in_force(limit, eight, BERLIN).rate == MiB


@given(LIMITS, INSTANTS, ZONES, st.floats(0, 1))
def test_a_rate_stays_until_the_told_moment_and_changes_then(
    limit: Limit, now: dt.datetime, zone: ZoneInfo, part: float
) -> None:
    rate, until = in_force(limit, now, zone)
    assert rate == rate_at(limit, now.astimezone(zone))
    if until is None:
        until = now + dt.timedelta(days=7)
    else:
        assert until > now
        assert rate_at(limit, until.astimezone(zone)) != rate
    between = now + part * (until - now)
    if between < until:
        assert rate_at(limit, between.astimezone(zone)) == rate


@given(LIMITS, INSTANTS)
def test_the_rate_is_that_of_the_first_window_which_fits(limit: Limit, now: dt.datetime) -> None:
    fitting = [window.rate for window in limit.windows if window.covers(now)]
    assert rate_at(limit, now) == (fitting[0] if fitting else limit.rate)


@given(LIMITS)
def test_every_limit_can_be_spelt_and_written_down(limit: Limit) -> None:
    assert len(format_limit(limit)) >= max(1, len(limit.windows))
    assert Limit.model_validate_json(limit.model_dump_json()) == limit


# ---- when something begins

NOON = dt.datetime(2026, 11, 22, 12, tzinfo=BERLIN)


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("22:00", (22, 22, 0)),
        ("11:59", (23, 11, 59)),
        ("12:00", (23, 12, 0)),
        ("tomorrow 02:30", (23, 2, 30)),
        ("today 12:01", (22, 12, 1)),
        ("2026-11-25T22:00", (25, 22, 0)),
        ("2026-11-29 12:00", (29, 12, 0)),
    ],
)
def test_a_moment_is_read_as_people_mean_it(text: str, moment: tuple[int, int, int]) -> None:
    day, hour, minute = moment
    assert parse_moment(text, NOON, BERLIN) == dt.datetime(2026, 11, day, hour, minute, tzinfo=BERLIN)


@pytest.mark.parametrize(
    "text", ["", "noon", "24:00", "2026-11-22T11:00", "2026-11-29T12:01", "2026-02-30T10:00", "today 11:00"]
)
def test_what_is_no_moment_past_or_too_far_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not a moment|is past|ahead"):
        parse_moment(text, NOON, BERLIN)


@given(INSTANTS, ZONES, st.times())
def test_a_time_of_day_is_never_past_and_at_most_about_a_day_ahead(
    now: dt.datetime, zone: ZoneInfo, time: dt.time
) -> None:
    moment = parse_moment(f"{time:%H:%M}", now, zone)
    assert now < moment <= now + dt.timedelta(hours=26)
    assert moment <= now + LONGEST_AHEAD


def test_a_skipped_time_comes_later_and_one_shown_twice_is_the_first() -> None:
    skipped = instant_of(dt.datetime(2026, 3, 29, 2, 30), BERLIN)  # noqa: DTZ001 - a wall clock
    assert skipped.astimezone(BERLIN).hour == 3
    twice = instant_of(dt.datetime(2026, 10, 25, 2, 30), BERLIN)  # noqa: DTZ001 - a wall clock
    assert twice == dt.datetime(2026, 10, 25, 0, 30, tzinfo=dt.UTC)
