"""Which disks can be replicated, and why the others cannot: judged from the domain XML and the image's header."""

import contextlib
import struct
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from defusedxml.ElementTree import fromstring

_QCOW2_MAGIC: Final = b"QFI\xfb"
#: Magic, version, and behind the backing file's place and the cluster bits the size.
_HEAD: Final = struct.Struct(">4sI16xQ")
_OLDEST_WITH_BITMAPS: Final = 3


@dataclass(frozen=True, slots=True)
class DiskElement:
    """What the domain XML says about one disk."""

    target: str
    device: str
    kind: str
    format: str
    #: Path of the image file or device; None for network disks and empty drives.
    path: str | None
    #: Pool and volume of a ``type='volume'`` disk, to be looked up.
    volume: tuple[str, str] | None
    readonly: bool = False
    shareable: bool = False
    transient: bool = False
    encrypted: bool = False


def parse_disks(domain_xml: str) -> list[DiskElement]:
    """List the disks of a domain XML that libvirt gave, in its order."""
    devices = fromstring(domain_xml, forbid_dtd=True).find("devices")
    return [_parse_disk(disk) for disk in (devices.findall("disk") if devices is not None else [])]


def _parse_disk(disk: ET.Element) -> DiskElement:
    source, driver, target = disk.find("source"), disk.find("driver"), disk.find("target")
    return DiskElement(
        target=target.get("dev", "") if target is not None else "",
        device=disk.get("device", "disk"),
        kind=disk.get("type", "file"),
        format=driver.get("type", "raw") if driver is not None else "raw",
        path=(source.get("file") or source.get("dev")) if source is not None else None,
        volume=_volume(source),
        readonly=disk.find("readonly") is not None,
        shareable=disk.find("shareable") is not None,
        transient=disk.find("transient") is not None,
        encrypted=disk.find("encryption") is not None or (source is not None and source.find("encryption") is not None),
    )


def _volume(source: ET.Element | None) -> tuple[str, str] | None:
    if source is None or not source.get("pool"):
        return None
    return source.get("pool", ""), source.get("volume", "")


def reason_ineligible(disk: DiskElement, qcow2_version: int | None) -> str | None:
    """Say why a disk cannot be replicated; None when it can.

    Args:
        disk: from ``parse_disks``, with the path of a volume filled in.
        qcow2_version: from the image's header; None when it could not be read.
    """
    for applies, reason in _findings(disk):
        if applies:
            return reason
    if qcow2_version is not None and qcow2_version < _OLDEST_WITH_BITMAPS:
        return "qcow2 version 2 cannot hold bitmaps; with the VM off: qemu-img amend -o compat=1.1 FILE"
    return None


def _findings(disk: DiskElement) -> list[tuple[bool, str]]:
    return [
        (disk.device in {"cdrom", "floppy"}, f"a {disk.device} is not replicated"),
        (disk.device != "disk", "a device passed through (lun) cannot be tracked"),
        (disk.readonly, "read-only: the guest never changes it"),
        (disk.shareable, "shareable: other VMs write to it, unseen by this one"),
        (disk.transient, "transient: its changes are thrown away"),
        (disk.kind == "network", "a network disk; only qcow2 files can be replicated"),
        (disk.kind == "block", "a block device; only qcow2 files can be replicated (raw disks come later)"),
        (disk.path is None, "it has no image file"),
        (disk.encrypted, "encrypted by libvirt: its copy would be in the clear"),
        (disk.format == "raw", "raw disks come later; convert to qcow2"),
        (disk.format != "qcow2", f"format {disk.format}; only qcow2 can be replicated"),
    ]


@dataclass(frozen=True, slots=True)
class Qcow2Head:
    """The start of a qcow2 header: ``size`` is the guest's, in bytes."""

    version: int
    size: int


def qcow2_head(path: str | None) -> Qcow2Head | None:
    """Read a qcow2 header, live images too; None when the file cannot be read here or is no qcow2."""
    if path is None:
        return None
    with contextlib.suppress(OSError), Path(path).open("rb") as image:
        head = image.read(_HEAD.size)
        if len(head) == _HEAD.size and head[:4] == _QCOW2_MAGIC:
            _magic, version, size = _HEAD.unpack(head)
            return Qcow2Head(version, size)
    return None
