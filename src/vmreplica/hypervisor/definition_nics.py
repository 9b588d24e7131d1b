"""Network interfaces of a rebuilt definition: same address and model, attached by the replica's own map. Pure."""

import xml.etree.ElementTree as ET
from typing import Final

from defusedxml.ElementTree import fromstring

from vmreplica.hypervisor.definition_rules import ADDRESS, BOOT_ORDER, MAC, NUM, QUIET, WORD, Rule, copy_into
from vmreplica.hypervisor.definition_site import Site

_PARTS: Final = {
    "address": ADDRESS,
    "boot": BOOT_ORDER,
    "mtu": Rule({"size": NUM}),
    "link": Rule({"state": "up|down"}),
    "model": Rule({"type": WORD}),
    "mac": Rule({"address": MAC, "type": "generated|static", "check": "yes|no"}),
}
_QUIET_PARTS: Final = QUIET | {"source", "target"}
#: By the interface's type, the attribute of ``<source>`` that names what it is attached to.
_SOURCE_NAMES: Final = {"network": "network", "bridge": "bridge", "direct": "dev"}
_NOWHERE: Final = "none"
_BRIDGE_PREFIX: Final = "bridge:"


def build_interface(interface: ET.Element, site: Site) -> ET.Element:
    """Build one interface.

    Attached where the network map says, else to the network or bridge of the same name. One that has neither keeps
    its place, model and MAC, so that the guest's own configuration stays valid, and gets a pulled plug: QEMU's user
    network with the link down needs nothing of the host, and the VM starts.
    """
    attachment = _attachment(interface, site)
    result = ET.Element("interface", type=attachment[0] if attachment else "user")
    if attachment is not None:
        ET.SubElement(result, "source", {attachment[0]: attachment[1]})
    for child in interface:
        if child.tag in _PARTS:
            copy_into(result, child, _PARTS[child.tag], site.drop, f"interface/{child.tag}")
        elif child.tag not in _QUIET_PARTS:
            site.drop(f"interface/{child.tag}")
    if attachment is None and interface.get("type") != "user":
        _pull_plug(result)
    return result


def attachments(definition: str) -> frozenset[str]:
    """Name all networks and bridges that the interfaces of a definition are attached to."""
    interfaces = fromstring(definition, forbid_dtd=True).iterfind("devices/interface")
    sources = (source for interface in interfaces for source in interface.findall("source"))
    return frozenset(source.get(name, "") for source in sources for name in _SOURCE_NAMES.values()) - {""}


def _attachment(interface: ET.Element, site: Site) -> tuple[str, str] | None:
    kind = interface.get("type", "")
    if kind == "user":
        return None
    source = interface.find("source")
    name = source.get(_SOURCE_NAMES.get(kind, ""), "") if source is not None else ""
    wanted = site.network_map.get(name)
    if wanted == _NOWHERE:
        site.note(f"interface {_mac(interface)}: the network map leaves it unplugged")
        return None
    choice = _mapped(wanted) if wanted is not None else (kind, name)
    here = {"network": site.networks, "bridge": site.bridges}.get(choice[0], ())
    if choice[1] in here:
        return choice
    site.note(
        f"interface {_mac(interface)}: there is no {choice[0]} {choice[1] or '(unnamed)'} here, it is unplugged; "
        f"map {name or 'it'} to a network of this host"
    )
    return None


def _mapped(wanted: str) -> tuple[str, str]:
    if wanted.startswith(_BRIDGE_PREFIX):
        return "bridge", wanted.removeprefix(_BRIDGE_PREFIX)
    return "network", wanted


def _mac(interface: ET.Element) -> str:
    mac = interface.find("mac")
    return mac.get("address", "") if mac is not None else "(without MAC)"


def _pull_plug(interface: ET.Element) -> None:
    link = interface.find("link")
    if link is None:
        link = ET.SubElement(interface, "link")
    link.set("state", "down")
