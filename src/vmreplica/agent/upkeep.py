"""Upkeep of what is held here: old points are folded, tests whose time is over are removed. One thread for all."""

import datetime as dt
import queue
import threading
import time
from typing import Final

import structlog

from vmreplica.agent.journal import Journal
from vmreplica.failover.tests import FailoverTests
from vmreplica.model.errors import VmReplicaError
from vmreplica.model.ids import VmId
from vmreplica.model.units import format_size
from vmreplica.repository import Done, Repository

_log: Final = structlog.get_logger(__name__)

#: Seconds between looks whether the time of a test failover is over.
_TEST_CHECK: Final = 10.0


class Upkeep:
    """Thread-safe.

    Args:
        repository: of this host.
        tests: the test failovers.
        journal: history.
    """

    def __init__(self, repository: Repository, tests: FailoverTests, journal: Journal) -> None:
        self._repository = repository
        self._tests = tests
        self._journal = journal
        self._due: queue.SimpleQueue[VmId | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="upkeep", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End; a merge or fold that is under way is given up, or finished at the next start."""
        self._due.put(None)
        for replica in self._repository.replicas():
            replica.interrupt()
        self._thread.join()

    def put(self, vm: VmId) -> None:
        """Look at a VM's points: some may have to go."""
        self._due.put(vm)

    def _work(self) -> None:
        look = time.monotonic() + _TEST_CHECK
        while True:
            try:
                vm = self._due.get(timeout=max(0.0, look - time.monotonic()))
            except queue.Empty:
                pass
            else:
                if vm is None:
                    return
                self._keep_chain(vm)
            if time.monotonic() >= look:  # also where points come all the time
                self._expire_tests()
                look = time.monotonic() + _TEST_CHECK

    def _expire_tests(self) -> None:
        now = dt.datetime.now(dt.UTC)
        for replica in self._repository.replicas():
            try:
                for name in self._tests.expire(replica, now):
                    text = f"its test failover {name} was removed, its time was over"
                    self._journal.event(replica.record.vm, "test", "test-expired", text, copy=name)
            except VmReplicaError as error:
                _log.warning("a test failover cannot be removed", vm=replica.record.vm, why=error.message)

    def _keep_chain(self, vm: VmId) -> None:
        try:
            replica = self._repository.replica(vm)
            replica.apply_retention()
        except VmReplicaError as error:
            _log.warning("old points stay", vm=vm, why=error.message)
        except Exception:  # noqa: BLE001 - upkeep of one VM must not end that of the others
            _log.exception("upkeep failed", vm=vm)
        else:
            self._tell(vm, replica.retained)

    def _tell(self, vm: VmId, done: Done) -> None:
        if done.gone:
            text = f"{done.gone} points that no rule keeps went, which freed {format_size(max(0, done.freed))}"
            self._journal.event(vm, "retention", "points-merged", text, points=done.gone, freed=done.freed)
            _log.info("points went", vm=vm, points=done.gone, freed=done.freed)
        elif done.merged:
            text = f"images were merged {done.merged} times so that chains stay short"
            self._journal.event(vm, "merge", "chain-shortened", text, merges=done.merged, freed=done.freed)
            _log.info("chains were made shorter", vm=vm, merges=done.merged, freed=done.freed)
