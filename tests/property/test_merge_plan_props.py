"""What retention does with images, step by step, against a model of their contents."""

from dataclasses import dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmreplica.model.ids import PointId
from vmreplica.repository.plan_merges import (
    BOUND,
    Delete,
    Fold,
    Limits,
    Node,
    Rebase,
    Reparent,
    Step,
    depths,
    next_step,
)

pytestmark = pytest.mark.points

BLOCKS = 12
Content = tuple[int, ...]


@dataclass(frozen=True)
class Image:
    """What an image says, and what it stands on."""

    parent: PointId | None
    said: dict[int, int]


class Model:
    """Points with contents; does the steps as they are defined, and nothing else.

    Args:
        bound: of chains.
    """

    def __init__(self, bound: int = BOUND) -> None:
        self.bound = bound
        self.images: dict[PointId, Image] = {}
        #: What each point must read as, for ever.
        self.expected: dict[PointId, Content] = {}
        self.facts: dict[PointId, Node] = {}
        self.frozen: set[PointId] = set()
        self.damaged: set[PointId] = set()
        self.disk = [0] * BLOCKS
        self.count = 0
        #: Block-writes: by points that came, and by all that was done with them later.
        self.received = 0
        self.written = 0

    def add(self, changes: dict[int, int], *, whole: bool = False) -> PointId:
        """Let a point come."""
        point = f"{self.count:06d}"
        self.count += 1
        for block, value in changes.items():
            self.disk[block] = value
        latest = max(self.images, default=None)
        parent = None if whole else latest
        said = dict(enumerate(self.disk)) if parent is None else dict(changes)
        self.images[point] = Image(parent, said)
        self.expected[point] = tuple(self.disk)
        self.facts[point] = Node(point, parent, len(said), keep=True)
        self.received += len(said)
        return point

    def read(self, point: PointId) -> Content:
        """Read a point through its chain."""
        found: dict[int, int] = {}
        at: PointId | None = point
        while at is not None:
            image = self.images[at]
            found = {**image.said, **found}
            at = image.parent
        return tuple(found.get(block, 0) for block in range(BLOCKS))

    def chain(self, point: PointId) -> set[PointId]:
        """List a point and all that it stands on."""
        found: set[PointId] = set()
        at: PointId | None = point
        while at is not None:
            found.add(at)
            at = self.images[at].parent
        return found

    def nodes(self) -> list[Node]:
        """Describe it for the planner."""
        return [
            replace(self.facts[point], parent=self.images[point].parent, size=len(self.images[point].said))
            for point in sorted(self.images)
        ]

    def still(self) -> set[PointId]:
        """Tell which files nobody may change: of points in use, and of all they stand on."""
        found: set[PointId] = set()
        for point in self.frozen & set(self.images):
            at: PointId | None = point
            while at is not None:
                found.add(at)
                at = self.images[at].parent
        return found

    def next(self, *, pressed: bool = False) -> Step | None:
        """Ask what is next."""
        still = self.still()
        limits = Limits(
            frozen=still,
            may_merge=lambda points: not self.damaged & set(points),
            pressed=pressed,
            bound=self.bound,
        )
        return next_step(self.nodes(), limits)

    def do(self, step: Step) -> None:
        """Do a step; what must not be touched or does not hold is an error."""
        still = self.still()
        match step:
            case Delete(point):
                assert all(image.parent != point for image in self.images.values())
                self._gone(point, still)
            case Rebase(point, onto, past, _shortens):
                said: dict[int, int] = {}
                below: PointId | None = onto
                for each in (*past, point):
                    assert self.images[each].parent == below, "the images stand on each other"
                    said |= self.images[each].said
                    below = each
                assert past
                assert point not in still
                assert not self.damaged & {*past, point}
                self.images[point] = Image(onto, said)
                self.written += len(said)
            case Reparent(point, onto):
                assert point not in still
                assert not self.damaged & (self.chain(onto) - self.chain(point)), "nothing damaged gets below it"
                self.images[point] = replace(self.images[point], parent=onto)
            case Fold(point, into):
                assert self.images[into].parent == point
                assert self.images[point].parent is None
                assert [name for name, image in self.images.items() if image.parent == point] == [into]
                assert into not in still
                assert not self.damaged & {point, into}
                said = self.images[into].said
                self.written += len(said)
                self.images[into] = Image(None, {**self.images[point].said, **said})
                self._gone(point, still)

    def settle(self, *, pressed: bool = False) -> list[Step]:
        """Do all there is to do, and look at every point after every step."""
        done: list[Step] = []
        while (step := self.next(pressed=pressed)) is not None:
            self.do(step)
            done.append(step)
            for point in self.images:
                assert self.read(point) == self.expected[point], (point, step)
            assert len(done) <= 40 * (len(self.images) + 10), "it comes to an end"
        return done

    def depth(self) -> int:
        """Tell the longest chain."""
        return max(depths(self.nodes()).values())

    def _gone(self, point: PointId, still: set[PointId]) -> None:
        assert not self.facts[point].keep
        assert point not in still
        assert point != max(self.images)
        del self.images[point]


