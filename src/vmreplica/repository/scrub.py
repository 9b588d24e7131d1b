"""Reading a point's files whole and saying what is wrong with them (docs/design/format.md, "Scrub").

No lock is held: points come, are folded, merged and held meanwhile. So what looks wrong is believed only when nothing
that changes files was at work around it (see ``_State``); otherwise it is looked at again.
"""

import contextlib
import datetime as dt
import hashlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final

from vmreplica.fsio import publish_bytes
from vmreplica.model.damage import Damage, DamageKind
from vmreplica.model.errors import Corrupt, VmReplicaError
from vmreplica.model.ids import DiskTarget
from vmreplica.model.point import DiskManifest, Manifest
from vmreplica.qcow2.check_image import Expected, FoldedImage, ImageToCheck, check_image
from vmreplica.qcow2.checking import Fault, FrameReader, Pace
from vmreplica.qcow2.shim import shim_digest
from vmreplica.repository import bases
from vmreplica.repository.layout import FILE_MODE, Layout
from vmreplica.repository.machine import machine_files
from vmreplica.repository.manifests import check_manifest, read_manifest, spare_of
from vmreplica.repository.mending import mend_sums

#: How often what looks wrong is looked at again while files change.
_ATTEMPTS: Final = 4
#: How the text of damage that was put right begins.
_REPAIRED: Final = "repaired: "


