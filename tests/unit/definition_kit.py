"""Domain XML as a primary sends it, and what becomes of it on a replica with a few abilities."""

import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

from vmreplica.hypervisor.definition import BuiltDefinition, build
from vmreplica.hypervisor.definition_site import Site

DISK = (
    "<disk type='file' device='disk'><driver name='qemu' type='raw' io='native'/><source file='/etc/shadow'/>"
    "<target dev='vda' bus='virtio'/><serial>S1</serial><boot order='1'/>"
    "<address type='pci' domain='0x0000' bus='0x04' slot='0x00' function='0x0'/></disk>"
)
UUID = "3034b243-3966-4808-bb0c-ab2a15908ce1"
IMAGE = Path("/store/run/vda.qcow2")


def domain(devices: str = DISK, *, os: str = "", more: str = "", machine: str = "q35", attributes: str = "") -> str:
    return (
        f"<domain type='kvm'><name>web01</name><uuid>{UUID}</uuid><memory unit='GiB'>4</memory><vcpu>2</vcpu>"
        f"<os {attributes}><type arch='x86_64' machine='{machine}'>hvm</type>{os}</os>{more}"
        f"<devices>{devices}</devices></domain>"
    )


def built(xml: str, **changes: Any) -> BuiltDefinition:
    given: dict[str, Any] = {
        "disks": {"vda": IMAGE}, "network_map": {}, "networks": {"default"}, "domain_type": "kvm",
        "machines": {"pc", "q35", "pc-q35-7.2"},
    }  # fmt: skip
    return build(xml, Site(**(given | changes)))


def tree(definition: BuiltDefinition) -> ET.Element:
    return ET.fromstring(definition.xml)  # noqa: S314 - our own output


def find(definition: BuiltDefinition, path: str) -> ET.Element:
    found = tree(definition).find(path)
    assert found is not None, f"{path} in {definition.xml}"
    return found
