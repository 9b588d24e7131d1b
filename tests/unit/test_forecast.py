"""When the store will be full: told from what was seen, no further than that carries, and not fooled by one copy."""

import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmreplica.agent.journal import Journal
from vmreplica.agent.space import SPACING, SpaceWatch
from vmreplica.model.forecast import LEAST_SEEN, full_in

pytestmark = pytest.mark.points

DAY, GB = 86400.0, 1e9


def line(hours: int, free: float, per_day: float, noise: float = 0.0) -> list[tuple[float, float]]:
    rng = random.Random(7)
    return [
        (600.0 * step, free + per_day * 600.0 * step / DAY + rng.uniform(-noise, noise))
        for step in range(hours * 6 + 1)
    ]


@given(free=st.floats(1e9, 1e13), share=st.floats(0.05, 3.0), hours=st.integers(3, 100), floor=st.floats(0, 0.5))
def test_a_steady_loss_is_continued_to_the_floor(free: float, share: float, hours: int, floor: float) -> None:
    per_day = -free * share * 24 / max(hours, 24) / 10
    samples = line(hours, free, per_day)
    left = full_in(samples, floor * free)
    expected = max(0.0, samples[-1][1] - floor * free) / -per_day * DAY
    seen = min(hours * 3600.0, 3 * DAY)
    if expected > 30.1 * seen:
        assert left is None
    elif expected < 29.9 * seen:
        assert left == pytest.approx(expected, rel=0.05, abs=60)


@given(st.lists(st.tuples(st.floats(0, 1e6), st.floats(0, 1e13)), max_size=60), st.floats(0, 1e12))
def test_whatever_was_seen_gives_none_or_a_time_that_is_not_negative(
    samples: list[tuple[float, float]], floor: float
) -> None:
    left = full_in(sorted(samples), floor)
    assert left is None or left >= 0


def test_noise_growth_too_little_and_one_large_copy_make_no_alarm() -> None:
    assert full_in(line(48, 100 * GB, 5 * GB, noise=GB), 0) is None
    assert full_in([(when, free) for when, free in line(2, 100 * GB, -50 * GB) if when < LEAST_SEEN], 0) is None
    assert full_in([], 0) is None
    copied = [(when, free - (40 * GB if when > 5 * 3600 else 0)) for when, free in line(40, 100 * GB, 0)]
    assert full_in(copied, 0) is None


def test_a_noisy_loss_is_told_about_right() -> None:
    left = full_in(line(48, 100 * GB, -10 * GB, noise=GB), 20 * GB)
    assert left is not None
    assert 5 * DAY < left < 7 * DAY


def test_samples_outlive_a_restart_and_are_taken_at_their_distance(tmp_path: Path) -> None:
    now = [1e9]
    journal = Journal(tmp_path / "journal.db")
    watch = SpaceWatch(tmp_path, 0, journal, clock=lambda: now[0])
    for _ in range(50):
        watch.look()
        now[0] += SPACING / 2
    assert len(journal.samples(str(tmp_path), 0)) == 25
    journal.close()
    again = Journal(tmp_path / "journal.db")
    facts = SpaceWatch(tmp_path, 5, again, clock=lambda: now[0]).facts()
    assert facts is not None
    assert (facts.place, facts.min_free) == (str(tmp_path), 5)
    assert facts.free > 0
    assert len(again.samples(str(tmp_path), 0)) == 25
    again.close()


def test_a_store_that_is_gone_is_no_error(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.db")
    watch = SpaceWatch(tmp_path / "gone", 0, journal)
    watch.look()
    assert watch.facts() is None
    journal.close()
