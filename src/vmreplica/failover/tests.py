"""Test failovers: copies of a VM that run beside it, isolated, on throw-away layers, while replication goes on.

A test is written into the replica's record before anything of it exists, and taken out after everything of it is gone:
killed in between, the next start of the agent removes what is there.
"""

import contextlib
import datetime as dt
import secrets
import shutil
import threading
import uuid
from pathlib import Path
from typing import Final

import structlog

from vmreplica.failover.layer import make_layer, remove_vm
from vmreplica.failover.machine import place_machine, remarks
from vmreplica.failover.plan import StepHook, no_hook
from vmreplica.fsio import remove_tree
from vmreplica.hypervisor import Hypervisor
from vmreplica.hypervisor.definition import build
from vmreplica.hypervisor.definition_copy import EveryNetwork, as_test_copy
from vmreplica.hypervisor.definition_site import Site
from vmreplica.model.errors import Conflict, VmReplicaError
from vmreplica.model.ids import VmId, VmName
from vmreplica.model.report import FailoverPlan, FailoverTest
from vmreplica.repository import FailoverTestRecord, Replica
from vmreplica.repository.layout import store_errors

_log: Final = structlog.get_logger(__name__)

#: Where their layers stand in a replica's directory, each in one of its own.
_DIRECTORY: Final = "tests"
#: Tests of one VM at once.
MAX_TESTS: Final = 8


