"""The published points of one replica as they are in memory."""

import threading
from collections.abc import Callable, Iterable

from vmreplica.model.errors import NotFound
from vmreplica.model.ids import PointId
from vmreplica.model.point import Manifest, PointSummary
from vmreplica.repository.chain import Point, measured, waiting_points
from vmreplica.repository.layout import Layout


class Shelf:
    """Thread-safe; what is done in several calls is one when the caller has the lock.

    Args:
        layout: of the replica.
        lock: of what is in memory.
    """

    def __init__(self, layout: Layout, lock: threading.RLock) -> None:
        self._layout = layout
        self._points: list[Point] = []
        self.lock = lock

    def all(self) -> list[Point]:
        """List them, oldest first."""
        with self.lock:
            return list(self._points)

    def manifests(self) -> list[Manifest]:
        """List their manifests, oldest first."""
        return [point.manifest for point in self.all()]

    def summaries(self, holds: Callable[[PointId], tuple[str, ...]]) -> list[PointSummary]:
        """Describe them for lists, newest first.

        Args:
            holds: tells who holds a point.
        """
        points = self.all()
        waiting = waiting_points(points)
        return [
            point.summary(holds(point.id), points[0].id if point.id in waiting else None) for point in reversed(points)
        ]

    def find(self, point: PointId) -> Point | None:
        """Find one."""
        return next((known for known in self.all() if known.id == point), None)

    def require(self, point: PointId, name: str) -> Point:
        """Find one of a VM of this name.

        Raises:
            NotFound: ``point-unknown``.
        """
        found = self.find(point)
        if found is None:
            raise NotFound("point-unknown", f"{name} has no point {point}", hint=f"vmreplica points {name}")
        return found

    def get(self, point: PointId) -> Point:
        """Give one that is known to be here."""
        (found,) = (known for known in self.all() if known.id == point)
        return found

    def stored_bytes(self) -> dict[PointId, int]:
        """Tell the space that each takes."""
        return {point.id: point.stored_bytes for point in self.all()}

    def latest(self) -> Point | None:
        """Give the newest."""
        with self.lock:
            return self._points[-1] if self._points else None

    def set(self, points: Iterable[Point]) -> None:
        """Begin anew, oldest first."""
        with self.lock:
            self._points = list(points)

    def add(self, point: Point) -> None:
        """Add the newest."""
        with self.lock:
            self._points.append(point)

    def put(self, old: PointId, manifest: Manifest) -> None:
        """Take note of a point that has come, or of another manifest and other files in place of a known one."""
        point = measured(self._layout, Point(manifest, 0))
        with self.lock:
            self._points = [point if known.id == old else known for known in self._points]

    def remove(self, point: Point) -> None:
        """Forget one, if it is known."""
        with self.lock:
            self._points = [known for known in self._points if known.id != point.id]

    def remove_if_gone(self, point: Point) -> None:
        """Forget one whose manifest is gone."""
        if not self._layout.manifest(point.id).exists():
            self.remove(point)
