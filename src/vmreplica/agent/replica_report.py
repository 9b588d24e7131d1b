"""A relationship as its replica reports it."""

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import structlog

from vmreplica.agent.boot_testing import local_zone
from vmreplica.agent.committing import Commits
from vmreplica.agent.relationship import seed_progress
from vmreplica.agent.scrubbing import Scrubbing
from vmreplica.agent.space import SpaceWatch
from vmreplica.agent.verify_words import verify_facts
from vmreplica.model.boot import boot_facts, boot_state
from vmreplica.model.health import Facts, Reason, judge, measures_of, reasons_of_proof
from vmreplica.model.ids import HostName
from vmreplica.model.point import PointSummary, Position
from vmreplica.model.report import FailoverTest, RelationshipReport
from vmreplica.model.states import State
from vmreplica.repository import Replica, ReplicaRecord

_log: Final = structlog.get_logger(__name__)

#: What the primary knows by itself: it compared.
_KNOWN_THERE: Final = frozenset({"verify-differs"})


@dataclass(frozen=True, slots=True)
class Beside:
    """Who else knows something of the replicas of this host."""

    commits: Commits
    scrubbing: Scrubbing
    space: SpaceWatch


def describe_replica(
    replica: Replica, peer: HostName | None, tests: Sequence[FailoverTest], beside: Beside
) -> RelationshipReport:
    """Report a relationship from its replica.

    Args:
        replica: what is held here.
        peer: the primary's name, when it is still paired.
        tests: its test failovers.
        beside: who else knows something.
    """
    record, position = replica.record, replica.position()
    points = [point for point in replica.points() if point.bootable]
    latest = points[0] if points else None
    now = dt.datetime.now(dt.UTC)
    facts = _facts(replica, position, latest, beside, now)
    return RelationshipReport(
        vm=record.vm,
        name=record.name,
        role="replica",
        peer=peer,
        peer_id=record.owner,
        state=facts.state,
        health=judge(facts),
        measures=measures_of(facts),
        interval=record.interval,
        keep=record.keep,
        epoch=record.epoch,
        latest=latest,
        point_age=facts.point_age,
        points=len(points),
        tests=tuple(tests),
        verified=position.verified,
        boot=boot_state(record.boot, local_zone()),
        scrub=beside.scrubbing.state(replica),
        progress=beside.commits.progress(record.vm) or seed_progress(position, prefix=""),
    )


def told_reasons(beside: Beside, replica: Replica) -> tuple[Reason, ...]:
    """Tell what the primary shall know of the worth of its points here, in words that say where that is."""
    points = [point for point in replica.points() if point.bootable]
    try:
        facts = _facts(replica, replica.position(), points[0] if points else None, beside, dt.datetime.now(dt.UTC))
        reasons = reasons_of_proof(facts)
    except Exception:  # noqa: BLE001 - what is asked here is the way of every point: it goes on without this
        _log.exception("cannot judge the worth of a replica", vm=replica.record.vm)
        return ()
    return tuple(
        reason.model_copy(update={"text": f"on the replica: {reason.text}"})
        for reason in reasons
        if reason.code not in _KNOWN_THERE
    )


def _facts(
    replica: Replica, position: Position, latest: PointSummary | None, beside: Beside, now: dt.datetime
) -> Facts:
    record = replica.record
    return Facts(
        state=State(record.state),
        interval=record.interval,
        point_age=max(0.0, (now - latest.instant).total_seconds()) if latest else None,
        awaited=position.awaited is not None,
        complaints=_complaints(record, position, beside.commits),
        space=beside.space.facts(),
        boot=boot_facts(record.boot, now),
        verify=verify_facts(position, now),
        scrub=beside.scrubbing.facts(replica, now),
    )


def _complaints(record: ReplicaRecord, position: Position, commits: Commits) -> tuple[str, ...]:
    own = (*_seed_complaint(position), *commits.complaints(record.vm), *_address_complaint(record))
    return (*position.complaints, *own)


def _seed_complaint(position: Position) -> list[str]:
    failed = position.seeding.failed if position.seeding is not None else None
    return [f"it cannot begin with the existing copy: {failed.message}"] if failed is not None else []


def _address_complaint(record: ReplicaRecord) -> list[str]:
    wish = record.addressing
    if wish is None or wish.state != "failed" or record.failover is None or record.failover.hold != wish.hold:
        return []
    return [f"the guest has not got the addresses of `vmreplica networks {record.name}`: {wish.told}"]
