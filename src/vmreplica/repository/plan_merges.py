"""What retention does next with the images of a replica's points: pure decisions (docs/design/retention.md).

The points of a replica are a tree in time: each image says everything that changed between its parent and its instant,
and its parent is any earlier point. So these acts leave every other point as it reads:

- ``Delete`` a point that nothing stands on;
- ``Rebase`` a point onto an earlier one, by merging the images in between into its own. The points in between stay as
  they are, if they are kept: they are a branch beside it now;
- ``Reparent`` a point onto a later one that is still before it: what it says covers that, only its header changes;
- ``Fold`` the lowest point of a tree into the first one that stands on it.
"""

import itertools
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from vmreplica.model.ids import PointId

#: No chain shall have more images than that, the base among them.
BOUND: Final = 30
#: The newest point's chain is made this short: one more comes, and folding makes it longer by one for a while.
_ROOM: Final = 2
#: So many points that are to go may wait until that is cheaper, or as many as are kept.
_PATIENCE: Final = 2 * BOUND


@dataclass(frozen=True, slots=True)
class Node:
    """A point as far as merging goes by it."""

    id: PointId
    parent: PointId | None
    #: Bytes of its images.
    size: int
    keep: bool
    #: Seconds that it will stay, as far as the rules can tell; the point that merging waits for is the one with most.
    lasts: float = 0.0
    #: False of a base that travels in an export.
    here: bool = True


@dataclass(frozen=True, slots=True)
class Delete:
    """Nothing stands on the point: its files go."""

    point: PointId


@dataclass(frozen=True, slots=True)
class Rebase:
    """The point's image becomes one that stands on ``onto``."""

    point: PointId
    onto: PointId
    #: Whose images are merged into it, oldest first; itself left out.
    past: tuple[PointId, ...]
    #: The chain was too long, nothing is freed by that.
    shortens: bool = False


@dataclass(frozen=True, slots=True)
class Reparent:
    """The point's image stands on ``onto`` from now on, without any other change."""

    point: PointId
    onto: PointId


@dataclass(frozen=True, slots=True)
class Fold:
    """The lowest point goes, its image becomes that of ``into``."""

    point: PointId
    into: PointId


Step = Delete | Rebase | Reparent | Fold


@dataclass(frozen=True, slots=True)
class Limits:
    """What the planner may not do, and how it shall weigh."""

    #: Nobody may change the files of these: they are read right now.
    frozen: Collection[PointId] = ()
    #: Tells whether the images of points, oldest first, may become one: False when damage would get into it.
    may_merge: Callable[[Sequence[PointId]], bool] = lambda _points: True
    #: Space is short: free what can be freed, though it is written again soon.
    pressed: bool = False
    bound: int = BOUND


def next_step(nodes: Sequence[Node], limits: Limits) -> Step | None:
    """Decide what is done next.

    Args:
        nodes: all points, oldest first; the newest is kept.
        limits: what forbids or hurries.

    Returns:
        None when there is nothing to do, or it is better done later.
    """
    if not nodes:
        return None
    tree = _Tree(nodes, limits)
    return (
        _delete(tree)
        or _mend(tree)
        or _shorten(tree)
        or _merge(tree, patient=not limits.pressed)
        or (_merge(tree, patient=False) if tree.waiting() > tree.patience() else None)
    )


def depths(nodes: Sequence[Node]) -> dict[PointId, int]:
    """Tell how many images the chain of each point has.

    Args:
        nodes: oldest first.
    """
    found: dict[PointId, int] = {}
    for node in nodes:
        found[node.id] = found.get(node.parent, 0) + 1 if node.parent is not None else 1
    return found


class _Tree:
    """The points and how they stand on each other."""

    def __init__(self, nodes: Sequence[Node], limits: Limits) -> None:
        self.nodes = nodes
        self.by_id = {node.id: node for node in nodes}
        self.place = {node.id: place for place, node in enumerate(nodes)}
        self.children: dict[PointId, list[Node]] = defaultdict(list)
        for node in nodes:
            if node.parent is not None:
                self.children[node.parent].append(node)
        self.depth = depths(nodes)
        self.limits = limits

    @property
    def newest(self) -> Node:
        """The newest point."""
        return self.nodes[-1]

    def goes(self, node: Node) -> bool:
        """Tell whether a point shall go and may."""
        return not node.keep and node is not self.newest and node.here and node.id not in self.limits.frozen

    def movable(self, node: Node) -> bool:
        """Tell whether the images of a point may be changed."""
        return node.here and node.id not in self.limits.frozen

    def may_merge(self, nodes: Sequence[Node]) -> bool:
        """Tell whether the images of points, oldest first, may become one."""
        return self.limits.may_merge([node.id for node in nodes])

    def parent(self, node: Node) -> Node | None:
        """Give what a point stands on."""
        return self.by_id[node.parent] if node.parent is not None else None

    def trunk(self) -> list[Node]:
        """Give the chain of the newest point, lowest first."""
        chain = [self.newest]
        while (below := self.parent(chain[-1])) is not None:
            chain.append(below)
        return chain[::-1]

    def below(self, node: Node) -> list[Node]:
        """Give the points that shall go right below a point, one on the other, oldest first."""
        run: list[Node] = []
        at = self.parent(node)
        while at is not None and self.goes(at):
            run.append(at)
            at = self.parent(at)
        return run[::-1]

    def is_above(self, node: Node, below: Node) -> bool:
        """Tell whether a point stands on another one, directly or not."""
        at = self.parent(node)
        while at is not None and at is not below:
            at = self.parent(at)
        return at is below

    def above_common(self, node: Node, other: Node) -> list[Node]:
        """Give a point and what it stands on, oldest first, as far as another one does not stand on that too."""
        run: list[Node] = []
        at: Node | None = node
        while at is not None and at is not other and not self.is_above(other, at):
            run.append(at)
            at = self.parent(at)
        return run[::-1]

    def waiting(self) -> int:
        """Count the points that shall go and are still here."""
        return sum(self.goes(node) for node in self.nodes)

    def patience(self) -> int:
        """Tell how many may wait."""
        return max(_PATIENCE, sum(node.keep for node in self.nodes))


