"""How fast images are merged: a limit in bytes per second that is kept by waiting."""

import time
from collections.abc import Callable
from typing import Final

#: Seconds of one nap: so soon a hold is noticed.
_NAP: Final = 0.05
#: Seconds of work that may be done at once after a rest.
_BURST: Final = 0.25


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
