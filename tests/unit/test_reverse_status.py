"""What the status tells of a VM that is protected from where it was failed over to."""

import pytest
from api_kit import NOW, relation
from point_kit import VM

from vmreplica.agent.relationship import Relationship
from vmreplica.agent.reversing import one_each
from vmreplica.failover.reverse import reversed_policy
from vmreplica.model.health import Health, Level, Reason
from vmreplica.model.report import RelationshipReport
from vmreplica.model.states import State
from vmreplica.repository import ReplicaRecord

pytestmark = pytest.mark.failover


def past(state: State, *reasons: Reason) -> RelationshipReport:
    health = Health(level=Level.WARNING, reasons=reasons)
    return relation("web", role="replica", state=state, points=3, health=health)


@pytest.mark.parametrize(
    ("state", "standing"), [(State.FAILED_OVER, 3), (State.COMMITTING, 3), (State.COMMITTED, 0), (State.REPLICATING, 0)]
)
def test_a_vm_has_one_row_that_tells_on_how_many_points_it_stands(state: State, standing: int) -> None:
    other = relation("db", vm="0a5f7b52-90a3-4d0c-8a1e-6f3a3cf1b7de", role="replica")
    rows = one_each([relation("web")], [past(state), other])
    assert [(row.name, row.role, row.stands_on) for row in rows] == [("web", "primary", standing), ("db", "replica", 0)]
    assert rows[0].health.level is Level.NORMAL, "that it is not protected as a copy is no news"


def test_trouble_with_folding_what_it_stands_on_is_not_hidden() -> None:
    trouble = Reason(code="replica-complains", level=Level.WARNING, text="the store is full")
    gone = Reason(code="not-protected", level=Level.WARNING, text="it runs on its replica")
    (row,) = one_each([relation("web")], [past(State.COMMITTING, gone, trouble)])
    assert row.health == Health(level=Level.WARNING, reasons=(trouble,))


def test_while_its_old_primary_has_not_agreed_it_is_reversing_and_a_pause_or_a_fence_says_more() -> None:
    record = ReplicaRecord(vm=VM, name="web", owner="b" * 32, interval=60, keep=3, state=State.FAILED_OVER, epoch=1)
    policy = reversed_policy(record, NOW, planned=False)
    rel = Relationship(vm=VM, name="web", policy=policy, due=0.0)
    assert rel.state() is State.REVERSING
    rel.policy = policy.model_copy(update={"paused": True})
    assert rel.state() is State.PAUSED
    rel.fenced = True
    assert rel.state() is State.FENCED
