"""Making the old disks of a VM that ran here the base of its replica here, in steps that survive a crash.

``replica.json`` has the adoption and the state REVERSING before anything is done, and all is done again until it has
neither; each step may be repeated:

1. an old disk in the store, where the VM ran on after an earlier failover, is renamed into ``base/``;
2. what the store held of the VM before goes;
3. a point appears by one rename: an empty overlay over each old disk, the VM's definition, the manifest.

The old disks themselves are not touched. When the VM has no life of its own here any more, ``seal_again`` takes note of
what they are then.
"""

import datetime as dt
import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

from vmreplica.fsio import fsync_dir, publish_bytes, publish_dir, remove_tree
from vmreplica.model.adoption import AdoptedDisk, Adoption
from vmreplica.model.errors import Conflict
from vmreplica.model.point import AdoptedBase, DiskManifest, Manifest
from vmreplica.model.states import State
from vmreplica.qcow2.shim import write_shim
from vmreplica.repository import adopted
from vmreplica.repository.layout import FILE_MODE, Layout, make_dir, store_errors
from vmreplica.repository.machine import store_machine
from vmreplica.repository.manifests import write_manifest
from vmreplica.repository.record import AdoptionRecord, ReplicaRecord

#: Called with the name of each step before it is done; may raise to stop it.
StepHook = Callable[[str], None]

#: States of a replica whose VM ran on here: what it has besides the disks that it ran on is of the past.
_OVER: Final = frozenset({State.FAILED_OVER, State.COMMITTED, State.REVERSING})
#: What of a replica's directory stays when the former points go.
_STAYS: Final = frozenset({"replica.json", "base", "points", "original.xml"})


def judge(layout: Layout, adoption: Adoption) -> AdoptionRecord:
    """Look at the old disks; changes nothing.

    Raises:
        Conflict: ``disk-not-adoptable``, ``commit-first``.
        HypervisorError, TimedOut: an image cannot be opened.
    """
    bases = {disk.target: adopted.describe(layout, adoption.name, disk) for disk in adoption.disks}
    return AdoptionRecord(adoption=adoption, bases=bases)


def begun(record: AdoptionRecord) -> ReplicaRecord:
    """Give the relationship as it is written down before the first act."""
    adoption = record.adoption
    return ReplicaRecord(
        vm=adoption.vm,
        name=adoption.name,
        owner=adoption.owner,
        interval=adoption.interval,
        keep=adoption.keep,
        state=State.REVERSING,
        epoch=adoption.epoch,
        network_map=adoption.network_map,
        adoption=record,
    )


def is_done(record: ReplicaRecord, adoption: Adoption) -> bool:
    """Tell whether a replica came of this adoption, and is one like any other: an epoch has one primary."""
    same = (record.owner, record.epoch) == (adoption.owner, adoption.epoch)
    return same and record.adoption is None and record.state is not State.REVERSING


def require_over(record: ReplicaRecord, adoption: Adoption) -> None:
    """See that what is held here of a VM may give way to its old disks: it ran here after a failover.

    Raises:
        Conflict: ``state-forbids``, ``replica-in-use``, ``stale-epoch``.
    """
    if record.state not in _OVER or adoption.epoch <= record.epoch:
        raise Conflict(
            "state-forbids",
            f"{record.name} is {record.state} here, at epoch {record.epoch}: its disks cannot become the base of a "
            f"replica of epoch {adoption.epoch}",
            hint="`vmreplica status` shows what is going on",
        )
    if record.tests:
        raise Conflict(
            "replica-in-use",
            f"a test failover of {record.name} runs on the files of its replica",
            hint=f"vmreplica failover {record.name} --test --cancel",
        )


def carry_out(layout: Layout, record: AdoptionRecord, *, now: dt.datetime, before: StepHook) -> None:
    """Do all of it, or the rest of it.

    Args:
        layout: of the replica, whose record has the adoption.
        record: of the adoption.
        now: aware time.
        before: observer of steps.

    Raises:
        NotFound: ``adopted-base-missing``: an old disk is gone; it may be done again when it is back.
        NoSpace: the store is full; likewise.
    """
    adoption = record.adoption
    with store_errors(layout.root):
        for disk in adoption.disks:
            _move(layout, disk, record.bases[disk.target], before)
        before("drop")
        _drop(layout, adoption)
        layout.make()
        publish_bytes(layout.original, adoption.definition.encode(), mode=FILE_MODE)
        if not layout.point(adoption.point).exists():
            _publish(layout, record, now, before)


