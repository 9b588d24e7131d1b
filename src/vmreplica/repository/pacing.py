"""How fast images are merged, and when it stops: a limit in bytes per second that is kept by waiting."""

import threading
import time
from collections.abc import Callable
from typing import Final

#: Seconds of one nap: so soon a hold is noticed.
_NAP: Final = 0.05
#: Seconds of work that may be done at once after a rest.
_BURST: Final = 0.25


class Stop:
    """Tells whoever works on images to stop. Thread-safe; what one who asks has done with is not done for another."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._asking = 0
        self._ended = False

    def ask(self) -> None:
        """Let work stop and none begin, until as often ``served`` was called."""
        with self._lock:
            self._asking += 1

    def served(self) -> None:
        """Take one ``ask`` back: whoever asked has what it waited for, or waits no more."""
        with self._lock:
            self._asking -= 1

    def end(self) -> None:
        """Let work stop and none begin, for good."""
        self._ended = True

    def is_set(self) -> bool:
        """Tell whether it shall stop."""
        return self._ended or self._asking > 0


class Pace:
    """Not thread-safe: one thread merges.

    Args:
        rate: bytes per second; None: no limit.
        stopped: asked while waiting; once true nobody waits any more.
    """

    def __init__(self, rate: int | None, stopped: Callable[[], bool]) -> None:
        self._rate = rate
        self._stopped = stopped
        #: When what was written so far may have been written.
        self._due = 0.0

    def __call__(self, count: int) -> None:
        """Take note of bytes that were written; wait until they fit the limit."""
        if self._rate is None:
            return
        self._due = max(self._due, time.monotonic() - _BURST) + count / self._rate
        while (early := self._due - time.monotonic()) > 0 and not self._stopped():
            time.sleep(min(early, _NAP))
