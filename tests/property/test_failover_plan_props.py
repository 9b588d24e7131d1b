"""Plans of failovers: whatever the replica's record and points are, a plan is sound or refused in words."""

import datetime as dt
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from point_kit import OTHER_VM, VM, make_summary

from vmreplica.cli.output import console
from vmreplica.cli.show_failover import loses, loss_text, plan_view
from vmreplica.failover.plan import plan_test, plan_unplanned
from vmreplica.failover.taking_back import plan_cancel
from vmreplica.model.errors import VmReplicaError
from vmreplica.model.ids import PointId
from vmreplica.model.point import PointSummary
from vmreplica.model.report import FailoverPlan
from vmreplica.model.states import TRANSITIONS, Event, State
from vmreplica.repository import FailoverRecord, FailoverTestRecord, ReplicaRecord

pytestmark = pytest.mark.failover

START = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
NOW = START + dt.timedelta(days=2)
REFUSALS = {
    "base-awaited",
    "no-points",
    "nothing-to-cancel",
    "point-is-seed",
    "point-unknown",
    "primary-still-runs",
    "state-forbids",
}
#: From these a failover is taken back; the first two were left halfway.
TAKEN_BACK = {State.FAILING_OVER, State.CANCELLING, State.FAILED_OVER}
UNKNOWN = "20270101T000000Z-ffffffff"

answers = st.sampled_from(("runs", "stopped", "silent"))
written = st.none() | st.integers(0, 1 << 40)


def _point(number: int, *, seed: bool, size: int, awaited: PointId | None) -> PointSummary:
    instant = START + dt.timedelta(minutes=number)
    return make_summary(
        f"{instant:%Y%m%dT%H%M%SZ}-{number:08x}",
        kind="seed" if seed else "resync",
        instant=instant,
        guest_bytes=size,
        waits_for=awaited,
    )


@st.composite
def histories(draw: st.DrawFn) -> list[PointSummary]:
    """Points as a replica lists them, newest first; the oldest may be a seed, or all may wait for an export."""
    numbers = sorted(draw(st.sets(st.integers(0, 2000), max_size=6)))
    seeded, awaited = draw(st.booleans()), UNKNOWN if draw(st.integers(0, 7)) == 0 else None
    sizes = st.integers(0, 1 << 32)
    made = [_point(n, seed=seeded and n == numbers[0], size=draw(sizes), awaited=awaited) for n in numbers]
    return made[::-1]


@st.composite
def situations(draw: st.DrawFn) -> tuple[ReplicaRecord, list[PointSummary], PointId | None]:
    """A record and points that belong together, and the point that a person names; states are all there are."""
    points = draw(histories())
    known = [point.point for point in points]
    state = draw(st.sampled_from([state for state in State if known or state not in TAKEN_BACK]))
    failover = None
    if state in TAKEN_BACK:
        since = draw(st.none() | st.datetimes(NOW.replace(tzinfo=None), timezones=st.just(dt.UTC), max_value=_LATER))
        failover = FailoverRecord(point=draw(st.sampled_from(known)), hold="0" * 16, started=True, since=since)
    tests = tuple(_test(point) for point in draw(st.lists(st.sampled_from(known), max_size=2))) if known else ()
    record = ReplicaRecord(
        vm=VM, name="web", owner="ab" * 16, interval=60, keep=3, state=state, epoch=3, failover=failover, tests=tests
    )
    return record, points, draw(st.sampled_from([None, UNKNOWN, *known]))


_LATER = (NOW + dt.timedelta(days=1)).replace(tzinfo=None)


def _test(point: PointId) -> FailoverTestRecord:
    return FailoverTestRecord(
        id="01234567", vm=OTHER_VM, name="web-test", point=point, network=None, since=NOW, until=None, started=True
    )


def _refused(error: VmReplicaError) -> None:
    assert error.code in REFUSALS
    assert error.hint


