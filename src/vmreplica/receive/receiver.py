"""The receiving side of the protocol, on top of the repository. Implements ``peer.service.PeerService``."""

from collections.abc import Callable
from typing import Final

from vmreplica.fingerprint import Hashes
from vmreplica.model.errors import Conflict, NotFound, Refused
from vmreplica.model.export import AwaitedBase
from vmreplica.model.health import Reason
from vmreplica.model.ids import DiskTarget, HostId, PointId, VmId
from vmreplica.model.point import IncomingPoint, PointClosing, PointOpening, PointSummary, Position
from vmreplica.model.policy import ReplicaOffer
from vmreplica.model.report import PointsReport
from vmreplica.model.seed import SeedDisk
from vmreplica.model.states import RECEIVING, Event, State
from vmreplica.peer.wire import Hello, ReverseRequest, RunsHere
from vmreplica.receive.reading import hash_image
from vmreplica.receive.seeds import Answer, Seeds, judge_wish
from vmreplica.repository import Replica, Repository

_PAUSABLE: Final = frozenset({State.WAITING, State.REPLICATING})


class Receiver:
    """Authorises by owner, state and epoch. Thread-safe.

    Args:
        repository: what is held here.
        hello: tells who this host is.
        runs_here: tells whether a VM that this host protects runs here, if the asking host holds its replica.
        on_published: called after each publication, in the thread of the request.
        on_opened: called when a point is begun or found again, likewise.
        reasons: tells what health here has to say of the worth of a replica's points, for its primary.
        seeds: reads existing copies; None: nobody does, and an offer that names some is refused.
        reverse: makes this host, the old primary of a VM, its replica; None: it never was one.
    """

    def __init__(
        self,
        repository: Repository,
        *,
        hello: Callable[[], Hello],
        runs_here: Callable[[HostId, VmId], RunsHere],
        on_published: Callable[[VmId, PointSummary], None],
        on_opened: Callable[[VmId, PointId], None] = lambda _vm, _point: None,
        reasons: Callable[[Replica], tuple[Reason, ...]] = lambda _replica: (),
        seeds: Seeds | None = None,
        reverse: Callable[[HostId, ReverseRequest], Position] | None = None,
    ) -> None:
        self._repository = repository
        self._hello = hello
        self._runs_here = runs_here
        self._reverse = reverse
        self._on_published = on_published
        self._on_opened = on_opened
        self._reasons = reasons
        self._seeds = seeds

    def hello(self) -> Hello:
        """Tell who this host is and how it stands."""
        return self._hello()

    def offer(self, peer: HostId, vm: VmId, offer: ReplicaOffer) -> Position:
        """Accept a relationship, or a change of its policy.

        Raises:
            Refused: ``replica-of-another-host``; copies to begin with that may not be read.
            Conflict: ``stale-epoch``, ``replica-not-receiving``, ``replica-has-points``.
            NoSpace: the store's reserve is used up.
        """
        wish = self._judge(vm, offer.seed)
        replica = self._repository.create(vm, peer, offer)
        _take_epoch(replica, offer.epoch)
        state = replica.record.state
        if offer.paused and state in _PAUSABLE:
            replica.move(Event.PAUSE)
        elif not offer.paused and state is State.PAUSED:
            replica.move(Event.RESUME)
        elif state not in _PAUSABLE | {State.PAUSED}:
            raise _not_receiving(replica)
        if self._seeds is not None and wish == "drop":
            self._seeds.cancel(vm)
        if self._seeds is not None and wish == "begin" and offer.seed:
            self._seeds.begin(replica, offer.seed)
        return replica.position()

    def _judge(self, vm: VmId, seed: tuple[SeedDisk, ...] | None) -> Answer:
        """Look at copies in an offer before anything is made: a refusal leaves nothing behind."""
        if seed is None:
            return "keep"
        known = next((replica for replica in self._repository.replicas() if replica.record.vm == vm), None)
        wish = judge_wish(known, seed)
        if wish == "begin":
            if self._seeds is None:
                raise Refused("seeding-not-offered", "this host reads no existing copies", hint="--seed network")
            self._seeds.check(seed)
        return wish

    def position(self, peer: HostId, vm: VmId) -> Position:
        """Tell what is held of a VM.

        Raises:
            Refused: ``not-your-replica``.
        """
        replica = self._own(peer, vm)
        return replica.position().model_copy(update={"reasons": self._reasons(replica)})

    def remove(self, peer: HostId, vm: VmId, *, delete_copy: bool) -> None:
        """Dissolve a relationship: delete all points, or keep them and take no more.

        What does not exist, or belongs to another host, is gone for this one already.

        Raises:
            Conflict: ``replica-in-use``: the VM runs here on its replica.
        """
        try:
            replica = self._own(peer, vm)
        except Refused:
            return
        if self._seeds is not None:
            self._seeds.cancel(vm)
        if delete_copy:
            self._repository.remove(vm)
            return
        incoming = replica.position().incoming
        if incoming is not None:
            replica.abandon(incoming.point)
        if replica.record.state in _PAUSABLE:
            replica.move(Event.PAUSE)

    def points(self, peer: HostId, vm: VmId) -> PointsReport:
        """List recovery points, newest first.

        Raises:
            Refused: ``not-your-replica``.
        """
        return self._own(peer, vm).listing()

    def open_point(self, peer: HostId, opening: PointOpening) -> IncomingPoint:
        """Begin a point, or find it again with the segments it holds.

        Raises:
            Refused: ``not-your-replica``.
            Conflict: ``stale-epoch``, ``replica-not-receiving``, ``replica-seeding``, and those of
                ``Replica.open_point``.
            BadRequest, NoSpace: see ``Replica.open_point``.
        """
        replica = self._own(peer, opening.vm)
        _take_epoch(replica, opening.epoch)
        _require_receiving(replica)
        _require_no_seeding(replica, opening)
        rule = opening.app_consistent
        replica.update(name=opening.name, interval=opening.interval, keep=opening.keep, app_consistent=rule)
        incoming = replica.open_point(opening)
        self._on_opened(opening.vm, opening.point)
        return incoming

    def put_segment(  # noqa: PLR0917 - in the order of the request's path
        self, peer: HostId, vm: VmId, point: PointId, target: DiskTarget, number: int, body: memoryview
    ) -> None:
        """Make a segment durable.

        Raises:
            Refused: ``not-your-replica``.
            Conflict: ``replica-not-receiving``, and those of ``Replica.put_segment``.
            Corrupt, NotFound, NoSpace: see ``Replica.put_segment``.
        """
        replica = self._own(peer, vm)
        _require_receiving(replica)
        replica.put_segment(point, target, number, body)

    def complete(self, peer: HostId, vm: VmId, point: PointId, closing: PointClosing) -> PointSummary:
        """Publish a point whose segments are all here.

        Raises:
            Refused: ``not-your-replica``.
            Conflict: ``replica-not-receiving``, and those of ``Replica.complete``.
            BadRequest, Corrupt, NoSpace: see ``Replica.complete``.
        """
        replica = self._own(peer, vm)
        _require_receiving(replica)
        summary = replica.complete(point, closing)
        self._on_published(vm, summary)
        return summary

    def await_base(self, peer: HostId, base: AwaitedBase) -> PointSummary:
        """Take deltas on a point that travels in an export, from now on.

        Raises:
            Refused: ``not-your-replica``.
            Conflict: ``stale-epoch``, ``replica-not-receiving``, ``replica-has-points``.
            NoSpace: see ``Awaiting.accept``.
        """
        replica = self._own(peer, base.opening.vm)
        _take_epoch(replica, base.opening.epoch)
        _require_receiving(replica)
        replica.awaiting.accept(base)
        return next(point for point in replica.points() if point.point == base.opening.point)

    def give_up_base(self, peer: HostId, vm: VmId) -> None:
        """Await an exported point no longer, and remove what stands on it; harmless when none is awaited.

        Raises:
            Refused: ``not-your-replica``.
        """
        self._own(peer, vm).awaiting.give_up()

    def abandon(self, peer: HostId, vm: VmId, point: PointId) -> None:
        """Throw away a point under construction.

        Raises:
            Refused: ``not-your-replica``.
        """
        self._own(peer, vm).abandon(point)

    def fingerprint(  # noqa: PLR0917 - in the order of the request's path
        self, peer: HostId, vm: VmId, point: PointId, target: DiskTarget, key: int, first_block: int, blocks: int
    ) -> Hashes:
        """Hash blocks of a disk as a published point holds it; the point stays as it is meanwhile.

        Raises:
            Refused: ``not-your-replica``.
            NotFound: ``point-unknown`` or ``disk-unknown``.
            Conflict: ``base-awaited``: not before the export was imported.
            BadRequest, Corrupt, HypervisorError, TimedOut: see ``reading.hash_image``.
        """
        replica = self._own(peer, vm)
        _require_base(replica, point)
        image = replica.image(point, target)
        hold = replica.hold(point, "fingerprint", "the primary compares its disks with it", lasting=False)
        try:
            sizes = {disk.target: disk.size for disk in replica.point(point).disks}
            return hash_image(image, size=sizes[target], key=key, first_block=first_block, blocks=blocks)
        finally:
            replica.release(hold)

    def runs_here(self, peer: HostId, vm: VmId) -> RunsHere:
        """Tell whether a VM of the caller's relationship runs here, and its epoch."""
        return self._runs_here(peer, vm)

    def reverse(self, peer: HostId, request: ReverseRequest) -> Position:
        """Become the replica of a VM that was failed over to the caller.

        Raises:
            Refused: ``not-your-vm``: this host never protected it to the caller.
            VmReplicaError: see ``agent.adopting``.
        """
        if self._reverse is None:
            raise Refused("not-your-vm", f"this host does not protect {request.vm} to the calling host")
        return self._reverse(peer, request)

    def _own(self, peer: HostId, vm: VmId) -> Replica:
        """Give the replica of a VM if this host sends it; the same answer for a foreign one as for none."""
        return own_replica(self._repository, peer, vm)


