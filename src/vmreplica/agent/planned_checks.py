"""What stands against a planned failover on the primary, and what a person should know of it. Pure."""

from collections.abc import Sequence

from vmreplica.agent.relationship import Relationship
from vmreplica.failover.planned import Parties
from vmreplica.hypervisor import DiskView
from vmreplica.model.errors import Conflict
from vmreplica.model.ids import VmName
from vmreplica.model.point import PointSummary, Position
from vmreplica.model.policy import Policy
from vmreplica.model.states import State
from vmreplica.peer.planned import PlannedWish
from vmreplica.repository import ReplicaRecord


def require_adoptable(name: VmName, disks: Sequence[DiskView], past: ReplicaRecord | None) -> None:
    """See that the disks here can be the base of a replica, where they are.

    Raises:
        Conflict: ``disk-not-adoptable``, ``commit-first``.
    """
    wrong = [disk for disk in disks if disk.path is None or disk.format not in {"qcow2", "raw"}]
    if wrong:
        raise Conflict(
            "disk-not-adoptable",
            f"disk {wrong[0].target} of {name} has the format {wrong[0].format}: it cannot be a base in place",
            hint=f"convert it, or fail over without a plan: on the replica, vmreplica failover {name}",
        )
    if past is not None and past.state in {State.FAILED_OVER, State.COMMITTING}:
        raise Conflict(
            "commit-first",
            f"{name} was failed over to this host, and its disks still stand on recovery points of that time",
            hint=f"vmreplica commit {name} folds them into one image, while it runs; then try again",
        )


def latest_of(rel: Relationship, position: Position) -> PointSummary:
    """Give the point that the last one will stand on.

    Raises:
        Conflict: ``planned-not-ready``, ``failed-over-elsewhere``.
    """
    latest = position.latest
    if latest is None or not latest.bootable or position.awaited is not None:
        raise Conflict(
            "planned-not-ready",
            f"{rel.name} has no recovery point to build on: its first copy is not there yet",
            hint=f"vmreplica status {rel.name}",
        )
    if latest.damaged:
        # Found out after the guest was shut down, it would cost the guest's time for nothing.
        raise Conflict(
            "planned-not-ready",
            f"the newest point of {rel.name} is damaged on its replica: {latest.damaged[0]}",
            hint=f"vmreplica sync {rel.name} brings it again; then try again",
        )
    if position.epoch > rel.policy.epoch:
        raise Conflict(
            "failed-over-elsewhere",
            f"{rel.name} was failed over to its replica already",
            hint=f"vmreplica status {rel.name}, on both sides",
        )
    return latest


def warnings_of(policy: Policy, wish: PlannedWish, parties: Parties) -> list[str]:
    """Say what a person should know beforehand."""
    warnings = []
    if policy.excluded:
        warnings.append(f"{', '.join(policy.excluded)}: not replicated, so it is not there on {parties.replica}")
    if wish.force and parties.running:
        warnings.append("if its plug is pulled, what the guest had not written to its disks yet is lost")
    if not parties.running:
        warnings.append(f"{parties.name} is off now; it is started on {parties.replica}")
    return warnings


def nothing_to_cancel(rel: Relationship) -> Conflict:
    """Say that no planned failover is under way."""
    return Conflict(
        "nothing-to-cancel",
        f"{rel.name} is {rel.state()}: no planned failover of it is under way",
        hint=f"vmreplica status {rel.name}; an unplanned failover is taken back on its replica",
    )


def goes_on(rel: Relationship) -> Conflict:
    """Say that taking it back takes longer than anybody waits."""
    return Conflict(
        "cancel-goes-on",
        f"the planned failover of {rel.name} is being taken back, and that has not come to its end",
        hint="a guest that was asked to shut down may still do so; it is started again then, by itself: "
        f"vmreplica status {rel.name}",
        kind="transient",
    )


def too_late(rel: Relationship) -> Conflict:
    """Say that the replica has it."""
    return Conflict(
        "already-started",
        f"{rel.name} was started on its replica: it is too late to take that back here",
        hint=f"on the replica, once it is the primary: vmreplica failover {rel.name} --planned brings it home",
    )
