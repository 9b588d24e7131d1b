"""What shipping needs of the way to a replica: a peer over HTTPS, or a directory."""

from typing import Protocol

from vmreplica.model.body import Body
from vmreplica.model.ids import DiskTarget, PointId, VmId
from vmreplica.model.point import IncomingPoint, PointClosing, PointOpening, PointSummary


class Wire(Protocol):
    """Thread-safe; every method is idempotent, and returns when what it did is durable."""

    def open_point(self, opening: PointOpening) -> IncomingPoint:
        """Begin a point, or find it again with the segments that are held."""
        ...

    def put_segment(self, vm: VmId, point: PointId, target: DiskTarget, number: int, body: Body) -> None:
        """Send a segment."""
        ...

    def complete(self, vm: VmId, point: PointId, closing: PointClosing) -> PointSummary:
        """Publish a point whose segments are all there."""
        ...