def own_replica(repository: Repository, peer: HostId, vm: VmId) -> Replica:
    """Give the replica of a VM if this host sends it.

    Raises:
        Refused: ``not-your-replica``; the same for a foreign one as for none.
    """
    try:
        replica = repository.replica(vm)
    except NotFound:
        replica = None
    if replica is None or replica.record.owner != peer:
        raise Refused(
            "not-your-replica",
            f"this host holds no replica of {vm} that the calling host sends",
            hint="if the VM was migrated to the caller: `vmreplica hand-over VM --to PEER` on the replica's host; "
            "else protect it again: `vmreplica enable VM --to PEER`",
        )
    return replica


def _require_base(replica: Replica, point: PointId) -> None:
    """Require that a point can be read; one that is not known is somebody else's error."""
    if any(known.point == point and known.waits_for for known in replica.points()):
        raise Conflict(
            "base-awaited",
            f"point {point} of {replica.record.name} cannot be read yet: the export that it stands on is not imported",
            hint="on the replica: vmreplica import DIR",
            kind="transient",
        )


def _take_epoch(replica: Replica, epoch: int) -> None:
    record = replica.record
    if epoch < record.epoch:
        raise Conflict(
            "stale-epoch",
            f"{record.name} was failed over: this host is at epoch {record.epoch}, the caller at {epoch}",
            hint="decide which side survives before the VM is started or replicated there",
        )
    if epoch > record.epoch:
        replica.update(epoch=epoch)


def _require_receiving(replica: Replica) -> None:
    if replica.record.state not in RECEIVING:
        raise _not_receiving(replica)


def _require_no_seeding(replica: Replica, opening: PointOpening) -> None:
    """A point that comes while an existing copy is read would throw away what was read."""
    if replica.position().seeding is not None or opening.kind == "seed":
        raise Conflict(
            "replica-seeding",
            f"the replica of {opening.name} begins with an existing copy, which it reads itself",
            hint=f"`vmreplica status {opening.name}` shows how it goes; --seed network gives it up",
            kind="transient",
        )


def _not_receiving(replica: Replica) -> Conflict:
    record = replica.record
    hint = f"vmreplica resume {record.name}" if record.state is State.PAUSED else "vmreplica status, on the replica"
    return Conflict("replica-not-receiving", f"the replica of {record.name} is {record.state}", hint=hint)
