"""Our checkpoints on a domain: kept, found again when libvirt lost them, deleted in whatever half state they are.

libvirt forgets checkpoints on migration and redefinition while the bitmaps live on, and bitmaps vanish with a crash
while libvirt remembers the checkpoint. So the whole document of each is kept here too, and libvirt is only told of it
while it is needed: between two cycles it knows none of ours, so other backup tools, which refuse to work beside foreign
checkpoints, and a person who renames or undefines the VM meet nothing of us. Foreign ones are never touched.
"""

import contextlib
import re
import shutil
import subprocess
from collections.abc import Collection
from pathlib import Path
from typing import Final

import libvirt

from vmreplica.fsio import publish_bytes
from vmreplica.hypervisor.backup_xml import checkpoint_disks, render_known_checkpoint, standalone_checkpoint
from vmreplica.hypervisor.faults import named_disks, said
from vmreplica.hypervisor.inspection import disks_of, untracked_disks
from vmreplica.model.errors import BadRequest, Conflict
from vmreplica.model.ids import VmId

_OURS: Final = re.compile(r"vmreplica-[0-9a-f]{8}-[0-9]{8}T[0-9]{6}Z-[0-9a-f]{8}")
_TOOL_LIMIT: Final = 30
#: QEMU's word for an image that another process has open.
_LOCKED: Final = "lock"


def require_ours(name: str) -> None:
    """Refuse names that are not made by ``model.ids.checkpoint_name``.

    Raises:
        BadRequest: the checkpoint is foreign (``checkpoint-foreign``).
    """
    if _OURS.fullmatch(name) is None:
        raise BadRequest("checkpoint-foreign", f"checkpoint {name!r} is not one of vmreplica's: left alone")


def relatives(name: str, others: list[str]) -> list[str]:
    """Pick the checkpoints of the same relationship."""
    return [other for other in others if _OURS.fullmatch(other) and other[:18] == name[:18]]


class CheckpointShelf:
    """Keeps the full checkpoint documents as files; they outlive libvirt's own memory."""

    def __init__(self, state_dir: Path) -> None:
        self._root = state_dir / "checkpoints"

    def keep(self, vm: VmId, name: str, xml: str) -> None:
        """Keep a document. Not synced: after a power loss its bitmap is broken anyway."""
        path = self._path(vm, name)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        publish_bytes(path, xml.encode(), durable=False)

    def read(self, vm: VmId, name: str) -> str | None:
        """Return a kept document, or None."""
        try:
            return self._path(vm, name).read_text()
        except FileNotFoundError:
            return None

    def names(self, vm: VmId) -> list[str]:
        """List the checkpoints whose documents are kept."""
        return [path.stem for path in (self._root / vm).glob("*.xml") if _OURS.fullmatch(path.stem)]

    def forget(self, vm: VmId, name: str) -> None:
        """Remove a kept document."""
        path = self._path(vm, name)
        path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            path.parent.rmdir()

    def forget_all(self, vm: VmId) -> None:
        """Remove all kept documents of a VM."""
        shutil.rmtree(self._root / vm, ignore_errors=True)

    def _path(self, vm: VmId, name: str) -> Path:
        require_ours(name)
        return self._root / vm / f"{name}.xml"


def names(domain: libvirt.virDomain) -> list[str]:
    """List all checkpoints that libvirt knows, foreign ones too."""
    return [checkpoint.getName() for checkpoint in domain.listAllCheckpoints()]


def known(domain: libvirt.virDomain, shelf: CheckpointShelf, vm: VmId) -> list[str]:
    """List all checkpoints: those that libvirt knows, foreign ones too, and ours that it was made to forget."""
    return sorted({*names(domain), *shelf.names(vm)})


def hide(domain: libvirt.virDomain, shelf: CheckpointShelf, vm: VmId) -> None:
    """Let libvirt forget our checkpoints; their bitmaps go on recording, and ``find`` makes them known again."""
    for name in set(names(domain)) & set(shelf.names(vm)):
        domain.checkpointLookupByName(name).delete(libvirt.VIR_DOMAIN_CHECKPOINT_DELETE_METADATA_ONLY)


def find(domain: libvirt.virDomain, shelf: CheckpointShelf, vm: VmId, name: str) -> libvirt.virDomainCheckpoint | None:
    """Find one of our checkpoints; redefine it when libvirt does not know it. None when it is gone for good.

    One that had to be redefined has only those disks whose bitmaps are sound. Its document comes from the shelf, or is
    written anew where only the bitmaps are left, as on the host that a VM was migrated to: their name says what they
    have recorded since.

    Raises:
        libvirt.libvirtError: VIR_ERR_CHECKPOINT_INCONSISTENT when bitmaps are broken and libvirt names no disk.
    """
    known_to_libvirt = _lookup(domain, name)
    if known_to_libvirt is not None:
        return known_to_libvirt
    xml = shelf.read(vm, name)
    if xml is not None:
        return _redefine_sound(domain, xml)
    found = _redefine_sound(domain, _written_anew(domain, name)) if domain.isActive() else None
    if found is not None:
        shelf.keep(vm, name, found.getXMLDesc())
    return found


