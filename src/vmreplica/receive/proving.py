"""What a replica does for the proof of its points. Implements ``peer.proving.ProvingService``."""

from collections.abc import Callable

from vmreplica.fingerprint import Hashes, sum_blocks
from vmreplica.model.ids import DiskTarget, HostId, PointId, VmId
from vmreplica.model.verified import Verified
from vmreplica.peer.proving import READING_LEASE, REGION_BLOCKS, RegionSums
from vmreplica.receive.leases import Leases
from vmreplica.receive.receiver import own_replica
from vmreplica.repository import Repository

#: Hashes blocks of a disk as ``Receiver.fingerprint`` does.
ReadHashes = Callable[[HostId, VmId, PointId, DiskTarget, int, int, int], Hashes]


class Proving:
    """Authorises by owner. Thread-safe.

    Args:
        repository: what is held here.
        fingerprint: hashes blocks of a disk.
        released: called when a point is no longer read: it may be folded now.
        lease: seconds that a point stays as it is after the last request to keep it so.
    """

    def __init__(
        self,
        repository: Repository,
        fingerprint: ReadHashes,
        released: Callable[[VmId], None],
        *,
        lease: float = READING_LEASE,
    ) -> None:
        self._repository = repository
        self._fingerprint = fingerprint
        self._leases = Leases(lease, released)

    def keep_still(self, peer: HostId, vm: VmId, point: PointId) -> None:
        """Let nobody change the files of a point for some minutes; asked again, for as long again.

        Raises:
            Refused: ``not-your-replica``.
            NotFound: ``point-unknown``.
        """
        self._leases.renew(
            own_replica(self._repository, peer, vm), point, "the primary compares it with the VM's disks"
        )

    def let_go(self, peer: HostId, vm: VmId, point: PointId) -> None:
        """The point may be changed again.

        Raises:
            Refused: ``not-your-replica``.
        """
        own_replica(self._repository, peer, vm)
        self._leases.end(vm, point)

    def sums(  # noqa: PLR0917 - in the order of the request's path
        self, peer: HostId, vm: VmId, point: PointId, target: DiskTarget, key: int, first_block: int, blocks: int
    ) -> RegionSums:
        """Sum up blocks of a disk as a published point holds it, one sum per 512 MiB.

        Raises:
            VmReplicaError: as ``Receiver.fingerprint``.
        """
        hashes = self._fingerprint(peer, vm, point, target, key, first_block, blocks)
        return region_sums(first_block, hashes, key)

    def keep_verdict(self, peer: HostId, vm: VmId, verified: Verified) -> None:
        """Keep with a point what verifying it came to; what is wrong is not used, and asked for again.

        Raises:
            Refused: ``not-your-replica``.
            NotFound: ``point-unknown``: it was dropped meanwhile.
            NoSpace: the store is full.
        """
        own_replica(self._repository, peer, vm).comparisons.keep(verified)


def region_sums(first: int, hashes: Hashes, key: int) -> RegionSums:
    """Sum up hashes, one sum per 512 MiB from the first block on."""
    starts = range(0, len(hashes), REGION_BLOCKS)
    sums = (sum_blocks(first + start, hashes[start : start + REGION_BLOCKS], key).text for start in starts)
    return RegionSums(sums=tuple(sums), used=int((hashes != 0).sum()))
