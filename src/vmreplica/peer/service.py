"""What a host does for its peers: implemented over the repository, called by the server, spoken to by the client."""

from typing import Literal, Protocol

from vmreplica.model.export import AwaitedBase
from vmreplica.model.ids import DiskTarget, HostId, PointId, VmId
from vmreplica.model.point import IncomingPoint, PointClosing, PointOpening, PointSummary, Position
from vmreplica.model.policy import ReplicaOffer
from vmreplica.model.report import PointsReport
from vmreplica.peer.hashes import Hashes
from vmreplica.peer.wire import Hello, ReverseRequest, RunsHere

CopyFate = Literal["keep", "delete"]


class PeerService(Protocol):
    """The receiving side of the protocol.

    Blocking and thread-safe: the server calls it from a small pool of threads. ``peer`` is the authenticated host id
    of the caller; an implementation answers for VMs of that host only, and the same for unknown and for foreign VMs.
    Every method raises only the tree of ``vmreplica.model.errors``; anything else reaches the peer as ``internal``.
    All methods are idempotent, since a lost answer is followed by the same request again.
    """

    def hello(self) -> Hello:
        """Tell who this host is and how it stands."""
        ...

    def offer(self, peer: HostId, vm: VmId, offer: ReplicaOffer) -> Position:
        """Accept a relationship, or a change of its policy."""
        ...

    def position(self, peer: HostId, vm: VmId) -> Position:
        """Tell what is held of a VM."""
        ...

    def remove(self, peer: HostId, vm: VmId, *, delete_copy: bool) -> None:
        """Dissolve a relationship."""
        ...

    def points(self, peer: HostId, vm: VmId) -> PointsReport:
        """List recovery points, newest first."""
        ...

    def open_point(self, peer: HostId, opening: PointOpening) -> IncomingPoint:
        """Begin a point, or find it again with the segments it holds."""
        ...

    def put_segment(  # noqa: PLR0917 - in the order of the request's path
        self, peer: HostId, vm: VmId, point: PointId, target: DiskTarget, number: int, body: memoryview
    ) -> None:
        """Make a segment durable. ``body`` is valid only during the call: its buffer is used again afterwards."""
        ...

    def complete(self, peer: HostId, vm: VmId, point: PointId, closing: PointClosing) -> PointSummary:
        """Publish a point whose segments are all here; may take minutes."""
        ...

    def await_base(self, peer: HostId, base: AwaitedBase) -> PointSummary:
        """Take deltas on a point that travels in an export, from now on."""
        ...

    def give_up_base(self, peer: HostId, vm: VmId) -> None:
        """Await an exported point no longer, and remove what stands on it."""
        ...

    def abandon(self, peer: HostId, vm: VmId, point: PointId) -> None:
        """Throw away a point under construction."""
        ...

    def fingerprint(  # noqa: PLR0917 - in the order of the request's path
        self, peer: HostId, vm: VmId, point: PointId, target: DiskTarget, key: int, first_block: int, blocks: int
    ) -> Hashes:
        """Tell the keyed hashes of a range of blocks that a published point holds; may take minutes."""
        ...

    def runs_here(self, peer: HostId, vm: VmId) -> RunsHere:
        """Tell whether a VM of the caller's relationship runs here, and its epoch."""
        ...

    def reverse(self, peer: HostId, request: ReverseRequest) -> Position:
        """Become the replica of a VM that was failed over to the caller; the old disks are its base."""
        ...