def _delete(tree: _Tree) -> Delete | None:
    """Find a point that goes for nothing; the newest first, so that each one that follows can."""
    for node in reversed(tree.nodes):
        if tree.goes(node) and not tree.children[node.id]:
            return Delete(node.id)
    return None


def _mend(tree: _Tree) -> Reparent | None:
    """Free a point that goes of those which stand on it though they could stand on a later one that was rebased."""
    for node in tree.nodes:
        if not tree.goes(node):
            continue
        for child in tree.children[node.id]:
            if tree.movable(child) and (onto := _later_place(tree, node, child)) is not None:
                return Reparent(child.id, onto.id)
    return None


def _later_place(tree: _Tree, node: Node, child: Node) -> Node | None:
    between = tree.nodes[tree.place[node.id] + 1 : tree.place[child.id]]
    found = [each for each in between if each.keep and each.here and not tree.is_above(each, node)]
    # What the child stands on anew must be good: what goes then may hold the only good copy.
    found = [each for each in found if tree.may_merge(tree.above_common(each, node))]
    return min(found, key=lambda each: tree.depth[each.id], default=None)


def _shorten(tree: _Tree) -> Rebase | None:
    """Make the newest point's chain shorter when it is too long: the merge that costs least for what it brings."""
    if tree.depth[tree.newest.id] <= tree.limits.bound - _ROOM:
        return None
    trunk = tree.trunk()
    for _score, low, high in sorted(_shortcuts(tree, trunk)):
        if tree.may_merge(trunk[low + 1 : high + 1]):
            return _rebase(trunk[low], trunk[low + 1 : high], trunk[high], shortens=True)
    return None


def _shortcuts(tree: _Tree, trunk: list[Node]) -> Iterator[tuple[float, int, int]]:
    """Judge all merges of neighbours in a chain: bytes for each image less and second that it stays so.

    What outlasts the point that it is merged into would be written again for itself: never past such a one.
    """
    for low in range(len(trunk) - 2):
        size, longest = trunk[low + 1].size, _lasts(trunk[low + 1])
        for high in range(low + 2, len(trunk)):
            into = trunk[high]
            size += into.size
            if tree.movable(into) and _lasts(into) >= longest:
                yield size / ((high - low - 1) * _worth(into)), low, high
            longest = max(longest, _lasts(into))


def _lasts(node: Node) -> float:
    return node.lasts if node.keep else 0.0


def _worth(into: Node) -> float:
    return max(60.0, min(_lasts(into), 86400.0))


def _merge(tree: _Tree, *, patient: bool) -> Step | None:
    """Free points that go and that others stand on."""
    return _fold(tree, patient=patient) or _close(tree, patient=patient)


def _fold(tree: _Tree, *, patient: bool) -> Fold | Reparent | None:
    """Fold the lowest point of a tree; the last that stands on it has what the others have: they may go first."""
    for root in tree.nodes:
        children = tree.children[root.id]
        if root.parent is not None or not tree.goes(root) or not children:
            continue
        if patient and len(children) > 1:
            continue
        first, *others = children
        if not all(tree.movable(child) for child in children) or not tree.may_merge([root, first]):
            continue
        if others:
            return Reparent(others[0].id, first.id)
        return Fold(root.id, first.id)
    return None


def _close(tree: _Tree, *, patient: bool) -> Rebase | None:
    """Merge points that go into the one that stays above them."""
    for into in tree.nodes:
        run = tree.below(into) if not tree.goes(into) and tree.movable(into) else []
        onto = tree.parent(run[0]) if run else None
        if onto is None or (patient and not _is_time(tree, onto, run, into)) or not tree.may_merge([*run, into]):
            continue
        return _rebase(onto, run, into)
    return None


def _is_time(tree: _Tree, onto: Node, run: list[Node], into: Node) -> bool:
    """Tell whether what is merged now will not be written again soon: for what lies between two that last as long."""
    if into is tree.newest or _lasts(into) < _lasts(onto):
        return False
    # The last that stands on such a point has all of it: the branches before it go by themselves.
    chain = [*run, into]
    return all(tree.children[below.id][-1] is above for below, above in itertools.pairwise(chain))


def _rebase(onto: Node, run: list[Node], into: Node, *, shortens: bool = False) -> Rebase:
    return Rebase(into.id, onto.id, tuple(node.id for node in run), shortens)
