"""What is wrong with a replica, in words for people."""

from collections.abc import Sequence

from vmreplica.model.errors import VmReplicaError
from vmreplica.model.point import Manifest
from vmreplica.model.units import format_size
from vmreplica.repository import bases
from vmreplica.repository.layout import Layout
from vmreplica.repository.record import ReplicaRecord


def complaints_of(
    layout: Layout,
    record: ReplicaRecord,
    manifests: Sequence[Manifest],
    known: Sequence[str],
    stuck: VmReplicaError | None,
    *,
    room: tuple[int, int],
) -> tuple[str, ...]:
    """Tell what is wrong.

    Args:
        layout: of the replica.
        record: the relationship.
        manifests: of its points.
        known: what was found wrong with the files before.
        stuck: why points could not be folded the last time.
        room: bytes that are free on the store, and that shall be.
    """
    found = [*known, *bases.complaints(layout, record, manifests)]
    if stuck is not None and not any(stuck.message in text for text in found):
        found.append(f"recovery points are not folded: {stuck.message} ({stuck.hint})")
    free, least = room
    if free < least:
        found.append(f"the replica's store has {format_size(free)} free, {format_size(least)} must be")
    return tuple(found)
