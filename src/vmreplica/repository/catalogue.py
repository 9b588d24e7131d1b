"""What one VM's replica has: its record, its published points and who needs them, for whoever only looks."""

import datetime as dt
import threading
from collections.abc import Callable
from pathlib import Path

from vmreplica.model.errors import Conflict, NotFound
from vmreplica.model.ids import DiskTarget, PointId
from vmreplica.model.keeping import Verdict, judge_points
from vmreplica.model.point import Manifest, PointSummary
from vmreplica.model.report import PointsReport
from vmreplica.repository import bases
from vmreplica.repository.boot_notes import BootNotes
from vmreplica.repository.chain import Point
from vmreplica.repository.comparisons import Comparisons
from vmreplica.repository.damage import Damages
from vmreplica.repository.holds import Holds
from vmreplica.repository.judging import facts_of
from vmreplica.repository.layout import Layout, read_shape, store_errors
from vmreplica.repository.record import ReplicaRecord
from vmreplica.repository.shelf import Shelf

Clock = Callable[[], dt.datetime]


class Catalogue:
    """The looking half of a replica. Thread-safe.

    Args:
        layout: of the replica, which has a record.
        clock: gives aware time.
    """

    def __init__(self, layout: Layout, clock: Clock) -> None:
        self._layout = layout
        self._clock = clock
        self._memory = threading.RLock()
        self._record = read_shape(layout.record, ReplicaRecord)
        self._holds = Holds(layout.holds)
        self._shelf = Shelf(layout, self._memory)
        self.boots = BootNotes(layout)
        #: What is known to be wrong with the points' files.
        self.damages = Damages(layout, self._shelf)
        #: What comparing the points with their primary came to.
        self.comparisons = Comparisons(layout, self._shelf, self.damages)

    @property
    def record(self) -> ReplicaRecord:
        """The relationship as it stands now."""
        with self._memory:
            return self._record

    def points(self) -> list[PointSummary]:
        """List the published points, newest first."""
        with self._memory:
            listed = self.damages.marked(self._shelf.summaries(self._holds.reasons))
            return self.boots.noted(self.comparisons.marked(listed))

    def manifests(self) -> list[Manifest]:
        """List the manifests of the published points, oldest first."""
        return self._shelf.manifests()

    def point(self, point: PointId) -> Manifest:
        """Give a published point's manifest.

        Raises:
            NotFound: ``point-unknown``.
        """
        return self._published(point).manifest

    def definition(self, point: PointId) -> str:
        """Give the VM's definition at a point, as the primary sent it: untrusted.

        Raises:
            NotFound: ``point-unknown``.
        """
        with store_errors(self._layout.point(self._published(point).id)):
            return (self._layout.point(point) / "definition.xml").read_text()

    def image(self, point: PointId, target: DiskTarget) -> Path:
        """Tell where a point's image of a disk stands.

        Raises:
            NotFound: ``point-unknown`` or ``disk-unknown``.
        """
        if target not in {disk.target for disk in self.point(point).disks}:
            raise NotFound("disk-unknown", f"point {point} of {self.record.name} has no disk {target}")
        return self._layout.image(point, target)

    def verify_devices(self) -> None:
        """Make sure that the devices and old disks which points stand on are those they were, unchanged.

        Raises:
            Corrupt: ``base-device-changed``, ``adopted-base-changed``.
            NotFound: ``device-missing``, ``adopted-base-missing``.
        """
        bases.verify_contents(self._layout, self._shelf.manifests())

    def require_unread(self) -> None:
        """Refuse what takes the files from below a mount or an export.

        Raises:
            Conflict: ``points-in-use``.
        """
        with self._memory:
            name = self._record.name
            readers = [hold for hold in self._holds.opened() if hold.owner in {"mount", "export"}]
        if readers:
            raise Conflict(
                "points-in-use",
                f"point {readers[0].point} of {name} is in use: {readers[0].owner}, {readers[0].reason}",
                hint=f"vmreplica points unmount {name}; an export ends by itself",
            )

    def listing(self) -> PointsReport:
        """List the points, newest first, with what the rules say of each."""
        with self._memory:
            record = self._record
            return PointsReport(
                vm=record.vm,
                name=record.name,
                points=tuple(self.points()),
                keep=record.keep,
                verdicts=self.verdicts(),
            )

    def verdicts(self) -> dict[PointId, Verdict]:
        """Say which points the rules keep, and why."""
        with self._memory:
            facts = facts_of(self._shelf.all(), self._holds)
            verdicts = judge_points(facts, self._record.keep, now=self._clock(), zone=None)
            for point in self.damages.kept():
                reasons = ("newest that is not damaged", *(verdicts[point].reasons if verdicts[point].keep else ()))
                verdicts[point] = verdicts[point].model_copy(update={"keep": True, "reasons": reasons})
            return verdicts

    def _published(self, point: PointId) -> Point:
        return self._shelf.require(point, self.record.name)
