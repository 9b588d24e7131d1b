"""Test failovers: copies of a VM that run beside it, isolated, on throw-away layers, while replication goes on.

A test is written into the replica's record before anything of it exists, and taken out after everything of it is gone:
killed in between, the next start of the agent removes what is there.
"""

import datetime as dt
import secrets
import threading
import uuid
from pathlib import Path
from typing import Final

import structlog

from vmreplica.failover.layer import make_layer, remove_vm
from vmreplica.failover.plan import StepHook, no_hook
from vmreplica.fsio import remove_tree
from vmreplica.hypervisor import Hypervisor
from vmreplica.hypervisor.definition import build
from vmreplica.hypervisor.definition_site import Site
from vmreplica.hypervisor.definition_trial import EveryNetwork, as_trial
from vmreplica.model.errors import Conflict, VmReplicaError
from vmreplica.model.ids import VmName
from vmreplica.model.report import FailoverPlan, TrialReport
from vmreplica.repository import Replica, TrialRecord

_log: Final = structlog.get_logger(__name__)

#: Where their layers stand in a replica's directory, each in one of its own.
_DIRECTORY: Final = "tests"
#: Tests of one VM at once.
MAX_TRIALS: Final = 8


class Trials:
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
        self, replica: Replica, plan: FailoverPlan, *, network: str | None, until: dt.datetime | None
    ) -> tuple[TrialReport, tuple[str, ...]]:
        """Start a copy from the plan's point.

        Args:
            replica: whose copy.
            plan: made by ``plan_test``.
            network: all its interfaces are plugged in there; None: they are unplugged.
            until: when it is removed by itself; None: never.

        Returns:
            The test, and notes on what the definition lost on its way here.

        Raises:
            VmReplicaError: a step failed; everything done so far has been undone.
        """
        with self._lock:
            replica.verify_devices()
            trial = self._record(replica, plan, network, until)
            self._before("record")
            self._hold(replica, trial)
            try:
                replica.update(trials=(*replica.record.trials, trial))
                notes = self._run(replica, trial)
            except BaseException:
                self._remove(replica, trial)
                raise
        _log.info("test failover started", vm=replica.record.vm, name=trial.name, point=trial.point)
        return self._report(trial.model_copy(update={"started": True})), notes

    def end(self, replica: Replica) -> tuple[VmName, ...]:
        """Remove all tests of a VM with every trace; tells their names."""
        with self._lock:
            trials = replica.record.trials
            for trial in trials:
                self._remove(replica, trial)
        return tuple(trial.name for trial in trials)

    def expire(self, replica: Replica, now: dt.datetime) -> None:
        """Remove the tests whose time is over."""
        with self._lock:
            for trial in replica.record.trials:
                if trial.until is not None and trial.until <= now:
                    self._remove(replica, trial)

    def recover(self, replica: Replica) -> None:
        """At the agent's start: hold again what runs, remove what a crash left half done.

        Raises:
            VmReplicaError: not all of it could be done.
        """
        with self._lock:
            for trial in replica.record.trials:
                if trial.started and self._hypervisor.exists(trial.vm):
                    self._hold(replica, trial)
                else:
                    self._remove(replica, trial)

    def reports(self, replica: Replica) -> tuple[TrialReport, ...]:
        """Tell the tests of a VM."""
        return tuple(self._report(trial) for trial in replica.record.trials)

    # ---- helpers

    def _record(
        self, replica: Replica, plan: FailoverPlan, network: str | None, until: dt.datetime | None
    ) -> TrialRecord:
        others = replica.record.trials
        if len(others) >= MAX_TRIALS:
            raise Conflict(
                "too-many-tests",
                f"{len(others)} test failovers of {plan.name} exist already",
                hint=f"vmreplica failover {plan.name} --test --cancel",
            )
        return TrialRecord(
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

    def _hold(self, replica: Replica, trial: TrialRecord) -> None:
        reason = f"{trial.name} runs from this point"
        self._holds[trial.id] = replica.hold(trial.point, "test failover", reason, lasting=False)

    def _run(self, replica: Replica, trial: TrialRecord) -> tuple[str, ...]:
        self._before("layer")
        disks = make_layer(replica, trial.point, _directory(replica, trial), "../../points")
        self._before("define")
        site = Site(disks=disks, network_map=EveryNetwork(trial.network), **self._hypervisor.abilities())
        built = build(replica.definition(trial.point), site)
        self._hypervisor.define(as_trial(built, vm=trial.vm, name=trial.name, network=trial.network).xml)
        self._before("start")
        self._hypervisor.start(trial.vm)
        self._before("started")
        self._keep(replica, trial.model_copy(update={"started": True}))
        return built.notes

    def _keep(self, replica: Replica, trial: TrialRecord) -> None:
        replica.update(trials=tuple(trial if other.id == trial.id else other for other in replica.record.trials))

    def _remove(self, replica: Replica, trial: TrialRecord) -> None:
        remove_vm(self._hypervisor, trial.vm)
        remove_tree(_directory(replica, trial))
        replica.update(trials=tuple(other for other in replica.record.trials if other.id != trial.id))
        hold = self._holds.pop(trial.id, None)
        if hold is not None:
            replica.release(hold)
        _log.info("test failover removed", vm=replica.record.vm, name=trial.name)

    def _report(self, trial: TrialRecord) -> TrialReport:
        return TrialReport(
            vm=trial.vm,
            name=trial.name,
            point=trial.point,
            network=trial.network,
            since=trial.since,
            until=trial.until,
            running=self._running(trial),
        )

    def _running(self, trial: TrialRecord) -> bool | None:
        try:
            return self._hypervisor.running(trial.vm)
        except VmReplicaError:
            return None


def _directory(replica: Replica, trial: TrialRecord) -> Path:
    return replica.dir / _DIRECTORY / trial.id
