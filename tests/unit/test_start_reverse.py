"""Starts of a VM whose roles shall be swapped, while the policy does not say yet that they are."""

import datetime as dt
from pathlib import Path

import pytest
from planned_kit import HOST, VM, Side

from vmreplica.model.errors import NotFound, TimedOut, VmReplicaError
from vmreplica.model.policy import Policy, ReverseWish
from vmreplica.model.states import State

pytestmark = pytest.mark.failover

WISH = ReverseWish(point=None, checkpoint=None, since=dt.datetime(2026, 1, 1, tzinfo=dt.UTC))


@pytest.fixture
def made(tmp_path: Path) -> Side:
    side = Side(tmp_path, Policy(replica=HOST, epoch=1, reverse=WISH), on=False)
    side.replica.epoch = 1
    return side


def may_start(made: Side) -> bool:
    return made.starts.verdict(VM, "web", made.libvirt.policy(VM)).allowed


def test_a_vm_that_was_failed_over_to_the_host_that_had_agreed_already_does_not_start(made: Side) -> None:
    made.replica.state, made.replica.epoch = State.FAILED_OVER, 2
    assert not may_start(made)
    assert made.guard.fenced(VM)
    made.replica.state, made.replica.epoch = State.FAILING_OVER, 1
    assert not may_start(made), "the epoch is raised at its end"
    made.replica.silent = TimedOut("peer-silent", "no answer")
    assert not may_start(made), "what is known is not forgotten when the host falls silent"


def test_what_the_watch_over_the_fences_learnt_counts(made: Side) -> None:
    made.fence.forbid(VM, "it was failed over to beta", ask=True)
    made.replica.silent = TimedOut("peer-silent", "no answer")
    assert not may_start(made)
    made.replica.silent = None
    assert may_start(made), "the host says that it takes points"


@pytest.mark.parametrize("silent", [None, TimedOut("peer-silent", "x"), NotFound("replica-unknown", "no such replica")])
def test_it_starts_while_the_old_primary_is_away_or_has_not_agreed(made: Side, silent: VmReplicaError | None) -> None:
    made.replica.silent = silent
    assert may_start(made)
    made.replica.silent, made.replica.state = None, State.REVERSING
    assert may_start(made)


def test_what_the_old_primary_tells_of_an_earlier_life_of_the_vm_is_no_obstacle(made: Side) -> None:
    made.fence.forbid(VM, "it was failed over to beta", ask=True)
    made.replica.state, made.replica.epoch = State.COMMITTED, 1
    assert not made.guard.saw(VM, "web", made.libvirt.known, made.replica.position(VM))
    assert may_start(made)
