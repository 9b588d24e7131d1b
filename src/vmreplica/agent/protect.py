"""What can be protected, and the words for what cannot: pure checks of the verbs."""

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vmreplica.hypervisor import DiskView, DomainView
from vmreplica.model.errors import BadRequest, Conflict, NotFound, Problem, Refused, VmReplicaError, from_problem
from vmreplica.model.ids import DevicePath, DiskTarget, VmName
from vmreplica.model.moments import require_ahead
from vmreplica.model.point import PointSummary, Position
from vmreplica.model.policy import BaseWish, Policy
from vmreplica.model.seed import ExistingSeed, SeedDisk, SeedRequest
from vmreplica.model.units import format_size


def check_disks(view: DomainView, excluded: Sequence[DiskTarget]) -> list[DiskView]:
    """Choose the disks of a VM that will be replicated.

    Raises:
        BadRequest: an excluded disk does not exist (``disk-unknown``).
        Refused: a disk can neither be replicated nor was excluded, or none is left (``no-eligible-disks``).
    """
    known = {disk.target for disk in view.disks}
    unknown = sorted(set(excluded) - known)
    if unknown:
        raise BadRequest(
            "disk-unknown",
            f"{view.name} has no disk {', '.join(unknown)}",
            hint=f"its disks are {', '.join(sorted(known)) or 'none'}",
        )
    wanted = [disk for disk in view.disks if disk.target not in excluded and disk.device == "disk"]
    refused = [disk for disk in wanted if disk.reason_ineligible is not None]
    if refused:
        raise Refused(
            "disk-not-eligible",
            f"{view.name} cannot be protected as it is: "
            + "; ".join(f"{disk.target}: {disk.reason_ineligible}" for disk in refused),
            hint="change these disks, or leave them out: "
            + " ".join(f"--exclude-disk {disk.target}" for disk in refused),
        )
    if not wanted:
        raise Refused(
            "no-eligible-disks",
            f"{view.name} has no disk that can be replicated",
            hint="a VM needs at least one disk that can be replicated and is not excluded",
        )
    return wanted


def require_not_planned(name: VmName, policy: Policy) -> None:
    """Refuse what must not meet a planned failover.

    Raises:
        Conflict: ``planned-under-way``.
    """
    if policy.planned is not None:
        raise Conflict(
            "planned-under-way",
            f"{name} is moving to its replica: a planned failover is under way",
            hint=f"vmreplica failover {name} --planned goes on with it, --cancel takes it back",
        )


def require_not_reversing(name: VmName, policy: Policy) -> None:
    """Refuse to make a fresh copy at the old primary while that is asked to begin with its old disks.

    Raises:
        Conflict: ``reversing``.
    """
    if policy.reverse is not None:
        raise Conflict(
            "reversing",
            f"{name} waits for its old primary to become its replica: its protection cannot be changed before",
            hint=f"vmreplica status {name} says what it waits for; vmreplica limit and pause work meanwhile",
        )


def check_beginning(name: VmName, begin_at: dt.datetime | None, now: dt.datetime) -> None:
    """Refuse a beginning that is past or too far ahead.

    Raises:
        BadRequest: ``begin-invalid``.
    """
    if begin_at is None:
        return
    try:
        require_ahead(begin_at, now)
    except ValueError as error:
        raise BadRequest("begin-invalid", f"{name}: {error}", hint="--at 22:00, at most seven days ahead") from None


def check_not_begun(name: VmName, begin_at: dt.datetime | None, position: Position) -> None:
    """Refuse to set a beginning for what has been.

    Raises:
        BadRequest: ``already-begun``: there are recovery points.
    """
    if begin_at is not None and position.latest is not None:
        raise BadRequest(
            "already-begun",
            f"{name} has recovery points already: no initial replication is to come",
            hint=f"without --at the policy changes at once; vmreplica limit {name} slows its cycles down",
        )