def _shown(plan: FailoverPlan) -> str:
    terminal = console()
    with terminal.capture() as captured:
        terminal.print(plan_view(plan))
    return captured.get()


def _sound(plan: FailoverPlan) -> None:
    """What holds of each plan: it names steps and both sides, is told whole, and survives the API."""
    assert (plan.vm, plan.name) == (VM, "web")
    assert plan.loses_seconds >= 0
    assert plan.loses_bytes is None or plan.loses_bytes >= 0
    assert len({step.name for step in plan.steps}) == len(plan.steps) > 0
    assert plan.after
    assert FailoverPlan.model_validate_json(plan.model_dump_json()) == plan
    words = " ".join(_shown(plan).split())
    for said in (*(step.text for step in plan.steps), *plan.after, *plan.warnings, loss_text(plan)):
        assert " ".join(said.split()) in words


@given(situation=situations(), primary=answers)
def test_an_unplanned_failover_starts_a_recovery_point_and_counts_what_it_loses(
    situation: tuple[ReplicaRecord, list[PointSummary], PointId | None],
    primary: Literal["runs", "stopped", "silent"],
) -> None:
    record, points, wanted = situation
    try:
        plan = plan_unplanned(record, points, wanted, now=NOW, primary=primary)
    except VmReplicaError as error:
        _refused(error)
        return
    _sound(plan)
    assert primary != "runs"
    assert (record.state, Event.FAIL_OVER) in TRANSITIONS
    (chosen,) = (point for point in points if point.point == plan.point)
    newer = [point for point in points if point.bootable and point.instant > chosen.instant]
    assert chosen.bootable
    assert chosen.waits_for is None
    assert wanted == plan.point if wanted else not newer
    assert plan.newer_points == len(newer)
    assert plan.loses_bytes == (sum(point.guest_bytes for point in newer) if newer else None)
    assert plan.loses_seconds == (NOW - chosen.instant).total_seconds()
    assert loses(plan)
    assert any("does not answer" in warning for warning in plan.warnings) == (primary == "silent")


@given(situation=situations(), network=st.none() | st.just("lab-only"), leads_out=st.booleans())
def test_a_test_failover_loses_nothing_and_warns_only_of_a_network_that_leads_out(
    situation: tuple[ReplicaRecord, list[PointSummary], PointId | None], network: str | None, leads_out: bool
) -> None:
    record, points, wanted = situation
    leads_out = leads_out and network is not None
    try:
        plan = plan_test(record, points, wanted, network=network, leads_out=leads_out)
    except VmReplicaError as error:
        _refused(error)
        return
    _sound(plan)
    assert not loses(plan)
    assert plan.point == wanted or wanted is None
    assert bool(plan.warnings) == leads_out
    assert not {"fence", "stop", "receive"} & {step.name for step in plan.steps}


@given(situation=situations(), tests_only=st.booleans(), size=written)
def test_only_taking_back_a_failover_loses_something_and_it_says_since_when(
    situation: tuple[ReplicaRecord, list[PointSummary], PointId | None], tests_only: bool, size: int | None
) -> None:
    record, points, _wanted = situation
    now = NOW + dt.timedelta(days=2)
    try:
        plan = plan_cancel(record, points, tests_only=tests_only, now=now, written=size)
    except VmReplicaError as error:
        _refused(error)
        assert not record.tests
        assert tests_only or record.state not in TAKEN_BACK
        return
    _sound(plan)
    if record.failover is not None and record.state in TAKEN_BACK and not tests_only:
        (ran_from,) = (point for point in points if point.point == record.failover.point)
        assert plan.loses_seconds == (now - (record.failover.since or ran_from.instant)).total_seconds()
        assert (plan.point, plan.loses_bytes) == (ran_from.point, size)
        assert loses(plan)
    else:
        assert not loses(plan)
        assert plan.point in {test.point for test in record.tests}
