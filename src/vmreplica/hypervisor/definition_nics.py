"""Network interfaces of a rebuilt definition: same address and model, attached by the replica's own map. Pure."""

import xml.etree.ElementTree as ET
from dataclasses import dataclass, replace
from typing import Final

from defusedxml.ElementTree import fromstring

from vmreplica.hypervisor.definition_rules import ADDRESS, BOOT_ORDER, MAC, NUM, QUIET, WORD, Rule, copy_into, matches
from vmreplica.hypervisor.definition_site import Site
from vmreplica.model.networks import MAX_TAG, NOWHERE, Place, parse_place, with_tags

_PARTS: Final = {
    "address": ADDRESS,
    "boot": BOOT_ORDER,
    "mtu": Rule({"size": NUM}),
    "link": Rule({"state": "up|down"}),
    "model": Rule({"type": WORD}),
    "mac": Rule({"address": MAC, "type": "generated|static", "check": "yes|no"}),
}
_QUIET_PARTS: Final = QUIET | {"source", "target", "vlan", "virtualport"}
#: By the interface's type, the attribute of ``<source>`` that names what it is attached to.
_SOURCE_NAMES: Final = {"network": "network", "bridge": "bridge", "direct": "dev"}
_TAG: Final = r"[1-9]\d{0,3}"
_MAX_TAGS: Final = 64


@dataclass(frozen=True, slots=True)
class Nic:
    """An interface of a peer's definition, as far as its place counts."""

    kind: str
    source: str
    tags: tuple[int, ...]
    mac: str

    @property
    def origin(self) -> str:
        """How a network map names where it is plugged in on the primary."""
        return with_tags(self.source, self.tags)


def read_nic(interface: ET.Element) -> Nic:
    """Read what an interface of a peer's definition is plugged in to."""
    kind, source = interface.get("type", ""), interface.find("source")
    name = source.get(_SOURCE_NAMES.get(kind, ""), "") if source is not None else ""
    told = [tag.get("id") for tag in interface.findall("vlan/tag")][:_MAX_TAGS]
    tags = tuple(int(tag) for tag in told if tag is not None and matches(_TAG, tag) and int(tag) <= MAX_TAG)
    mac = interface.find("mac")
    return Nic(kind, name, tags, mac.get("address", "") if mac is not None else "(without MAC)")


def build_interface(interface: ET.Element, site: Site) -> ET.Element:
    """Build one interface.

    Attached where the network map says, else to the network or bridge of the same name. One that has neither keeps
    its place, model and MAC, so that the guest's own configuration stays valid, and gets a pulled plug: QEMU's user
    network with the link down needs nothing of the host, and the VM starts.
    """
    place = place_of(read_nic(interface), site)
    result = ET.Element("interface", type="user" if place.kind == "none" else place.kind)
    if place.kind != "none":
        _plug_in(result, place, site)
    for child in interface:
        if child.tag in _PARTS:
            copy_into(result, child, _PARTS[child.tag], site.drop, f"interface/{child.tag}")
        elif child.tag not in _QUIET_PARTS:
            site.drop(f"interface/{child.tag}")
    if place.kind == "none" and interface.get("type") != "user":
        _pull_plug(result)
    return result


def attachments(definition: str) -> frozenset[str]:
    """Name all networks and bridges that the interfaces of a definition are attached to."""
    interfaces = fromstring(definition, forbid_dtd=True).iterfind("devices/interface")
    sources = (source for interface in interfaces for source in interface.findall("source"))
    return frozenset(source.get(name, "") for source in sources for name in _SOURCE_NAMES.values()) - {""}


def place_of(nic: Nic, site: Site) -> Place:
    """Choose where an interface is plugged in here; what it loses is noted."""
    nowhere = Place("none", NOWHERE)
    if nic.kind == "user":
        return nowhere
    wanted = site.network_map.get(nic.origin) or site.network_map.get(nic.source)
    same = Place("bridge" if nic.kind == "bridge" else "network", nic.source)
    place = _parsed(wanted) if wanted is not None else same
    if place.kind == "none":
        site.note(f"interface {nic.mac}: the network map leaves it unplugged")
        return nowhere
    here = site.bridges if place.kind == "bridge" else site.networks
    if wanted is None and nic.kind not in {"network", "bridge"}:
        here = ()
    if place.name not in here:
        site.note(
            f"interface {nic.mac}: there is no {place.kind} {place.name or '(unnamed)'} here, it is unplugged; "
            f"map {nic.source or 'it'} to a network of this host"
        )
        return nowhere
    return _with_vlan(nic, place, site)


def _with_vlan(nic: Nic, place: Place, site: Site) -> Place:
    """Keep VLAN tags where they are understood; an interface must not end up in another VLAN than was meant."""
    if place.tags or not nic.tags:
        if place.tags and place.kind == "bridge" and place.name not in site.vlan_bridges:
            site.note(
                f"interface {nic.mac}: bridge {place.name} is not of Open vSwitch, libvirt gives it no VLAN tags: "
                "it is unplugged; map it to a bridge that is in that VLAN"
            )
            return Place("none", NOWHERE)
        return place
    if place.kind == "bridge" and place.name in site.vlan_bridges:
        return replace(place, tags=nic.tags)
    site.note(
        f"interface {nic.mac}: its VLAN tags {'+'.join(map(str, nic.tags))} are not set on {place.name}; where they "
        f"shall be, map {nic.origin} to {place},vlan=N"
    )
    return place


def _parsed(wanted: str) -> Place:
    try:
        return parse_place(wanted)
    except ValueError:
        return Place("network", wanted)


def _plug_in(result: ET.Element, place: Place, site: Site) -> None:
    ET.SubElement(result, "source", {place.kind: place.name})
    if place.kind == "bridge" and place.name in site.vlan_bridges:
        ET.SubElement(result, "virtualport", type="openvswitch")
    if place.tags:
        vlan = ET.SubElement(result, "vlan")
        if len(place.tags) > 1:
            vlan.set("trunk", "yes")
        for tag in place.tags:
            ET.SubElement(vlan, "tag", id=str(tag))


def _pull_plug(interface: ET.Element) -> None:
    link = interface.find("link")
    if link is None:
        link = ET.SubElement(interface, "link")
    link.set("state", "down")
