"""The state of a replica on disk: what was moved to is there after a kill, what was refused is not."""

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from point_kit import VM
from repository_kit import START, new_replica

from vmreplica.model.errors import Conflict
from vmreplica.model.states import TRANSITIONS, Event
from vmreplica.repository import Repository

pytestmark = pytest.mark.failover


@settings(max_examples=15)
@given(events=st.lists(st.sampled_from(Event), max_size=30))
def test_each_state_is_on_disk_before_its_act_begins(events: list[Event]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        replica = new_replica(Path(folder))
        for event in events:
            before = replica.record.state
            try:
                moved = replica.move(event)
            except Conflict:
                moved = before
            assert moved == TRANSITIONS.get((before, event), before)
            after_a_kill = Repository(Path(folder), min_free=0, clock=lambda: START)
            assert after_a_kill.replica(VM).record.state == moved
