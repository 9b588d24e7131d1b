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


@given(state=st.sampled_from(State), epoch=st.integers(0, 9), ours=st.integers(0, 9))
def test_no_start_while_the_replica_is_anywhere_near_the_vm_s_life(state: State, epoch: int, ours: int) -> None:
    verdict = judge("web", "beta", ours, position(state, epoch))
    assert verdict.answered
    assert not (verdict.allowed and state in THERE)
    assert verdict.stale == is_stale(position(state, epoch), ours)
    assert verdict.allowed or verdict.reason


@given(state=st.sampled_from(State), epoch=st.integers(0, 9))
def test_a_copy_is_called_stale_only_when_the_vm_is_over_there(state: State, epoch: int) -> None:
    here, there = is_stale(position(state, epoch), epoch), is_stale(position(state, epoch + 1), epoch)
    assert here == (state in {State.FAILING_OVER, State.FAILED_OVER, State.COMMITTING, State.COMMITTED})
    assert there or not here, "a higher epoch proves no less"
    assert not is_stale(position(State.REVERSING, epoch), epoch), "an old primary becomes our replica"


@given(state=st.text(max_size=30).filter(lambda text: text not in set(State)))
def test_a_state_that_nobody_knows_is_a_no(state: str) -> None:
    assert not judge("web", "beta", 0, position(state, 0)).allowed


@given(family=st.sampled_from(FAMILIES), code=st.sampled_from(["peer-unreachable", "not-your-replica", "x"]))
def test_no_answer_is_a_no_that_names_the_way_out_and_proves_nothing(family: type[VmReplicaError], code: str) -> None:
    verdict = judge("web", "beta", 0, family(code, "something"))
    assert (verdict.allowed, verdict.stale) == (False, False)
    assert "vmreplica start web --i-am-sure" in verdict.reason


@pytest.mark.parametrize("state", [State.WAITING, State.REPLICATING, State.PAUSED])
def test_a_replica_that_just_takes_points_lets_the_vm_start_and_must_say_so_before_it_fails_over(state: State) -> None:
    assert judge("web", "beta", 0, position(state, 3)).allowed
    after = TRANSITIONS.get((state, Event.FAIL_OVER))
    assert after is None or not judge("web", "beta", 0, position(after, 3)).allowed
