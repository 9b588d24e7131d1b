"""A close look at one domain: its definition, and its disks with the reason why one cannot be replicated."""

import contextlib
import xml.etree.ElementTree as ET
from dataclasses import replace

import libvirt
from defusedxml.ElementTree import fromstring

from vmreplica.hypervisor.disks import DiskElement, parse_disks, qcow2_head, reason_ineligible
from vmreplica.hypervisor.views import DiskView, DomainView


def inspect(raw: libvirt.virConnect, domain: libvirt.virDomain) -> DomainView:
    """Look at a domain: the disks it has now, and the definition of its next start, with all of these disks."""
    active = bool(domain.isActive())
    inactive_xml = domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
    current_xml = domain.XMLDesc() if active else inactive_xml
    return DomainView(
        vm=domain.UUIDString(),
        name=domain.name(),
        active=active,
        autostart=bool(domain.isPersistent()) and bool(domain.autostart()),
        definition=with_plugged_disks(inactive_xml, current_xml),
        disks=tuple(_view(raw, domain, disk) for disk in parse_disks(current_xml)),
    )


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


def _target(disk: ET.Element) -> str:
    target = disk.find("target")
    return target.get("dev", "") if target is not None else ""


def _view(raw: libvirt.virConnect, domain: libvirt.virDomain, disk: DiskElement) -> DiskView:
    disk = _with_volume_path(raw, disk)
    head = qcow2_head(disk.path) if disk.format == "qcow2" else None
    size = head.size if head is not None else _asked_size(domain, disk)
    reason = reason_ineligible(disk, head.version if head is not None else None)
    return DiskView(disk.target, disk.device, disk.format, disk.path, size, reason)


def _asked_size(domain: libvirt.virDomain, disk: DiskElement) -> int:
    if disk.path is not None:
        with contextlib.suppress(libvirt.libvirtError):
            return domain.blockInfo(disk.target)[0]
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
    return replace(disk, path=path)
