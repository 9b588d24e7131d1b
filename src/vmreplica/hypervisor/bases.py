"""What a backup job builds on: the base of each disk, and whether changes since it can be asked."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final

import libvirt

from vmreplica.hypervisor import checkpoints
from vmreplica.hypervisor.checkpoints import CheckpointShelf
from vmreplica.model.errors import CheckpointBroken, Conflict
from vmreplica.model.ids import VmId

#: With the one being made, two of a relationship: the base and its successor.
_MAX_EARLIER: Final = 1


@dataclass(frozen=True, slots=True)
class Plan:
    """A job to begin: the base of each disk by target, None for no base."""

    vm: VmId
    name: str
    checkpoint: str
    bases: Mapping[str, str | None]

    def based_on(self, base: str) -> list[str]:
        """List the disks of which changes since this base are asked."""
        return [target for target, wanted in self.bases.items() if wanted == base]


def require_bases(domain: libvirt.virDomain, shelf: CheckpointShelf, plan: Plan, untracked: Collection[str]) -> None:
    """Look at names and bases before libvirt does; broken bitmaps show only when the job begins.

    Raises:
        Conflict: there are two checkpoints of this relationship already (``too-many-checkpoints``).
        CheckpointBroken: a base is gone, or never had the disk; all such disks are told.
    """
    checkpoints.require_ours(plan.checkpoint)
    earlier = checkpoints.relatives(plan.checkpoint, checkpoints.names(domain))
    if len(earlier) > _MAX_EARLIER:
        raise Conflict(
            "too-many-checkpoints",
            f"{plan.name} has {len(earlier)} checkpoints of this relationship: {', '.join(sorted(earlier))}",
            hint="all but the base must be deleted first",
        )
    trouble: dict[str, str] = {}
    for base in sorted({base for base in plan.bases.values() if base is not None}):
        for target in plan.based_on(base):
            if target in untracked:
                trouble[target] = f"{target} cannot hold a bitmap"
        trouble |= checkpoints.lost(domain, shelf, plan.vm, base, [t for t in plan.based_on(base) if t not in trouble])
    if trouble:
        raise tracking_lost(plan.name, "; ".join(dict.fromkeys(trouble.values())), frozenset(trouble))


def tracking_lost(name: str, reason: str, disks: frozenset[str]) -> CheckpointBroken:
    """Build the error for bases that cannot be used on some disks; no disks: nobody knows on which."""
    return CheckpointBroken(
        "checkpoint-broken",
        f"change tracking of {name} is lost: {reason}",
        hint="the next point compares such a disk with what the replica holds, by itself",
        disks=disks,
    )
