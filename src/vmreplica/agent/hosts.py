"""The agent's verbs on other hosts: pairing, looking at a paired host, and what these ask of this one."""

import datetime as dt

from vmreplica import __version__
from vmreplica.agent.clients import Clients
from vmreplica.agent.config import Config
from vmreplica.agent.fencing import Fencing
from vmreplica.agent.primary import PrimarySide
from vmreplica.agent.replica import ReplicaSide
from vmreplica.fsio import free_bytes
from vmreplica.hypervisor import Hypervisor
from vmreplica.model.errors import Conflict, NotFound
from vmreplica.model.ids import HostId, VmId
from vmreplica.model.report import Invitation, PeerReport, PeerTest
from vmreplica.peer.book import PeerBook
from vmreplica.peer.identity import Identity
from vmreplica.peer.invitations import Invitations
from vmreplica.peer.pairing import join
from vmreplica.peer.wire import Hello, RunsHere


class Hosts:
    """The part of ``Agent`` that is about paired hosts."""

    config: Config
    identity: Identity
    book: PeerBook
    invitations: Invitations
    _clients: Clients
    _primaries: PrimarySide
    _replicas: ReplicaSide
    _hypervisor: Hypervisor
    #: Starts of protected VMs.
    starts: Fencing

    def hello(self) -> Hello:
        """Tell a peer who this host is."""
        return Hello(
            name=self.identity.name,
            host_id=self.identity.host_id,
            version=__version__,
            now=dt.datetime.now(dt.UTC),
            free_bytes=free_bytes(self.config.agent.store),
        )

    def runs_here(self, peer: HostId, vm: VmId) -> RunsHere:
        """Tell the replica of one of our VMs whether the VM runs here, or may be about to."""
        rel = self._primaries.find(vm)
        if rel is None or rel.policy.replica != peer:
            raise NotFound("vm-unknown", f"no VM {vm} of this host is replicated to the asking one")
        runs = self.starts.starting(rel.vm) or self._hypervisor.running(rel.vm)
        return RunsHere(vm=rel.vm, runs=runs, epoch=rel.policy.epoch)

    def peers(self) -> tuple[PeerReport, ...]:
        """List paired hosts."""
        return tuple(peer.report() for peer in self.book.all())

    def invite(self, for_name: str | None) -> Invitation:
        """Make a pairing token."""
        return self.invitations.invite(self.identity, self.config.agent.addresses(), for_name=for_name)

    def join(self, token: str) -> PeerReport:
        """Pair with the host that made the token."""
        return join(token, self.identity, self.book, self.config.agent.addresses()).report()

    def remove_peer(self, name: str) -> None:
        """Forget a paired host.

        Raises:
            Conflict: a VM is still replicated to or from it.
        """
        peer = self.book.by_name(name)
        rows = [*self._primaries.reports(), *self._replicas.reports()]
        users = sorted({row.name for row in rows if row.peer_id == peer.host_id})
        if users:
            raise Conflict(
                "peer-in-use",
                f"{name} is the other side of {', '.join(users)}",
                hint=f"`vmreplica disable {users[0]}` first",
            )
        self.book.remove(name)

    def test_peer(self, name: str) -> PeerTest:
        """Measure the connection to a paired host."""
        return self._clients.to(self.book.by_name(name).host_id).measure()
