"""A VM's turn taken by somebody else than its cycle, for what must not meet a running one."""

import contextlib
import threading
from collections.abc import Callable, Iterator

from vmreplica.agent.meter import Meter
from vmreplica.agent.relationship import Relationship


@contextlib.contextmanager
def borrowed(
    wake: threading.Condition, rel: Relationship, what: str, *, patience: float, clock: Callable[[], float]
) -> Iterator[bool]:
    """Let no cycle of a VM run in the block. Yields False, and guards nothing, when one runs all the time.

    Args:
        wake: the scheduler's condition, which guards the relationship.
        rel: of the VM.
        what: shown as the phase meanwhile.
        patience: seconds to wait for a running cycle.
        clock: the scheduler's.
    """
    with wake:
        taken = wake.wait_for(lambda: not rel.running, patience)
        if taken:
            rel.meter = Meter()
            rel.meter.phase(what)
            rel.idle.clear()
    try:
        yield taken
    finally:
        if taken:
            _give_back(wake, rel, clock)


def _give_back(wake: threading.Condition, rel: Relationship, clock: Callable[[], float]) -> None:
    with wake:
        rel.meter = None
        # Who asked meanwhile took this turn for a cycle.
        rel.waiting, rel.answering = [*rel.answering, *rel.waiting], []
        if rel.waiting:
            rel.due = clock()
        rel.idle.set()
        wake.notify_all()
