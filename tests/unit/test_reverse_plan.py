"""What a swap of the roles of two hosts is planned to do, and what it writes down."""

import datetime as dt

import pytest
from point_kit import VM, make_summary

from vmreplica.failover.reverse import plan_reverse, reversed_policy
from vmreplica.failover.taking_back import what_to_cancel
from vmreplica.model.errors import Conflict
from vmreplica.model.quiesce import AppConsistent
from vmreplica.model.states import State
from vmreplica.repository import FailoverRecord, ReplicaRecord

pytestmark = pytest.mark.failover

NOW = dt.datetime(2026, 11, 22, 10, 30, tzinfo=dt.UTC)
POINT = "20261122T100000Z-00c0ffee"
OLD = "0123456789abcdef0123456789abcdef"
STARTED = FailoverRecord(point=POINT, hold="0" * 16, started=True)


def record(state: State = State.FAILED_OVER, *, failover: FailoverRecord | None = STARTED) -> ReplicaRecord:
    return ReplicaRecord(
        vm=VM, name="web", owner=OLD, interval=60, keep=7, state=state, epoch=3, failover=failover,
        network_map={"lan": "inside", "dmz": "none"},
    )  # fmt: skip


@pytest.mark.parametrize("state", sorted(set(State) - {State.FAILED_OVER, State.COMMITTING, State.COMMITTED}))
def test_only_a_vm_that_was_failed_over_can_have_its_roles_swapped(state: State) -> None:
    with pytest.raises(Conflict) as caught:
        plan_reverse(record(state), [], old="alpha", answer="stopped", now=NOW)
    assert caught.value.code == "not-failed-over"
    assert "vmreplica failover web" in caught.value.hint


def test_the_plan_tells_where_the_vm_came_from_and_what_becomes_of_both_sides() -> None:
    points = [make_summary(POINT, {"vda": 1 << 30}, instant=NOW - dt.timedelta(minutes=30))]
    plan = plan_reverse(record(), points, old="alpha", answer="stopped", now=NOW)
    assert (plan.kind, plan.point, plan.instant) == ("reverse", POINT, points[0].instant)
    assert (plan.loses_seconds, plan.loses_bytes, plan.warnings) == (0.0, 0, ())
    assert [step.name for step in plan.steps] == ["protect", "adopt", "undefine", "send"]
    assert "alpha" in plan.after[1]


def test_the_plan_warns_of_an_old_primary_that_is_away_or_runs_the_vm() -> None:
    away = plan_reverse(record(), [], old=None, answer="silent", now=NOW)
    assert "the old primary does not answer" in away.warnings[0]
    runs = plan_reverse(record(State.COMMITTED, failover=None), [], old="alpha", answer="runs", now=NOW)
    assert "runs on alpha, too" in runs.warnings[0]


def test_the_policy_is_the_old_one_turned_round_with_the_wish_in_it() -> None:
    policy = reversed_policy(record(), NOW, planned=True)
    assert (policy.replica, policy.interval, policy.keep.last, policy.epoch) == (OLD, 60, 7, 3)
    wish = policy.reverse
    assert wish is not None
    assert (wish.point, wish.checkpoint) == (POINT, f"vmreplica-01234567-{POINT}")
    assert wish.planned
    assert wish.network_map == {"inside": "lan"}


def test_the_rule_for_application_consistent_points_goes_on_in_the_other_direction() -> None:
    ruled = record().model_copy(update={"app_consistent": AppConsistent(every=3600)})
    assert reversed_policy(ruled, NOW, planned=False).app_consistent == AppConsistent(every=3600)


def test_of_a_vm_that_no_longer_knows_its_point_nothing_is_claimed() -> None:
    wish = reversed_policy(record(State.COMMITTED, failover=None), NOW, planned=False).reverse
    assert wish is not None
    assert wish.point is None
    assert wish.checkpoint is None


def test_a_failover_whose_old_primary_is_asked_to_be_the_replica_is_not_taken_back() -> None:
    assert what_to_cancel(record(), tests_only=False) == "unplanned"
    swapped = record().model_copy(update={"swapped": True})
    with pytest.raises(Conflict) as caught:
        what_to_cancel(swapped, tests_only=False)
    assert caught.value.code == "roles-swapped"
