"""Whatever is lost, late or killed in a planned failover, its VM never runs on both sides, and in the end on one."""

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmreplica.failover.planned import Standing, decide, replica_says
from vmreplica.model.policy import Planned
from vmreplica.model.states import State

pytestmark = pytest.mark.failover

POINT = "20260101T000000Z-00000000"
SAYS = st.sampled_from(["receives", "forgot", "busy", "has-it", "silent"])
WISHES = st.sampled_from(["forward", "back", "self"])
STAGES = st.sampled_from(["preparing", "prepared", "withdrawing"])
STANDINGS = st.builds(
    Standing,
    planned=st.builds(Planned, stage=STAGES, was_running=st.booleans(), point=st.just(POINT)),
    replica=SAYS,
    running=st.booleans(),
    wish=WISHES,
)


@given(STANDINGS)
def test_the_replica_is_asked_to_start_only_what_is_prepared_off_and_wanted(standing: Standing) -> None:
    if decide(standing) == "start":
        assert standing.planned.stage == "prepared"
        assert not standing.running
        assert standing.wish != "back"
        assert standing.replica == "receives"


@given(STANDINGS)
def test_nothing_is_started_here_unless_the_replica_has_said_that_it_has_not(standing: Standing) -> None:
    starts = decide(standing) == "undo" and standing.planned.was_running and not standing.running
    assert not starts or standing.replica in {"receives", "forgot"}
    assert not starts or standing.planned.stage == "preparing" or standing.replica == "forgot"


@given(STANDINGS)
def test_each_way_that_is_open_has_an_end(standing: Standing) -> None:
    act = decide(standing)
    assert (act in {"wait", "stuck"}) <= (standing.replica in {"busy", "silent"})


@pytest.mark.parametrize(
    ("state", "epoch", "says"),
    [
        (State.REPLICATING, 3, "receives"),
        (State.PAUSED, 3, "receives"),
        (State.REPLICATING, 4, "forgot"),
        (State.FAILING_OVER, 4, "busy"),
        (State.CANCELLING, 4, "busy"),
        (State.FAILED_OVER, 4, "has-it"),
        (State.COMMITTED, 4, "has-it"),
    ],
)
def test_a_position_tells_where_the_vm_is(state: State, epoch: int, says: str) -> None:
    assert replica_says(state, epoch, 3) == says


@dataclass
class World:
    """Both hosts and the line between them, as far as starting goes."""

    was_running: bool
    planned: Planned | None = None
    ours: int = 0
    runs_here: bool = True
    theirs: int = 0
    has_it: bool = False
    #: Epochs of wishes for a start that were sent: each may arrive now, later, twice or never.
    on_the_way: list[int] = field(default_factory=list)

    def begin(self) -> None:
        """Go as far as asking for the start."""
        self.runs_here = False
        self.planned = Planned(stage="prepared", was_running=self.was_running, point=POINT)

    def deliver(self, epoch: int) -> None:
        """Let a wish arrive at the replica."""
        if epoch >= self.theirs and not self.has_it:
            self.has_it, self.theirs = True, self.theirs + 1

    def fail_to_start(self) -> None:
        """Let the replica begin to start it, and take that back."""
        if not self.has_it:
            self.theirs += 1

    def step(self, wish: str, heard: bool, killed: bool) -> None:
        """Ask, decide, act; the agent may be killed before the act's last part, an answer may be lost."""
        assert self.planned is not None
        state = State.FAILED_OVER if self.has_it else State.REPLICATING
        says = replica_says(state, self.theirs, self.ours) if heard else "silent"
        standing = Standing(planned=self.planned, replica=says, running=self.runs_here, wish=wish)  # type: ignore[arg-type]
        act = decide(standing)
        if act == "start":
            self.on_the_way.append(self.ours)
        elif act == "withdraw":
            self.planned = self.planned.model_copy(update={"stage": "withdrawing"})
            if not killed and not self.has_it:
                self.theirs = max(self.theirs, self.ours + 1)
        elif act == "undo":
            self.runs_here = self.runs_here or self.planned.was_running
            if not killed:
                self.planned, self.ours = None, self.theirs
        elif act == "yield":
            self.planned = None


EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("step"), WISHES, st.booleans(), st.booleans()),
        st.tuples(st.just("deliver"), st.integers(0, 9)),
        st.tuples(st.just("fail")),
        st.tuples(st.just("begin")),
    ),
    max_size=40,
)


def play(world: World, events: list[tuple]) -> None:  # type: ignore[type-arg]
    world.begin()
    for event in events:
        if event[0] == "step" and world.planned is not None:
            world.step(*event[1:])
        elif event[0] == "deliver" and world.on_the_way:
            world.deliver(world.on_the_way[event[1] % len(world.on_the_way)])
        elif event[0] == "fail":
            world.fail_to_start()
        elif event[0] == "begin" and world.planned is None and not world.has_it:
            world.begin()
        assert not (world.runs_here and world.has_it), "it runs on both sides"


@given(st.booleans(), EVENTS)
def test_late_lost_and_doubled_wishes_and_kills_never_make_it_run_twice(was_running: bool, events: list[tuple]) -> None:  # type: ignore[type-arg]
    play(World(was_running), events)


@given(EVENTS, WISHES)
def test_when_the_replica_answers_again_it_runs_on_one_side(events: list[tuple], wish: str) -> None:  # type: ignore[type-arg]
    world = World(was_running=True)
    play(world, events)
    for _ in range(4):
        if world.planned is not None and not world.has_it:
            world.step(wish, heard=True, killed=False)
        for epoch in tuple(world.on_the_way):
            world.deliver(epoch)
    assert world.runs_here != world.has_it
