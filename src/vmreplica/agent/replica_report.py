"""A relationship as its replica reports it."""

import datetime as dt
from collections.abc import Sequence

from vmreplica.agent.boot_testing import local_zone
from vmreplica.agent.committing import Commits
from vmreplica.agent.relationship import seed_progress
from vmreplica.agent.scrubbing import Scrubbing
from vmreplica.agent.verify_words import verify_facts
from vmreplica.model.boot import boot_facts, boot_state
from vmreplica.model.health import Facts, judge
from vmreplica.model.ids import HostName
from vmreplica.model.point import Position
from vmreplica.model.report import FailoverTest, RelationshipReport
from vmreplica.model.states import State
from vmreplica.repository import Replica, ReplicaRecord


def describe_replica(
    replica: Replica, peer: HostName | None, tests: Sequence[FailoverTest], commits: Commits, scrubbing: Scrubbing
) -> RelationshipReport:
    """Report a relationship from its replica.

    Args:
        replica: what is held here.
        peer: the primary's name, when it is still paired.
        tests: its test failovers.
        commits: those of this host.
        scrubbing: likewise.
    """
    record, position = replica.record, replica.position()
    points = [point for point in replica.points() if point.bootable]
    latest = points[0] if points else None
    now = dt.datetime.now(dt.UTC)
    age = max(0.0, (now - latest.instant).total_seconds()) if latest else None
    state = State(record.state)
    complaints = [*position.complaints, *_seed_complaint(position), *commits.complaints(record.vm)]
    complaints += _address_complaint(record)
    awaited = position.awaited is not None
    facts = Facts(
        state=state,
        interval=record.interval,
        point_age=age,
        awaited=awaited,
        complaints=tuple(complaints),
        boot=boot_facts(record.boot, now),
        verify=verify_facts(latest, now),
        scrub=scrubbing.facts(replica, now),
    )
    return RelationshipReport(
        vm=record.vm,
        name=record.name,
        role="replica",
        peer=peer,
        peer_id=record.owner,
        state=state,
        health=judge(facts),
        interval=record.interval,
        keep=record.keep,
        epoch=record.epoch,
        latest=latest,
        point_age=age,
        points=len(points),
        tests=tuple(tests),
        boot=boot_state(record.boot, local_zone()),
        scrub=scrubbing.state(replica),
        progress=commits.progress(record.vm) or seed_progress(position, prefix=""),
    )


def _seed_complaint(position: Position) -> list[str]:
    failed = position.seeding.failed if position.seeding is not None else None
    return [f"it cannot begin with the existing copy: {failed.message}"] if failed is not None else []


def _address_complaint(record: ReplicaRecord) -> list[str]:
    wish = record.addressing
    if wish is None or wish.state != "failed" or record.failover is None or record.failover.hold != wish.hold:
        return []
    return [f"the guest has not got the addresses of `vmreplica networks {record.name}`: {wish.told}"]
