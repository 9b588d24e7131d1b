"""What retention knows of the published points, brought together for the rules."""

from collections.abc import Sequence

from vmreplica.model.keeping import PointFacts
from vmreplica.repository.chain import Point
from vmreplica.repository.holds import Holds


def facts_of(points: Sequence[Point], holds: Holds) -> list[PointFacts]:
    """Describe points for ``judge_points``; the replica's lock is held."""
    return [
        PointFacts(
            id=point.id,
            instant=point.manifest.instant,
            kind=point.manifest.kind,
            stored_bytes=point.stored_bytes,
            holds=holds.opened_by(point.id),
            pins=tuple(pin.reason for pin in holds.pins(point.id)),
        )
        for point in points
    ]
