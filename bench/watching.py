"""When a guest ran where, as libvirt tells it: seen from outside, without vmreplica."""

import threading
import time
from types import TracebackType
from typing import Self

import libvirt

from bench.backup import named_domain
from bench.hosts import Host

#: Seconds between looks: what is measured is not known better than that.
_EVERY = 0.01


class Handover:
    """Watches a guest leave one host and come up on another; a context manager around the act.

    Args:
        guest: its name.
        old: where it runs.
        new: where it will run.
    """

    def __init__(self, guest: str, old: Host, new: Host) -> None:
        self._guest, self._old, self._new = guest, old, new
        self._thread = threading.Thread(target=self._watch, name="handover", daemon=True)
        self._over = threading.Event()
        self._off: float | None = None
        self._on: float | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()

    def seconds(self) -> float:
        """Tell how long no guest ran: from the end of the old one's shutdown to the new one's first instruction.

        Raises:
            RuntimeError: it did not go off there, or did not come up here, or both ran at once.
        """
        if self._off is None or self._on is None or self._on < self._off:
            raise RuntimeError(f"{self._guest}: off on {self._old.name} at {self._off}, on elsewhere at {self._on}")
        return self._on - self._off

    def _watch(self) -> None:
        old, new = libvirt.open(self._old.libvirt_uri), libvirt.open(self._new.libvirt_uri)
        try:
            while not self._over.wait(_EVERY):
                if self._off is None and not _runs(old, self._guest):
                    self._off = time.perf_counter()
                if self._on is None and _runs(new, self._guest):
                    self._on = time.perf_counter()
        finally:
            old.close()
            new.close()


def _runs(connection: libvirt.virConnect, guest: str) -> bool:
    try:
        state, _reason = named_domain(connection, guest).state()
    except (libvirt.libvirtError, StopIteration):  # not there, or just going
        return False
    return state in {libvirt.VIR_DOMAIN_RUNNING, libvirt.VIR_DOMAIN_SHUTDOWN}
