"""What merging will do with the recovery points of a replica, for people and programs."""

from vmreplica.model.ids import PointId
from vmreplica.model.shape import Shape


class PlannedMerge(Shape):
    """One act on images, and why."""

    point: PointId
    #: delete: its files go. merge: images below it become part of its own. move: it stands on another point, nothing
    #: else changes. fold: it becomes part of the point above it, the base of which it was.
    act: str
    text: str


class MergePlan(Shape):
    """What is done with the images of the points next, and what waits."""

    #: How many images the longest chain has, and may have.
    chain_depth: int
    bound: int
    #: In the order in which it is done.
    steps: tuple[PlannedMerge, ...] = ()
    #: Why points that no rule keeps stay for now.
    waiting: dict[PointId, str] = {}  # noqa: RUF012 - pydantic copies defaults
