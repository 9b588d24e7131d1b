"""Which relationship's cycle runs next: pure, so that every promise about it is a property.

The longest overdue goes first, no more than the limit run at once, none runs twice at once. Those that are known to
read whole disks wait in a queue of their own, so that they never take the last place from a delta. A cycle that takes
longer than its interval is followed by the next one at once; missed turns are counted, never piled up.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from vmreplica.model.ids import VmId

#: Seconds before the first, second, ... retry after a failure; the last one repeats.
BACKOFF: Final = (2.0, 5.0, 10.0, 20.0, 40.0, 60.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One relationship in the scheduler's eyes; times in seconds of one monotonic clock."""

    vm: VmId
    due: float
    running: bool = False
    #: It runs, and reads whole disks.
    long: bool = False
    #: It would read whole disks, and was told to wait.
    queued: bool = False


def pick(now: float, turns: Iterable[Turn], limit: int, slots: int) -> list[VmId]:
    """Choose whose cycle starts now, longest overdue first.

    Args:
        now: present time.
        turns: all relationships.
        limit: cycles at once.
        slots: of these, such as read whole disks.
    """
    known: Sequence[Turn] = tuple(turns)
    room = limit - sum(turn.running for turn in known)
    free = slots - sum(turn.long for turn in known)
    chosen: list[VmId] = []
    for turn in sorted((t for t in known if t.due <= now and not t.running), key=lambda t: (t.due, t.vm)):
        if len(chosen) >= room:
            break
        if turn.queued and free <= 0:
            continue
        free -= turn.queued
        chosen.append(turn.vm)
    return chosen


def long_slots(wanted: int, limit: int) -> int:
    """Tell how many cycles may read whole disks at once: one place is left for deltas, if there are two at all."""
    return max(1, min(wanted, limit - 1))


def may_go_long(turns: Iterable[Turn], vm: VmId, slots: int) -> bool:
    """Tell whether a running cycle may begin to read whole disks: there is a slot, and nobody waits longer for it."""
    known = {turn.vm: turn for turn in turns}
    own = known[vm]
    before = sum(turn.queued and not turn.running and (turn.due, turn.vm) < (own.due, vm) for turn in known.values())
    return sum(turn.long for turn in known.values()) + before < slots


def begin_due(due: float, now: float, seconds_ahead: float) -> float:
    """Tell when a cycle is due that may begin only so many seconds from now."""
    return max(due, now + seconds_ahead)


def next_wake(now: float, turns: Iterable[Turn], longest: float) -> float:
    """Tell how many seconds the scheduler may sleep."""
    waits = [turn.due - now for turn in turns if not turn.running and turn.due > now]
    return max(0.0, min([*waits, longest]))


def next_due(started: float, now: float, interval: float) -> float:
    """Tell when the cycle after a successful one is due: on the interval's beat, or at once when that has passed."""
    return max(now, started + interval)


def missed_turns(due: float, now: float, interval: float) -> int:
    """Count the turns that passed by since one was due."""
    return max(0, int((now - due) // interval))


def retry_due(now: float, failures: int, interval: float, jitter: float) -> float:
    """Tell when to try again after ``failures`` failures in a row.

    Args:
        now: present time.
        failures: at least 1.
        interval: seconds; a retry never waits longer than it, except that it always waits one second.
        jitter: 0..1, spreads the retries of many VMs.
    """
    wait = BACKOFF[min(failures, len(BACKOFF)) - 1]
    return now + max(1.0, min(wait, interval)) * (0.8 + 0.4 * jitter)
