"""Progress of one cycle, fed by the stages' threads and read by whoever watches."""

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final

from vmreplica.model.report import Progress

#: Seconds over which the shown rate is averaged.
_WINDOW: Final = 10.0
#: Seconds between two remembered counts.
_GRAIN: Final = 0.2


class Meter:
    """Thread-safe counters of guest bytes read and wire bytes sent.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._phase = "preparing"
        self._obstacle = ""
        self._shown: Progress | None = None
        self._done = self._total = self._wire = self._waiting = 0
        #: What was behind us already when we began.
        self._found: int | None = None
        #: Seconds in which the rate limit let nothing out, and until when they are counted.
        self._held, self._held_until = 0.0, 0.0
        self._reading = _Slope(clock())
        self._sending = _Slope(clock())

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
            if self._found is None:
                self._found = done
            self._reading.mark(now, done)

    def obstacle(self, what: str) -> None:
        """Name what sending waits for; it is over with the next bytes that are sent."""
        with self._lock:
            self._obstacle = what

    def sent(self, wire_bytes: int) -> None:
        """Count bytes that are put on the network."""
        now = self._clock()
        with self._lock:
            self._obstacle = ""
            self._wire += wire_bytes
            self._waiting = max(0, self._waiting - wire_bytes)
            self._sending.mark(now, self._wire)

    def held(self, since: float) -> None:
        """Count the time since then as held up by the rate limit; what several connections wait at once counts once."""
        now = self._clock()
        with self._lock:
            self._held += max(0.0, now - max(since, self._held_until))
            self._held_until = max(self._held_until, now)

    def held_seconds(self) -> float:
        """Tell the seconds in which the rate limit let nothing out."""
        with self._lock:
            return self._held

    def waiting(self, spooled_bytes: int) -> None:
        """Set how many bytes were read and wait to be sent."""
        with self._lock:
            self._waiting = spooled_bytes

    def wire_bytes(self) -> int:
        """Tell how many bytes have crossed the network."""
        with self._lock:
            return self._wire

    def progress(self) -> Progress:
        """Describe the present moment."""
        with self._lock:
            if self._shown is not None:
                return self._shown
            return Progress(
                phase=f"{self._phase} (waiting: {self._obstacle})" if self._obstacle else self._phase,
                done_bytes=self._done,
                total_bytes=self._total,
                wire_bytes=self._wire,
                rate=self._reading.rate(),
                wire_rate=self._sending.rate(),
                seconds_left=self._left(),
            )

    def _left(self) -> float | None:
        """Estimate the seconds left: what is unread has to be read, and to be sent behind what waits already."""
        unread = self._total - self._done
        read = self._done - (self._found or 0)
        # What is unread is taken to shrink as what was read did.
        to_send = self._waiting + ((self._wire + self._waiting) * unread / read if read else 0.0)
        if not self._total and not to_send:
            return None
        works = ((unread, self._reading.rate()), (to_send, self._sending.rate()))
        if any(work > 0 and rate <= 0 for work, rate in works):
            return None
        return max(work / rate if work > 0 else 0.0 for work, rate in works)


class _Slope:
    """How fast a counter has been rising lately; marks are thinned out, so that there are few of them."""

    def __init__(self, now: float) -> None:
        self._marks: deque[tuple[float, int]] = deque([(now, 0)])

    def mark(self, now: float, count: int) -> None:
        marks = self._marks
        if len(marks) > 1 and now - marks[-2][0] < _GRAIN:
            marks[-1] = (now, count)
            return
        marks.append((now, count))
        while len(marks) > 2 and marks[0][0] < now - _WINDOW:  # noqa: PLR2004 - a slope needs two
            marks.popleft()

    def rate(self) -> float:
        (since, before), (until, after) = self._marks[0], self._marks[-1]
        return (after - before) / (until - since) if until > since else 0.0
