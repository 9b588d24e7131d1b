"""One libvirt connection that many threads share: every call has a time limit, a lost daemon is found again.

A call that does not come back in time is abandoned: its thread stays with libvirt until libvirt lets it go, and the
connection is replaced so that nobody waits behind it.
"""

import contextlib
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Final, TypeVar

import libvirt

from vmreplica.hypervisor.faults import is_connection_lost, libvirt_gone, translate
from vmreplica.model.errors import TimedOut

T = TypeVar("T")

DEFAULT_LIMIT: Final = 30.0
#: libvirt itself waits 30 s for another job's lock before it gives up: these calls must outlive that.
LONG_LIMIT: Final = 90.0
_MAX_STUCK: Final = 64
_KEEPALIVE: Final = (5, 3)
#: How long a daemon that was there a moment ago may be away, as in a restart, before callers are told.
_RESTART_PATIENCE: Final = 6.0
_RETRY_STEP: Final = 0.1

_loop_lock = threading.Lock()
_loop_running = False


class Connection:
    """A libvirt connection by URI, opened when first needed. Thread-safe.

    Args:
        uri: libvirt URI of the local hypervisor.
        on_open: called with each new libvirt connection, to register for events.
    """

    def __init__(self, uri: str, on_open: Callable[[libvirt.virConnect], None]) -> None:
        self.uri = uri
        self._on_open = on_open
        self._lock = threading.Lock()
        self._raw: libvirt.virConnect | None = None
        self._lost_at = float("-inf")
        self._slots = threading.BoundedSemaphore(_MAX_STUCK)

    def call(
        self,
        what: str,
        work: Callable[[libvirt.virConnect], T],
        *,
        repeatable: bool = False,
        limit: float = DEFAULT_LIMIT,
        if_late: Callable[[T], None] | None = None,
    ) -> T:
        """Run libvirt calls in a worker thread and wait for them.

        Args:
            what: the act and its VM, for messages: ``begin the backup of web01``.
            work: is given the connection; may call libvirt several times.
            repeatable: doing it twice harms nothing, so a lost connection is worth one more try.
            limit: seconds for the whole of ``work``.
            if_late: undoes a result that nobody waits for any more.

        Raises:
            TimedOut: no answer in time (``libvirt-timeout``).
            Unreachable: libvirt is not there, or went away in the middle (``libvirt-gone``).
            VmReplicaError: what ``work`` raised; libvirt's own errors are translated.
        """
        tries = 2 if repeatable else 1
        while True:
            tries -= 1
            raw = self._open(limit)
            try:
                return self._limited(what, lambda raw=raw: work(raw), limit, if_late)  # type: ignore[misc]
            except TimedOut:
                self._drop(raw)
                raise
            except libvirt.libvirtError as error:
                if not is_connection_lost(error, raw):
                    raise translate(error, what) from error
                self._drop(raw)
                if not tries:
                    raise libvirt_gone(self.uri, what, error) from error

    def is_current(self, raw: libvirt.virConnect) -> bool:
        """Tell whether events of this connection still count; a replaced one may speak for a while."""
        return raw is self._raw

    def close(self) -> None:
        """Let the connection go; the next call opens a new one."""
        with self._lock:
            raw, self._raw = self._raw, None
        if raw is not None:
            with contextlib.suppress(libvirt.libvirtError):
                raw.close()

    def _open(self, limit: float) -> libvirt.virConnect:
        if not self._lock.acquire(timeout=limit):
            raise _late("connect to libvirt", limit)
        try:
            if self._raw is None:
                self._raw = self._connect(limit)
                self._lost_at = float("-inf")
            return self._raw
        finally:
            self._lock.release()

    def _connect(self, limit: float) -> libvirt.virConnect:
        _start_event_loop()
        while True:
            try:
                return self._limited("connect to libvirt", self._prepared, limit)
            except libvirt.libvirtError as error:
                if time.monotonic() > self._lost_at + _RESTART_PATIENCE:
                    raise libvirt_gone(self.uri, "connect to libvirt", error) from error
                time.sleep(_RETRY_STEP)

    def _prepared(self) -> libvirt.virConnect:
        raw = libvirt.open(self.uri)
        raw.setKeepAlive(*_KEEPALIVE)
        raw.registerCloseCallback(lambda closed, _reason, _opaque: self._drop(closed), None)
        self._on_open(raw)
        return raw

    def _drop(self, raw: libvirt.virConnect) -> None:
        with self._lock:
            if self._raw is raw:
                self._raw = None
                self._lost_at = time.monotonic()

    def _limited(self, what: str, work: Callable[[], T], limit: float, if_late: Callable[[T], None] | None = None) -> T:
        if not self._slots.acquire(timeout=limit):
            raise _late(what, limit)
        outcome: Future[T] = Future()
        threading.Thread(target=self._run, args=(work, outcome, if_late), name="libvirt-call", daemon=True).start()
        try:
            return outcome.result(limit)
        except TimeoutError:
            if outcome.cancel():
                raise _late(what, limit) from None
            return outcome.result()

    def _run(self, work: Callable[[], T], outcome: "Future[T]", if_late: Callable[[T], None] | None) -> None:
        """Do the work in a thread of its own; whoever waited may have given up meanwhile."""
        try:
            result = work()
        except BaseException as error:  # noqa: BLE001 - handed to the waiting thread as it is
            if outcome.set_running_or_notify_cancel():
                outcome.set_exception(error)
        else:
            if outcome.set_running_or_notify_cancel():
                outcome.set_result(result)
            elif if_late is not None:
                if_late(result)
        finally:
            self._slots.release()


def _late(what: str, limit: float) -> TimedOut:
    return TimedOut(
        "libvirt-timeout",
        f"libvirt did not answer within {limit:.0f} s: could not {what}",
        hint="see whether virsh list answers; if not, restart libvirtd (guests run on)",
    )


def _start_event_loop() -> None:
    """Run libvirt's event loop in one daemon thread of this process; must precede the first connection."""
    global _loop_running  # noqa: PLW0603 - libvirt allows one event loop per process
    with _loop_lock:
        if _loop_running:
            return
        libvirt.registerErrorHandler(lambda _context, _error: None, None)
        libvirt.virEventRegisterDefaultImpl()
        threading.Thread(target=_run_events, name="libvirt-events", daemon=True).start()
        _loop_running = True


def _run_events() -> None:
    while True:
        try:
            libvirt.virEventRunDefaultImpl()
        except libvirt.libvirtError:
            time.sleep(_RETRY_STEP)
