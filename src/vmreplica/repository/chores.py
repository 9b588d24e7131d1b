"""What is done with the images of one replica's points while nobody waits for it: retention, merging, landing."""

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol

from vmreplica.fsio import free_bytes
from vmreplica.model.errors import NoSpace, VmReplicaError
from vmreplica.model.ids import DiskTarget, PointId
from vmreplica.model.keeping import Verdict
from vmreplica.model.merging import MergePlan
from vmreplica.model.point import BaseDevice
from vmreplica.repository import landing, merging
from vmreplica.repository.damage import Damages
from vmreplica.repository.folding import FoldStopped, Guidance, StepHook
from vmreplica.repository.foreseeing import foresee
from vmreplica.repository.holds import Holds
from vmreplica.repository.layout import Layout
from vmreplica.repository.pacing import Pace, Stop
from vmreplica.repository.plan_merges import Limits, Step, next_step
from vmreplica.repository.record import ReplicaRecord
from vmreplica.repository.retention import Done, frozen_points, nodes_of, take
from vmreplica.repository.shelf import Shelf


class Keeper(Protocol):
    """What this needs of a replica."""

    @property
    def record(self) -> ReplicaRecord:
        """The relationship as it stands now."""

    def verdicts(self) -> dict[PointId, Verdict]:
        """Say which points the rules keep, and why."""

    def reload(self) -> None:
        """Read all points again."""


class Chores:
    """Thread-safe.

    Args:
        layout: of the replica.
        shelf: its points.
        holds: who needs which.
        damages: what is wrong with them.
        keeper: the replica.
        min_free: bytes that shall be free on the store.
        rate: bytes per second that merging may write; None: no limit.
    """

    def __init__(
        self,
        layout: Layout,
        shelf: Shelf,
        holds: Holds,
        damages: Damages,
        keeper: Keeper,
        *,
        min_free: int,
        rate: int | None,
    ) -> None:
        self._layout = layout
        self._shelf = shelf
        self._holds = holds
        self._damages = damages
        self._keeper = keeper
        self._min_free = min_free
        #: Held while images are changed, and while holds are.
        self.lock = threading.Lock()
        #: Set: whatever is under way shall stop.
        self.stop = Stop()
        #: Called with the name of each step of a fold or merge; for tests that end the agent there.
        self.before: StepHook = lambda _step: None
        #: Why the last attempt failed.
        self.stuck: VmReplicaError | None = None
        #: What the last run did.
        self.done = Done()
        self._pace = Pace(rate, self.stop.is_set)

    @contextlib.contextmanager
    def still(self) -> Iterator[None]:
        """Let nothing of this run or begin in the block; what was interrupted is settled, unless that takes long."""
        self.stop.ask()
        try:
            self.lock.acquire()
        finally:
            self.stop.served()
        try:
            self.settle(pause=lambda: True)
            yield
        finally:
            self.lock.release()

    def run(self, *, land: bool) -> Done:
        """Do all there is to do with the points; then move bases to their devices.

        Args:
            land: whether bases may be moved.

        Returns:
            What was done; it stops early when somebody wants it to be still.

        Raises:
            NoSpace: there is no room; all points stay.
            Corrupt: a file is damaged; the points stay.
        """
        self.done = Done()
        try:
            self._run(land=land)
        except VmReplicaError as error:
            self.stuck = error
            raise
        self.stuck = None
        return self.done

    def settle(self, pause: Callable[[], bool]) -> None:
        """Finish or undo what failed half-way, as far as it need not wait; the lock is held."""
        if self._keeper.record.live:
            return
        merged = merging.recover_merge(self._layout)
        if landing.settle(self._layout, pause=pause, held=self._holds.any, pace=self._pace) or merged:
            self._keeper.reload()

    def plan(self) -> MergePlan:
        """Tell what will be done and what has to wait; changes nothing."""
        with self._shelf.lock:
            points, verdicts = self._shelf.all(), self._keeper.verdicts()
            limits = self._limits()
        return foresee(nodes_of(points, verdicts), limits)

    # ---- helpers

    def _run(self, *, land: bool) -> None:
        guide = Guidance(stopped=self.stop.is_set, pace=self._pace, before=self.before, may_merge=self._may_merge)
        with self.lock:
            self.settle(pause=self.stop.is_set)
            try:
                while not self.stop.is_set() and (step := self._choose()) is not None:
                    self.done += take(self._layout, self._shelf, step, guide)
            except FoldStopped:
                return
            except NoSpace:
                self._land(guide, land=land)  # moving a base away makes room
                raise
            self._land(guide, land=land)

    def _choose(self) -> Step | None:
        if self._layout.fold.exists():
            return None  # a fold that waits comes first
        with self._shelf.lock:
            points, verdicts = self._shelf.all(), self._keeper.verdicts()
            limits = self._limits()
        return next_step(nodes_of(points, verdicts), limits)

    def _limits(self) -> Limits:
        points = self._shelf.all()
        space = self._keeper.record.keep.space
        tight = space is not None and sum(point.stored_bytes for point in points) > space
        return Limits(
            frozen=frozen_points(points, self._holds.covers),
            may_merge=self._may_merge if self._damages.any() else lambda _points: True,
            pressed=tight or free_bytes(self._layout.root) < 2 * self._min_free,
        )

    def _may_merge(self, points: Sequence[PointId]) -> bool:
        return self._damages.may_merge(points)

    def _land(self, guide: Guidance, *, land: bool) -> None:
        """Move bases to their devices, as far as nobody holds a point."""
        wanted: Mapping[DiskTarget, BaseDevice] = self._keeper.record.base_devices if land else {}
        for manifest in landing.land_all(
            self._layout,
            self._shelf.manifests,
            wanted,
            self._holds.covers,
            guide,
        ):
            self._shelf.put(manifest.point, manifest)
