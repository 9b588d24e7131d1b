"""One VM's replica: its record, its points, the point under construction, holds and retention. Thread-safe."""

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vmreplica.fsio import free_bytes, remove_tree
from vmreplica.model.errors import NotFound
from vmreplica.model.export import ExportId
from vmreplica.model.ids import DiskTarget, PointId
from vmreplica.model.merging import MergePlan
from vmreplica.model.point import IncomingPoint, PointClosing, PointOpening, PointSummary, Position, Seeding
from vmreplica.model.states import Event, State, transition
from vmreplica.repository import adopting
from vmreplica.repository.awaiting import Awaiting, Shared
from vmreplica.repository.catalogue import Catalogue, Clock
from vmreplica.repository.chain import Point, load_points, measured
from vmreplica.repository.chores import Chores
from vmreplica.repository.committing import Committing
from vmreplica.repository.complaints import complaints_of
from vmreplica.repository.folding import StepHook
from vmreplica.repository.inbox import Inbox, all_held, check_opening
from vmreplica.repository.incoming import Incoming
from vmreplica.repository.layout import Layout, remove_leftovers, store_errors, write_shape
from vmreplica.repository.record import HoldKind, ReplicaRecord, seeding_of
from vmreplica.repository.retention import Done


class Replica(Catalogue):
    """A VM's part of the repository.

    Three locks, taken in this order: one for the point under construction (opening, completing, abandoning it), one
    for folding and holds, and a short one for what is in memory. ``put_segment`` takes only the short one.

    Args:
        root: ``<store>/<vm>``; has a record.
        min_free: bytes that receiving leaves free on the store.
        clock: gives aware time.
        merge_limit: bytes per second that merging images may write; 0: no limit.
    """

    def __init__(self, root: Path, *, min_free: int, clock: Clock, merge_limit: int = 0) -> None:
        super().__init__(Layout(root), clock)
        self._min_free = min_free
        self._receiving = threading.Lock()
        #: Retention, merging, moving bases.
        self._chores = Chores(
            self._layout, self._shelf, self._holds, self.damages, self, min_free=min_free, rate=merge_limit or None
        )
        self._folding, self._stop_fold = self._chores.lock, self._chores.stop
        self._inbox = Inbox(self._layout, min_free)
        #: A base that travels in an export, until it is imported.
        shared = Shared(self._receiving, self._folding, self._shelf, self._inbox)
        self.awaiting = Awaiting(self._layout, min_free, shared, clock, self._imported)
        #: Giving all points up for the disks of a VM that was started from one.
        self.committing = Committing(self._layout, shared, self._holds, self)
        self._complaints: list[str] = []
        #: How reading existing copies gets on, told by whoever reads them.
        self.seeding = Seeding(phase="waiting to read the existing copy")
        self.reload()

    # ---- record

    @property
    def dir(self) -> Path:
        """Where everything of this VM stands."""
        return self._layout.root

    @property
    def run_dir(self) -> Path:
        """Where the writable layer of a failed-over VM stands; made by whoever makes the layer."""
        return self._layout.run

    def update(self, **changes: Any) -> ReplicaRecord:
        """Change the record durably.

        Raises:
            NoSpace: the store is full; nothing changed.
        """
        with self._memory:
            changed = ReplicaRecord.model_validate({**self._record.model_dump(), **changes})
            if changed != self._record:
                write_shape(self._layout.record, changed)
                self._record = changed
            return changed

    def move(self, event: Event) -> State:
        """Make a transition and write it down.

        Raises:
            Conflict: ``state-forbids``.
        """
        with self._memory:
            state = transition(self._record.name, self._record.state, event)
            self.update(state=state)
            return state

    # ---- points

    def position(self) -> Position:
        """Tell the replica's truth about the relationship."""
        with self._memory:
            points, record = self.points(), self._record
            known = (*self._complaints, *self.damages.complaints())
            seeding = seeding_of(record, self.seeding)
        free = free_bytes(self.dir)
        room, held = (free, self._min_free), self._shelf.all()
        complaints = complaints_of(self._layout, record, held, known, self._chores.stuck, room=room)
        return Position(
            vm=record.vm,
            state=str(record.state),
            epoch=record.epoch,
            latest=points[0] if points else None,
            incoming=self._inbox.held(),
            free_bytes=free,
            points=sum(point.bootable for point in points),
            awaited=self.awaiting.base.opening.point if self.awaiting.base else None,
            complaints=complaints,
            seeding=seeding,
            repairs=self.damages.wanted(),
            verified=next((point.verified for point in points if point.verified), None),
        )

    def finish_adoption(self) -> None:
        """Take points of the new primary from now on: the VM has no life of its own here any more. Again is harmless.

        Raises:
            NoSpace: the store is full; nothing changed but seals, it may be repeated.
        """
        with self._folding, self._memory:
            if self._record.adoption is None:
                return
            for manifest in adopting.seal_again(self._layout, self._shelf.manifests()):
                self._shelf.put(manifest.point, manifest)
            state = transition(self._record.name, self._record.state, Event.REVERSED)
            self.update(state=state, adoption=None)

    # ---- receiving

    def open_point(self, opening: PointOpening) -> IncomingPoint:
        """Begin a point, or find it again.

        Returns:
            What is held already; of a published point everything.

        Raises:
            Conflict: ``parent-mismatch``, ``point-older``, ``opening-differs``.
            BadRequest: ``disk-shrunk``: a delta of a disk that is smaller than its parent's.
            NoSpace: the store is full.
        """
        with self._receiving:
            published = self._shelf.find(opening.point)
            if published is not None:
                return all_held(published.manifest)
            latest = self._shelf.latest()
            check_opening(opening, latest.manifest if latest is not None else None)
            return self._inbox.open(opening)

    def put_segment(self, point: PointId, target: DiskTarget, number: int, body: memoryview | bytes) -> None:
        """Make a segment durable; from any number of threads.

        Raises:
            Corrupt: it breaks a rule.
            Conflict: ``point-not-open``, ``segment-differs``.
            NotFound: ``disk-unknown``.
            NoSpace: the store is full.
        """
        disk = self._inbox.require(self.record.name, point).disks.get(target)
        if disk is None:
            raise NotFound("disk-unknown", f"point {point} of {self.record.name} was opened without disk {target}")
        disk.put(number, body)

    def complete(self, point: PointId, closing: PointClosing) -> PointSummary:
        """Publish a point whose segments are all here; of a published point, just its summary.

        Raises:
            Conflict: ``point-not-open``, ``point-incomplete``, ``stale-epoch``.
            Corrupt: ``point-damaged``: the point is thrown away.
            BadRequest: ``closing-differs``.
            NoSpace: the store is full; the point can be completed later.
        """
        with self._receiving:
            if self._shelf.find(point) is None:
                self._publish(self._inbox.require(self.record.name, point), closing)
            self._end_waiting()
            with self._memory:
                return next(summary for summary in self.points() if summary.point == point)

    def abandon(self, point: PointId) -> None:
        """Throw away a point under construction, if it is this one."""
        with self._receiving:
            if (held := self._inbox.held()) is not None and held.point == point:
                self._inbox.discard()

    # ---- holds and retention

    def hold(self, point: PointId, owner: str, reason: str, *, lasting: bool = True, kind: HoldKind = "open") -> str:
        """Keep a point until released or, if not lasting, until the process ends.

        Args:
            point: the point.
            owner: who needs it.
            reason: why.
            lasting: whether the hold survives the process.
            kind: ``open``: the files of the point and of all it stands on stay as they are. ``pin``: it stays and reads
                the same.

        Returns:
            The id to release it by.

        Raises:
            NotFound: ``point-unknown``.
        """
        with self.still(), self._memory:
            return self._holds.add(self._published(point).id, owner, reason, self._clock(), lasting=lasting, kind=kind)

    def pin(self, point: PointId, reason: str) -> None:
        """Keep a point whatever the rules say, for this reason from now on.

        Raises:
            NotFound: ``point-unknown``.
            NoSpace: the store is full; nothing changed.
        """
        with self.still(), self._memory:
            former = self._holds.pins(self._published(point).id)
            self._holds.add(point, "pin", reason, self._clock(), lasting=True, kind="pin")
            for pin in former:
                self._holds.remove(pin.id)

    def unpin(self, point: PointId) -> bool:
        """Leave a point to the rules again; tells whether it was pinned."""
        with self._memory:
            pins = self._holds.pins(point)
            for pin in pins:
                self._holds.remove(pin.id)
        return bool(pins)

    @contextlib.contextmanager
    def still(self) -> Iterator[None]:
        """Let no fold run or begin in the block; one that was interrupted is settled, as far as that need not wait."""
        with self._chores.still():
            yield

    def interrupt(self) -> None:
        """Let what is done with images stop at the next chance, and nothing begin; for the end of the process."""
        self._stop_fold.end()

    def release(self, hold_id: str) -> None:
        """Release a hold; one that is gone already is no error."""
        with self._memory:
            self._holds.remove(hold_id)

    def remove_run_layer(self) -> None:
        """Throw the writable layer of a failed-over VM away."""
        with store_errors(self.run_dir):
            remove_tree(self.run_dir)

    def apply_retention(self) -> int:
        """Fold or delete the oldest points until only those remain that shall be kept; move bases to their devices.

        Returns:
            How many points went. It stops early when a hold is asked for meanwhile.

        Raises:
            NoSpace: there is no room to fold; all points stay.
            Corrupt: a file is damaged; the points stay.
        """
        return self._chores.run(land=self.awaiting.base is None).gone

    @property
    def retained(self) -> Done:
        """What the last run of retention did."""
        return self._chores.done

    @property
    def before_fold_step(self) -> StepHook:
        """Called with the name of each step of retention; for tests that end the agent there."""
        return self._chores.before

    @before_fold_step.setter
    def before_fold_step(self, hook: StepHook) -> None:
        self._chores.before = hook

    def merge_plan(self) -> MergePlan:
        """Tell what retention will do with the images of the points, and what waits; changes nothing."""
        return self._chores.plan()

    def recover(self) -> None:
        """Finish what a crash interrupted: folds, deletions, the point under construction. Called once, at start.

        Raises:
            VmReplicaError: not all of it could be done.
        """
        with self._receiving, self._folding, store_errors(self.dir):
            remove_leftovers(self.dir)
            self._chores.settle(pause=lambda: True)
            self.reload()
            self.awaiting.recover()
            self.reload()
            self._inbox.recover(latest.id if (latest := self._shelf.latest()) is not None else None)
        self._end_waiting()

    def reload(self) -> None:
        """Read all points again."""
        awaited = self.awaiting.point()
        # What is folded, or being folded, is of no point.
        points, complaints = ([], []) if self._record.live else load_points(self._layout, self._record.vm, awaited)
        with self._memory:
            self._shelf.set(points)
            self._complaints = complaints
        self.damages.load()

    def retire(self) -> None:
        """Stop using the files: no segment is being written, no fold runs and none will begin."""
        self._stop_fold.end()
        with self._receiving, self._folding, self._memory:
            self._inbox.retire()
            self.awaiting.retire()

    # ---- helpers: receiving

    def _publish(self, incoming: Incoming, closing: PointClosing) -> None:
        latest, epoch = self._shelf.latest(), self.record.epoch
        parent = latest.manifest if latest is not None and incoming.opening.parent == latest.id else None
        manifest = self._inbox.publish(incoming, closing, parent, epoch=epoch, now=self._clock())
        self._shelf.add(measured(self._layout, Point(manifest, 0)))

    def _end_waiting(self) -> None:
        with self._memory:
            bootable = any(manifest.kind != "seed" for manifest in self._shelf.manifests())
            if bootable and self.awaiting.base is None and self._record.state is State.WAITING:
                self.move(Event.PUBLISHED)

    def _imported(self, export: ExportId) -> None:
        self.update(imported=export)
        if self._record.state is State.WAITING:
            self.move(Event.PUBLISHED)
