"""The verb ``reverse``: a VM that was failed over to this host is protected from here, its old primary the replica.

What is wanted is written into the VM's own metadata, by one act, and done by its cycles: see ``swap``.
"""

import datetime as dt
from collections.abc import Sequence
from typing import Final

import structlog

from vmreplica.agent.protect import already_protected
from vmreplica.agent.replica import ReplicaSide
from vmreplica.agent.runner import Runner
from vmreplica.agent.tasks import Task, Tasks
from vmreplica.failover.reverse import plan_reverse, require_reversible, reversed_policy
from vmreplica.hypervisor import Hypervisor
from vmreplica.model.health import Health, Level
from vmreplica.model.report import FailoverPlan, RelationshipReport
from vmreplica.model.states import State
from vmreplica.peer.book import PeerBook
from vmreplica.repository import Replica

_log: Final = structlog.get_logger(__name__)

#: The disks of a VM in these states stand on points.
_STANDING: Final = frozenset({State.FAILED_OVER, State.COMMITTING})


class Reversing:
    """Thread-safe.

    Args:
        replicas: what is held here for others.
        hypervisor: this host's libvirt.
        runner: looks after the VMs that are protected from here.
        book: paired hosts.
        tasks: where acts that take long are registered.
    """

    def __init__(
        self, *, replicas: ReplicaSide, hypervisor: Hypervisor, runner: Runner, book: PeerBook, tasks: Tasks
    ) -> None:
        self._replicas = replicas
        self._hypervisor = hypervisor
        self._runner = runner
        self._book = book
        self._tasks = tasks

    def plan(self, vm: str) -> FailoverPlan:
        """Plan to swap the roles; changes nothing.

        Raises:
            NotFound: ``replica-unknown``.
            Conflict: ``not-failed-over``.
        """
        replica = self._replicas.get(vm)
        return plan_reverse(
            replica.record,
            replica.points(),
            old=self._replicas.peer_name(replica.record.owner),
            answer=self._replicas.ask_primary(replica),
            now=dt.datetime.now(dt.UTC),
        )

    def reverse(self, vm: str) -> Task:
        """Swap the roles of this host and of the one that a VM was failed over from.

        Raises:
            NotFound: ``replica-unknown``, ``vm-unknown``, ``peer-unknown``.
            Conflict: ``not-failed-over``, ``already-protected``.
        """
        return self.begin(self._replicas.get(vm), planned=False)

    def begin(self, replica: Replica, *, planned: bool) -> Task:
        """Write down that the roles shall be swapped; asking again changes nothing. The task is the first cycle.

        Args:
            replica: of a VM that was failed over to this host.
            planned: the old primary shut it down for that and sent its last write.

        Raises:
            NotFound: ``vm-unknown``: it is not defined here; ``peer-unknown``: its old primary is not paired.
            Conflict: ``not-failed-over``, ``already-protected``.
        """
        with self._replicas.no_failover():
            record = replica.record
            require_reversible(record)
            brief = self._hypervisor.find(record.vm)
            self._book.by_id(record.owner)
            policy = self._hypervisor.policy(record.vm)
            if policy is None:
                # First what forbids to take the failover back: the old primary may have agreed the moment it is asked.
                replica.update(swapped=True)
                policy = reversed_policy(record, dt.datetime.now(dt.UTC), planned=planned)
                self._hypervisor.set_policy(record.vm, policy)
                _log.info("roles shall be swapped", vm=record.vm, name=record.name, planned=planned)
            elif policy.replica != record.owner:
                raise already_protected(record.name, self._replicas.peer_name(policy.replica))
        task = self._tasks.start(f"replication of {brief.name} to its old primary")
        self._runner.protect(brief, policy, task)
        return task


def one_each(
    primaries: Sequence[RelationshipReport], replicas: Sequence[RelationshipReport]
) -> list[RelationshipReport]:
    """Join the reports of both sides: of a VM that is protected from here, its own past as a copy is one number."""
    below = {row.vm: row for row in replicas}
    ours = {row.vm for row in primaries}
    return [
        *(_with_past(row, below[row.vm]) if row.vm in below else row for row in primaries),
        *(row for row in replicas if row.vm not in ours),
    ]


def _with_past(row: RelationshipReport, past: RelationshipReport) -> RelationshipReport:
    """Tell of a VM's past as a copy what still matters: that it stands on points, and how their folding gets on."""
    troubles = tuple(reason for reason in past.health.reasons if reason.code == "replica-complains")
    level = Level.WARNING if troubles and row.health.level is Level.NORMAL else row.health.level
    return row.model_copy(
        update={
            "stands_on": past.points if past.state in _STANDING else 0,
            "tests": past.tests,
            "progress": row.progress or past.progress,
            "health": Health(level=level, reasons=(*row.health.reasons, *troubles)),
        }
    )