class FailoverTests:
    """The tests of all replicas here. Thread-safe.

    Args:
        hypervisor: this host's libvirt.
        before: observer of steps; tests kill the agent there.
    """

    def __init__(self, hypervisor: Hypervisor, before: StepHook = no_hook) -> None:
        self._hypervisor = hypervisor
        self._before = before
        self._lock = threading.Lock()
        #: The hold of each test. The record is what lasts; holds are taken again at the agent's start.
        self._holds: dict[str, str] = {}

    def start(
        self,
        replica: Replica,
        plan: FailoverPlan,
        *,
        network: str | None,
        until: dt.datetime | None,
        boot: bool = False,
    ) -> tuple[FailoverTest, tuple[str, ...]]:
        """Start a copy from the plan's point.

        Args:
            replica: whose copy.
            plan: made by ``plan_test``.
            network: all its interfaces are plugged in there; None: they are unplugged.
            until: when it is removed by itself; None: never.
            boot: whether it is for a boot test: what it says on its serial console is kept in ``console_of``.

        Returns:
            The test, and notes on what the definition lost on its way here.

        Raises:
            VmReplicaError: a step failed; everything done so far has been undone.
        """
        with self._lock:
            replica.verify_devices()
            test = self._record(replica, plan, network, until)
            test = test.model_copy(update={"boot": boot})
            self._before("record")
            self._hold(replica, test)
            try:
                replica.update(tests=(*replica.record.tests, test))
                notes = self._run(replica, test)
            except BaseException:
                with contextlib.suppress(VmReplicaError):  # why it did not start says more
                    self._remove_or_due(replica, test)
                raise
        _log.info("test failover started", vm=replica.record.vm, name=test.name, point=test.point)
        return self._report(test.model_copy(update={"started": True})), notes

    def end(self, replica: Replica) -> tuple[VmName, ...]:
        """Remove all tests of a VM with every trace; tells their names."""
        with self._lock:
            tests = replica.record.tests
            for test in tests:
                self._remove(replica, test)
        return tuple(test.name for test in tests)

    def wanted(self, replica: Replica, vm: VmId) -> bool:
        """Tell whether a test is one still; waits until one that is being removed is gone."""
        with self._lock:
            return any(test.vm == vm for test in replica.record.tests)

    def remove(self, replica: Replica, vm: VmId) -> None:
        """Remove one test with every trace; one that is gone already is no error.

        Raises:
            VmReplicaError: it could not be done; it is due from now on, and the upkeep tries again.
        """
        with self._lock:
            for test in replica.record.tests:
                if test.vm == vm:
                    self._remove_or_due(replica, test)

    def expire(self, replica: Replica, now: dt.datetime) -> tuple[VmName, ...]:
        """Remove the tests whose time is over; tells their names."""
        with self._lock:
            over = [test for test in replica.record.tests if test.until is not None and test.until <= now]
            for test in over:
                self._remove(replica, test)
        return tuple(test.name for test in over)

    def recover(self, replica: Replica) -> None:
        """At the agent's start: hold again what runs, remove what a crash left half done.

        Raises:
            VmReplicaError: not all of it could be done.
        """
        with self._lock:
            for test in replica.record.tests:
                self._hold_again(replica, test)
            for test in replica.record.tests:
                if not test.started or test.boot or not self._hypervisor.exists(test.vm):
                    self._remove_or_due(replica, test)

    def reports(self, replica: Replica) -> tuple[FailoverTest, ...]:
        """Tell the tests of a VM."""
        return tuple(self._report(test) for test in replica.record.tests)

    # ---- helpers

    def _record(
        self, replica: Replica, plan: FailoverPlan, network: str | None, until: dt.datetime | None
    ) -> FailoverTestRecord:
        others = replica.record.tests
        if len(others) >= MAX_TESTS:
            raise Conflict(
                "too-many-tests",
                f"{len(others)} test failovers of {plan.name} exist already",
                hint=f"vmreplica failover {plan.name} --test --cancel",
            )
        return FailoverTestRecord(
            id=secrets.token_hex(4),
            vm=str(uuid.uuid4()),
            name=self._free_name(plan.name),
            point=plan.point,
            network=network,
            since=dt.datetime.now(dt.UTC),
            until=until,
            started=False,
        )

    def _free_name(self, name: VmName) -> VmName:
        taken = {brief.name for brief in self._hypervisor.domains()}
        names = (f"{name[:200]}-test{number if number > 1 else ''}" for number in range(1, len(taken) + 2))
        return next(candidate for candidate in names if candidate not in taken)

    def _hold(self, replica: Replica, test: FailoverTestRecord) -> None:
        reason = f"{test.name} runs from this point"
        self._holds[test.id] = replica.hold(test.point, "test failover", reason, lasting=False)

    def _hold_again(self, replica: Replica, test: FailoverTestRecord) -> None:
        """Hold what a test stands on before libvirt is asked for it: libvirt may be away, and retention comes soon."""
        try:
            self._hold(replica, test)
        except VmReplicaError as error:
            _log.warning("the point of a test is not held", vm=replica.record.vm, name=test.name, why=error.message)

    def _run(self, replica: Replica, test: FailoverTestRecord) -> tuple[str, ...]:
        self._before("layer")
        disks = make_layer(replica, test.point, _directory(replica, test), "../../points")
        self._before("define")
        parts = place_machine(replica, test.point, test.vm)
        site = Site(
            disks=disks,
            network_map=EveryNetwork(test.network),
            console_log=console_of(replica, test.id) if test.boot else None,
            **parts,
            **self._hypervisor.abilities(),
        )
        built = build(replica.definition(test.point), site)
        self._hypervisor.define(as_test_copy(built, vm=test.vm, name=test.name, network=test.network).xml)
        self._before("start")
        self._hypervisor.start(test.vm)
        self._before("started")
        self._keep(replica, test.model_copy(update={"started": True}))
        return (*remarks(replica, test.point), *built.told)

    def _keep(self, replica: Replica, test: FailoverTestRecord) -> None:
        replica.update(tests=tuple(test if other.id == test.id else other for other in replica.record.tests))

    def _remove(self, replica: Replica, test: FailoverTestRecord) -> None:
        remove_vm(self._hypervisor, test.vm)
        _remove_files(_directory(replica, test))
        replica.update(tests=tuple(other for other in replica.record.tests if other.id != test.id))
        hold = self._holds.pop(test.id, None)
        if hold is not None:
            replica.release(hold)
        _log.info("test failover removed", vm=replica.record.vm, name=test.name)

    def _remove_or_due(self, replica: Replica, test: FailoverTestRecord) -> None:
        """Remove a test; where that fails it is due from now on, and the upkeep tries again."""
        try:
            self._remove(replica, test)
        except VmReplicaError:
            self._keep(replica, test.model_copy(update={"until": dt.datetime.now(dt.UTC)}))
            raise

    def _report(self, test: FailoverTestRecord) -> FailoverTest:
        return FailoverTest(
            vm=test.vm,
            name=test.name,
            point=test.point,
            network=test.network,
            since=test.since,
            until=test.until,
            running=self._running(test),
            boot=test.boot,
        )

    def _running(self, test: FailoverTestRecord) -> bool | None:
        try:
            return self._hypervisor.running(test.vm)
        except VmReplicaError:
            return None


def console_of(replica: Replica, test: str) -> Path:
    """Tell where what a boot test's copy says on its serial console is kept while it runs.

    Args:
        replica: whose copy.
        test: the id of its record.
    """
    return replica.dir / _DIRECTORY / test / "console.log"


def _directory(replica: Replica, test: FailoverTestRecord) -> Path:
    return replica.dir / _DIRECTORY / test.id


def _remove_files(directory: Path) -> None:
    """Remove the files of a test, and what an attempt that failed has left of them under a name of its own.

    Raises:
        VmReplicaError: ``no-space``, ``store-failed``.
    """
    with store_errors(directory):
        remove_tree(directory)
        for left in directory.parent.glob(f".{directory.name}.*.gone"):
            shutil.rmtree(left)
