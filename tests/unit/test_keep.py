"""The rules of retention as people write them, and as older versions wrote them down."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from keep_kit import rules
from pydantic import ValidationError

from vmreplica.model.keep import DEFAULT_KEEP, MAX_POINTS, Keep, describe_keep, format_keep, parse_keep, require_few
from vmreplica.model.policy import Policy
from vmreplica.model.units import GiB

pytestmark = pytest.mark.points


@pytest.mark.parametrize(
    ("text", "keep"),
    [
        ("24", Keep(last=24)),
        (" last=24 ", Keep(last=24)),
        ("within=1h,hourly=24,daily=7", DEFAULT_KEEP),
        ("Within=90m, Daily=7, space=100GiB", Keep(within=5400, daily=7, space=100 * GiB)),
        ("weekly=4,monthly=12,last=1", Keep(last=1, weekly=4, monthly=12)),
    ],
)
def test_rules_are_read_as_people_write_them(text: str, keep: Keep) -> None:
    assert parse_keep(text) == keep


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "no rule of retention"),
        ("0", "last=0 is not between 1 and 1000"),
        ("1001", "last=1001 is not between"),
        ("-3", "'-3' is no rule"),
        ("hourly", "hourly= is not a number of points"),
        ("hourly=many", "hourly=many is not a number of points"),
        ("yearly=3", "'yearly=3' is no rule"),
        ("hourly=3,hourly=4", "hourly is said twice"),
        ("hourly=0,daily=0", "would keep nothing"),
        ("space=100G", "would keep nothing"),
        ("last=500,hourly=400,daily=101", "would keep 1001 points"),
        ("within=0", "within=0s is not between 1s and 366d"),
        ("within=soon", "'soon' is not a duration"),
        ("last=3,space=100", "space=100 is not between 1M and"),
        ("last=3,space=big", "'big' is not a size"),
    ],
)
def test_rules_that_contradict_each_other_or_keep_nothing_are_refused_in_words(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why.replace("(", r"\(")) as told:
        parse_keep(text)
    assert "\n" not in str(told.value)
    assert "pydantic" not in str(told.value)


@given(rules())
def test_what_is_shown_is_read_as_the_same_rules_again(keep: Keep) -> None:
    assert parse_keep(format_keep(keep)) == keep
    assert str(keep) == format_keep(keep)


def test_rules_are_said_in_words() -> None:
    assert describe_keep(parse_keep("within=1h,hourly=24,daily=7,last=3,space=2G")) == (
        "the last 3, all of the last 1h, 24 hourly, 7 daily, at most 2.0 GiB"
    )


def test_a_number_as_older_versions_wrote_it_means_so_many_of_the_newest() -> None:
    assert Policy.model_validate_json(f'{{"replica": "{"a" * 32}", "keep": 24}}').keep == Keep(last=24)
    assert Policy.model_validate_json(f'{{"replica": "{"a" * 32}"}}').keep == DEFAULT_KEEP


@pytest.mark.parametrize("value", [0, -1, 1001, True, None, 2.5, {"last": 0}, {}, {"forever": 1}])
def test_what_is_no_rule_is_refused_at_the_border(value: object) -> None:
    with pytest.raises(ValidationError):
        Keep.model_validate(value)


@given(st.integers(5, 86400), rules())
def test_more_points_than_can_be_kept_are_refused_by_the_interval(interval: int, keep: Keep) -> None:
    if keep.most(interval) <= MAX_POINTS:
        require_few(keep, interval)
    else:
        with pytest.raises(ValueError, match="at most 1000 can be kept"):
            require_few(keep, interval)


def test_the_default_fits_the_shortest_interval() -> None:
    require_few(DEFAULT_KEEP, 5)
