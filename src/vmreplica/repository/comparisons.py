"""What verifying points came to: ``verified.json`` beside each manifest; what is wrong is quarantined."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from vmreplica.model.damage import Damage
from vmreplica.model.errors import Corrupt
from vmreplica.model.ids import PointId
from vmreplica.model.point import PointSummary
from vmreplica.model.verified import DiskVerdict, Verified
from vmreplica.repository.damage import Damages
from vmreplica.repository.layout import Layout, read_shape, write_shape
from vmreplica.repository.shelf import Shelf

#: Wrong places of a disk that are named in lists.
_TOLD: Final = 20
_WRONG: Final = "not what the VM's disk held, as verify found"


class Comparisons:
    """The verdicts on one replica's points. Thread-safe: guarded by the shelf's lock.

    A verdict that cannot be read counts as none: the point is to be verified again. What it said was wrong stands in
    the record of damage as well.

    Args:
        layout: of the replica.
        shelf: its points.
        damages: what is known to be wrong with them.
    """

    def __init__(self, layout: Layout, shelf: Shelf, damages: Damages) -> None:
        self._layout = layout
        self._shelf = shelf
        self._damages = damages
        self._known: dict[PointId, Verified | None] = {}

    def keep(self, verified: Verified) -> None:
        """Keep a verdict with its point, in place of an earlier one; quarantine what is wrong.

        Raises:
            NotFound: ``point-unknown``.
            NoSpace: the store is full.
        """
        with self._shelf.lock:
            point = self._shelf.require(verified.point, "the VM")
            sizes = {disk.target: disk.size for disk in point.manifest.disks}
            # The quarantine first: killed in between, the point is not trusted rather than trusted wrongly.
            damages = [damage for disk in verified.disks for damage in _damages(point.id, disk, sizes)]
            self._damages.differs(point.id, damages, verified.when)
            write_shape(self._path(point.id), verified)
            self._known[point.id] = verified

    def of(self, point: PointId) -> Verified | None:
        """Give the last verdict on a point."""
        with self._shelf.lock:
            if point not in self._known:
                self._known[point] = self._read(point)
            return self._known[point]

    def marked(self, summaries: Sequence[PointSummary]) -> list[PointSummary]:
        """Say of points in a list what verifying them came to; one that is wrong somewhere is damaged."""
        listed = {point.point for point in summaries}
        with self._shelf.lock:
            self._known = {point: known for point, known in self._known.items() if point in listed}
        return [self._marked(point) for point in summaries]

    def _marked(self, point: PointSummary) -> PointSummary:
        verified = self.of(point.point)
        if verified is None:
            return point
        disks = tuple(disk.model_copy(update={"wrong": disk.wrong[:_TOLD]}) for disk in verified.disks)
        told = {"verified": verified.model_copy(update={"disks": disks})}
        vague = tuple(f"disk {disk.target} is {_WRONG}" for disk in disks if disk.verdict == "wrong" and not disk.wrong)
        return point.model_copy(update={**told, "damaged": (*point.damaged, *vague)})

    def _read(self, point: PointId) -> Verified | None:
        path = self._path(point)
        try:
            found = read_shape(path, Verified) if path.exists() else None
        except Corrupt:
            return None
        return found if found is not None and found.point == point else None

    def _path(self, point: PointId) -> Path:
        return self._layout.point(point) / "verified.json"


def _damages(point: PointId, disk: DiskVerdict, sizes: dict[str, int]) -> list[Damage]:
    size = sizes.get(disk.target, 0)
    return [
        Damage(
            point=point,
            disk=disk.target,
            guest_offset=wrong.offset,
            length=min(wrong.length, size - wrong.offset),
            file=f"{disk.target}.qcow2",
            what="content",
            text=_WRONG,
        )
        for wrong in disk.wrong
        if wrong.offset < size and wrong.length
    ]
