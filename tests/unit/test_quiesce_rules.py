"""Rules for application-consistent points, when one is due, and which point ``latest-app`` is."""

import datetime as dt

import pytest
from hypothesis import given
from hypothesis import strategies as st
from point_kit import make_summary

from vmreplica.agent.doctor.judge_vm import judge_freezing, judge_quiescing
from vmreplica.agent.point_verbs import chosen_point
from vmreplica.failover.plan import resolve
from vmreplica.hypervisor.quiesce import FreezeLook
from vmreplica.model.errors import NotFound
from vmreplica.model.ids import LATEST, LATEST_APP
from vmreplica.model.proof import QuiesceFacts
from vmreplica.model.quiesce import (
    MAX_CYCLES,
    MAX_EVERY,
    MIN_EVERY,
    NEVER,
    AppConsistent,
    QuiesceRecord,
    format_app_consistent,
    is_due,
    parse_app_consistent,
)

pytestmark = pytest.mark.points

NOW = dt.datetime(2026, 11, 22, 12, tzinfo=dt.UTC)
HOURLY = AppConsistent(every=3600)
RULES = st.one_of(
    st.just(NEVER),
    st.builds(AppConsistent, every=st.integers(MIN_EVERY, MAX_EVERY)),
    st.builds(AppConsistent, cycles=st.integers(1, MAX_CYCLES)),
)


def ago(seconds: float) -> dt.datetime:
    return NOW - dt.timedelta(seconds=seconds)


@given(RULES)
def test_every_rule_can_be_typed_as_it_is_shown(rule: AppConsistent) -> None:
    assert parse_app_consistent(format_app_consistent(rule)) == rule


@pytest.mark.parametrize(
    "text", ["", "hourly", "every=", "every=1", "every=31d", "cycles=0", "cycles=x", "cycles=1001"]
)
def test_what_is_no_rule_is_refused_in_words(text: str) -> None:
    with pytest.raises(ValueError, match=r"every=|cycles="):
        parse_app_consistent(text)


def test_both_kinds_of_a_rule_at_once_are_refused() -> None:
    with pytest.raises(ValueError, match="not both"):
        AppConsistent(every=3600, cycles=1)


def test_the_first_point_is_due_at_once_and_without_a_rule_none_is() -> None:
    assert is_due(HOURLY, QuiesceRecord(), interval=300, now=NOW)
    assert not is_due(NEVER, QuiesceRecord(), interval=300, now=NOW)


def test_a_cycle_that_begins_a_little_early_counts_as_in_time() -> None:
    assert is_due(HOURLY, QuiesceRecord(good=ago(3599)), interval=300, now=NOW)
    assert not is_due(HOURLY, QuiesceRecord(good=ago(3300)), interval=300, now=NOW)


@pytest.mark.parametrize(("since", "due"), [(0, False), (1, False), (2, True), (9, True)])
def test_every_third_cycle_is_every_third_point(since: int, due: bool) -> None:
    record = QuiesceRecord(good=ago(1), since=since)
    assert is_due(AppConsistent(cycles=3), record, interval=5, now=NOW) is due


def test_a_guest_that_was_disturbed_in_vain_rests_for_a_quarter_of_an_hour_at_most() -> None:
    failed = QuiesceRecord(failures=1, tried=ago(600))
    assert not is_due(HOURLY, failed, interval=300, now=NOW)
    assert is_due(HOURLY, failed.model_copy(update={"tried": ago(899)}), interval=300, now=NOW)
    undisturbed = QuiesceRecord(failures=3)
    assert is_due(HOURLY, undisturbed, interval=300, now=NOW), "asking again costs the guest nothing"


@given(RULES, st.integers(5, 86400), st.integers(0, 2000), st.integers(0, 40 * 86400))
def test_a_clock_that_was_put_back_delays_nothing(rule: AppConsistent, interval: int, since: int, ahead: int) -> None:
    record = QuiesceRecord(good=ago(-ahead - 1), tried=ago(-ahead - 1), since=since)
    assert is_due(rule, record, interval=interval, now=NOW) is rule.wanted


def test_the_newest_application_consistent_point_is_found_by_what_it_is() -> None:
    points = [
        make_summary("20261122T110300Z-00000003", consistency="crash"),
        make_summary("20261122T110200Z-00000002", consistency="application"),
        make_summary("20261122T110100Z-00000001", consistency="application"),
    ]
    assert resolve("db", points, LATEST_APP) == "20261122T110200Z-00000002"
    assert resolve("db", points, LATEST) is None
    rotten = [points[0], points[1].model_copy(update={"damaged": ("vda",)}), points[2]]
    assert resolve("db", rotten, LATEST_APP) == "20261122T110100Z-00000001", "the newest that is whole"
    assert resolve("db", rotten[:2], LATEST_APP) == "20261122T110200Z-00000002"
    assert resolve("db", points, "20261122T110100Z-00000001") == "20261122T110100Z-00000001"
    with pytest.raises(NotFound, match="db has no application-consistent") as refused:
        resolve("db", points[:1], LATEST_APP)
    assert refused.value.code == "no-application-point"


def test_whoever_pins_exports_or_mounts_names_a_point_by_what_it_is_too() -> None:
    points = [
        make_summary("20261122T110300Z-00000003", consistency="crash"),
        make_summary("20261122T110200Z-00000002", consistency="application"),
    ]
    assert chosen_point("db", points, LATEST_APP) is points[1]
    assert chosen_point("db", points, LATEST) is points[0]
    assert chosen_point("db", points, points[1].point) is points[1]
    with pytest.raises(NotFound, match="no recovery point 20261122T110100Z") as refused:
        chosen_point("db", points, "20261122T110100Z-00000001")
    assert refused.value.code == "point-unknown"
    with pytest.raises(NotFound, match="no recovery point"):
        chosen_point("db", [], LATEST_APP)


@pytest.mark.parametrize(
    ("look", "code", "text"),
    [
        (FreezeLook(missing=("guest-fsfreeze-freeze",), frozen=False, hook=None), "guest-cannot-freeze", "fsfreeze-fr"),
        (FreezeLook(missing=(), frozen=True, hook=None), "guest-frozen", "says so"),
        (FreezeLook(missing=(), frozen=False, hook=False), "freeze-hook-absent", "/etc/qemu/fsfreeze-hook"),
        (FreezeLook(missing=(), frozen=False, hook=None), "guest-agent-ok", "does not tell"),
        (FreezeLook(missing=(), frozen=False, hook=True), "guest-agent-ok", "there is a hook"),
    ],
)
def test_a_guest_s_ability_to_freeze_is_judged(look: FreezeLook, code: str, text: str) -> None:
    (judged,) = judge_freezing("web", look)
    assert judged.code == code
    assert text in judged.text


def test_doctor_tells_how_the_last_tries_went_whatever_the_agent_says() -> None:
    assert judge_quiescing("web", QuiesceFacts()) == []
    (judged,) = judge_quiescing("web", QuiesceFacts(failures=3, text="the guest agent froze no file system"))
    assert judged.code == "guest-not-quiesced"
    assert judged.text == "it failed 3 times in a row: the guest agent froze no file system"
    assert "vmreplica history web" in judged.remedy
