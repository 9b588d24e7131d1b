"""Lifecycle events, handed to watchers in a thread of their own: libvirt's event loop never waits for them."""

import queue
import threading
from collections.abc import Callable
from typing import Final

import libvirt
import structlog

from vmreplica.model.ids import VmId

Watcher = Callable[[VmId, str], None]

_NAMES: Final = {
    libvirt.VIR_DOMAIN_EVENT_DEFINED: "defined",
    libvirt.VIR_DOMAIN_EVENT_UNDEFINED: "undefined",
    libvirt.VIR_DOMAIN_EVENT_STARTED: "started",
    libvirt.VIR_DOMAIN_EVENT_SUSPENDED: "suspended",
    libvirt.VIR_DOMAIN_EVENT_RESUMED: "resumed",
    libvirt.VIR_DOMAIN_EVENT_STOPPED: "stopped",
    libvirt.VIR_DOMAIN_EVENT_SHUTDOWN: "shutdown",
    libvirt.VIR_DOMAIN_EVENT_PMSUSPENDED: "pmsuspended",
    libvirt.VIR_DOMAIN_EVENT_CRASHED: "crashed",
}
_QUEUED: Final = 1024

_log = structlog.get_logger(__name__)


class Watchers:
    """Those who want to hear of starts and stops. Thread-safe; a slow watcher loses events, nobody else waits."""

    def __init__(self) -> None:
        self._watchers: list[Watcher] = []
        self._events: queue.Queue[tuple[VmId, str]] = queue.Queue(_QUEUED)
        self._lock = threading.Lock()
        self._running = False

    def add(self, watcher: Watcher) -> Callable[[], None]:
        """Call ``watcher(vm, event name)`` from now on; the returned function ends it."""
        with self._lock:
            self._watchers.append(watcher)
            if not self._running:
                threading.Thread(target=self._deliver, name="libvirt-watchers", daemon=True).start()
                self._running = True
        return lambda: self._remove(watcher)

    def tell(self, vm: VmId, event: int) -> None:
        """Queue a libvirt lifecycle event; called in libvirt's event loop, so it never waits."""
        try:
            self._events.put_nowait((vm, _NAMES.get(event, f"event-{event}")))
        except queue.Full:
            _log.warning("lifecycle event dropped: watchers are too slow", vm=vm)

    def _remove(self, watcher: Watcher) -> None:
        with self._lock:
            if watcher in self._watchers:
                self._watchers.remove(watcher)

    def _deliver(self) -> None:
        while True:
            vm, event = self._events.get()
            with self._lock:
                watchers = tuple(self._watchers)
            for watcher in watchers:
                try:
                    watcher(vm, event)
                except Exception:  # noqa: BLE001 - a watcher's defect must not silence the others
                    _log.exception("a lifecycle watcher failed", vm=vm, event_name=event)
