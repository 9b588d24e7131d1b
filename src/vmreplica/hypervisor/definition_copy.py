"""A built definition for a copy beside the VM: another identity, and networks that lead nowhere. Pure."""

import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Final

from vmreplica.hypervisor.definition import BuiltDefinition
from vmreplica.model.ids import VmId, VmName

_NOWHERE: Final = "none"


class EveryNetwork(Mapping[str, str]):
    """A network map that leads every name to one place.

    Args:
        network: of this host; None leaves every interface unplugged.
    """

    def __init__(self, network: str | None) -> None:
        self._network = network or _NOWHERE

    def __getitem__(self, _name: str) -> str:
        return self._network

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0


def as_test_copy(built: BuiltDefinition, *, vm: VmId, name: VmName, network: str | None) -> BuiltDefinition:
    """Give a definition that ``definition.build`` made another identity, and let no interface reach the outside.

    QEMU's user network, which an interface of the VM may have, leads out through this host: that interface goes where
    all the others go.

    Args:
        built: with ``EveryNetwork(network)`` as its network map.
        vm: its new id.
        name: its new name.
        network: where its interfaces are plugged in; None: nowhere.
    """
    root = ET.fromstring(built.xml)  # noqa: S314 - our own document
    for tag, value in (("name", name), ("uuid", vm)):
        element = root.find(tag)
        if element is not None:
            element.text = value
    for interface in root.iterfind("devices/interface[@type='user']"):
        _isolate(interface, network)
    return replace(built, vm=vm, name=name, xml=ET.tostring(root, encoding="unicode"))


def _isolate(interface: ET.Element, network: str | None) -> None:
    if network is not None:
        interface.set("type", "network")
        interface.insert(0, ET.Element("source", network=network))
        return
    link = interface.find("link")
    if link is None:
        link = ET.SubElement(interface, "link")
    link.set("state", "down")