def seal_again(layout: Layout, manifests: Sequence[Manifest]) -> Iterator[Manifest]:
    """Take note of what the old disks are now; gives the manifests that changed.

    Raises:
        NoSpace: the store is full.
    """
    for manifest in manifests:
        disks = tuple(_sealed(layout, disk) for disk in manifest.disks)
        if disks != manifest.disks:
            changed = manifest.model_copy(update={"disks": disks})
            yield write_manifest(layout.manifest(manifest.point), changed)


def remove_unused(layout: Layout, gone: Manifest, left: Sequence[Manifest]) -> None:
    """Remove the old disks in the store that a point which went stood on, unless another one stands there now.

    Raises:
        Internal: ``store-failed``.
    """
    used = {disk.adopted.path for manifest in left for disk in manifest.disks if disk.adopted is not None}
    for disk in gone.disks:
        base = disk.adopted
        if base is not None and not base.path.startswith("/") and base.path not in used:
            with store_errors(layout.base):
                adopted.path_of(layout, base).unlink(missing_ok=True)
                fsync_dir(layout.base)


def _sealed(layout: Layout, disk: DiskManifest) -> DiskManifest:
    if disk.adopted is None:
        return disk
    with store_errors(layout.root):
        return disk.model_copy(update={"seal": adopted.seal_of(layout, disk.adopted, disk.size)})


def _move(layout: Layout, disk: AdoptedDisk, base: AdoptedBase, before: StepHook) -> None:
    place, source = adopted.path_of(layout, base), Path(disk.path)
    if str(place) == disk.path or not source.exists() or (place.exists() and source.samefile(place)):
        return  # it is there
    before(f"move {disk.target}")
    make_dir(layout.base)
    source.rename(place)
    fsync_dir(layout.base)
    fsync_dir(source.parent)


def _drop(layout: Layout, adoption: Adoption) -> None:
    """Remove what the store held of the VM before, but not what has been made of this adoption."""
    if layout.points.is_dir():
        for path in layout.points.iterdir():
            if path.name != adoption.point:
                remove_tree(path)
        fsync_dir(layout.points)
    for path in layout.root.iterdir():
        if path.name in _STAYS:
            continue
        if path.is_dir():
            remove_tree(path)
        else:
            path.unlink()
    fsync_dir(layout.root)


def _publish(layout: Layout, record: AdoptionRecord, now: dt.datetime, before: StepHook) -> None:
    adoption = record.adoption
    building = layout.incoming / adoption.point
    make_dir(building)
    disks = []
    for disk in adoption.disks:
        before(f"shim {disk.target}")
        disks.append(_shim(layout, building, disk, record.bases[disk.target]))
    before("manifest")
    publish_bytes(building / "definition.xml", adoption.definition.encode(), mode=FILE_MODE)
    store_machine(building, adoption.machine)
    write_manifest(building / "manifest.json", _manifest(adoption, tuple(disks), now))
    before("publish")
    publish_dir(building, layout.point(adoption.point))
    before("published")


def _shim(layout: Layout, building: Path, disk: AdoptedDisk, base: AdoptedBase) -> DiskManifest:
    adopted.verify(layout, base, disk.size)
    image = building / f"{disk.target}.qcow2"
    write_shim(image, adopted.backing_name(base), disk.size, raw=base.format == "raw")
    manifest = DiskManifest(
        target=disk.target, size=disk.size, file=image.name, file_bytes=0, tables_digest="", segments=0
    )
    return adopted.described(layout, manifest, image, base)


def _manifest(adoption: Adoption, disks: tuple[DiskManifest, ...], now: dt.datetime) -> Manifest:
    return Manifest(
        vm=adoption.vm,
        name=adoption.name,
        point=adoption.point,
        parent=None,
        kind=adoption.kind,
        consistency="crash",
        instant=adoption.instant,
        published=now,
        epoch=adoption.epoch,
        checkpoint=adoption.checkpoint,
        disks=disks,
        machine=tuple(file.entry for file in adoption.machine),
        machine_remarks=adoption.machine_remarks,
        definition_sha256=hashlib.sha256(adoption.definition.encode()).hexdigest(),
        guest_bytes=0,
        wire_bytes=0,
        folded=True,
    )
