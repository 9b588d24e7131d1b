"""The sending end of the data plane: the peer's service as an object."""

import contextlib
import copy
import ssl
import threading
from typing import Final, Self, TypeVar

from pydantic import ValidationError

from vmreplica.model.body import Body, Buffers
from vmreplica.model.errors import BadRequest, Problem, Unreachable, from_problem
from vmreplica.model.export import AwaitedBase
from vmreplica.model.ids import DiskTarget, PointId, VmId
from vmreplica.model.point import IncomingPoint, PointClosing, PointOpening, PointSummary, Position
from vmreplica.model.policy import ReplicaOffer
from vmreplica.model.report import FailoverPlan, PeerTest, PointsReport, TaskReport
from vmreplica.model.shape import Shape
from vmreplica.model.units import format_size
from vmreplica.model.verified import Verified
from vmreplica.peer.book import Peer
from vmreplica.peer.hashes import Hashes, unpack_hashes
from vmreplica.peer.identity import Identity, trusting_only
from vmreplica.peer.line import Line
from vmreplica.peer.measuring import Greeting, greet, measure
from vmreplica.peer.planned import PlannedWish, Readiness, ReadinessQuestion, StartedThere, StartWish, Withdrawal
from vmreplica.peer.proving import RegionSums
from vmreplica.peer.transport import NOTHING, Answer, Connections
from vmreplica.peer.wire import MAX_BODY, PREFIX, Hello, ReverseRequest, RunsHere

T = TypeVar("T", bound=Shape)

CONNECT_TIMEOUT: Final = 5.0
READ_TIMEOUT: Final = 60.0
#: A segment is answered after what waits in the socket's buffer crossed a slow line and was made durable.
SEGMENT_TIMEOUT: Final = 120.0
COMPLETE_TIMEOUT: Final = 900.0
#: One request reads up to 4 GiB of a chain.
FINGERPRINT_TIMEOUT: Final = 900.0

#: Starting a VM: libvirt may wait for locks, and QEMU for its memory.
START_TIMEOUT: Final = 300.0

_ERROR: Final = 400