def delete(domain: libvirt.virDomain, shelf: CheckpointShelf, vm: VmId, name: str) -> None:
    """Delete one of our checkpoints with its bitmaps, whichever half of it still exists."""
    require_ours(name)
    xml = shelf.read(vm, name)
    checkpoint = _lookup(domain, name)
    if checkpoint is None and xml is not None:
        checkpoint = _redefine(domain, xml, checkpoint_disks(xml))
    if checkpoint is not None:
        xml = xml or checkpoint.getXMLDesc()
        if domain.isActive():
            _delete_live(domain, checkpoint, xml)
        else:
            _delete_offline(domain, checkpoint, name, xml)
    shelf.forget(vm, name)


def lost(
    domain: libvirt.virDomain, shelf: CheckpointShelf, vm: VmId, name: str, targets: Collection[str]
) -> dict[str, str]:
    """Say of which of these disks changes since a checkpoint cannot be asked, and why, as far as is known."""
    try:
        checkpoint = find(domain, shelf, vm, name)
    except libvirt.libvirtError as error:
        if error.get_error_code() != libvirt.VIR_ERR_CHECKPOINT_INCONSISTENT:
            raise
        return dict.fromkeys(targets, f"change tracking is broken: {said(error)}")
    if checkpoint is None:
        return dict.fromkeys(targets, f"checkpoint {name} is gone")
    missing = sorted(frozenset(targets) - checkpoint_disks(checkpoint.getXMLDesc()))
    return {target: f"{target} is not part of checkpoint {name}" for target in missing}


def _lookup(domain: libvirt.virDomain, name: str) -> libvirt.virDomainCheckpoint | None:
    try:
        return domain.checkpointLookupByName(name)
    except libvirt.libvirtError as error:
        if error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN_CHECKPOINT:
            raise
        return None


def _written_anew(domain: libvirt.virDomain, name: str) -> str:
    """Write the document of a checkpoint that is nowhere but, perhaps, in the images."""
    require_ours(name)
    live = domain.XMLDesc()
    untracked = untracked_disks(domain, live)
    targets = [disk.target for disk in disks_of(domain, live) if disk.device == "disk" and disk.target not in untracked]
    return render_known_checkpoint(name, targets, live)


def _redefine(domain: libvirt.virDomain, xml: str, only: Collection[str]) -> libvirt.virDomainCheckpoint:
    return domain.checkpointCreateXML(standalone_checkpoint(xml, only), libvirt.VIR_DOMAIN_CHECKPOINT_CREATE_REDEFINE)


def _redefine_sound(domain: libvirt.virDomain, xml: str) -> libvirt.virDomainCheckpoint | None:
    """Redefine with the disks whose bitmaps libvirt finds sound, if it can look; None when there is none."""
    flags = libvirt.VIR_DOMAIN_CHECKPOINT_CREATE_REDEFINE
    if domain.isActive():
        flags |= libvirt.VIR_DOMAIN_CHECKPOINT_CREATE_REDEFINE_VALIDATE
    sound = checkpoint_disks(xml)
    while sound:
        try:
            return domain.checkpointCreateXML(standalone_checkpoint(xml, sound), flags)
        except libvirt.libvirtError as error:
            broken = named_disks(error, sound)
            if error.get_error_code() != libvirt.VIR_ERR_CHECKPOINT_INCONSISTENT or not broken:
                raise
            sound -= broken
    return None


def _delete_live(domain: libvirt.virDomain, checkpoint: libvirt.virDomainCheckpoint, xml: str) -> None:
    """Delete; when a bitmap is missing on one disk, or libvirt knows not all, remove the others one by one."""
    left = checkpoint_disks(xml) - checkpoint_disks(checkpoint.getXMLDesc())
    try:
        checkpoint.delete()
    except libvirt.libvirtError:
        if not domain.isActive():
            raise
        checkpoint.delete(libvirt.VIR_DOMAIN_CHECKPOINT_DELETE_METADATA_ONLY)
        left = checkpoint_disks(xml)
    for target in sorted(left):
        _delete_or_forget(_redefine(domain, xml, {target}))


def _delete_or_forget(checkpoint: libvirt.virDomainCheckpoint) -> None:
    try:
        checkpoint.delete()
    except libvirt.libvirtError:
        checkpoint.delete(libvirt.VIR_DOMAIN_CHECKPOINT_DELETE_METADATA_ONLY)


def _delete_offline(domain: libvirt.virDomain, checkpoint: libvirt.virDomainCheckpoint, name: str, xml: str) -> None:
    """Remove the bitmaps of a VM that is off: libvirt cannot, qemu-img can; its image lock keeps a start out."""
    wanted = checkpoint_disks(xml)
    for disk in disks_of(domain, domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)):
        if disk.target in wanted and disk.path is not None:
            _remove_bitmap(domain.name(), disk.path, name)
    checkpoint.delete(libvirt.VIR_DOMAIN_CHECKPOINT_DELETE_METADATA_ONLY)


def _remove_bitmap(vm_name: str, image: str, bitmap: str) -> None:
    command = ["qemu-img", "bitmap", "--remove", "-f", "qcow2", image, bitmap]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=_TOOL_LIMIT)
    if _LOCKED in done.stderr:
        raise Conflict(
            "image-in-use",
            f"a bitmap in {image} of {vm_name} cannot be removed: another program has the image open",
            hint="it is tried again when the VM runs, or the other program has ended",
            kind="transient",
        )
