"""Damage: bytes of a point's files that are not what was stored, and what the primary is asked to bring again."""

from collections.abc import Iterable, Sequence
from typing import Annotated, Final, Literal

from pydantic import AwareDatetime, Field

from vmreplica.model.ids import DiskTarget, PointId
from vmreplica.model.shape import Shape
from vmreplica.model.units import CLUSTER

#: More findings than this of one point are counted only.
MAX_DAMAGES: Final = 1000
#: Ranges that are asked for at once.
MAX_REPAIRS: Final = 256

#: Which bytes: data: a compressed cluster. patch: a block of a patch. table: L2 or L1 tables. header: of the image.
#: refcounts: of the image's own clusters. index, sums: what says of each cluster where it is, and what it must be.
#: manifest, definition, machine: what the point is. base: a device or old disk below the images. content: nothing that
#: the files themselves tell, but the primary's fingerprint says that the disk held something else.
DamageKind = Literal[
    "data", "patch", "table", "header", "refcounts", "index", "sums", "manifest", "definition", "machine", "base",
    "content",
]  # fmt: skip


class Damage(Shape):
    """One stretch of a point's files that is not what was stored, and what of the guest it concerns."""

    point: PointId
    #: None: no disk, but the point as a whole.
    disk: DiskTarget | None = None
    #: First byte of the guest's disk that cannot be trusted, and how many follow. A length of 0: what the guest reads
    #: is not concerned, only what maintains the files.
    guest_offset: Annotated[int, Field(ge=0)] = 0
    length: Annotated[int, Field(ge=0)] = 0
    #: Inside the point's directory.
    file: str
    what: DamageKind
    text: str

    @property
    def misleads(self) -> bool:
        """Whether whoever uses the point gets something wrong, or nothing."""
        return self.length > 0 or self.what in {"definition", "machine", "manifest"}


class DamageRecord(Shape):
    """``damage.json`` in a point's directory: while it is there the point is quarantined."""

    point: PointId
    found: AwareDatetime
    damages: tuple[Damage, ...]
    #: Findings beyond those that are listed; all of what they concern is in ``damages``, in coarser stretches.
    more: Annotated[int, Field(ge=0)] = 0


class Repair(Shape):
    """Clusters of a disk that the newest point reads wrong: the primary shall send them whole in the next one."""

    target: DiskTarget
    #: The first guest cluster, and how many.
    first: Annotated[int, Field(ge=0)]
    clusters: Annotated[int, Field(ge=1)]


Repairs = Annotated[tuple[Repair, ...], Field(max_length=MAX_REPAIRS)]


def repairs_of(target: DiskTarget, ranges: Iterable[tuple[int, int]]) -> list[Repair]:
    """Turn half-open byte ranges of a disk into whole clusters, joined where they touch; ascending."""
    joined: list[tuple[int, int]] = []
    for low, high in sorted((start // CLUSTER, -(-end // CLUSTER)) for start, end in ranges):
        if joined and low <= joined[-1][1]:
            joined[-1] = joined[-1][0], max(high, joined[-1][1])
        else:
            joined.append((low, high))
    return [Repair(target=target, first=low, clusters=high - low) for low, high in joined]


def bounded_repairs(repairs: Sequence[Repair]) -> tuple[Repair, ...]:
    """Ask for no more than a message may carry; the rest is asked for when these have come."""
    return tuple(repairs[:MAX_REPAIRS])
