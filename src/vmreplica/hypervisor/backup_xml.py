"""libvirt's backup and checkpoint documents: written and read, nothing else. Pure."""

import xml.etree.ElementTree as ET
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from defusedxml.ElementTree import fromstring


@dataclass(frozen=True, slots=True)
class BackupDisk:
    """One disk of a backup job: where old blocks go, and the checkpoint since which changes are asked, if any."""

    target: str
    scratch: Path
    base: str | None

    @property
    def bitmap(self) -> str | None:
        """The export's dirty bitmap; the NBD meta context is ``qemu:dirty-bitmap:`` and this."""
        return None if self.base is None else f"changed-{self.target}"


@dataclass(frozen=True, slots=True)
class RunningBackup:
    """A backup job as libvirt describes it; ``bitmaps`` and ``scratches`` by disk target."""

    socket: Path | None
    bitmaps: Mapping[str, str | None]
    scratches: Mapping[str, Path]


def render_backup(socket: Path, disks: Collection[BackupDisk]) -> str:
    """Write a pull-mode backup of just these disks, each whole or since its own base."""
    root = ET.Element("domainbackup", mode="pull")
    ET.SubElement(root, "server", transport="unix", socket=str(socket))
    listed = ET.SubElement(root, "disks")
    for disk in disks:
        element = ET.SubElement(listed, "disk", name=disk.target, backup="yes", type="file")
        element.set("exportname", disk.target)
        if disk.base is None:
            element.set("backupmode", "full")
        else:
            element.set("backupmode", "incremental")
            element.set("incremental", disk.base)
            element.set("exportbitmap", disk.bitmap or "")
        ET.SubElement(element, "driver", type="qcow2")
        ET.SubElement(element, "scratch", file=str(disk.scratch))
    return ET.tostring(root, encoding="unicode")


def render_checkpoint(name: str, targets: Collection[str]) -> str:
    """Write a checkpoint of just these disks; libvirt leaves out those that are not listed."""
    root = ET.Element("domaincheckpoint")
    ET.SubElement(root, "name").text = name
    listed = ET.SubElement(root, "disks")
    for target in targets:
        ET.SubElement(listed, "disk", name=target, checkpoint="bitmap")
    return ET.tostring(root, encoding="unicode")


def render_known_checkpoint(name: str, targets: Collection[str], domain_xml: str) -> str:
    """Write the full document of a checkpoint of these disks that is in their images, for redefinition."""
    root = ET.Element("domaincheckpoint")
    ET.SubElement(root, "name").text = name
    ET.SubElement(root, "creationTime").text = "0"
    listed = ET.SubElement(root, "disks")
    for target in targets:
        ET.SubElement(listed, "disk", name=target, checkpoint="bitmap", bitmap=name)
    root.append(fromstring(domain_xml, forbid_dtd=True))
    return ET.tostring(root, encoding="unicode")


def parse_backup(xml: str) -> RunningBackup:
    """Read what libvirt says about a running backup job."""
    root = fromstring(xml, forbid_dtd=True)
    server = root.find("server")
    socket = server.get("socket") if server is not None else None
    disks = [disk for disk in root.iterfind("disks/disk") if disk.get("backup") == "yes"]
    return RunningBackup(
        socket=Path(socket) if socket else None,
        bitmaps={disk.get("name", ""): disk.get("exportbitmap") for disk in disks},
        scratches={disk.get("name", ""): Path(scratch) for disk in disks if (scratch := _scratch(disk))},
    )


def _scratch(disk: ET.Element) -> str | None:
    scratch = disk.find("scratch")
    return scratch.get("file") if scratch is not None else None


def checkpoint_disks(xml: str) -> frozenset[str]:
    """Tell which disks have a bitmap in a checkpoint."""
    root = fromstring(xml, forbid_dtd=True)
    disks = root.iterfind("disks/disk")
    return frozenset(disk.get("name", "") for disk in disks if disk.get("checkpoint") == "bitmap")


def standalone_checkpoint(xml: str, only: Collection[str]) -> str:
    """Prepare a kept checkpoint for redefinition: without its parent, which may be gone.

    Every bitmap records by itself since libvirt 7.6, so parents carry no meaning for us.

    Args:
        xml: the full checkpoint document, with ``<domain>``.
        only: keep the bitmaps of these disks.
    """
    root = fromstring(xml, forbid_dtd=True)
    parent = root.find("parent")
    if parent is not None:
        root.remove(parent)
    for disk in root.iterfind("disks/disk"):
        if disk.get("name") not in only:
            disk.attrib.pop("bitmap", None)
            disk.set("checkpoint", "no")
    return ET.tostring(root, encoding="unicode")
