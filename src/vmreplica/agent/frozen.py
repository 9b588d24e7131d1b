"""Guests whose file systems we froze: written down before the freeze, and thawed whatever happens.

A guest that stays frozen hangs for ever, and no one would look for the reason here. So each freeze has a thread that
thaws when its time is over, and goes on trying until the guest's agent confirms it; what a killed agent left is thawed
when the next one starts.
"""

import datetime as dt
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

import structlog

from vmreplica.agent.journal import Journal
from vmreplica.fsio import no_space, publish_bytes
from vmreplica.hypervisor import Hypervisor
from vmreplica.model.errors import NotFound, VmReplicaError
from vmreplica.model.events import EventSeverity
from vmreplica.model.ids import VmId

_log: Final = structlog.get_logger(__name__)

#: Seconds between tries to thaw; the last one repeats.
_AGAIN: Final = (1.0, 2.0, 5.0)


class FrozenGuests:
    """Thread-safe.

    Args:
        directory: made when missing; nobody else writes in it.
        hypervisor: this host's libvirt.
        journal: is told of guests that stay frozen.
    """

    def __init__(self, directory: Path, hypervisor: Hypervisor, journal: Journal) -> None:
        self._directory = directory
        self._journal = journal
        self._hypervisor = hypervisor
        self._lock = threading.Lock()
        self._frozen: dict[VmId, Freeze] = {}
        self._stopping = threading.Event()
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)

    def start(self) -> None:
        """Thaw, in the background, what an earlier agent left."""
        for path in self._directory.glob("*.json"):
            freeze = self._begin(path.stem, _name_in(path), limit=0.0)
            _log.warning("a guest may still be frozen by an earlier agent: it is thawed", vm=path.stem)
            freeze.watch()

    def stop(self) -> None:
        """End the tries; what is not thawed yet is thawed after the next start."""
        self._stopping.set()
        with self._lock:
            left = tuple(self._frozen.values())
        for freeze in left:
            freeze.join()

    def begin(self, vm: VmId, name: str, limit: float) -> "Freeze":
        """Write down that a guest is about to be frozen, and watch over it from now on.

        Args:
            vm: the VM.
            name: its name.
            limit: seconds until it is thawed whatever else happens.

        Raises:
            NoSpace: it could not be written down.
        """
        since = dt.datetime.now(dt.UTC)
        record = json.dumps({"name": name, "since": since.isoformat()}).encode()
        with no_space(self._directory):
            publish_bytes(self._path(vm), record)
        freeze = self._begin(vm, name, limit)
        freeze.watch()
        return freeze

    def since(self, vm: VmId) -> dt.datetime | None:
        """Tell since when a guest is, or may be, frozen; None when it is not."""
        with self._lock:
            freeze = self._frozen.get(vm)
        return None if freeze is None else freeze.since

    def overdue(self, vm: VmId) -> bool:
        """Tell whether a guest is, or may be, frozen that should have been thawed."""
        with self._lock:
            freeze = self._frozen.get(vm)
        return freeze is not None and freeze.overdue

    def _begin(self, vm: VmId, name: str, limit: float) -> "Freeze":
        freeze = Freeze(
            vm,
            name,
            limit=limit,
            hypervisor=self._hypervisor,
            forget=lambda: self._thawed(vm),
            journal=self._journal,
            stopping=self._stopping,
        )
        with self._lock:
            self._frozen[vm] = freeze
        return freeze

    def _thawed(self, vm: VmId) -> None:
        self._path(vm).unlink(missing_ok=True)
        with self._lock:
            self._frozen.pop(vm, None)

    def _path(self, vm: VmId) -> Path:
        return self._directory / f"{vm}.json"


class Freeze:
    """One freeze of one guest, from before it is asked for until the guest confirmed the thaw; by ``FrozenGuests``."""

    def __init__(
        self,
        vm: VmId,
        name: str,
        *,
        limit: float,
        hypervisor: Hypervisor,
        forget: Callable[[], None],
        journal: Journal,
        stopping: threading.Event,
    ) -> None:
        self.vm = vm
        self.since = dt.datetime.now(dt.UTC)
        #: How many file systems the guest said that it froze.
        self.systems = 0
        #: Its time is over, or thawing it did not work at once.
        self.overdue = False
        self._name = name
        self._limit = limit
        self._hypervisor = hypervisor
        self._guest = hypervisor.guest_freezer(vm, name)
        self._forget = forget
        self._journal = journal
        self._stopping = stopping
        self._over = threading.Event()
        #: Set to thaw before the limit: an ordinary thaw was not confirmed.
        self._hurry = threading.Event()
        self._thread = threading.Thread(target=self._watch, name=f"thaw-{vm[:8]}", daemon=True)

    def watch(self) -> None:
        """Begin to watch the limit."""
        self._thread.start()

    def join(self) -> None:
        """Wait until nobody thaws any more, when that was told to stop."""
        self._hurry.set()
        self._thread.join()

    def freeze(self) -> None:
        """Freeze the guest.

        Raises:
            VmReplicaError: it did not work; it may be frozen all the same, or be so later.
        """
        self.systems = self._guest.freeze(max(1, int(self._limit)))

    def thaw(self) -> int:
        """Thaw the guest; tells how many file systems were frozen. ``settle`` follows, whatever comes of it.

        Raises:
            VmReplicaError: it is not known to be thawed.
        """
        try:
            return self._guest.thaw()
        except VmReplicaError:
            self.overdue = True
            self._hurry.set()
            raise

    def settle(self) -> bool:
        """Tell whether the guest confirms that it is thawed; else it is thawed in the background until it does."""
        if self._hurry.is_set():
            return self._over.is_set()
        try:
            frozen = self._guest.frozen()
        except VmReplicaError as error:
            _log.warning("a guest does not confirm that it is thawed", vm=self.vm, why=error.message)
            frozen = True
        if frozen:
            self._hurry.set()
            return False
        self._done()
        return True

    def _done(self) -> None:
        if not self._over.is_set():
            self._over.set()
            self._forget()
        self._hurry.set()

    def _watch(self) -> None:
        self._hurry.wait(self._limit)
        tries = 0
        while not self._over.is_set():
            self.overdue = True
            if self._thawed():
                self._done()
                self._tell("guest-thawed", "the guest, which was or may have been frozen, is thawed", "info")
                return
            if tries == 0:
                self._tell("guest-frozen", "the guest may be frozen and cannot be thawed now", "critical")
            if self._stopping.wait(_AGAIN[min(tries, len(_AGAIN) - 1)]):
                return
            tries += 1

    def _tell(self, code: str, text: str, severity: EventSeverity) -> None:
        _log.warning(text, vm=self.vm, name=self._name)
        self._journal.event(self.vm, "quiesce", code, text, severity=severity, name=self._name)

    def _thawed(self) -> bool:
        """Thaw once; tells whether the guest is known to run on, or is off.

        Its agent works through what it was told in order: it tells of a freeze or thaw only when that is over. One that
        has thawed already is not told again, as its hook, which may be what hung, would run again.
        """
        try:
            if not self._hypervisor.running(self.vm) or not self._guest.frozen():
                return True
            self._guest.thaw()
            return not self._guest.frozen()
        except NotFound:
            return True
        except VmReplicaError as error:
            _log.info("cannot thaw a guest", vm=self.vm, why=error.message)
            return False


def _name_in(path: Path) -> str:
    """Read the VM's name from a record, for messages; a damaged one counts all the same."""
    try:
        record = json.loads(path.read_text())
    except (OSError, ValueError):
        return path.stem
    return str(record.get("name", path.stem)) if isinstance(record, dict) else path.stem