class PeerClient:
    """A paired host's service, over the network. Thread-safe; close it when done.

    Every method raises Unreachable, TimedOut, Refused (certificates) or what the peer answered, and may be called again
    after any of them: all requests are idempotent. Methods are those of ``PeerService`` without the peer.

    Args:
        identity: of this host.
        peer: the paired host.
        connect_timeout: seconds for connecting to one address.
        read_timeout: seconds for an ordinary answer.
    """

    def __init__(
        self,
        identity: Identity,
        peer: Peer,
        *,
        connect_timeout: float = CONNECT_TIMEOUT,
        read_timeout: float = READ_TIMEOUT,
    ) -> None:
        self.peer = peer
        self._identity = identity
        self._timeout = read_timeout
        self._lock = threading.Lock()
        self._generation = -1
        self._tls: ssl.SSLContext | None = None
        self._line: Line | None = None
        self._connections = Connections(
            name=peer.name,
            addresses=peer.addresses,
            context=self._context,
            anonymous=lambda: trusting_only(peer.ca_pem),
            server_name=peer.host_id,
            connect_timeout=connect_timeout,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def on(self, line: Line) -> Self:
        """Give the same client for one caller, whose requests end when it is halted and whose segments are paced."""
        other = copy.copy(self)
        other._line = line  # noqa: SLF001 - of the same class
        return other

    def close(self) -> None:
        """Close idle connections; the client can still be used, and opens new ones."""
        self._connections.close()

    def hello(self) -> Hello:
        """Ask who the peer is and how it stands."""
        return self._ask(Hello, "GET", "/hello")

    def offer(self, vm: VmId, offer: ReplicaOffer) -> Position:
        """Ask the peer to accept a relationship, or a change of its policy."""
        return self._ask(Position, "PUT", f"/replicas/{vm}", offer)

    def position(self, vm: VmId) -> Position:
        """Ask what the peer holds of a VM."""
        return self._ask(Position, "GET", f"/replicas/{vm}")

    def remove(self, vm: VmId, *, delete_copy: bool) -> None:
        """Ask the peer to dissolve a relationship."""
        self._exchange("DELETE", f"/replicas/{vm}?copy={'delete' if delete_copy else 'keep'}")

    def reverse(self, request: ReverseRequest) -> Position:
        """Ask the peer, the old primary of a VM, to become its replica with its old disks; may take minutes."""
        return self._ask(Position, "POST", f"/replicas/{request.vm}/reverse", request, timeout=COMPLETE_TIMEOUT)

    def points(self, vm: VmId) -> PointsReport:
        """List the recovery points at the peer, newest first."""
        return self._ask(PointsReport, "GET", f"/replicas/{vm}/points")

    def open_point(self, opening: PointOpening) -> IncomingPoint:
        """Begin a point, or learn which of its segments the peer holds."""
        return self._ask(IncomingPoint, "PUT", f"/replicas/{opening.vm}/points/{opening.point}", opening)

    def put_segment(self, vm: VmId, point: PointId, target: DiskTarget, number: int, body: Body) -> None:
        """Send a segment; it is durable at the peer when this returns.

        Raises:
            BadRequest: it is larger than a segment can be.
        """
        if body.size > MAX_BODY:
            text = f"segment {number} of {target}, point {point}, has {format_size(body.size)}"
            raise BadRequest("body-too-large", f"{text}; the limit is {format_size(MAX_BODY)}")
        path = f"/replicas/{vm}/points/{point}/{target}/{number}"
        with self._turn():
            timeout = max(self._timeout, SEGMENT_TIMEOUT)
            self._exchange("PUT", path, body, "application/octet-stream", timeout=timeout, line=self._line)

    def _turn(self) -> contextlib.AbstractContextManager[None]:
        line = self._line
        return contextlib.nullcontext() if line is None or line.pace is None else line.pace.turn(line.halt)

    def complete(
        self, vm: VmId, point: PointId, closing: PointClosing, *, timeout: float = COMPLETE_TIMEOUT
    ) -> PointSummary:
        """Ask the peer to publish a point whose segments it holds; may take minutes."""
        path = f"/replicas/{vm}/points/{point}/complete"
        return self._ask(PointSummary, "POST", path, closing, timeout=timeout)

    def await_base(self, base: AwaitedBase) -> PointSummary:
        """Tell the peer that a point travels to it in an export, and that deltas will stand on it."""
        opening = base.opening
        return self._ask(PointSummary, "POST", f"/replicas/{opening.vm}/points/{opening.point}/await", base)

    def give_up_base(self, vm: VmId) -> None:
        """Tell the peer that an export is lost: it forgets the point, and what stands on it."""
        self._exchange("DELETE", f"/replicas/{vm}/awaited")

    def abandon(self, vm: VmId, point: PointId) -> None:
        """Ask the peer to throw away a point under construction."""
        self._exchange("DELETE", f"/replicas/{vm}/points/{point}")

    def fingerprint(  # noqa: PLR0917 - in the order of the request's path
        self, vm: VmId, point: PointId, target: DiskTarget, key: int, first_block: int, blocks: int
    ) -> Hashes:
        """Ask for the keyed hashes of a range of blocks that a published point holds; may take minutes.

        Args:
            vm: whose disk.
            point: published at the peer.
            target: the disk.
            key: of the hashes, 64 bits.
            first_block: where to begin, in blocks of 4096 bytes.
            blocks: how many, at most MAX_HASHES.
        """
        query = f"key={key:x}&first={first_block}&blocks={blocks}"
        path = f"/replicas/{vm}/points/{point}/fingerprint/{target}?{query}"
        answer = self._exchange("GET", path, timeout=max(self._timeout, FINGERPRINT_TIMEOUT))
        try:
            return unpack_hashes(answer.body, blocks)
        except ValueError:
            raise _unreadable(answer, self.peer.name) from None

    def keep_still(self, vm: VmId, point: PointId) -> None:
        """Ask that a point stays as it is for some minutes, while it is compared; again in time, to go on."""
        self._exchange("PUT", f"/replicas/{vm}/points/{point}/reading")

    def let_go(self, vm: VmId, point: PointId) -> None:
        """Tell that a point is not being compared any more."""
        self._exchange("DELETE", f"/replicas/{vm}/points/{point}/reading")

    def sums(  # noqa: PLR0917 - in the order of the request's path
        self, vm: VmId, point: PointId, target: DiskTarget, key: int, first_block: int, blocks: int
    ) -> RegionSums:
        """Ask for the sums of blocks, one per 512 MiB; parameters and time as of ``fingerprint``."""
        query = f"key={key:x}&first={first_block}&blocks={blocks}"
        path = f"/replicas/{vm}/points/{point}/sums/{target}?{query}"
        return self._ask(RegionSums, "GET", path, timeout=max(self._timeout, FINGERPRINT_TIMEOUT))

    def keep_verdict(self, vm: VmId, verified: Verified) -> None:
        """Ask that what verifying a point came to is kept with it."""
        body = Buffers(verified.model_dump_json().encode())
        self._exchange("PUT", f"/replicas/{vm}/points/{verified.point}/verified", body, "application/json")

    def runs_here(self, vm: VmId) -> RunsHere:
        """Ask whether a VM of our relationship runs at the peer, and its epoch there."""
        return self._ask(RunsHere, "GET", f"/vms/{vm}")

    def readiness(self, vm: VmId, question: ReadinessQuestion) -> Readiness:
        """Ask whether the peer, a replica, could run a VM, and reaches us."""
        return self._ask(Readiness, "POST", f"/replicas/{vm}/planned/readiness", question)

    def start_planned(self, vm: VmId, wish: StartWish) -> StartedThere:
        """Ask the peer, a replica, to start a VM from a point; may take minutes."""
        return self._ask(StartedThere, "POST", f"/replicas/{vm}/planned/start", wish, timeout=START_TIMEOUT)

    def withdraw(self, vm: VmId, withdrawal: Withdrawal) -> Position:
        """Ask the peer, a replica, never to start a VM for what was asked until now."""
        return self._ask(Position, "POST", f"/replicas/{vm}/planned/withdraw", withdrawal, timeout=START_TIMEOUT)

    def begin_planned(self, vm: VmId, wish: PlannedWish) -> TaskReport:
        """Ask the peer, a primary, for a planned failover to us."""
        return self._ask(TaskReport, "POST", f"/vms/{vm}/planned", wish)

    def planned_progress(self, vm: VmId) -> TaskReport:
        """Ask the peer, which was a primary when it began, how its planned failover to us is doing."""
        return self._ask(TaskReport, "GET", f"/vms/{vm}/planned")

    def plan_planned(self, vm: VmId, wish: PlannedWish) -> FailoverPlan:
        """Ask the peer, a primary, what a planned failover to us would do."""
        return self._ask(FailoverPlan, "POST", f"/vms/{vm}/planned/plan", wish)

    def measure(self) -> PeerTest:
        """Test the connection: certificate, clocks, round trip, throughput, room. Takes some seconds."""
        return measure(self.peer, self._ask_hello, self._sink)

    def greet(self) -> Greeting:
        """Ask who the peer is, and look at its certificate and clock; moves next to nothing."""
        return greet(self._ask_hello)

    def _ask_hello(self) -> tuple[Hello, Answer]:
        answer = self._exchange("GET", "/hello")
        return read_answer(Hello, answer, self.peer.name), answer

    def _sink(self, body: Body) -> None:
        self._exchange("PUT", "/sink", body, "application/octet-stream")

    def _ask(
        self, shape: type[T], method: str, path: str, body: Shape | None = None, *, timeout: float | None = None
    ) -> T:
        sent = Buffers(body.model_dump_json().encode()) if body else NOTHING
        answer = self._exchange(method, path, sent, "application/json" if body else "", timeout=timeout)
        return read_answer(shape, answer, self.peer.name)

    def _exchange(
        self,
        method: str,
        path: str,
        body: Body = NOTHING,
        content_type: str = "",
        *,
        timeout: float | None = None,
        line: Line | None = None,
    ) -> Answer:
        # What is no segment is small: it ends with its caller too, but is not held back.
        free = None if self._line is None else Line(self._line.halt)
        answer = self._connections.exchange(
            method, PREFIX + path, body, content_type=content_type, timeout=timeout or self._timeout, line=line or free
        )
        return require_success(answer, self.peer.name)

    def _context(self) -> ssl.SSLContext:
        with self._lock:
            if self._tls is None or self._generation != self._identity.generation:
                self._generation = self._identity.generation
                self._tls = self._identity.client_context(self.peer.ca_pem)
            return self._tls


def require_success(answer: Answer, name: str) -> Answer:
    """Pass on an answer that is no error.

    Raises:
        VmReplicaError: the error that the peer answered.
        Unreachable: what answers speaks another language.
    """
    if answer.status < _ERROR:
        return answer
    try:
        problem = Problem.model_validate_json(answer.body)
    except ValidationError:
        raise _unreadable(answer, name) from None
    raise from_problem(problem)


def read_answer(shape: type[T], answer: Answer, name: str) -> T:
    """Read the JSON that a peer answered.

    Raises:
        Unreachable: it is not that shape.
    """
    try:
        return shape.model_validate_json(answer.body)
    except ValidationError:
        raise _unreadable(answer, name) from None


def _unreadable(answer: Answer, name: str) -> Unreachable:
    return Unreachable(
        "peer-answer-unreadable",
        f"{name} at {answer.address} answers with something else than was asked for (status {answer.status})",
        hint="both hosts need the same version of vmreplica: vmreplica peer test",
    )
