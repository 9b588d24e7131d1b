"""Limited sending: never more than the rate and a burst, never less than the rate, fairly divided."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmreplica.ship.bucket import Bucket, fair_shares

pytestmark = pytest.mark.seeding

RATES = st.floats(8192, 1e9)
#: Seconds before a request, and bytes asked for.
REQUESTS = st.lists(st.tuples(st.floats(0, 2), st.integers(1, 1 << 20)), max_size=60)


@given(RATES, REQUESTS)
def test_no_more_is_granted_than_the_rate_and_a_burst(rate: float, requests: list[tuple[float, int]]) -> None:
    bucket = Bucket(0.0)
    bucket.change(rate, 0.0)
    now, granted = 0.0, 0
    for pause, most in requests:
        now += pause
        part = bucket.take(most, now)
        assert 0 <= part <= most
        granted += part
        assert granted <= rate * now + bucket.burst + 1


@given(RATES, st.integers(1, 1 << 20), st.floats(0, 0.2))
def test_who_asks_again_when_told_gets_the_whole_rate(rate: float, most: int, late: float) -> None:
    bucket = Bucket(0.0)
    bucket.change(rate, 0.0)
    now, granted = 0.0, 0
    for _ in range(400):
        part = bucket.take(most, now)
        granted += part
        if not part:
            now += bucket.wait(most) + late / 10 + 1e-9
    assert granted >= 0.95 * rate * now - bucket.burst


@given(RATES, RATES, st.floats(0.1, 10))
def test_another_rate_holds_from_the_moment_of_its_change(first: float, second: float, after: float) -> None:
    bucket = Bucket(0.0)
    bucket.change(first, 0.0)
    bucket.change(second, after)
    granted, now = 0, after
    while now < after + 2:
        part = bucket.take(1 << 20, now)
        granted += part
        if not part:
            now += bucket.wait(1 << 20) + 1e-6
    assert granted <= 2 * second + 2 * bucket.burst + 1


def test_without_a_rate_everything_is_granted_and_nothing_saved_up() -> None:
    bucket = Bucket(0.0)
    assert bucket.take(1 << 30, 0.0) == 1 << 30
    bucket.change(10_000.0, 100.0)
    assert bucket.take(1024, 100.0) == 0
    assert bucket.wait(1024) > 0


LIMITS = st.dictionaries(st.text(max_size=3), st.none() | st.floats(1, 1e9), max_size=8)


@given(st.floats(1, 1e9), LIMITS)
def test_shares_use_the_whole_up_to_each_ones_own_limit(total: float, limits: dict[str, float | None]) -> None:
    shares = fair_shares(total, limits)
    assert shares.keys() == limits.keys()
    given_out = [share for share in shares.values() if share is not None]
    assert len(given_out) == len(limits)
    wanted = sum(total if limit is None else limit for limit in limits.values())
    assert sum(given_out) == pytest.approx(min(total, wanted))
    for key, limit in limits.items():
        share = shares[key]
        assert share is not None
        # Who gets less than it may has at least as much as anybody else.
        below = limit is None or share < limit * (1 - 1e-9)
        assert not below or share >= max(given_out) * (1 - 1e-9)
        assert limit is None or share <= limit


@given(LIMITS)
def test_without_a_common_rate_each_has_its_own(limits: dict[str, float | None]) -> None:
    assert fair_shares(None, limits) == limits
