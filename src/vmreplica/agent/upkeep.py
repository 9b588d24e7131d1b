"""Upkeep of what is held here: points are folded, tests that are over removed, failovers left halfway undone."""

import datetime as dt
import queue
import threading
import time
from collections.abc import Callable
from typing import Final

import structlog

from vmreplica.agent.halfway import attempt
from vmreplica.agent.journal import Journal
from vmreplica.failover.tests import FailoverTests
from vmreplica.model.errors import VmReplicaError
from vmreplica.model.ids import VmId
from vmreplica.model.units import format_size
from vmreplica.repository import Done, Replica, Repository

_log: Final = structlog.get_logger(__name__)

#: Seconds between looks whether the time of a test failover is over, or a failover was left halfway.
_CHECK: Final = 10.0


class Upkeep:
    """Thread-safe.

    Args:
        repository: of this host.
        tests: the test failovers.
        journal: history.
        settle: finishes or undoes a failover that was left halfway; does nothing when there is none.
        every: seconds between looks.
    """

    def __init__(
        self,
        repository: Repository,
        tests: FailoverTests,
        journal: Journal,
        settle: Callable[[Replica], None],
        every: float = _CHECK,
    ) -> None:
        self._repository = repository
        self._tests = tests
        self._journal = journal
        self._settle = settle
        self._every = every
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
        look = time.monotonic() + self._every
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
                for replica in self._repository.replicas():
                    attempt("a failover is left halfway", replica, self._settle)
                    attempt("a test failover cannot be removed", replica, self._expire_tests)
                look = time.monotonic() + self._every

    def _expire_tests(self, replica: Replica) -> None:
        for name in self._tests.expire(replica, dt.datetime.now(dt.UTC)):
            text = f"its test failover {name} was removed, its time was over"
            self._journal.event(replica.record.vm, "test", "test-expired", text, copy=name)

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
