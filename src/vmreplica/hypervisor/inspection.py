"""A close look at one domain: its definition, and its disks with the reasons why one cannot be copied or tracked."""

import xml.etree.ElementTree as ET
from dataclasses import replace
from typing import Final

import libvirt
from defusedxml.ElementTree import fromstring

from vmreplica.hypervisor.disks import (
    DiskElement,
    Qcow2Head,
    parse_disks,
    qcow2_head,
    reason_ineligible,
    reason_untracked,
)
from vmreplica.hypervisor.views import DiskView, DomainView

_SECTOR: Final = 512


def inspect(domain: libvirt.virDomain) -> DomainView:
    """Look at a domain: the disks it has now, and the definition of its next start, with all of these disks."""
    active = bool(domain.isActive())
    inactive_xml = domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
    current_xml = domain.XMLDesc() if active else inactive_xml
    return DomainView(
        vm=domain.UUIDString(),
        name=domain.name(),
        active=active,
        autostart=bool(domain.isPersistent()) and bool(domain.autostart()),
        definition=with_chosen_firmware(with_plugged_disks(inactive_xml, current_xml), current_xml),
        disks=tuple(_view(domain, disk, active=active) for disk in disks_of(domain, current_xml)),
    )


def disks_of(domain: libvirt.virDomain, xml: str) -> list[DiskElement]:
    """List the disks of a domain's XML, with the paths of volumes filled in."""
    return [_with_volume_path(domain.connect(), disk) for disk in parse_disks(xml)]


def with_plugged_disks(definition: str, current: str) -> str:
    """Add the disks that were plugged into the running VM only to the definition of its next start.

    They are replicated, so the copy needs them: the guest's file systems may lie on them. Where they are plugged in is
    left to libvirt, since the definition may have promised that address to another device.
    """
    wanted = fromstring(definition, forbid_dtd=True)
    devices = wanted.find("devices")
    known = {_target(disk) for disk in wanted.iterfind("devices/disk")}
    plugged = fromstring(current, forbid_dtd=True).iterfind("devices/disk")
    more = [disk for disk in plugged if _target(disk) not in known]
    if devices is None or not more:
        return definition
    for disk in more:
        for address in disk.findall("address"):
            disk.remove(address)
        devices.append(disk)
    return ET.tostring(wanted, encoding="unicode")


def with_chosen_firmware(definition: str, current: str) -> str:
    """Add to the definition of a VM's next start the firmware that it runs on, where libvirt chose it at the start.

    Its variables fit only that kind of firmware, and their file is named nowhere else.
    """
    wanted = fromstring(definition, forbid_dtd=True)
    os, chosen = wanted.find("os"), fromstring(current, forbid_dtd=True).find("os")
    if os is None or chosen is None or os.get("firmware") != "efi" or os.find("nvram") is not None:
        return definition
    more = [part for part in chosen if part.tag in {"loader", "nvram"} and os.find(part.tag) is None]
    if not more:
        return definition
    os.extend(more)
    return ET.tostring(wanted, encoding="unicode")


def _target(disk: ET.Element) -> str:
    target = disk.find("target")
    return target.get("dev", "") if target is not None else ""


def untracked_disks(domain: libvirt.virDomain, xml: str) -> frozenset[str]:
    """Tell the targets of all disks in which QEMU cannot keep a bitmap."""
    disks = disks_of(domain, xml)
    return frozenset(disk.target for disk in disks if reason_untracked(disk, _version(_head(disk))) is not None)


def guest_size(domain: libvirt.virDomain, target: str) -> int:
    """Tell the size of a disk as its guest sees it: QEMU rounds odd files up to whole sectors."""
    size: int = domain.blockInfo(target)[0]
    return -(-size // _SECTOR) * _SECTOR


def _view(domain: libvirt.virDomain, disk: DiskElement, *, active: bool) -> DiskView:
    head, reason = _head(disk), reason_ineligible(disk)
    size = head.size if head is not None else _asked_size(domain, disk, surely=active and reason is None)
    if reason is None and not size:
        reason = f"its size cannot be told: is {disk.path} there?"
    untracked = reason_untracked(disk, _version(head))
    return DiskView(disk.target, disk.device, disk.format, disk.path, size, reason, untracked)


def _head(disk: DiskElement) -> Qcow2Head | None:
    return qcow2_head(disk.path) if disk.format == "qcow2" else None


def _version(head: Qcow2Head | None) -> int | None:
    return None if head is None else head.version


def _asked_size(domain: libvirt.virDomain, disk: DiskElement, *, surely: bool) -> int:
    """Ask libvirt; of a disk that is replicated now, an error must not look like a disk that went away."""
    if disk.path is None:
        return 0
    try:
        return guest_size(domain, disk.target)
    except libvirt.libvirtError:
        if surely:
            raise
        return 0


def _with_volume_path(raw: libvirt.virConnect, disk: DiskElement) -> DiskElement:
    if disk.volume is None:
        return disk
    pool, volume = disk.volume
    try:
        path = raw.storagePoolLookupByName(pool).storageVolLookupByName(volume).path()
    except libvirt.libvirtError as error:
        if error.get_error_code() not in {libvirt.VIR_ERR_NO_STORAGE_POOL, libvirt.VIR_ERR_NO_STORAGE_VOL}:
            raise
        return disk
    return replace(disk, path=path) if path.startswith("/") else replace(disk, kind="network")
