"""What is wrong with a replica, in words for people."""

from collections.abc import Sequence

from vmreplica.model.errors import VmReplicaError
from vmreplica.model.units import format_size
from vmreplica.repository import bases
from vmreplica.repository.chain import Point
from vmreplica.repository.layout import Layout
from vmreplica.repository.record import ReplicaRecord


def complaints_of(
    layout: Layout,
    record: ReplicaRecord,
    points: Sequence[Point],
    known: Sequence[str],
    stuck: VmReplicaError | None,
    *,
    room: tuple[int, int],
) -> tuple[str, ...]:
    """Tell what is wrong.

    Args:
        layout: of the replica.
        record: the relationship.
        points: that it has, oldest first.
        known: what was found wrong with the files before.
        stuck: why points could not be folded the last time.
        room: bytes that are free on the store, and that shall be.
    """
    found = [*known, *bases.complaints(layout, record, [point.manifest for point in points]), *_cramped(record, points)]
    if stuck is not None and not any(stuck.message in text for text in found):
        found.append(f"recovery points are not folded: {stuck.message} ({stuck.hint})")
    free, least = room
    if free < least:
        found.append(f"the replica's store has {format_size(free)} free, {format_size(least)} must be")
    return tuple(found)


def _cramped(record: ReplicaRecord, points: Sequence[Point]) -> list[str]:
    """Say it when a rule of retention leaves no room for any history: the base stays whatever goes."""
    space = record.keep.space
    if space is None or not points or (base := points[0].stored_bytes) <= space:
        return []
    text = (
        f"space={format_size(space)} leaves room for the newest recovery point only: the base alone takes "
        f"{format_size(base)} (vmreplica enable {record.name} --keep, with more space)"
    )
    return [text]
