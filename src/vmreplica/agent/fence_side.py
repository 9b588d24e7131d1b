"""All that keeps a VM from running twice, put together: fences, the answers to libvirt's hook, the watch over both."""

from vmreplica.agent.boots import Boots
from vmreplica.agent.clients import Clients
from vmreplica.agent.config import Config
from vmreplica.agent.fencing import Fencing
from vmreplica.agent.guard import Guard
from vmreplica.agent.runner import Runner
from vmreplica.agent.watchman import Watchman
from vmreplica.hypervisor import Hypervisor
from vmreplica.hypervisor.autostart import Autostart


class FenceSide:
    """Thread-safe.

    Args:
        config: of this host.
        guard: what is known of failovers.
        clients: connections to replicas.
        hypervisor: this host's libvirt.
        autostart: which VMs libvirt starts with the host.
        runner: shows what was learnt.
    """

    def __init__(
        self,
        config: Config,
        *,
        guard: Guard,
        clients: Clients,
        hypervisor: Hypervisor,
        autostart: Autostart,
        runner: Runner,
    ) -> None:
        #: Answers libvirt's hook, and starts VMs.
        self.starts = Fencing(guard=guard, clients=clients, hypervisor=hypervisor, runner=runner)
        self._autostart = autostart
        self._watchman = Watchman(
            fencing=self.starts,
            guard=guard,
            clients=clients,
            hypervisor=hypervisor,
            autostart=autostart,
            runner=runner,
            boots=Boots(config.agent.state_dir / "boot.json"),
        )

    def start(self) -> None:
        """Begin to watch."""
        self._watchman.start()

    def stop(self) -> None:
        """End the watch."""
        self._watchman.stop()
        self.starts.stop()
        self._autostart.close()
