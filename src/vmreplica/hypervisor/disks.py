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
#: What QEMU can serve, but has no place for bitmaps in.
_UNTRACKED_FORMATS: Final = frozenset({"raw", "qed", "vdi", "vmdk", "vpc"})
#: A volume's kind is its pool's affair: its path tells.
_LOCAL_KINDS: Final = frozenset({"file", "block", "volume"})


#: What to do about a disk that QEMU itself reads over the network: let the host do it.
_MAPPED: Final = "let the host map or mount it, and give the VM that device or file"
_BY_THE_HOST: Final = {
    "rbd": "let the host map it (rbd map POOL/IMAGE), and give the VM /dev/rbd/POOL/IMAGE as a block device",
    "iscsi": "let the host log in to it (iscsiadm), and give the VM its /dev/disk/by-path/... as a block device",
    "nbd": "let the host attach it (nbd-client), and give the VM /dev/nbdN as a block device",
    "nfs": "let the host mount the share, and give the VM the file",
    "gluster": "let the host mount the volume, and give the VM the file",
}


@dataclass(frozen=True, slots=True)
class DiskElement:
    """What the domain XML says about one disk."""

    target: str
    device: str
    kind: str
    format: str
    #: Path of the image file or device; None for network disks and empty drives.
    path: str | None
    #: ``rbd``, ``iscsi`` and so on: read by QEMU itself over the network.
    protocol: str | None
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
    path = (source.get("file") or source.get("dev")) if source is not None else None
    return DiskElement(
        target=target.get("dev", "") if target is not None else "",
        device=disk.get("device", "disk"),
        kind=disk.get("type", "file"),
        format=driver.get("type", "raw") if driver is not None else "raw",
        path=path,
        protocol=_protocol(source),
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


def _protocol(source: ET.Element | None) -> str | None:
    """Tell the network protocol that QEMU speaks; a volume of an iSCSI pool in direct mode is read so, too."""
    if source is None:
        return None
    return source.get("protocol") or ("iscsi" if source.get("mode") == "direct" else None)


def reason_ineligible(disk: DiskElement) -> str | None:
    """Say why a disk from ``parse_disks``, with the path of a volume filled in, cannot be replicated; None: it can."""
    return next((reason for applies, reason in _findings(disk) if applies), None)


def reason_untracked(disk: DiskElement, qcow2_version: int | None) -> str | None:
    """Say why QEMU cannot keep the changes of an eligible disk in a bitmap; None when it can.

    Args:
        disk: from ``parse_disks``.
        qcow2_version: from the image's header; None when it could not be read.
    """
    if disk.format != "qcow2":
        return f"format {disk.format} has no place for bitmaps: all of it is read each time, only changes are sent"
    if qcow2_version is not None and qcow2_version < _OLDEST_WITH_BITMAPS:
        return "qcow2 version 2 has no place for bitmaps; with the VM off: qemu-img amend -o compat=1.1 FILE"
    return None


def _findings(disk: DiskElement) -> list[tuple[bool, str]]:
    return [
        (disk.device in {"cdrom", "floppy"}, f"a {disk.device} is not replicated"),
        (disk.device != "disk", "a device passed through (lun) cannot be tracked"),
        (disk.readonly, "read-only: the guest never changes it"),
        (disk.shareable, "shareable: other VMs write to it, unseen by this one"),
        (disk.transient, "transient: its changes are thrown away"),
        (
            disk.kind == "network" or disk.protocol is not None,
            f"a network disk ({disk.protocol or 'pool'}) is not supported yet: "
            + _BY_THE_HOST.get(disk.protocol or "", _MAPPED),
        ),
        (disk.kind not in _LOCAL_KINDS, f"disks of type {disk.kind} are not supported"),
        (disk.path is None, "it has no image file, or its storage pool is off"),
        (disk.encrypted, "encrypted by libvirt: its copy would be in the clear; encrypt inside the guest instead"),
        (disk.format not in _UNTRACKED_FORMATS | {"qcow2"}, f"format {disk.format} is not supported"),
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
