"""One step of retention carried out: the oldest point is folded into the next one, or deleted."""

from collections.abc import Callable

from vmreplica.fsio import remove_tree
from vmreplica.repository import adopting, folding
from vmreplica.repository.chain import Point, Step
from vmreplica.repository.layout import Layout, store_errors
from vmreplica.repository.shelf import Shelf


def take(layout: Layout, shelf: Shelf, step: Step, *, stopped: Callable[[], bool], before: folding.StepHook) -> None:
    """Fold or delete the oldest point; whoever calls is the only one that folds.

    Args:
        layout: of the replica.
        shelf: its points.
        step: what to do.
        stopped: as for ``folding.fold``.
        before: observer of steps.

    Raises:
        FoldStopped, VmReplicaError: see ``folding.fold``.
    """
    if step.into is None:
        shelf.remove(step.oldest)
        with store_errors(layout.points):
            remove_tree(layout.point(step.oldest.id))
    else:
        _fold(layout, shelf, step.oldest, step.into, stopped=stopped, before=before)
    adopting.remove_unused(layout, step.oldest.manifest, shelf.manifests())


def _fold(
    layout: Layout, shelf: Shelf, oldest: Point, into: Point, *, stopped: Callable[[], bool], before: folding.StepHook
) -> None:
    def hiding(step: str) -> None:
        before(step)
        if step == "hide":
            shelf.remove(oldest)

    try:
        manifest = folding.fold(layout, oldest.manifest, into.manifest, stopped=stopped, before=hiding)
    finally:
        shelf.remove_if_gone(oldest)
    shelf.put(into.id, manifest)
