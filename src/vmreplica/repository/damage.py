"""What is known to be damaged of a replica's points, and what follows: quarantine, frozen files, wanted repairs.

Damage is written down where it is, in ``damage.json`` of the point whose file rotted. Which other points read it is
derived: those that stand on that point, as far as no image in between says these bytes itself.
"""

import datetime as dt
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from vmreplica.fsio import fsync_dir
from vmreplica.model.damage import MAX_DAMAGES, Damage, DamageRecord, Repair, bounded_repairs, repairs_of
from vmreplica.model.errors import Corrupt
from vmreplica.model.ids import DiskTarget, PointId
from vmreplica.model.point import Manifest, PointSummary
from vmreplica.model.units import CLUSTER
from vmreplica.repository.chain import backed_disks
from vmreplica.repository.coverage import Ranges, joined, said_by, without
from vmreplica.repository.layout import Layout, read_shape, store_errors, write_shape
from vmreplica.repository.shelf import Shelf

#: Damage that an image's own cluster has; a newer whole cluster takes its place.
_SUPERSEDED: Final = frozenset({"data", "patch", "content"})
#: Stretches of one disk that are listed one by one.
_TOLD: Final = 20


class Damages:
    """The damage of one replica's points. Thread-safe: guarded by the shelf's lock.

    Args:
        layout: of the replica.
        shelf: its points.
    """

    def __init__(self, layout: Layout, shelf: Shelf) -> None:
        self._layout = layout
        self._shelf = shelf
        self._known: dict[PointId, DamageRecord] = {}
        #: What each point reads wrong, for the points and the damage it was worked out for.
        self._worked_out: tuple[object, dict[PointId, tuple[Damage, ...]]] = (None, {})

    def load(self) -> None:
        """Read what was written down, of points that are listed."""
        found = {}
        for manifest in self._shelf.manifests():
            path = self._path(manifest.point)
            if path.exists():
                try:
                    found[manifest.point] = read_shape(path, DamageRecord)
                except Corrupt:
                    # Something was wrong with this point, nobody knows what: it is not used until it is read again.
                    found[manifest.point] = _unknown(manifest)
        with self._shelf.lock:
            self._known = found

    def record(self, point: PointId, damages: Sequence[Damage], now: dt.datetime) -> None:
        """Take note of all that is wrong with a point's own files; nothing ends its quarantine.

        What comparing it with the primary has found stays: no reading of the files tells anything about that.

        Raises:
            NoSpace: the store is full; it is known until the agent ends.
        """
        with self._shelf.lock:
            compared = tuple(damage for damage in self.own(point) if damage.what == "content")
            self._record(point, (*damages, *compared), now)

    def differs(self, point: PointId, damages: Sequence[Damage], now: dt.datetime) -> None:
        """Take note of all that comparing a point with its primary has found, in place of what it found before.

        Raises:
            NoSpace: the store is full; it is known until the agent ends.
        """
        with self._shelf.lock:
            read = tuple(damage for damage in self.own(point) if damage.what != "content")
            self._record(point, (*read, *damages), now)

    def _record(self, point: PointId, damages: Sequence[Damage], now: dt.datetime) -> None:
        with self._shelf.lock:
            before = self._known.get(point)
            if not damages:
                if self._known.pop(point, None) is not None:
                    with store_errors(self._path(point)):
                        self._path(point).unlink(missing_ok=True)
                        fsync_dir(self._path(point).parent)
                return
            listed = bounded(damages)
            found = before.found if before is not None else now
            record = DamageRecord(point=point, found=found, damages=listed, more=max(0, len(damages) - len(listed)))
            self._known[point] = record
            if record != before:
                write_shape(self._path(point), record)

    def own(self, point: PointId) -> tuple[Damage, ...]:
        """Tell what is wrong with a point's own files."""
        with self._shelf.lock:
            record = self._known.get(point)
        return record.damages if record is not None else ()

    def any(self) -> bool:
        """Tell whether anything is damaged."""
        with self._shelf.lock:
            listed = {manifest.point for manifest in self._shelf.manifests()}
            return any(point in listed for point in self._known)

    def of(self, point: PointId) -> tuple[Damage, ...]:
        """Tell what whoever uses a point gets wrong: of its own files, and of those it stands on."""
        return self._read_wrong().get(point, ())

    def quarantined(self) -> frozenset[PointId]:
        """Tell which points shall not be used."""
        return frozenset(self._read_wrong())

    def newest_good(self) -> PointId | None:
        """Tell the newest recovery point that can be used; None: there is none."""
        bad = self.quarantined()
        good = [m.point for m in self._shelf.manifests() if m.kind != "seed" and m.point not in bad]
        return good[-1] if good else None

    def kept(self) -> frozenset[PointId]:
        """Tell which points retention must keep: while the newest is damaged, the newest good one."""
        manifests, good = self._shelf.manifests(), self.newest_good()
        return frozenset({good}) if good is not None and good != manifests[-1].point else frozenset()

    def may_merge(self, sources: Sequence[PointId]) -> bool:
        """Tell whether the images of these points may become one: nothing damaged gets into it.

        That is so when each damaged cluster is said again, as a whole, by a newer one of them. Damaged tables, headers
        and indexes forbid it: they are what merging goes by.

        Args:
            sources: oldest first; each stands on the one before. A fold has two.
        """
        for place, point in enumerate(sources):
            for target, ranges in _by_disk(self.own(point)).items():
                if ranges is None or self._left(ranges, sources[place + 1 :], target, whole=True):
                    return False
        return True

    def wanted(self) -> tuple[Repair, ...]:
        """Tell which clusters the primary shall send again: what the newest point reads wrong."""
        manifests = self._shelf.manifests()
        if not manifests:
            return ()
        sizes = {disk.target: disk.size for disk in manifests[-1].disks}
        found: list[Repair] = []
        for target, ranges in _by_disk(self.of(manifests[-1].point), every=True).items():
            if target in sizes and ranges:
                found += repairs_of(target, [(low, min(high, sizes[target])) for low, high in ranges])
        return bounded_repairs(found)

    def texts(self, point: PointId) -> tuple[str, ...]:
        """Say what a point reads wrong, for people; bounded."""
        found = self.of(point)
        more = (f"and {len(found) - _TOLD} more",) if len(found) > _TOLD else ()
        return (*(place_of(damage) for damage in found[:_TOLD]), *more)

    def marked(self, summaries: Sequence[PointSummary]) -> list[PointSummary]:
        """Say of points in a list what is wrong with them."""
        bad = self.quarantined()
        return [
            point.model_copy(update={"damaged": self.texts(point.point)}) if point.point in bad else point
            for point in summaries
        ]

    def complaints(self) -> list[str]:
        """Say what is damaged, for people: one sentence a point whose own files are."""
        bad = self.quarantined()
        told = []
        for manifest in self._shelf.manifests():
            own = self.own(manifest.point)
            if own:
                more = f" and {len(own) - 1} more" if len(own) > 1 else ""
                use = "" if manifest.point in bad else "; what the guest reads is not concerned"
                told.append(f"point {manifest.point} is damaged: {place_of(own[0])}{more}{use}")
        return told

    # ---- helpers

    def _read_wrong(self) -> dict[PointId, tuple[Damage, ...]]:
        """What each point reads wrong; points that read nothing wrong are left out."""
        with self._shelf.lock:
            manifests = self._shelf.manifests()
            state = ([(m.point, m.digest, m.parent) for m in manifests], dict(self._known))
            if self._worked_out[0] == state:
                return self._worked_out[1]
        found: dict[PointId, tuple[Damage, ...]] = {}
        listed = {manifest.point: manifest for manifest in manifests}
        for manifest in manifests if state[1] else ():
            own = tuple(damage for damage in self.own(manifest.point) if damage.misleads)
            parent = listed.get(manifest.parent) if manifest.parent is not None else None
            wrong = own + self._inherited(manifest, parent, found)
            if wrong:
                found[manifest.point] = wrong
        with self._shelf.lock:
            self._worked_out = (state, found)
        return found

    def _inherited(
        self, manifest: Manifest, parent: Manifest | None, found: dict[PointId, tuple[Damage, ...]]
    ) -> tuple[Damage, ...]:
        """What of its parent's wrong bytes a point still reads."""
        if parent is None or parent.point not in found:
            return ()
        backed = backed_disks(parent, manifest.disks)
        left: list[Damage] = []
        for damage in found[parent.point]:
            if damage.disk is None or damage.disk not in backed or not damage.length:
                continue
            whole = [(damage.guest_offset, damage.guest_offset + damage.length)]
            left += [
                damage.model_copy(update={"guest_offset": low, "length": high - low})
                for low, high in self._left(whole, [manifest.point], damage.disk, whole=False)
            ]
        return tuple(left)

    def _left(self, ranges: Ranges, newer: Sequence[PointId], target: DiskTarget, *, whole: bool) -> Ranges:
        """What of these stretches none of some newer points says itself."""
        for point in newer:
            if not ranges:
                break
            try:
                ranges = without(ranges, said_by(self._layout.index(point, target), ranges, whole=whole))
            except (OSError, Corrupt):
                continue  # who cannot tell what it says is taken to say nothing
        return ranges

    def _path(self, point: PointId) -> Path:
        return self._layout.point(point) / "damage.json"


