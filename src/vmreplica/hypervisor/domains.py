"""What every act on a libvirt domain stands on: the connection, and the domains' names for messages."""

from collections.abc import Callable
from typing import TypeVar

import libvirt

from vmreplica.hypervisor.connection import DEFAULT_LIMIT, Connection
from vmreplica.hypervisor.views import DomainBrief
from vmreplica.model.ids import VmId

T = TypeVar("T")


class Domains:
    """Acts on domains over one shared connection. Thread-safe.

    Args:
        uri: libvirt URI.
        on_open: is given each new connection.
    """

    def __init__(self, uri: str, on_open: Callable[[libvirt.virConnect], None]) -> None:
        self._names: dict[VmId, str] = {}
        self._connection = Connection(uri, on_open)

    def _with(self, vm: VmId, what: str, work: Callable[[libvirt.virDomain], T], *, limit: float = DEFAULT_LIMIT) -> T:
        """Run an act on one domain that may safely be done twice."""
        return self._connection.call(
            f"{what} {self._label(vm)}", lambda raw: work(raw.lookupByUUIDString(vm)), repeatable=True, limit=limit
        )

    def _label(self, vm: VmId) -> str:
        """Name a VM in messages, as far as its name was seen."""
        return self._names.get(vm, vm)


def brief_of(domain: libvirt.virDomain) -> DomainBrief:
    """Describe a domain just looked up: its id is known without asking, and is negative while it is off."""
    return DomainBrief(domain.UUIDString(), domain.name(), domain.ID() >= 0)
