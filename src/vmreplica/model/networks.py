"""Where a VM's interfaces are plugged in on the replica: places as a person writes them, changes of a map, reports.

A place is ``NAME`` (a libvirt network), ``bridge:NAME`` or ``none``, and may end with VLAN tags:
``bridge:br0,vlan=20``, ``trunk,vlan=20+30``. The left side of a map is a network, bridge or device of the primary, with
or without tags.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Annotated, Final, Literal, TypeVar

from pydantic import AfterValidator, Field, StringConstraints

from vmreplica.model.addresses import AddressPlan, InterfaceKey
from vmreplica.model.ids import VmId, VmName
from vmreplica.model.shape import Shape

T = TypeVar("T")

NOWHERE: Final = "none"
MAX_NETWORKS: Final = 64
_BRIDGE: Final = "bridge:"
_TAGS: Final = re.compile(r"(?P<name>.*?)(?:,vlan=(?P<tags>\d{1,4}(?:\+\d{1,4}){0,63}))?", re.DOTALL)
MAX_TAG: Final = 4094


@dataclass(frozen=True, slots=True)
class Place:
    """A place, taken apart; without tags, those of the VM's own definition count where they can be kept."""

    kind: Literal["network", "bridge", "none"]
    name: str
    tags: tuple[int, ...] = ()

    def __str__(self) -> str:
        """Spell it as a person writes it."""
        prefix = _BRIDGE if self.kind == "bridge" else ""
        return with_tags(f"{prefix}{self.name}", self.tags)


def with_tags(name: str, tags: tuple[int, ...]) -> str:
    """Spell a name with VLAN tags behind it."""
    return f"{name},vlan={'+'.join(map(str, tags))}" if tags else name


def without_tags(text: str) -> str:
    """Spell a place, or a map's left side, without its VLAN tags."""
    return text.partition(",vlan=")[0]


def parse_place(text: str) -> Place:
    """Read a place.

    Raises:
        ValueError: it is none; the text says why.
    """
    name, tags = _divide(text)
    if name == NOWHERE:
        if tags:
            raise ValueError(f"{text!r}: an unplugged interface has no VLAN")
        return Place("none", NOWHERE)
    if name.startswith(_BRIDGE):
        return Place("bridge", _named(name.removeprefix(_BRIDGE), text), tags)
    return Place("network", _named(name, text), tags)


def _divide(text: str) -> tuple[str, tuple[int, ...]]:
    match = _TAGS.fullmatch(text)
    if match is None or ",vlan" in match["name"]:
        raise ValueError(f"{text!r}: VLAN tags are written as NAME,vlan=20 or NAME,vlan=20+30")
    tags = tuple(int(tag) for tag in match["tags"].split("+")) if match["tags"] else ()
    if any(not 1 <= tag <= MAX_TAG for tag in tags) or len(set(tags)) != len(tags):
        raise ValueError(f"{text!r}: VLAN tags are different numbers from 1 to {MAX_TAG}")
    return match["name"], tags


def _named(name: str, text: str) -> str:
    if not name:
        raise ValueError(f"{text!r} names no network")
    return name


def _place(text: str) -> str:
    return str(parse_place(text))


def _origin(text: str) -> str:
    name, tags = _divide(text)
    return with_tags(_named(name, text), tags)


_Text = Annotated[str, StringConstraints(pattern=r"^[^\x00-\x1f\x7f/]{1,255}$")]
PlaceText = Annotated[_Text, AfterValidator(_place)]
OriginText = Annotated[_Text, AfterValidator(_origin)]


class NetworksChange(Shape):
    """What is to be other in a VM's network map; the rest stays."""

    networks: Annotated[dict[OriginText, PlaceText], Field(max_length=MAX_NETWORKS)] = Field(default_factory=dict)
    unmap: Annotated[tuple[OriginText, ...], Field(max_length=MAX_NETWORKS)] = ()
    #: Addresses for interfaces, and whose shall stay as they are in the guest.
    addresses: Annotated[dict[InterfaceKey, AddressPlan], Field(max_length=MAX_NETWORKS)] = Field(default_factory=dict)
    keep_addresses: Annotated[tuple[InterfaceKey, ...], Field(max_length=MAX_NETWORKS)] = ()


class InterfaceReport(Shape):
    """One interface of a VM, and what becomes of it at a failover."""

    number: int
    mac: str | None
    #: What it is plugged in to on the primary, as a map's left side.
    source: str
    #: Where it will be plugged in here, as a map's right side; ``none``: nowhere; ``user``: QEMU's user network.
    place: str


class NetworksReport(Shape):
    """A VM's network map, and its interfaces at the newest point."""

    vm: VmId
    name: VmName
    networks: dict[str, str]
    #: What addresses interfaces get in the guest, after a failover and in tests.
    addresses: dict[str, AddressPlan] = Field(default_factory=dict)
    interfaces: tuple[InterfaceReport, ...] = ()
    #: Why interfaces are left unplugged, or lose something.
    notes: tuple[str, ...] = ()


def changed(networks: Mapping[str, str], change: NetworksChange) -> dict[str, str]:
    """Apply a change to a map.

    Raises:
        ValueError: an entry to be removed is not there, or the map becomes too long.
    """
    return _changed(networks, change.networks, change.unmap, "in the network map")


def changed_addresses(addresses: Mapping[str, AddressPlan], change: NetworksChange) -> dict[str, AddressPlan]:
    """Apply a change to the addresses of interfaces.

    Raises:
        ValueError: an interface that shall keep its addresses has no others, or there are too many.
    """
    return _changed(addresses, change.addresses, change.keep_addresses, "given addresses")


def _changed(old: Mapping[str, T], more: Mapping[str, T], gone: Collection[str], what: str) -> dict[str, T]:
    missing = sorted(set(gone) - set(old))
    if missing:
        raise ValueError(f"{missing[0]} is not {what}")
    result = {**{key: value for key, value in old.items() if key not in gone}, **more}
    if len(result) > MAX_NETWORKS:
        raise ValueError(f"at most {MAX_NETWORKS} can be {what}")
    return result
