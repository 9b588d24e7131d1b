"""The agent's verbs on other hosts: pairing, and looking at a paired host."""

from vmreplica.agent.clients import Clients
from vmreplica.agent.config import Config
from vmreplica.agent.primary import PrimarySide
from vmreplica.agent.replica import ReplicaSide
from vmreplica.model.errors import Conflict
from vmreplica.model.report import Invitation, PeerReport, PeerTest
from vmreplica.peer.book import PeerBook
from vmreplica.peer.identity import Identity
from vmreplica.peer.invitations import Invitations
from vmreplica.peer.pairing import join


class Hosts:
    """The part of ``Agent`` that is about paired hosts."""

    config: Config
    identity: Identity
    book: PeerBook
    invitations: Invitations
    _clients: Clients
    _primaries: PrimarySide
    _replicas: ReplicaSide

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