def place_of(damage: Damage) -> str:
    """Say where damage is, for people."""
    if damage.disk is None:
        return f"{damage.file}: {damage.text}"
    where = f"disk {damage.disk}"
    if damage.length:
        where += f" from byte {damage.guest_offset} on for {damage.length} bytes"
    return f"{where} ({damage.file} of point {damage.point}: {damage.text})"


def bounded(damages: Sequence[Damage]) -> tuple[Damage, ...]:
    """Keep a list of damage short: beyond the limit one stretch stands for all that follow of its disk."""
    if len(damages) <= MAX_DAMAGES:
        return tuple(damages)
    kept, rest = list(damages[:MAX_DAMAGES]), damages[MAX_DAMAGES:]
    for target in sorted({damage.disk for damage in rest if damage.disk is not None}):
        those = [damage for damage in rest if damage.disk == target and damage.length]
        if those:
            low, high = min(d.guest_offset for d in those), max(d.guest_offset + d.length for d in those)
            text = f"{len(those)} more stretches in here"
            kept.append(those[0].model_copy(update={"guest_offset": low, "length": high - low, "text": text}))
    return tuple(kept)


def _by_disk(damages: Sequence[Damage], *, every: bool = False) -> dict[DiskTarget, Ranges | None]:
    """Gather stretches by disk; None, unless all kinds are asked for: newer clusters alone do not make it good."""
    found: dict[DiskTarget, Ranges | None] = {}
    for damage in damages:
        if damage.disk is None:
            continue
        known = found.get(damage.disk, [])
        if known is None or (damage.what not in _SUPERSEDED and not every):
            found[damage.disk] = None
        else:
            found[damage.disk] = joined([*known, (damage.guest_offset, damage.guest_offset + damage.length)])
    return found


def _unknown(manifest: Manifest) -> DamageRecord:
    disks = tuple(
        Damage(
            point=manifest.point,
            disk=disk.target,
            length=-(-disk.size // CLUSTER) * CLUSTER,
            file="damage.json",
            what="data",
            text="its list of damage cannot be read",
        )
        for disk in manifest.disks
    )
    return DamageRecord(point=manifest.point, found=manifest.published, damages=disks)
