"""Random histories of a replica against a model: points, whole copies, retention, holds, restarts and crashes."""

import contextlib
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from point_kit import VM
from repository_kit import OWNER, ZERO, Killed, Primary, check_all, noise, offer, open_repository

from vmreplica.model.units import CLUSTER
from vmreplica.repository import Replica

pytestmark = pytest.mark.main_job

CLUSTERS = 12


class Dies:
    """Ends the process at the n-th step of a fold."""

    def __init__(self, left: int) -> None:
        self.left = left

    def __call__(self, step: str) -> None:
        """Count a step."""
        self.left -= 1
        if self.left < 0:
            raise Killed(step)


changes = st.dictionaries(st.integers(0, CLUSTERS - 1), st.integers(0, 50), max_size=8)
actions = st.one_of(
    st.tuples(st.just("delta"), changes, changes),
    st.tuples(st.just("delta"), changes, changes),
    st.tuples(st.just("whole"), changes, changes),
    st.tuples(st.just("retain"), st.integers(1, 3)),
    st.tuples(st.just("retain"), st.integers(1, 3)),
    st.tuples(st.just("crash"), st.integers(1, 3), st.integers(0, 12)),
    st.tuples(st.just("restart")),
    st.tuples(st.just("hold"), st.integers(0, 5)),
    st.tuples(st.just("release")),
)


class History:
    """A replica, its primary, and which points must still be there."""

    def __init__(self, store: Path) -> None:
        self.store = store
        self.replica: Replica = open_repository(store).create(VM, OWNER, offer(keep=2))
        self.primary = Primary({"vda": CLUSTERS * CLUSTER, "vdb": (CLUSTERS - 1) * CLUSTER + 512}, each=3)
        self.holds: dict[str, str] = {}

    def do(self, name: str, *arguments: object) -> None:
        """Do one action by its name."""
        getattr(self, f"do_{name}")(*arguments)

    def do_delta(self, vda: dict[int, int], vdb: dict[int, int]) -> None:
        """Publish a point."""
        self._send(vda, vdb, whole=False)

    def do_whole(self, vda: dict[int, int], vdb: dict[int, int]) -> None:
        """Publish a whole copy."""
        self._send(vda, vdb, whole=True)

    def do_retain(self, keep: int) -> None:
        """Apply retention."""
        self.replica.update(keep=keep)
        self.replica.apply_retention()
        if not self.holds:
            assert len(self.replica.points()) <= keep

    def do_crash(self, keep: int, steps: int) -> None:
        """Apply retention, be killed on the way, start again."""
        self.replica.update(keep=keep)
        self.replica.before_fold_step = Dies(steps)
        with contextlib.suppress(Killed):
            self.replica.apply_retention()
        self.do_restart()

    def do_restart(self) -> None:
        """Start again."""
        self.replica = open_repository(self.store).replica(VM)

    def do_hold(self, place: int) -> None:
        """Hold a point."""
        points = self.replica.points()
        if points:
            point = points[place % len(points)].point
            self.holds[self.replica.hold(point, "test", "why not")] = point

    def do_release(self) -> None:
        """Release all holds."""
        while self.holds:
            self.replica.release(self.holds.popitem()[0])

    def check(self) -> None:
        """What is listed reads right; the newest point and all held ones are listed."""
        listed = check_all(self.replica, self.primary)
        assert set(self.holds.values()) <= set(listed)
        assert listed[-1:] == ([self.primary.latest] if self.primary.latest else [])
        assert not self.replica.position().complaints

    def _send(self, vda: dict[int, int], vdb: dict[int, int], *, whole: bool) -> None:
        content = {
            target: {n: noise(seed) if seed % 3 else ZERO for n, seed in change.items() if n < CLUSTERS - 1}
            for target, change in (("vda", vda), ("vdb", vdb))
        }
        self.primary.send(self.replica, content, whole=whole)


@settings(max_examples=12, deadline=None)
@given(st.lists(actions, min_size=4, max_size=14))
def test_whatever_happens_each_listed_point_reads_as_its_model(history: list[tuple[object, ...]]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        past = History(Path(directory))
        for action in history:
            past.do(str(action[0]), *action[1:])
        past.check()
        past.do_release()
        past.do_retain(1)
        past.check()
