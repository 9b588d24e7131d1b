"""Upkeep of what is held here: old points are folded, tests whose time is over are removed. One thread for all."""

import datetime as dt
import queue
import threading
from typing import Final

import structlog

from vmreplica.agent.journal import Journal
from vmreplica.failover.tests import FailoverTests
from vmreplica.model.errors import VmReplicaError
from vmreplica.model.ids import VmId
from vmreplica.repository import Repository

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
        """End after the fold it is at."""
        self._due.put(None)
        self._thread.join()

    def put(self, vm: VmId) -> None:
        """Look at a VM's points: some may have to go."""
        self._due.put(vm)

    def _work(self) -> None:
        while True:
            try:
                vm = self._due.get(timeout=_TEST_CHECK)
            except queue.Empty:
                self._expire_tests()
                continue
            if vm is None:
                return
            self._keep_chain(vm)

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
            folded = self._repository.replica(vm).apply_retention()
        except VmReplicaError as error:
            _log.warning("old points stay", vm=vm, why=error.message)
        except Exception:  # noqa: BLE001 - upkeep of one VM must not end that of the others
            _log.exception("upkeep failed", vm=vm)
        else:
            if folded:
                text = f"{folded} old points were folded into the base"
                self._journal.event(vm, "retention", "points-folded", text, points=folded)
                _log.info("folded old points into the base", vm=vm, points=folded)
