"""The room that the store has, looked at now and then, and when it will be full."""

import shutil
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Final

from vmreplica.agent.journal import Journal
from vmreplica.model.forecast import WINDOW, full_in
from vmreplica.model.proof import SpaceFacts

#: Seconds between samples.
SPACING: Final = 600.0
#: Seconds for which a forecast holds.
_FRESH: Final = 60.0


class SpaceWatch:
    """Thread-safe. Samples are kept in the journal, so that a forecast outlives restarts.

    Args:
        store: the directory of the recovery points.
        min_free: bytes that are always left free on it.
        journal: history.
        clock: seconds since the epoch.
    """

    def __init__(self, store: Path, min_free: int, journal: Journal, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._min_free = min_free
        self._journal = journal
        self._clock = clock
        self._lock = threading.Lock()
        #: When the forecast was made, and what it is.
        self._forecast_at = float("-inf")
        self._full_in: float | None = None
        kept = journal.samples(str(store), clock() - WINDOW)
        self._samples: deque[tuple[float, float]] = deque(kept, maxlen=int(2 * WINDOW / SPACING))

    def look(self) -> None:
        """Take a sample when one is due."""
        now = self._clock()
        with self._lock:
            if self._samples and 0 <= now - self._samples[-1][0] < SPACING:
                return
            if self._samples and now < self._samples[-1][0]:
                self._samples.clear()  # the clock was set back: the order of the old ones is worth nothing
            try:
                free = shutil.disk_usage(self._store).free
            except OSError:
                return
            self._samples.append((now, float(free)))
        self._journal.sample(str(self._store), now, free)

    def facts(self) -> SpaceFacts | None:
        """Tell how it stands now."""
        try:
            free = shutil.disk_usage(self._store).free
        except OSError:
            return None
        return SpaceFacts(place=str(self._store), free=free, min_free=self._min_free, full_in=self._forecast(free))

    def _forecast(self, free: int) -> float | None:
        now = self._clock()
        with self._lock:
            if not 0 <= now - self._forecast_at < _FRESH:
                self._forecast_at = now
                self._full_in = full_in([*self._samples, (now, float(free))], self._min_free)
            return self._full_in
