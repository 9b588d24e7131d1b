"""Starts of a VM whose roles shall be swapped, while the policy does not say yet that they are."""

import datetime as dt
from pathlib import Path

import pytest
from planned_kit import HOST, VM, Side

from vmreplica.model.errors import NotFound, TimedOut, Unreachable, VmReplicaError
from vmreplica.model.policy import Policy, ReverseWish
from vmreplica.model.states import State

pytestmark = pytest.mark.failover

WISH = ReverseWish(point=None, checkpoint=None, since=dt.datetime(2026, 1, 1, tzinfo=dt.UTC))
ASKED = WISH.model_copy(update={"asked": True})
UNKNOWN = NotFound("replica-unknown", "no such replica")


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


@pytest.mark.parametrize("silent", [None, TimedOut("peer-silent", "x"), UNKNOWN])
def test_it_starts_while_the_old_primary_is_away_or_has_not_agreed(made: Side, silent: VmReplicaError | None) -> None:
    made.replica.silent = silent
    assert may_start(made)
    made.replica.silent, made.replica.state = None, State.REVERSING
    assert may_start(made)


@pytest.mark.parametrize("silent", [TimedOut("peer-silent", "x"), Unreachable("peer-unreachable", "x"), UNKNOWN])
def test_one_whose_old_primary_was_asked_starts_only_when_that_agrees(made: Side, silent: VmReplicaError) -> None:
    """It may have become its replica and have been failed over to, while this host was without power."""
    made.libvirt.known = made.libvirt.known.model_copy(update={"reverse": ASKED})
    made.replica.silent = silent
    verdict = made.starts.verdict(VM, "web", made.libvirt.policy(VM))
    assert not verdict.allowed
    assert "vmreplica start web --i-am-sure" in verdict.reason
    made.replica.silent, made.replica.state = None, State.REPLICATING
    assert may_start(made), "it says that it takes points"


@pytest.mark.parametrize(("epoch", "allowed"), [(0, True), (1, False), (2, False)])
def test_one_whose_old_primary_was_asked_and_has_its_own_vm_still_starts(made: Side, epoch: int, allowed: bool) -> None:
    made.libvirt.known = made.libvirt.known.model_copy(update={"reverse": ASKED})
    made.replica.silent, made.replica.primary_epoch = UNKNOWN, epoch
    assert may_start(made) is allowed


def test_what_the_old_primary_tells_of_an_earlier_life_of_the_vm_is_no_obstacle(made: Side) -> None:
    made.fence.forbid(VM, "it was failed over to beta", ask=True)
    made.replica.state, made.replica.epoch = State.COMMITTED, 1
    assert not made.guard.saw(VM, "web", made.libvirt.known, made.replica.position(VM))
    assert may_start(made)
