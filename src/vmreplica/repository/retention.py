"""Retention carried out: the images of points that go are deleted, merged with others, or folded into the base."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from vmreplica.fsio import remove_tree
from vmreplica.model.ids import PointId
from vmreplica.model.keeping import Verdict
from vmreplica.repository import adopting, folding, merging
from vmreplica.repository.chain import Point
from vmreplica.repository.folding import Guidance
from vmreplica.repository.layout import Layout, store_errors
from vmreplica.repository.plan_merges import Delete, Fold, Node, Rebase, Reparent, Step
from vmreplica.repository.shelf import Shelf


@dataclass(frozen=True, slots=True)
class Done:
    """What retention did."""

    #: Points that went, and merges of others that only made a chain shorter.
    gone: int = 0
    merged: int = 0
    #: Bytes of the store that came free; negative: more is used, for a while.
    freed: int = 0

    def __add__(self, other: "Done") -> "Done":
        return Done(self.gone + other.gone, self.merged + other.merged, self.freed + other.freed)


def nodes_of(points: Sequence[Point], verdicts: Mapping[PointId, Verdict]) -> list[Node]:
    """Describe points for the planner.

    Args:
        points: oldest first.
        verdicts: of the rules.
    """
    return [
        Node(
            id=point.id,
            parent=point.manifest.parent,
            size=point.stored_bytes,
            keep=verdicts[point.id].keep,
            lasts=verdicts[point.id].lasts,
            here=point.here,
        )
        for point in points
    ]


def frozen_points(points: Sequence[Point], held: Callable[[PointId], bool]) -> frozenset[PointId]:
    """Tell whose files nobody may change: of points that are in use, and of all that they stand on.

    Args:
        points: oldest first.
        held: tells whether somebody has a point open.
    """
    found: set[PointId] = set()
    for point in reversed(points):
        if point.id in found or held(point.id):
            found.add(point.id)
            if point.manifest.parent is not None:
                found.add(point.manifest.parent)
    return frozenset(found)


def take(layout: Layout, shelf: Shelf, step: Step, guide: Guidance) -> Done:
    """Do one step; whoever calls is the only one that changes images.

    Args:
        layout: of the replica.
        shelf: its points.
        step: what to do.
        guide: when to stop and how fast to go.

    Raises:
        FoldStopped: nothing has changed, or the rest of a fold waits.
        VmReplicaError: see ``folding.fold``, ``merging.rebase``, ``merging.reparent``.
    """
    before = shelf.stored_bytes()
    match step:
        case Delete(gone):
            _delete(layout, shelf, shelf.get(gone))
        case Rebase(point, onto, past):
            manifest = merging.rebase(layout, shelf.get(point).manifest, onto, past, guide)
            shelf.put(point, manifest)
        case Reparent(point, onto):
            shelf.put(point, merging.reparent(layout, shelf.get(point).manifest, onto, guide))
        case Fold(point, into):
            _fold(layout, shelf, shelf.get(point), shelf.get(into), guide)
    after = shelf.stored_bytes()
    freed = sum(before.values()) - sum(size for point, size in after.items() if point in before)
    return Done(gone=len(before.keys() - after.keys()), merged=isinstance(step, Rebase), freed=freed)


def _delete(layout: Layout, shelf: Shelf, point: Point) -> None:
    shelf.remove(point)
    with store_errors(layout.points):
        remove_tree(layout.point(point.id))
    adopting.remove_unused(layout, point.manifest, shelf.manifests())


def _fold(layout: Layout, shelf: Shelf, base: Point, into: Point, guide: Guidance) -> None:
    def hiding(step: str) -> None:
        guide.before(step)
        if step == "hide":
            shelf.remove(base)

    try:
        manifest = folding.fold(layout, base.manifest, into.manifest, replace(guide, before=hiding))
    finally:
        shelf.remove_if_gone(base)
    shelf.put(into.id, manifest)
    adopting.remove_unused(layout, base.manifest, shelf.manifests())
