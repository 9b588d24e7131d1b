"""The spool's bound: who may write how much, and who waits for whom."""

import threading
import time
from collections.abc import Callable
from typing import Final

from vmreplica.model.errors import Conflict, NoSpace
from vmreplica.model.units import format_size

#: Seconds between two looks at a cancel event, which cannot wake a condition.
_GLANCE: Final = 0.2


def cancelled(what: str) -> Conflict:
    """Make the error that a cancelled act ends with: code ``cancelled``, transient."""
    return Conflict("cancelled", f"{what} was cancelled", kind="transient")


class Room:
    """Bytes in use by all points together, and the one condition on which captures and shipments wait."""

    def __init__(self, cap_bytes: int) -> None:
        self._cap = cap_bytes
        self._used = 0
        self._changes = 0
        self._releases = 0
        self._news = threading.Condition()

    @property
    def used(self) -> int:
        """Bytes of all segments that wait, those being written included."""
        with self._news:
            return self._used

    def occupy(self, size: int) -> None:
        """Count bytes that are there already."""
        with self._news:
            self._used += size

    def release(self, size: int) -> None:
        """Give bytes back and wake everybody."""
        with self._news:
            self._used -= size
            self._releases += 1
            self._changed()

    def tell(self) -> None:
        """Wake everybody: something other than the use has changed."""
        with self._news:
            self._changed()

    def reserve(
        self, size: int, what: str, *, may: Callable[[], bool], cancel: threading.Event | None, patience: float
    ) -> int:
        """Take bytes below the cap, waiting for them if need be.

        Args:
            size: bytes.
            what: names the disk, for errors.
            may: tells whether the cap does not count for the caller now: its point has nothing waiting, so that every
                point gets on, however small the cap.
            cancel: ends the wait.
            patience: seconds.

        Returns:
            The number of releases so far, for ``await_release``.

        Raises:
            NoSpace: ``spool-full``; the cap was reached all the time.
            Conflict: ``cancelled``.
        """
        with self._news:
            if not self._wait(lambda: self._used + size <= self._cap or may(), what, cancel, patience):
                raise NoSpace(
                    "spool-full",
                    f"{what}: the spool holds {format_size(self._used)}, its cap is {format_size(self._cap)}",
                    hint="replication goes on when the replica takes what waits; or raise limits.spool_cap",
                )
            self._used += size
            return self._releases

    def await_release(self, seen: int, what: str, cancel: threading.Event | None, patience: float) -> bool:
        """Wait until somebody gives bytes back; False when nobody has any, or nobody did in time.

        Args:
            seen: number of releases that the caller knows of, its own included.
            what: names the disk, for errors.
            cancel: ends the wait.
            patience: seconds.

        Raises:
            Conflict: ``cancelled``.
        """
        with self._news:
            self._wait(lambda: self._releases != seen or self._used == 0, what, cancel, patience)
            return self._releases != seen

    def changes(self) -> int:
        """Tell a number that differs after every change."""
        with self._news:
            return self._changes

    def wait(self, seen: int, timeout: float) -> int:
        """Wait until something changed since ``seen``, or for so many seconds; returns the number to wait on next."""
        with self._news:
            self._news.wait_for(lambda: self._changes != seen, timeout)
            return self._changes

    def _changed(self) -> None:
        self._changes += 1
        self._news.notify_all()

    def _wait(self, ready: Callable[[], bool], what: str, cancel: threading.Event | None, patience: float) -> bool:
        deadline = time.monotonic() + patience
        while not ready():
            if cancel is not None and cancel.is_set():
                raise cancelled(what)
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            self._news.wait(min(left, _GLANCE))
        return True
