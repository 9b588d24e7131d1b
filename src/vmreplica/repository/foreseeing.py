"""What retention will do with the images of points, worked out beforehand and in words. Pure."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from vmreplica.model.ids import PointId
from vmreplica.model.merging import MergePlan, PlannedMerge
from vmreplica.model.units import format_size
from vmreplica.repository.plan_merges import Delete, Fold, Limits, Node, Rebase, Step, depths, next_step

#: So many steps are told; more come when a person drops many points at once.
MOST_STEPS: Final = 100


def foresee(nodes: Sequence[Node], limits: Limits) -> MergePlan:
    """Tell the steps that follow from now on, so many at most, and what is still there after them.

    Args:
        nodes: all points, oldest first.
        limits: what forbids or hurries.
    """
    steps: list[PlannedMerge] = []
    left = list(nodes)
    while len(steps) < MOST_STEPS and (step := next_step(left, limits)) is not None:
        steps.append(_told(step, left))
        left = _after(left, step)
    waiting = {node.id: _why(node, left, limits) for node in left if not node.keep and node is not left[-1]}
    longest = max(depths(nodes).values(), default=0)
    return MergePlan(chain_depth=longest, bound=limits.bound, steps=tuple(steps), waiting=waiting)


def _after(nodes: Sequence[Node], step: Step) -> list[Node]:
    """Give the points as they are after a step; a merged image has at most what went into it."""
    gone = step.point if isinstance(step, Delete | Fold) else None
    return [_changed(node, step, nodes) for node in nodes if node.id != gone]


def _changed(node: Node, step: Step, nodes: Sequence[Node]) -> Node:
    if isinstance(step, Fold):
        size = sum(each.size for each in nodes if each.id in {step.point, step.into})
        return replace(node, parent=None, size=size) if node.id == step.into else node
    if isinstance(step, Delete) or node.id != step.point:
        return node
    merged = step.past if isinstance(step, Rebase) else ()
    size = node.size + sum(each.size for each in nodes if each.id in merged)
    return replace(node, parent=step.onto, size=size)


def _told(step: Step, nodes: Sequence[Node]) -> PlannedMerge:
    sizes = {node.id: node.size for node in nodes}
    match step:
        case Delete(point):
            return PlannedMerge(point=point, act="delete", text=f"deleted, which frees {format_size(sizes[point])}")
        case Fold(point, into):
            text = f"the base goes: {format_size(sizes[into])} of {into} are folded into it"
            return PlannedMerge(point=point, act="fold", text=text)
        case Rebase(point, onto, past, shortens):
            why = "so that chains stay short" if shortens else "which then go"
            size = format_size(sum(sizes[each] for each in (*past, point)))
            text = f"merged with the {len(past)} before it, up to {size}, onto {onto}, {why}"
            return PlannedMerge(point=point, act="merge", text=text)
        case _:
            return PlannedMerge(point=step.point, act="move", text=f"stands on {step.onto} then, nothing is copied")


def _why(node: Node, nodes: Sequence[Node], limits: Limits) -> str:
    if node.id in limits.frozen:
        return "it, or a point that stands on it, is open"
    if not node.here:
        return "it travels in an export"
    above = _first_kept(node.id, nodes)
    if above is None:
        return "points that stand on it wait"
    return f"{above} stands on it: merged with others when that writes least"


def _first_kept(point: PointId, nodes: Sequence[Node]) -> PointId | None:
    """Find the first point that stays among those that stand on a point."""
    over = {point}
    for node in nodes:
        if node.parent in over:
            if node.keep:
                return node.id
            over.add(node.id)
    return None
