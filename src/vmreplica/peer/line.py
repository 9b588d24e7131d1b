"""How a caller wants the line to a peer to be used: when to hang up at once, and how fast to send."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from vmreplica.model.errors import Conflict


class Halt(threading.Event):
    """An event that, when it is set, also ends what would not look at it for a while, such as a blocking call."""

    def __init__(self) -> None:
        super().__init__()
        self._guard = threading.Lock()
        self._acts: dict[object, Callable[[], None]] = {}

    def set(self) -> None:
        """Set the event and do what was asked for; again is harmless."""
        super().set()
        with self._guard:
            for act in self._acts.values():
                act()

    @contextlib.contextmanager
    def ending(self, act: Callable[[], None]) -> Iterator[None]:
        """Do something when the event is set before the block ends, at once if it is set already; never after it.

        Args:
            act: quick; called in the thread that sets the event, perhaps twice.
        """
        key = object()
        with self._guard:
            self._acts[key] = act
        try:
            if self.is_set():
                act()
            yield
        finally:
            with self._guard:
                del self._acts[key]


class Pace(Protocol):
    """What bodies of segments are held back by."""

    def allow(self, most: int, halt: Halt) -> int:
        """Wait until at least one of so many bytes may be sent; tell how many.

        Raises:
            Conflict: ``cycle-stopped``.
        """
        ...

    def turn(self, halt: Halt) -> AbstractContextManager[None]:
        """Wait until a segment may begin.

        Raises:
            Conflict: ``cycle-stopped``.
        """
        ...


@dataclass(frozen=True, slots=True)
class Line:
    """One caller's use of the connections to a peer."""

    halt: Halt
    pace: Pace | None = None


def stopped() -> Conflict:
    """Make the error that an act ends with when its cycle is halted."""
    return Conflict("cycle-stopped", "the cycle was stopped", kind="transient")
