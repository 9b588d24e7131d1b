"""What a host offers to VMs, read from libvirt's capability documents. Pure."""

import xml.etree.ElementTree as ET
from collections.abc import Collection
from typing import TypedDict

from defusedxml.ElementTree import fromstring


class Abilities(TypedDict):
    """Keyword arguments for ``definition_site.Site``; libvirt's own words throughout."""

    domain_type: str
    networks: Collection[str]
    bridges: Collection[str]
    #: Bridges of Open vSwitch, which are in ``bridges`` too.
    vlan_bridges: Collection[str]
    #: Machine types, aliases such as ``pc`` and ``q35`` among them.
    machines: Collection[str]
    #: CPU models that this host can run.
    cpu_models: Collection[str]
    graphics: Collection[str]
    videos: Collection[str]
    #: TPM backends: ``emulator`` needs swtpm.
    tpm_backends: Collection[str]
    #: Whether firmware for UEFI guests is installed.
    efi: bool


def parse_abilities(
    domain_capabilities: str,
    capabilities: str,
    *,
    domain_type: str,
    networks: Collection[str],
    bridges: Collection[str],
    vlan_bridges: Collection[str] = (),
) -> Abilities:
    """Read the capabilities of a domain type, and the machines of all."""
    root = fromstring(domain_capabilities, forbid_dtd=True)
    arch = root.findtext("arch", "x86_64")
    return Abilities(
        domain_type=domain_type,
        networks=frozenset(networks),
        bridges=frozenset(bridges) | frozenset(vlan_bridges),
        vlan_bridges=frozenset(vlan_bridges),
        machines=_machines(fromstring(capabilities, forbid_dtd=True), arch),
        cpu_models=frozenset(
            model.text or "" for model in root.iterfind("cpu/mode[@name='custom']/model[@usable='yes']")
        ),
        graphics=_values(root, "devices/graphics", "type"),
        videos=_values(root, "devices/video", "modelType"),
        tpm_backends=_values(root, "devices/tpm", "backendModel"),
        efi="efi" in _values(root, "os", "firmware"),
    )


def _machines(capabilities: ET.Element, arch: str) -> frozenset[str]:
    return frozenset(machine.text or "" for machine in capabilities.iterfind(f"guest/arch[@name='{arch}']//machine"))


def _values(root: ET.Element, place: str, name: str) -> frozenset[str]:
    """Read an ``<enum>`` of a device that is supported."""
    owner = root.find(place)
    if owner is None or owner.get("supported") == "no":
        return frozenset()
    return frozenset(value.text or "" for value in owner.iterfind(f"enum[@name='{name}']/value"))
