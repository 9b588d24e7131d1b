"""All that keeps a VM from running twice, put together: fences, the answers to libvirt's hook, the watch over both."""

from vmreplica.agent.boots import Boots
from vmreplica.agent.clients import Clients
from vmreplica.agent.config import Config
from vmreplica.agent.fencing import Fencing
from vmreplica.agent.guard import Guard
from vmreplica.agent.hooks import fence_dir
from vmreplica.agent.journal import Journal
from vmreplica.agent.runner import Runner
from vmreplica.agent.watchman import Watchman
from vmreplica.hypervisor import Hypervisor
from vmreplica.hypervisor.autostart import Autostart
from vmreplica.hypervisor.fence import Fence
from vmreplica.peer.book import PeerBook


class FenceParts:
    """What others need of the fences before there is a scheduler.

    Args:
        config: of this host.
        book: paired hosts.
        journal: history.
    """

    def __init__(self, config: Config, book: PeerBook, journal: Journal) -> None:
        self.fence = Fence(fence_dir(config))
        self.guard = Guard(self.fence, book, journal)
        self.autostart = Autostart(config.agent.libvirt_uri)
        self.boots = Boots(config.agent.state_dir / "boot.json")


class FenceSide:
    """Thread-safe.

    Args:
        parts: the fences.
        clients: connections to replicas.
        hypervisor: this host's libvirt.
        runner: shows what was learnt.
    """

    def __init__(self, parts: FenceParts, clients: Clients, hypervisor: Hypervisor, runner: Runner) -> None:
        #: Answers libvirt's hook, and starts VMs.
        self.starts = Fencing(guard=parts.guard, clients=clients, hypervisor=hypervisor, runner=runner)
        self._autostart = parts.autostart
        self._watchman = Watchman(
            fencing=self.starts,
            guard=parts.guard,
            clients=clients,
            hypervisor=hypervisor,
            autostart=parts.autostart,
            runner=runner,
            boots=parts.boots,
        )

    def start(self) -> None:
        """Begin to watch."""
        self._watchman.start()

    def stop(self) -> None:
        """End the watch."""
        self._watchman.stop()
        self.starts.stop()
        self._autostart.close()
