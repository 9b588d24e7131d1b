"""Progress of one cycle, fed by the stages' threads and read by whoever watches."""

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final

from vmreplica.model.report import Progress

#: Seconds over which the shown rate is averaged.
_WINDOW: Final = 10.0


class Meter:
    """Thread-safe counters of guest bytes read and wire bytes sent.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._phase = "preparing"
        self._shown: Progress | None = None
        self._done = self._total = self._wire = 0
        self._marks: deque[tuple[float, int]] = deque([(clock(), 0)])

    def phase(self, phase: str) -> None:
        """Name what is going on."""
        with self._lock:
            self._phase = phase
            self._shown = None

    def show(self, progress: Progress) -> None:
        """Show what another host does, as it tells it, until the next phase of our own."""
        with self._lock:
            self._shown = progress

    def read(self, done: int, total: int) -> None:
        """Set how many guest bytes of how many are behind us."""
        now = self._clock()
        with self._lock:
            self._done, self._total = done, total
            self._marks.append((now, done))
            while len(self._marks) > 2 and self._marks[0][0] < now - _WINDOW:  # noqa: PLR2004 - a slope needs two
                self._marks.popleft()

    def sent(self, wire_bytes: int) -> None:
        """Set how many bytes have crossed the network."""
        with self._lock:
            self._wire = wire_bytes

    def wire_bytes(self) -> int:
        """Tell how many bytes have crossed the network."""
        with self._lock:
            return self._wire

    def progress(self) -> Progress:
        """Describe the present moment."""
        with self._lock:
            if self._shown is not None:
                return self._shown
            (since, before), (until, after) = self._marks[0], self._marks[-1]
            rate = (after - before) / (until - since) if until > since else 0.0
            left = (self._total - self._done) / rate if rate > 0 else None
            return Progress(
                phase=self._phase,
                done_bytes=self._done,
                total_bytes=self._total,
                wire_bytes=self._wire,
                rate=rate,
                seconds_left=left,
            )
