"""Which VMs libvirt starts with the host: it would do so before any agent could ask their replicas."""

import libvirt

from vmreplica.hypervisor.connection import Connection
from vmreplica.model.ids import VmId


class Autostart:
    """Thread-safe. Every method raises TimedOut and Unreachable as those of ``Hypervisor`` do.

    Args:
        uri: libvirt URI.
    """

    def __init__(self, uri: str) -> None:
        # Of its own: its calls may wait for a VM that is just being started, and nobody shall wait behind them.
        self._connection = Connection(uri, lambda _raw: None)

    def close(self) -> None:
        """Let the connection go."""
        self._connection.close()

    def on(self) -> frozenset[VmId]:
        """Tell which VMs libvirt starts with the host."""

        def ask(raw: libvirt.virConnect) -> frozenset[VmId]:
            marked = raw.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_AUTOSTART)
            return frozenset(domain.UUIDString() for domain in marked)

        return self._connection.call("list what starts with the host", ask, repeatable=True)

    def set(self, vm: VmId, *, on: bool) -> None:
        """Let libvirt start a VM with the host, or no longer.

        Raises:
            NotFound: ``vm-unknown``.
        """

        def change(raw: libvirt.virConnect) -> None:
            raw.lookupByUUIDString(vm).setAutostart(int(on))

        self._connection.call(f"set the autostart of {vm}", change, repeatable=True)
