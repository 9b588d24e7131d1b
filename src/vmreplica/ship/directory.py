"""A directory as the way to a replica: a person carries it there, or both hosts reach it."""

from collections.abc import Callable

from vmreplica.model.body import Body, joined
from vmreplica.model.errors import Conflict
from vmreplica.model.export import AwaitedBase, SeedExport
from vmreplica.model.ids import DiskTarget, PointId, VmId
from vmreplica.model.point import HeldSegments, IncomingPoint, PointClosing, PointOpening, PointSummary
from vmreplica.parcel import Parcel
from vmreplica.parcel.layout import ranges_of


class DirectoryWire:
    """Implements ``Wire``. A point is complete when its replica knows that it has to wait for it.

    Args:
        seed: where, as the VM's policy says.
        announce: tells the replica; may be repeated.
        sent: called with the bytes of each segment that was written, from any thread.
        reserve: bytes to leave free on the directory's file system.
    """

    def __init__(
        self,
        seed: SeedExport,
        announce: Callable[[AwaitedBase], PointSummary],
        *,
        sent: Callable[[int], None] = lambda _size: None,
        reserve: int = 0,
    ) -> None:
        self._seed = seed
        self._announce = announce
        self._sent = sent
        self._reserve = reserve
        self._begun: tuple[PointOpening, Parcel] | None = None

    def open_point(self, opening: PointOpening) -> IncomingPoint:
        """Begin a point, or find it again with the segments that are held.

        Raises:
            VmReplicaError: see ``Parcel``.
        """
        parcel = Parcel(self._seed, opening, reserve=self._reserve)
        self._begun = opening, parcel
        held = (HeldSegments(target=target, ranges=ranges_of(numbers)) for target, numbers in parcel.held().items())
        return IncomingPoint(point=opening.point, held=tuple(held))

    def put_segment(self, vm: VmId, point: PointId, target: DiskTarget, number: int, body: Body) -> None:
        """Write a segment.

        Raises:
            VmReplicaError: see ``Parcel``.
        """
        self._require(vm, point)[1].put(target, number, joined(body))
        self._sent(body.size)

    def complete(self, vm: VmId, point: PointId, closing: PointClosing) -> PointSummary:
        """Finish the export and let the replica wait for it; from then on deltas stand on it.

        Raises:
            VmReplicaError: see ``Parcel``; or the replica does not answer or refuses.
        """
        opening, parcel = self._require(vm, point)
        checksums = parcel.close(closing)
        return self._announce(
            AwaitedBase(export=self._seed.export, opening=opening, closing=closing, checksums=checksums)
        )

    def _require(self, vm: VmId, point: PointId) -> tuple[PointOpening, Parcel]:
        if self._begun is None or (self._begun[0].vm, self._begun[0].point) != (vm, point):
            raise Conflict("point-not-open", f"point {point} is not open in {self._seed.directory}", kind="transient")
        return self._begun
