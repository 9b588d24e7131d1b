"""Values of the model: what they accept, refuse and say."""

import datetime as dt
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from vmreplica.model.errors import Conflict, Internal, NoSpace, Problem, VmReplicaError, from_problem
from vmreplica.model.health import Facts, Level, judge
from vmreplica.model.ids import (
    CheckpointName,
    DiskTarget,
    PointId,
    VmId,
    VmName,
    checkpoint_name,
    is_our_checkpoint,
    new_point_id,
    point_instant,
)
from vmreplica.model.states import TRANSITIONS, Event, State, transition
from vmreplica.model.units import format_duration, format_size, parse_duration, parse_size

pytestmark = pytest.mark.main_job

NOW = dt.datetime(2026, 11, 22, 10, 0, tzinfo=dt.UTC)


@pytest.mark.parametrize(
    ("text", "size"), [("0", 0), ("4096", 4096), ("512M", 512 << 20), ("2GiB", 2 << 30), (" 1 t ", 1 << 40), ("3b", 3)]
)
def test_sizes_are_read_in_powers_of_1024(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "-1", "1.5G", "ten", "5X", "1e9", "9" * 20])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a size"):
        parse_size(text)


@pytest.mark.parametrize(("text", "seconds"), [("30s", 30), ("5m", 300), ("12h", 43200), ("1d", 86400), ("300", 300)])
def test_durations_are_read(text: str, seconds: int) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "5x", "-5m", "m", "1h30m"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a duration"):
        parse_duration(text)


@given(st.integers(0, 1 << 50))
def test_every_size_and_duration_can_be_spelt(value: int) -> None:
    assert format_size(value)[0].isdigit()
    assert format_duration(value)[0].isdigit()


@pytest.mark.parametrize(
    ("kind", "bad"),
    [
        (VmId, "../../etc"),
        (VmId, "11111111-2222-3333-4444-555555555555\n"),
        (PointId, "20260101T000000Z-0000000"),
        (PointId, "20260101T000000Z-00000000/.."),
        (DiskTarget, "../vda"),
        (DiskTarget, "vda "),
        (DiskTarget, ""),
        (CheckpointName, "vmreplica-x"),
        (VmName, "--help"),
        (VmName, "a/b"),
        (VmName, "a\x00b"),
        (VmName, ""),
    ],
)
def test_names_that_could_become_paths_or_options_are_refused(kind: Any, bad: str) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(kind).validate_python(bad)


@given(st.datetimes(dt.datetime(2000, 1, 1), dt.datetime(2100, 1, 1)), st.integers(0, 2**32 - 1))  # noqa: DTZ001
def test_a_points_name_tells_its_second_and_sorts_by_time(naive: dt.datetime, salt: int) -> None:
    instant = naive.replace(tzinfo=dt.UTC)
    point = new_point_id(instant, f"{salt:08x}")
    assert TypeAdapter(PointId).validate_python(point) == point
    assert point_instant(point) == instant.replace(microsecond=0)
    assert point < new_point_id(instant + dt.timedelta(seconds=1), "00000000")


def test_a_checkpoint_belongs_to_one_replica_only() -> None:
    point = new_point_id(NOW, "0" * 8)
    name = checkpoint_name("ab" * 16, point)
    assert TypeAdapter(CheckpointName).validate_python(name) == name
    assert is_our_checkpoint(name, "ab" * 16)
    assert not is_our_checkpoint(name, "cd" * 16)
    assert not is_our_checkpoint("virtnbdbackup.0", "ab" * 16)


def families() -> list[type[VmReplicaError]]:
    return sorted(VmReplicaError.__subclasses__(), key=lambda family: family.__name__)


@pytest.mark.parametrize("family", families())
def test_an_error_crosses_the_wire_unchanged(family: type[VmReplicaError]) -> None:
    error = family("some-code", "what happened", hint="what to do")
    back = from_problem(Problem.model_validate_json(error.problem().model_dump_json()))
    assert type(back) is family
    assert (back.code, back.message, back.hint, back.kind) == ("some-code", "what happened", "what to do", error.kind)


def test_exit_codes_tell_the_families_apart() -> None:
    codes = [family.exit_code for family in families()]
    assert len(set(codes)) == len(codes)
    assert all(0 < code < 64 for code in codes)


def test_an_unknown_status_from_a_peer_is_an_internal_error() -> None:
    problem = Problem(code="teapot", kind="permanent", status=418, message="short and stout", hint="")
    assert isinstance(from_problem(problem), Internal)
    assert NoSpace("x", "y").kind == "transient"


@given(st.sampled_from(State), st.sampled_from(Event))
def test_a_transition_is_in_the_table_or_refused_with_what_is_possible(state: State, event: Event) -> None:
    if (state, event) in TRANSITIONS:
        assert transition("web", state, event) is TRANSITIONS[state, event]
    else:
        with pytest.raises(Conflict, match="cannot"):
            transition("web", state, event)


def test_what_a_state_forbids_is_answered_with_the_commands_that_it_allows() -> None:
    with pytest.raises(Conflict) as refusal:
        transition("web", State.FAILED_OVER, Event.FAIL_OVER)
    assert refusal.value.hint == (
        "possible from here: vmreplica failover web --cancel, vmreplica commit web, vmreplica reverse web, "
        "vmreplica disable web"
    )
    with pytest.raises(Conflict) as refusal:
        transition("web", State.FAILING_OVER, Event.REMOVE)
    assert "vmreplica disable" not in refusal.value.hint


def test_every_state_can_be_left_and_reached() -> None:
    left = {state for state, _ in TRANSITIONS}
    reached = set(TRANSITIONS.values()) | {State.READY, State.WAITING}
    assert left == set(State) - {State.REMOVING}
    assert reached == set(State)


def facts(**changes: object) -> Facts:
    base: dict[str, object] = {"state": State.REPLICATING, "interval": 300, "point_age": 100.0}
    return Facts(**(base | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "level", "code"),
    [
        ({}, Level.NORMAL, None),
        ({"point_age": 601.0}, Level.WARNING, "rpo-exceeded"),
        ({"point_age": 1201.0}, Level.CRITICAL, "rpo-exceeded"),
        ({"interval": 30, "point_age": 121.0}, Level.CRITICAL, "rpo-exceeded"),
        ({"point_age": 9999.0, "vm_off": True}, Level.WARNING, "vm-off"),
        ({"last_duration": 301.0}, Level.WARNING, "interval-not-kept"),
        ({"last_error": "x", "last_error_code": "no-space"}, Level.WARNING, "no-space"),
        ({"state": State.FENCED}, Level.CRITICAL, "failed-over-elsewhere"),
        (
            {"state": State.FENCED, "last_error": "x", "last_error_code": "failed-over-elsewhere"},
            Level.CRITICAL,
            "failed-over-elsewhere",
        ),
        ({"state": State.PAUSED, "point_age": 9999.0}, Level.WARNING, "paused"),
        ({"complaints": ("store nearly full",)}, Level.WARNING, "replica-complains"),
    ],
)
def test_health_is_judged_by_the_relationships_own_interval(
    changes: dict[str, object], level: Level, code: str | None
) -> None:
    health = judge(facts(**changes))
    assert health.level is level
    assert [reason.code for reason in health.reasons] == ([code] if code else [])
    assert all(reason.text for reason in health.reasons)
