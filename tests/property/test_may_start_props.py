"""Whatever a replica says, a VM starts on its primary only if it cannot be running, or be about to, on its replica."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from point_kit import VM

from vmreplica.agent.may_start import is_stale, judge
from vmreplica.model.errors import VmReplicaError
from vmreplica.model.point import Position
from vmreplica.model.states import TRANSITIONS, Event, State

pytestmark = pytest.mark.failover

FAMILIES = tuple(VmReplicaError.__subclasses__())
#: In these the VM's life is at the replica, or is being brought there or back.
THERE = {State.FAILING_OVER, State.FAILED_OVER, State.CANCELLING, State.COMMITTING, State.COMMITTED, State.REVERSING}


def position(state: str, epoch: int) -> Position:
    return Position(vm=VM, state=state, epoch=epoch, latest=None, incoming=None, free_bytes=0)


@given(state=st.sampled_from(State), epoch=st.integers(0, 9))
def test_no_start_while_the_replica_is_anywhere_near_the_vm_s_life(state: State, epoch: int) -> None:
    verdict = judge("web", "beta", position(state, epoch))
    assert verdict.answered
    assert not (verdict.allowed and state in THERE)
    assert verdict.stale == is_stale(position(state, epoch))
    assert verdict.allowed or verdict.reason


@given(state=st.text(max_size=30).filter(lambda text: text not in set(State)))
def test_a_state_that_nobody_knows_is_a_no(state: str) -> None:
    assert not judge("web", "beta", position(state, 0)).allowed


@given(family=st.sampled_from(FAMILIES), code=st.sampled_from(["peer-unreachable", "not-your-replica", "x"]))
def test_no_answer_is_a_no_that_names_the_way_out_and_proves_nothing(family: type[VmReplicaError], code: str) -> None:
    verdict = judge("web", "beta", family(code, "something"))
    assert (verdict.allowed, verdict.stale) == (False, False)
    assert "vmreplica start web --i-am-sure" in verdict.reason


@pytest.mark.parametrize("state", [State.WAITING, State.REPLICATING, State.PAUSED])
def test_a_replica_that_just_takes_points_lets_the_vm_start_and_must_say_so_before_it_fails_over(state: State) -> None:
    assert judge("web", "beta", position(state, 3)).allowed
    after = TRANSITIONS.get((state, Event.FAIL_OVER))
    assert after is None or not judge("web", "beta", position(after, 3)).allowed
