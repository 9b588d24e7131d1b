"""What the receiver needs of whoever reads existing copies, and when a wish for them may be granted: pure."""

from typing import Literal, Protocol

from vmreplica.model.errors import Conflict
from vmreplica.model.ids import VmId
from vmreplica.model.seed import SeedDisk
from vmreplica.repository import Replica, SeedRecord

#: keep: it is so already. drop: what was begun is given up. begin: the copies are read, instead of others if need be.
Answer = Literal["keep", "drop", "begin"]


class Seeds(Protocol):
    """Reads existing copies into replicas. Thread-safe."""

    def check(self, disks: tuple[SeedDisk, ...]) -> None:
        """Look whether these copies may be read and can be; changes nothing.

        Raises:
            VmReplicaError: one may not, or cannot.
        """
        ...

    def begin(self, replica: Replica, disks: tuple[SeedDisk, ...]) -> None:
        """Write the wish down and read the copies in the background, instead of others that were begun."""
        ...

    def cancel(self, vm: VmId) -> None:
        """Give up what was begun, if anything; nothing is read when this returns."""
        ...


def judge_wish(replica: Replica | None, disks: tuple[SeedDisk, ...]) -> Answer:
    """Decide about the existing copies in an offer; the same offer again is no new wish.

    Args:
        replica: the one there is.
        disks: the wish; none: no copies (any more).

    Raises:
        Conflict: ``replica-has-points``.
    """
    seed: SeedRecord | None = replica.record.seed if replica is not None else None
    if not disks:
        return "drop" if seed is not None and seed.stage != "done" else "keep"
    if seed is not None and seed.disks == disks and seed.stage != "failed":
        return "keep"
    if replica is not None and replica.points():
        name = replica.record.name
        raise Conflict(
            "replica-has-points",
            f"the replica of {name} has points already: only what differs from them is sent in any case",
            hint=f"leave --seed out; to begin with another copy: vmreplica disable {name} --delete-copy",
        )
    return "begin"
