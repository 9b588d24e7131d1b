"""A base that travels in an export: what is known of it meanwhile, and taking it in when it has come.

``awaited.json`` is written before the primary may build on the point, and removed after the point was published. The
segments of an import are gathered in ``importing/``, beside the point under construction: deltas go on coming.
"""

import datetime as dt
import threading
from collections.abc import Callable
from dataclasses import dataclass

from vmreplica.fsio import fsync_dir, remove_tree
from vmreplica.model.errors import Conflict, NotFound
from vmreplica.model.export import AwaitedBase, ExportId
from vmreplica.model.ids import DiskTarget
from vmreplica.model.point import DiskManifest
from vmreplica.repository.chain import Point, manifest_of, waiting_points
from vmreplica.repository.inbox import Inbox
from vmreplica.repository.layout import Layout, make_dir, read_shape, store_errors, write_shape
from vmreplica.repository.record import AwaitedRecord
from vmreplica.repository.shelf import Shelf


class _Importing(Layout):
    """The same replica with another place for what is under construction."""

    def __init__(self, layout: Layout) -> None:
        super().__init__(layout.root)
        self.incoming = layout.importing


@dataclass(frozen=True, slots=True)
class Shared:
    """What belongs to the replica and is used here too; see its locks and their order."""

    receiving: threading.Lock
    folding: threading.Lock
    shelf: Shelf
    inbox: Inbox


class Awaiting:
    """The awaited base of one replica. Thread-safe.

    Args:
        layout: of the replica.
        min_free: bytes to leave free on the store.
        shared: of the replica.
        clock: gives aware time.
        came: called with the export when its base has come, and the replica is one like any other; may be repeated.
    """

    def __init__(
        self,
        layout: Layout,
        min_free: int,
        shared: Shared,
        clock: Callable[[], dt.datetime],
        came: Callable[[ExportId], None],
    ) -> None:
        self._layout = layout
        self._shared = shared
        self._clock = clock
        self._came = came
        self._inbox = Inbox(_Importing(layout), min_free)
        self._record = read_shape(layout.awaited, AwaitedRecord) if layout.awaited.exists() else None

    @property
    def base(self) -> AwaitedBase | None:
        """What is awaited; None when nothing is."""
        record = self._record
        return record.base if record else None

    def point(self) -> Point | None:
        """Describe it as a point, though none of its files is here."""
        return _described(self._record) if self._record else None

    def accept(self, base: AwaitedBase) -> None:
        """Take deltas on an exported point from now on; harmless when it is awaited, or here already.

        Raises:
            Conflict: ``replica-has-points``: the primary has to build on those.
            NoSpace: the store is full; nothing changed.
        """
        shared = self._shared
        with shared.receiving, shared.shelf.lock:
            if any(
                point.id == base.opening.point and (point.here or self.base == base) for point in shared.shelf.all()
            ):
                return
            if shared.shelf.latest() is not None:
                raise Conflict(
                    "replica-has-points",
                    f"the replica of {base.opening.name} has points already, or awaits another export",
                    hint="the next cycle builds on those; to begin anew: vmreplica enable VM --seed ... again",
                    kind="transient",
                )
            self._write(AwaitedRecord(base=base, since=self._clock()))
            shared.shelf.add(_described(self._record_now()))

    def begin(self) -> dict[DiskTarget, set[int]]:
        """Begin or go on taking the base in; tells which segments are here already.

        Raises:
            NotFound: ``nothing-awaited``.
            NoSpace: the store is full.
        """
        with self._shared.receiving:
            opening = self._record_now().base.opening
            with store_errors(self._layout.importing):
                make_dir(self._layout.importing)
            incoming = self._inbox.open(opening)
        return {held.target: {n for low, high in held.ranges for n in range(low, high)} for held in incoming.held}

    def put(self, target: DiskTarget, number: int, body: bytes) -> None:
        """Make a segment durable; from any number of threads.

        Raises:
            Corrupt: it breaks a rule of the format.
            Conflict: ``point-not-open``; NotFound: ``nothing-awaited``: the export was given up meanwhile.
            NoSpace: the store is full.
        """
        opening = self._record_now().base.opening
        self._inbox.require(opening.name, opening.point).disks[target].put(number, body)

    def publish(self) -> None:
        """Make the base a point, of all its segments, below those that wait for it.

        Raises:
            Conflict: ``point-incomplete``, ``point-not-open``; NotFound: ``nothing-awaited``.
            Corrupt: ``point-damaged``: what was taken in is thrown away, the export is still awaited.
            NoSpace: the store is full.
        """
        shared = self._shared
        with shared.receiving:
            base = self._record_now().base
            incoming = self._inbox.require(base.opening.name, base.opening.point)
            manifest = self._inbox.publish(incoming, base.closing, None, epoch=base.opening.epoch, now=self._clock())
            with shared.shelf.lock:
                shared.shelf.put(manifest.point, manifest)
                self._came(base.export)
                self._settle()

    def give_up(self) -> None:
        """Await the base no longer and remove what stands on it; harmless when none is awaited."""
        shared = self._shared
        with shared.receiving, shared.folding, shared.shelf.lock:
            if self._record is not None:
                self._write(self._record.model_copy(update={"given_up": True}))
                self._give_up()

    def recover(self) -> None:
        """Finish what a crash interrupted: giving up, or the end of an import. At start, its caller has all locks."""
        if self._record is None:
            return
        name = self._record.base.opening.point
        if self._record.given_up:
            self._give_up()
        elif any(point.here and point.id == name for point in self._shared.shelf.all()):
            self._came(self._record.base.export)
            self._settle()
        elif self._layout.importing.is_dir():
            self._inbox.recover(None)

    def retire(self) -> None:
        """Use the files no more."""
        self._inbox.retire()

    def _record_now(self) -> AwaitedRecord:
        record = self._record
        if record is None:
            raise NotFound(
                "nothing-awaited",
                "the replica awaits no export, or no longer",
                hint="`vmreplica status` on the primary tells how the VM is replicated",
            )
        return record

    def _give_up(self) -> None:
        """Newest first, so that what is listed can always become whole until the record goes."""
        self._shared.inbox.discard()
        points = self._shared.shelf.all()
        waiting = waiting_points(points)
        for point in [point for point in reversed(points) if point.id in waiting]:
            with store_errors(self._layout.points):
                remove_tree(self._layout.point(point.id))
            self._shared.shelf.remove(point)
        self._settle()

    def _settle(self) -> None:
        """Await nothing any more."""
        self._inbox.discard()
        with store_errors(self._layout.awaited):
            remove_tree(self._layout.importing)
            self._layout.awaited.unlink(missing_ok=True)
            fsync_dir(self._layout.root)
        self._record = None

    def _write(self, record: AwaitedRecord) -> None:
        write_shape(self._layout.awaited, record)
        self._record = record


def _described(record: AwaitedRecord) -> Point:
    opening, closing = record.base.opening, record.base.closing
    segments = {disk.target: disk.segments for disk in closing.disks}
    disks = tuple(
        DiskManifest(
            target=disk.target,
            size=disk.size,
            file=f"{disk.target}.qcow2",
            file_bytes=0,
            tables_digest="",
            segments=segments[disk.target],
        )
        for disk in opening.disks
    )
    manifest = manifest_of(opening, disks, guest_bytes=closing.guest_bytes, wire_bytes=0, published=record.since)
    return Point(manifest, 0, here=False)
