"""libvirt's networks of this host."""

import libvirt
from defusedxml.ElementTree import fromstring

from vmreplica.model.errors import NotFound


def network_leads_out(raw: libvirt.virConnect, name: str) -> bool:
    """Tell whether a network reaches other networks: it forwards, or is a bridge that others use.

    Raises:
        NotFound: ``network-unknown``.
    """
    found = next((network for network in raw.listAllNetworks(0) if network.name() == name), None)
    if found is None or not found.isActive():
        raise NotFound(
            "network-unknown",
            f"this host has no active libvirt network {name}",
            hint="`virsh net-list --all` shows its networks; `virsh net-start NAME` starts one",
        )
    return fromstring(found.XMLDesc(0), forbid_dtd=True).find("forward") is not None
