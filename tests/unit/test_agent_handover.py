"""When a replica may be handed over."""

import pytest

from vmreplica.agent.handover import require_no_failover, runs_there
from vmreplica.model.errors import Conflict
from vmreplica.model.states import State
from vmreplica.repository.record import ReplicaRecord

pytestmark = pytest.mark.seeding


def record(state: State) -> ReplicaRecord:
    return ReplicaRecord(
        vm="0a5f7b52-90a3-4d0c-8a1e-6f3a3cf1b7de", name="web", owner="0123456789abcdef0123456789abcdef",
        interval=300, keep=3, state=state, epoch=0,
    )  # fmt: skip


@pytest.mark.parametrize("state", [State.WAITING, State.REPLICATING, State.PAUSED])
def test_a_replica_that_waits_for_points_may_be_handed_over(state: State) -> None:
    require_no_failover(record(state))


@pytest.mark.parametrize("state", [State.FAILING_OVER, State.FAILED_OVER, State.COMMITTED, State.REMOVING])
def test_a_replica_that_is_or_becomes_the_vm_is_not_handed_over(state: State) -> None:
    with pytest.raises(Conflict, match=f"web is {state}: it takes points from no host") as caught:
        require_no_failover(record(state))
    assert caught.value.hint == "vmreplica status web"


def test_whoever_hands_over_too_early_is_told_where_the_vm_runs() -> None:
    assert "web runs on host1" in runs_there(record(State.REPLICATING), "host1").message
    assert "the host that sends its points" in runs_there(record(State.REPLICATING), None).message
