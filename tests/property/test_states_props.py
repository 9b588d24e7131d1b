"""The table of states as a graph: nothing is a dead end, and what a crash interrupts needs no person to be left."""

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmreplica.model.errors import Conflict
from vmreplica.model.states import RECEIVING, TRANSITIONS, Event, State, transition

pytestmark = pytest.mark.failover

#: In these an act is under way: an agent that starts and finds one of them finishes the act or undoes it.
ACTING = frozenset(state for state in State if "ING" in state.name and state not in {State.REPLICATING, State.WAITING})
#: What a person begins; a command may ask for it by itself, but no recovery after a crash does.
BEGUN = frozenset(
    {Event.PAUSE, Event.RESUME, Event.PREPARE, Event.FAIL_OVER, Event.COMMIT, Event.REVERSE, Event.REMOVE}
)
#: Taking an act back is a person's word too, but also what recovery does by itself.
OWN = frozenset(Event) - BEGUN
COMMANDS = {
    "vmreplica pause web": Event.PAUSE,
    "vmreplica resume web": Event.RESUME,
    "vmreplica failover web --cancel": Event.CANCEL,
    "vmreplica failover web": Event.FAIL_OVER,
    "vmreplica disable web": Event.REMOVE,
    "vmreplica commit web": Event.COMMIT,
    "vmreplica reverse web": Event.REVERSE,
}


def _reached(start: State, events: Iterable[Event]) -> set[State]:
    """All states that some sequence of the events leads to, the start itself only if one leads back."""
    allowed, found, new = frozenset(events), set[State](), {start}
    while new:
        new = {to for (at, event), to in TRANSITIONS.items() if at in new and event in allowed} - found
        found |= new
    return found


def test_the_acting_states_are_those_that_the_design_names() -> None:
    named = {State.PREPARING, State.FAILING_OVER, State.CANCELLING, State.COMMITTING, State.REVERSING, State.REMOVING}
    assert named <= ACTING


@pytest.mark.parametrize("state", sorted(set(State) - {State.REMOVING}))
def test_from_every_state_replication_can_be_had_again_and_the_relationship_dissolved(state: State) -> None:
    assert {State.REPLICATING, State.REMOVING} <= _reached(state, Event)


@pytest.mark.parametrize("state", sorted(ACTING - {State.REMOVING}))
def test_an_act_that_a_crash_interrupted_is_left_without_a_new_command(state: State) -> None:
    assert _reached(state, OWN) - ACTING


@pytest.mark.parametrize("state", sorted(ACTING))
def test_no_other_act_begins_in_the_midst_of_one(state: State) -> None:
    others = BEGUN - {Event.REVERSE, Event.REMOVE}
    assert not {event for event in others if (state, event) in TRANSITIONS}


def test_removing_is_final() -> None:
    assert not _reached(State.REMOVING, Event)


@pytest.mark.parametrize("state", [State.FAILING_OVER, State.FAILED_OVER, State.COMMITTING, State.COMMITTED])
def test_a_copy_that_became_the_vm_takes_points_again_only_by_an_act_that_ends_it(state: State) -> None:
    # Straight back to receiving, the old primary's points would land in the chain that the VM runs on.
    assert not {to for (at, _event), to in TRANSITIONS.items() if at == state} & RECEIVING


@given(refused=st.tuples(st.sampled_from(State), st.sampled_from(Event)).filter(lambda pair: pair not in TRANSITIONS))
def test_a_refusal_names_only_commands_that_are_possible(refused: tuple[State, Event]) -> None:
    state, event = refused
    with pytest.raises(Conflict) as refusal:
        transition("web", state, event)
    assert refusal.value.code == "state-forbids"
    named = refusal.value.hint.removeprefix("possible from here: ").split(", ")
    assert all((state, COMMANDS[command]) in TRANSITIONS for command in named if command in COMMANDS)
