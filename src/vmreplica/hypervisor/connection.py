"""One libvirt connection that many threads share: every call has a time limit, a lost daemon is found again.

A call that does not come back in time is abandoned: its thread stays with libvirt until libvirt lets it go, and the
connection is replaced so that nobody waits behind it.
"""

import contextlib
import threading
import time
from collections.abc import Callable
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
    ) -> T:
        """Run libvirt calls in a worker thread and wait for them.

        Args:
            what: the act and its VM, for messages: ``begin the backup of web01``.
            work: is given the connection; may call libvirt several times.
            repeatable: doing it twice harms nothing, so a lost connection is worth one more try.
            limit: seconds for the whole of ``work``.

        Raises:
            TimedOut: no answer in time (``libvirt-timeout``).
            Unreachable: libvirt is not there, or went away in the middle (``libvirt-gone``).
            VmReplicaError: what ``work`` raised; libvirt's own errors are translated.
        """
        raw = self._open(limit)
        try:
            return self._limited(what, lambda: work(raw), limit)
        except libvirt.libvirtError as error:
            if not is_connection_lost(error, raw):
                raise translate(error, what) from error
            self._drop(raw)
            if not repeatable:
                raise libvirt_gone(self.uri, what, error) from error
        except TimedOut:
            self._drop(raw)
            raise
        raw = self._open(limit)
        try:
            return self._limited(what, lambda: work(raw), limit)
        except libvirt.libvirtError as error:
            if is_connection_lost(error, raw):
                self._drop(raw)
                raise libvirt_gone(self.uri, what, error) from error
            raise translate(error, what) from error

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
            return self._raw
        finally:
            self._lock.release()

    def _connect(self, limit: float) -> libvirt.virConnect:
        _start_event_loop()
        while True:
            try:
                raw = self._limited("connect to libvirt", lambda: libvirt.open(self.uri), limit)
                break
            except libvirt.libvirtError as error:
                if time.monotonic() > self._lost_at + _RESTART_PATIENCE:
                    raise libvirt_gone(self.uri, "connect to libvirt", error) from error
                time.sleep(_RETRY_STEP)
        self._limited("register for events", lambda: self._prepare(raw), limit)
        return raw

    def _prepare(self, raw: libvirt.virConnect) -> None:
        raw.setKeepAlive(*_KEEPALIVE)
        self._on_open(raw)

    def _drop(self, raw: libvirt.virConnect) -> None:
        with self._lock:
            if self._raw is raw:
                self._raw = None
                self._lost_at = time.monotonic()

    def _limited(self, what: str, work: Callable[[], T], limit: float) -> T:
        if not self._slots.acquire(timeout=limit):
            raise _late(what, limit)
        results: list[T] = []
        failures: list[BaseException] = []
        done = threading.Event()

        def run() -> None:
            try:
                results.append(work())
            except BaseException as error:  # noqa: BLE001 - handed to the waiting thread as it is
                failures.append(error)
            finally:
                self._slots.release()
                done.set()

        threading.Thread(target=run, name="libvirt-call", daemon=True).start()
        if not done.wait(limit):
            raise _late(what, limit)
        if failures:
            raise failures[0]
        return results[0]


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