@dataclass(frozen=True, slots=True)
class Bases:
    """The replica's devices that shall hold bases, by disk, and whether a person agreed to losing their content."""

    devices: Mapping[DiskTarget, DevicePath]
    erase: bool = False


def base_wishes(
    name: VmName, disks: Sequence[DiskView], devices: Mapping[DiskTarget, DevicePath]
) -> dict[str, BaseWish]:
    """Say how big a disk each device must hold.

    Raises:
        BadRequest: a disk is not among those that are replicated (``disk-unknown``).
    """
    sizes = {disk.target: disk.size for disk in disks}
    unknown = sorted(set(devices) - set(sizes))
    if unknown:
        raise BadRequest(
            "disk-unknown",
            f"{name} has no replicated disk {', '.join(unknown)} for a base device",
            hint=f"its disks are {', '.join(sorted(sizes))}",
        )
    return {target: BaseWish(device=device, size=sizes[target]) for target, device in devices.items()}


def seed_disks(name: VmName, wish: SeedRequest | None, sizes: Mapping[DiskTarget, int]) -> tuple[SeedDisk, ...] | None:
    """Tell what the replica is asked to begin with; None: nothing is said about it.

    Args:
        name: of the VM.
        wish: as a person put it.
        sizes: of the replicated disks, bytes.

    Raises:
        BadRequest: ``disk-unknown``, ``seed-disk-unclear``.
    """
    if wish is None:
        return None
    if not isinstance(wish, ExistingSeed):
        return ()
    only = min(sizes)
    first = wish.disks[0]
    if first.target is None and len(sizes) > 1:
        raise BadRequest(
            "seed-disk-unclear",
            f"{name} has the disks {', '.join(sorted(sizes))}: it is not clear whose copy {first.path} is",
            hint=f"--seed existing:{only}={first.path}; disks without a copy are sent whole",
        )
    named = {disk.target or only: disk for disk in wish.disks}
    unknown = sorted(set(named) - set(sizes))
    if unknown:
        raise BadRequest(
            "disk-unknown",
            f"{name} has no replicated disk {', '.join(unknown)} to be seeded",
            hint=f"its replicated disks are {', '.join(sorted(sizes))}",
        )
    return tuple(
        SeedDisk(target=target, size=sizes[target], path=disk.path, format=disk.format)
        for target, disk in sorted(named.items())
    )


def seed_failed(name: VmName, problem: Problem) -> VmReplicaError:
    """Say that the replica cannot begin with the existing copy, and why."""
    error = from_problem(problem)
    error.message = f"the replica of {name} cannot begin with the existing copy: {problem.message}"
    error.hint = f"{problem.hint}; then `vmreplica enable {name} --to PEER --seed ...` once more".removeprefix("; ")
    return error


def differed(summary: PointSummary) -> str:
    """Say how far an existing copy was from the VM's disks."""
    total = sum(disk.size for disk in summary.disks)
    return f"{format_size(summary.guest_bytes)} of {format_size(total)} differed"


def already_protected(name: VmName, replica: str | None) -> Conflict:
    """Say that a VM has a replica elsewhere."""
    return Conflict(
        "already-protected",
        f"{name} is already protected to {replica or 'a host that is no longer paired'}",
        hint=f"one VM has one replica: `vmreplica disable {name}` first",
    )


def not_protected(name: VmName) -> NotFound:
    """Say that a VM has no relationship here."""
    return NotFound(
        "not-protected",
        f"{name} is not protected on this host",
        hint=f"vmreplica enable {name} --to PEER",
    )


def paused(name: VmName) -> Conflict:
    """Say that a VM's replication rests."""
    return Conflict("paused", f"replication of {name} is paused", hint=f"vmreplica resume {name}")


def vm_off(name: VmName, now: dt.datetime) -> Conflict:
    """Say that there is nothing to send."""
    return Conflict(
        "vm-not-running",
        f"{name} is shut off at {now:%H:%M:%S}, and its last point is complete: there is nothing to send",
        hint=f"virsh start {name}; replication goes on by itself",
    )
