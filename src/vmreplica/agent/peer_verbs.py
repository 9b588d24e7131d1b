"""The verbs on paired hosts, as part of the agent's facade."""

from vmreplica.agent.clients import Clients
from vmreplica.agent.config import Config
from vmreplica.model.errors import Conflict
from vmreplica.model.report import Invitation, PeerReport, PeerTest, RelationshipReport
from vmreplica.peer.book import PeerBook
from vmreplica.peer.identity import Identity
from vmreplica.peer.invitations import Invitations
from vmreplica.peer.pairing import join


class PeerVerbs:
    """What the agent does about other hosts; the agent has the parts."""

    config: Config
    identity: Identity
    book: PeerBook
    invitations: Invitations
    _clients: Clients

    def relationships(self) -> list[RelationshipReport]:
        """Report all relationships, from either side."""
        raise NotImplementedError

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
        users = sorted({row.name for row in self.relationships() if row.peer_id == peer.host_id})
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
