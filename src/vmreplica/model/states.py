"""The state machine of a relationship, on either side: enum, pure transition table, guard.

Persist the new state before the act it announces. A state ending in -ING is left only by finishing or by rolling
back what it announces, so that a crash in it is seen and repaired at the next start, and a failure by trying again.
"""

from enum import StrEnum
from typing import Final

from vmreplica.model.errors import Conflict


class State(StrEnum):
    """Where a relationship stands. P: on the primary, R: on the replica, B: both."""

    READY = "ready"  # P: protected, initial replication not begun
    INITIAL = "initial-replication"  # P: first whole copy under way
    WAITING = "waiting-for-initial"  # R: accepted, no published point yet; B: the first copy travels in an export
    REPLICATING = "replicating"  # B: normal
    PAUSED = "paused"  # B: by a person
    RESYNC = "resynchronizing"  # P: change tracking was lost, whole copy under way, points are kept
    PREPARING = "preparing-for-failover"  # P: planned failover, guest being shut down
    PREPARED = "prepared-for-failover"  # P: last delta acknowledged, start forbidden
    FAILING_OVER = "failing-over"  # R: run layer being made, VM being defined and started
    FAILED_OVER = "failed-over"  # R: VM runs here on a throw-away layer, not committed
    CANCELLING = "cancelling-failover"  # R: VM being removed, layer being thrown away
    COMMITTING = "committing-failover"  # R: chain being folded under the running VM
    COMMITTED = "committed"  # R: VM runs here for good, not yet protected again
    REVERSING = "reversing"  # B: roles being swapped
    FENCED = "failed-over-elsewhere"  # P: the replica has a higher epoch; must not start, may not ship
    REMOVING = "removing"  # B: relationship being dissolved


class Event(StrEnum):
    """What moves a relationship from one state to the next."""

    START_INITIAL = "start-initial"
    PUBLISHED = "published"
    TRACKING_LOST = "tracking-lost"
    PAUSE = "pause"
    RESUME = "resume"
    PREPARE = "prepare"
    PREPARED = "prepared"
    ABORT = "abort"
    FAIL_OVER = "fail-over"
    STARTED = "started"
    CANCEL = "cancel"
    CANCELLED = "cancelled"
    COMMIT = "commit"
    COMMITTED = "committed"
    REVERSE = "reverse"
    REVERSED = "reversed"
    EPOCH_PASSED = "epoch-passed"
    REMOVE = "remove"


_S, _E = State, Event

TRANSITIONS: Final[dict[tuple[State, Event], State]] = {
    (_S.READY, _E.START_INITIAL): _S.INITIAL,
    (_S.READY, _E.PUBLISHED): _S.REPLICATING,
    (_S.INITIAL, _E.PUBLISHED): _S.REPLICATING,
    (_S.WAITING, _E.PUBLISHED): _S.REPLICATING,
    (_S.REPLICATING, _E.PUBLISHED): _S.REPLICATING,
    (_S.REPLICATING, _E.TRACKING_LOST): _S.RESYNC,
    (_S.RESYNC, _E.PUBLISHED): _S.REPLICATING,
    (_S.REPLICATING, _E.PREPARE): _S.PREPARING,
    (_S.PREPARING, _E.PREPARED): _S.PREPARED,
    (_S.PREPARING, _E.ABORT): _S.REPLICATING,
    (_S.PREPARED, _E.ABORT): _S.REPLICATING,
    (_S.PREPARED, _E.REVERSE): _S.REVERSING,
    (_S.REPLICATING, _E.FAIL_OVER): _S.FAILING_OVER,
    (_S.PAUSED, _E.FAIL_OVER): _S.FAILING_OVER,
    (_S.FAILING_OVER, _E.STARTED): _S.FAILED_OVER,
    (_S.FAILING_OVER, _E.CANCEL): _S.CANCELLING,
    (_S.FAILED_OVER, _E.CANCEL): _S.CANCELLING,
    (_S.CANCELLING, _E.CANCEL): _S.CANCELLING,  # asked again, as it failed the first time
    (_S.CANCELLING, _E.CANCELLED): _S.REPLICATING,
    (_S.FAILED_OVER, _E.COMMIT): _S.COMMITTING,
    (_S.COMMITTING, _E.COMMITTED): _S.COMMITTED,
    **{(state, _E.REVERSE): _S.REVERSING for state in (_S.FAILED_OVER, _S.COMMITTING, _S.COMMITTED)},
    (_S.REVERSING, _E.REVERSED): _S.REPLICATING,
    (_S.FENCED, _E.REVERSE): _S.REVERSING,
    **{(state, _E.PAUSE): _S.PAUSED for state in (_S.READY, _S.INITIAL, _S.WAITING, _S.REPLICATING, _S.RESYNC)},
    (_S.PAUSED, _E.RESUME): _S.REPLICATING,
    **{
        (state, _E.EPOCH_PASSED): _S.FENCED
        for state in (_S.READY, _S.INITIAL, _S.REPLICATING, _S.RESYNC, _S.PAUSED, _S.PREPARED)
    },
    **{
        (state, _E.REMOVE): _S.REMOVING
        for state in State
        if state not in {_S.PREPARING, _S.FAILING_OVER, _S.CANCELLING, _S.COMMITTING, _S.REVERSING, _S.REMOVING}
    },
}

#: What a person does for an event; the others happen by themselves.
_COMMANDS: Final = {
    _E.PAUSE: "vmreplica pause {vm}",
    _E.RESUME: "vmreplica resume {vm}",
    _E.FAIL_OVER: "vmreplica failover {vm}",
    _E.CANCEL: "vmreplica failover {vm} --cancel",
    _E.COMMIT: "vmreplica commit {vm}",
    _E.REVERSE: "vmreplica reverse {vm}",
    _E.REMOVE: "vmreplica disable {vm}",
}

#: States in which a replica takes segments from its primary.
RECEIVING: Final = frozenset({_S.WAITING, _S.REPLICATING})


def transition(vm: str, state: State, event: Event) -> State:
    """Tell the state after an event.

    Raises:
        Conflict: the event cannot happen in this state.
    """
    try:
        return TRANSITIONS[state, event]
    except KeyError:
        allowed = [command.format(vm=vm) for e, command in _COMMANDS.items() if (state, e) in TRANSITIONS]
        raise Conflict(
            "state-forbids",
            f"{vm} is {state}: it cannot {event} now",
            hint=f"possible from here: {', '.join(allowed) or 'nothing, the running act comes first'}",
        ) from None