changes = st.dictionaries(st.integers(0, BLOCKS - 1), st.integers(0, 99), max_size=5)
places = st.integers(0, 60)
actions = st.one_of(
    st.tuples(st.just("add"), changes),
    st.tuples(st.just("add"), changes),
    st.tuples(st.just("add"), changes),
    st.tuples(st.just("many"), st.integers(2, 12)),
    st.tuples(st.just("whole"), changes),
    st.tuples(st.just("drop"), places),
    st.tuples(st.just("drop"), places),
    st.tuples(st.just("drop"), places),
    st.tuples(st.just("lasts"), places, st.sampled_from([60.0, 3600.0, 86400.0])),
    st.tuples(st.just("open"), places),
    st.tuples(st.just("close"), places),
    st.tuples(st.just("damage"), places),
    st.tuples(st.just("settle"), st.booleans()),
    st.tuples(st.just("some"), st.integers(1, 3)),
)


def act(model: Model, action: tuple[object, ...]) -> None:
    """Do one action by its name."""
    name, argument = action[0], action[1]
    if name in {"add", "whole"}:
        assert isinstance(argument, dict)
        model.add(argument, whole=name == "whole")
        return
    if name == "settle":
        model.settle(pressed=bool(argument))
        return
    assert isinstance(argument, int)
    if name == "many":
        for number in range(argument):
            model.add({number: model.count})
    elif name == "some":
        for _ in range(argument):
            if model.images and (step := model.next()) is not None:
                model.do(step)
    elif model.images:
        act_on(model, str(name), sorted(model.images)[argument % len(model.images)], action)


def act_on(model: Model, name: str, point: PointId, action: tuple[object, ...]) -> None:
    """Let something happen to a point."""
    match name:
        case "drop":
            if point not in model.frozen:
                model.facts[point] = replace(model.facts[point], keep=False)
        case "lasts":
            model.facts[point] = replace(model.facts[point], lasts=float(str(action[2])))
        case "open":
            model.facts[point] = replace(model.facts[point], keep=True)
            model.frozen.add(point)
        case "close":
            model.frozen.discard(point)
        case "damage":
            model.damaged.add(point)


@settings(max_examples=120, deadline=None)
@given(st.lists(actions, min_size=5, max_size=40), st.integers(5, 12))
def test_whatever_is_done_in_whatever_order_each_point_that_is_left_reads_as_before(
    history: list[tuple[object, ...]], bound: int
) -> None:
    model = Model(bound)
    model.add({0: 1})
    for action in history:
        act(model, action)
        for point in model.images:
            assert model.read(point) == model.expected[point]
    kept = {point for point, node in model.facts.items() if node.keep}
    assert kept <= set(model.images), "what is kept is never lost"


@settings(max_examples=80, deadline=None)
@given(st.lists(actions.filter(lambda action: action[0] not in {"damage", "open"}), min_size=5, max_size=40))
def test_when_space_is_short_and_nothing_is_in_the_way_all_that_goes_is_gone_in_the_end(
    history: list[tuple[object, ...]],
) -> None:
    model = Model()
    model.add({0: 1})
    for action in history:
        act(model, action)
    model.settle(pressed=True)
    left = {point for point in model.images if not model.facts[point].keep}
    assert left <= {max(model.images)}
    assert model.next(pressed=True) is None


@settings(max_examples=30, deadline=None)
@given(st.integers(6, BOUND), st.integers(1, 120), st.integers(1, 200), st.sampled_from([300.0, 3600.0]))
def test_no_chain_is_longer_than_the_bound_however_many_points_are_kept(
    bound: int, keep: int, come: int, lasts: float
) -> None:
    """Points come one by one, the last so many are kept, nobody has anything open."""
    model = Model(bound)
    for number in range(come):
        point = model.add({number % BLOCKS: number})
        model.facts[point] = replace(model.facts[point], lasts=lasts)
        for gone in sorted(model.images)[:-keep]:
            model.facts[gone] = replace(model.facts[gone], keep=False)
        assert model.depth() <= bound
        for step in model.settle():
            assert not (isinstance(step, Rebase) and step.point == point and keep < bound - 2), "no need to"
            assert model.depth() <= bound
    assert len(model.images) <= max(2 * keep, keep + 2 * BOUND)


def test_a_chain_that_is_in_use_grows_no_longer_than_the_bound_above_it() -> None:
    model = Model(10)
    points = [model.add({n: n}) for n in range(8)]
    model.frozen.add(points[-1])
    for number in range(60):
        point = model.add({number % BLOCKS: number})
        model.facts[point] = replace(model.facts[point], lasts=3600.0)
        model.settle()
        assert model.depth() <= 10


def test_points_that_go_between_two_that_stay_are_merged_once_and_all_together() -> None:
    model = Model()
    points = [model.add({n: n + 1}) for n in range(8)]
    for number, point in enumerate(points):
        model.facts[point] = replace(model.facts[point], lasts=86400.0 if number in {0, 5} else 60.0 * number)
    for point in points[1:5]:
        assert model.next() is None, "what is merged now would be written again soon"
        model.facts[point] = replace(model.facts[point], keep=False)
    assert model.settle() == [
        Rebase(points[5], points[0], tuple(points[1:5])),
        *(Delete(point) for point in reversed(points[1:5])),
    ]


def test_a_point_is_not_moved_onto_a_damaged_one_so_that_the_last_good_copy_goes() -> None:
    nodes = [
        Node("0", None, 9, keep=True),
        Node("1", "0", 1, keep=False),
        Node("2", "0", 2, keep=True),
        Node("3", "2", 1, keep=True),
        Node("4", "1", 1, keep=True, lasts=60.0),
    ]
    assert next_step(nodes, Limits()) == Reparent("4", "2")
    assert next_step(nodes, Limits(may_merge=lambda points: "3" not in points)) == Reparent("4", "2")
    assert next_step(nodes, Limits(may_merge=lambda points: "2" not in points)) is None, "it waits where it is"