class Moved(Exception):
    """The point's files changed under the eyes of whoever read them: it is to be read anew."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tools:
    """What scrubbing is done with.

    ``frames`` decompresses, ``pace`` is told what is read and may raise to stop it all. ``reached`` is told, now and
    then, of the folded image of which disk how many tables are done, and ``begin`` where to go on with it. ``found`` is
    told of damage that stays at once.
    """

    frames: FrameReader
    pace: Pace
    reached: Callable[[DiskTarget, int], None]
    begin: Callable[[DiskTarget], int]
    found: Callable[[Damage], None] = lambda _damage: None
    #: Whether tables that an intact index contradicts, and sums that rotted, are written anew.
    repair: bool = True
    #: Lets nothing change files in the block.
    still: Callable[[], AbstractContextManager[object]] = contextlib.nullcontext


@dataclass(frozen=True, slots=True)
class Found:
    """What is wrong with a point: what stays wrong, and what was put right. Remarks say what could not be checked."""

    damages: tuple[Damage, ...]
    repaired: tuple[Damage, ...]
    remarks: tuple[str, ...]

    def with_these(self, other: "Found") -> "Found":
        """Put what was found of two points together."""
        return Found(self.damages + other.damages, self.repaired + other.repaired, self.remarks + other.remarks)


def scrub_point(layout: Layout, manifest: Manifest, tools: Tools) -> Found:
    """Check every byte of a point's own files.

    Args:
        layout: of the replica.
        manifest: of the point, as it is listed.
        tools: to do it with.

    Raises:
        Moved: its files changed meanwhile.
    """
    return _PointScrub(layout, manifest, tools).run()


class _State:
    """What tells whether files of a point may have changed: its manifest, its images, folds and merges that commit.

    A manifest that says something else than the one that is checked by is never compared with the files: another parent
    or other images would look like damage, and putting that right would undo what was committed.
    """

    def __init__(self, layout: Layout, manifest: Manifest) -> None:
        self._layout = layout
        self._manifest = manifest

    def now(self) -> tuple[object, ...]:
        """Tell how it is.

        Raises:
            Moved: the point is gone, or its manifest is another one now.
        """
        layout, point = self._layout, self._manifest.point
        self._require_manifest(layout.manifest(point))
        try:
            inodes = tuple(_inode(layout.image(point, disk.target)) for disk in self._manifest.disks)
            return (layout.manifest(point).stat().st_ino, inodes, *(_committing(path) for path in layout.journals))
        except FileNotFoundError as error:
            raise Moved from error

    def _require_manifest(self, path: Path) -> None:
        try:
            listed = read_manifest(path)
        except Corrupt:
            return  # damaged with its spare, which is damage to be told; or gone, which the caller sees
        if (listed.digest or listed) != (self._manifest.digest or self._manifest):
            raise Moved


class _PointScrub:
    def __init__(self, layout: Layout, manifest: Manifest, tools: Tools) -> None:
        self._layout = layout
        self._manifest = manifest
        self._tools = tools
        self._state = _State(layout, manifest)
        self._remarks: list[str] = []
        self._found: list[Damage] = []

    def run(self) -> Found:
        """Do it."""
        for damage in (*self._of_manifest(), *self._of_definition(), *self._of_machine()):
            self._note(damage)
        for disk in self._manifest.disks:
            wrong = 0
            sums: Fault | None = None
            for fault in self._of_disk(disk):
                if fault.what == "sums":
                    sums = fault
                    continue
                wrong += not fault.repaired
                self._note(self._damage_of(disk, fault))
            if sums is not None:
                self._note(self._damage_of(disk, self._mended(disk, sums) if not wrong else sums))
        repaired = tuple(damage for damage in self._found if damage.text.startswith(_REPAIRED))
        return Found(tuple(d for d in self._found if d not in repaired), repaired, tuple(self._remarks))

    def _note(self, damage: Damage) -> None:
        self._found.append(damage)
        if not damage.text.startswith(_REPAIRED):
            self._tools.found(damage)

    def _mended(self, disk: DiskManifest, fault: Fault) -> Fault:
        """Take sums anew that rotted, as all else is right."""
        before = self._state.now()
        if not self._tools.repair:
            return fault
        with self._unchanged(before):
            try:
                mend_sums(self._layout, self._manifest, disk.target)
            except VmReplicaError:
                return fault
        return replace(fault, repaired=True)

    def _damage_of(self, disk: DiskManifest, fault: Fault) -> Damage:
        return Damage(
            point=self._manifest.point,
            disk=disk.target,
            guest_offset=fault.offset,
            length=fault.length,
            file=self._file_of(disk, fault.what),
            what=fault.what,
            text=(_REPAIRED if fault.repaired else "") + fault.text,
        )

    # ---- what is not a disk

    def _of_manifest(self) -> Iterator[Damage]:
        """Check manifest and spare; one is put right from the other."""
        path = self._layout.manifest(self._manifest.point)
        spare = spare_of(path)
        if not self._manifest.digest:
            self._remarks.append(
                f"the manifest of point {self._manifest.point} has no digest: it is of an older version"
            )
            return
        before = self._state.now()
        wrong = [file for file in (path, spare) if not _is_manifest(file)]
        if len(wrong) == 1 or (not wrong and path.read_bytes() != spare.read_bytes()):
            right, other = (spare, path) if wrong == [path] else (path, spare)
            with self._unchanged(before):
                publish_bytes(other, right.read_bytes(), mode=FILE_MODE)
        mark = _REPAIRED if len(wrong) == 1 else ""
        for file in wrong:
            yield self._damage(file.name, "manifest", f"{mark}it does not have its digest")

    def _of_definition(self) -> Iterator[Damage]:
        expected = self._manifest.definition_sha256
        if not expected:
            self._remarks.append(f"the definition of point {self._manifest.point} has no digest")
            return
        path = self._layout.point(self._manifest.point) / "definition.xml"
        try:
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
        except OSError as error:
            self._state.now()
            yield self._damage(path.name, "definition", f"it cannot be read: {error.strerror}")
            return
        if digest != expected:
            yield self._damage(path.name, "definition", "it does not have the digest that the manifest tells")

    def _of_machine(self) -> Iterator[Damage]:
        for entry in self._manifest.machine:
            alone = self._manifest.model_copy(update={"machine": (entry,)})
            try:
                machine_files(self._layout.root, alone)
            except VmReplicaError as error:
                self._state.now()
                yield self._damage(f"{entry.name}.zst", "machine", error.message)

    # ---- disks

    def _of_disk(self, disk: DiskManifest) -> Iterable[Fault]:
        if disk.device is not None or disk.adopted is not None:
            return self._settled(disk, lambda: list(self._shim(disk)))
        index = self._layout.index(self._manifest.point, disk.target)
        if self._manifest.folded and not index.exists():
            return self._folded(disk)
        return self._settled(disk, lambda: list(self._indexed(disk)))

    def _settled(self, disk: DiskManifest, run: Callable[[], list[Fault]]) -> list[Fault]:
        """Believe faults only when nothing changed files meanwhile, and their absence only of the point as listed."""
        for _attempt in range(_ATTEMPTS):
            before = self._state.now()
            try:
                faults = run()
            except FileNotFoundError as error:
                index = str(error.filename).endswith(".index")
                text = f"{error.filename} is missing"
                faults = [Fault("index", 0, 0, text) if index else Fault("header", 0, disk.size, text)]
            after = self._state.now()
            if not faults or after == before:
                return faults
        raise Moved

    def _shim(self, disk: DiskManifest) -> Iterator[Fault]:
        image = self._layout.image(self._manifest.point, disk.target)
        try:
            right = shim_digest(image) == disk.tables_digest
        except Corrupt:
            right = False
        if not right:
            yield Fault("header", 0, disk.size, "it is not as it was written")
        where = f"disk {disk.target} of point {self._manifest.point} stands on {_place(disk)}"
        try:
            bases.verify_contents(self._layout, [self._manifest.model_copy(update={"disks": (disk,)})])
            self._remarks.append(f"{where}: only samples of it are known here; `vmreplica verify` compares all of it")
        except Corrupt as error:
            yield Fault("base", 0, disk.size, error.message)
        except VmReplicaError as error:
            self._remarks.append(f"{where}: not checked: {error.message}")

    def _indexed(self, disk: DiskManifest) -> Iterator[Fault]:
        layout, manifest = self._layout, self._manifest
        point = manifest.point
        expected = Expected(
            size=disk.size,
            file_bytes=disk.file_bytes,
            digest=disk.tables_digest,
            segments=None if manifest.merged else disk.segments,
            summed=disk.summed,
            backings=(f"../{manifest.parent}/{disk.file}", None) if manifest.parent else (None,),
        )
        files = ImageToCheck(
            layout.image(point, disk.target), layout.index(point, disk.target), layout.sums(point, disk.target)
        )
        if not disk.summed:
            self._remarks.append(
                f"disk {disk.target} of point {point}: its patches have no sums, it is of an older version"
            )
        repairing = partial(self._unchanged, self._state.now()) if self._tools.repair else None
        yield from check_image(files, expected, self._tools.frames, self._tools.pace, repairing=repairing)

    @contextlib.contextmanager
    def _unchanged(self, before: tuple[object, ...]) -> Iterator[None]:
        """Let nothing change files in the block; whoever is in it may write to what was checked.

        Raises:
            Moved: something has changed them since.
        """
        with self._tools.still():
            if self._state.now() != before:
                raise Moved
            yield

    def _folded(self, disk: DiskManifest) -> Iterator[Fault]:
        """Check a folded image table by table: a fold may go on in between."""
        yield from self._settled(disk, lambda: self._rest(disk))
        if not disk.summed:
            self._remarks.append(f"disk {disk.target} of point {self._manifest.point}: its tables have no sums yet")
        begin = self._tools.begin(disk.target)
        for number in [number for number in self._numbers(disk) if number >= begin]:
            yield from self._settled(disk, partial(self._table, disk, number))
            self._tools.reached(disk.target, number + 1)
        self._tools.reached(disk.target, 0)

    def _rest(self, disk: DiskManifest) -> list[Fault]:
        with self._opened(disk) as image:
            return list(image.rest())

    def _numbers(self, disk: DiskManifest) -> list[int]:
        try:
            with self._opened(disk) as image:
                return image.numbers()
        except FileNotFoundError:
            return []

    def _table(self, disk: DiskManifest, number: int) -> list[Fault]:
        with self._opened(disk) as image:
            return list(image.table(number, self._tools.frames))

    @contextlib.contextmanager
    def _opened(self, disk: DiskManifest) -> Iterator[FoldedImage]:
        point = self._manifest.point
        image = FoldedImage(
            self._layout.image(point, disk.target),
            self._layout.table_sums(point, disk.target),
            size=disk.size,
            digest=disk.tables_digest if disk.summed else "",
            pace=self._tools.pace,
        )
        try:
            yield image
        finally:
            image.close()

    # ---- helpers

    def _damage(self, file: str, what: DamageKind, text: str) -> Damage:
        return Damage(point=self._manifest.point, file=file, what=what, text=text)

    def _file_of(self, disk: DiskManifest, what: DamageKind) -> str:
        suffix = {"index": "index", "sums": "tsums" if self._manifest.folded else "sums"}.get(what)
        return f"{disk.target}.{suffix}" if suffix else disk.file


def cost_of(root: Path, manifest: Manifest) -> int:
    """Tell how many bytes scrubbing a point reads, about.

    Args:
        root: of the replica, ``Replica.dir``.
        manifest: of the point.
    """
    total = 0
    for disk in manifest.disks:
        with contextlib.suppress(OSError):
            total += Layout(root).image(manifest.point, disk.target).stat().st_blocks * 512
    return total


def made_at(root: Path, manifest: Manifest) -> dt.datetime:
    """Tell when the images of a point were made, as far as the file system knows."""
    times = [0.0]
    for disk in manifest.disks:
        with contextlib.suppress(OSError):
            times.append(Layout(root).index(manifest.point, disk.target).stat().st_mtime)
    return dt.datetime.fromtimestamp(max(times), dt.UTC)


def _inode(path: Path) -> int:
    """Tell which file it is; 0: there is none."""
    try:
        return path.stat().st_ino
    except FileNotFoundError:
        return 0


def _committing(path: Path) -> bytes | None:
    """Tell what a journal says once its work changes files in sight."""
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return None
    return raw if b'"commit"' in raw else None


def _is_manifest(path: Path) -> bool:
    try:
        check_manifest(path)
    except (Corrupt, OSError):
        return False
    return True


def _place(disk: DiskManifest) -> str:
    if disk.device is not None:
        return f"device {disk.device.path}"
    return f"an old disk of the VM, {disk.adopted.path}" if disk.adopted is not None else "its image"
