"""Real hosts on loopback: an identity, a book and a TLS server each, and a small service that keeps what it is sent."""

# ruff: noqa: D102 - the methods are those of PeerService, described there

import asyncio
import contextlib
import dataclasses
import datetime as dt
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Sequence
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, Self

import numpy as np
from point_kit import make_opening, make_summary

import vmreplica
from vmreplica.model.errors import NotFound, VmReplicaError
from vmreplica.model.export import AwaitedBase
from vmreplica.model.point import (
    DiskClosing,
    HeldSegments,
    IncomingPoint,
    PointClosing,
    PointOpening,
    PointSummary,
    Position,
)
from vmreplica.model.policy import ReplicaOffer
from vmreplica.model.report import PointsReport
from vmreplica.peer.book import PeerBook
from vmreplica.peer.client import PeerClient
from vmreplica.peer.hashes import Hashes
from vmreplica.peer.identity import Identity, utc_now
from vmreplica.peer.pairing import Invitations, join
from vmreplica.peer.server import PeerServer, make_app, start_server
from vmreplica.peer.wire import Hello, ReverseRequest, RunsHere

POINT = "20261122T100000Z-00c0ffee"
NOW = dt.datetime(2026, 11, 22, 10, 0, tzinfo=dt.UTC)

OFFER = ReplicaOffer(name="web", interval=300, keep=24, epoch=0, disk_bytes=1 << 30)
OPENING = make_opening(POINT, {"vda": 1 << 30}, instant=NOW)
CLOSING = PointClosing(disks=(DiskClosing(target="vda", segments=1, data_end=65536),), guest_bytes=1)
SUMMARY = make_summary(POINT, {"vda": 1 << 30}, instant=NOW, guest_bytes=1, wire_bytes=1, stored_bytes=1)


class KeepingService:
    """Keeps everything in memory, per peer, and answers for what a peer offered itself."""

    def __init__(self, host: "Host") -> None:
        self.host = host
        self.offers: dict[tuple[str, str], ReplicaOffer] = {}
        self.segments: dict[tuple[str, str, str, str, int], bytes] = {}
        self.openings: list[PointOpening] = []
        self.closed: list[tuple[str, str, str, PointClosing]] = []
        self.removed: list[tuple[str, str, bool]] = []
        self.asked: list[tuple[str, str, int, int, int]] = []
        #: Each block's hash is its number times this.
        self.stride = 1
        self.abandoned: list[tuple[str, str, str]] = []
        self.awaited: list[tuple[str, AwaitedBase]] = []
        self.given_up: list[tuple[str, str]] = []
        self.reversed: list[tuple[str, ReverseRequest]] = []
        self.clock_ahead = dt.timedelta()
        self.free_bytes = 1 << 40

    def hello(self) -> Hello:
        return Hello(
            name=self.host.name,
            host_id=self.host.identity.host_id,
            version=vmreplica.__version__,
            now=utc_now() + self.clock_ahead,
            free_bytes=self.free_bytes,
        )

    def offer(self, peer: str, vm: str, offer: ReplicaOffer) -> Position:
        self.offers[peer, vm] = offer
        return self.position(peer, vm)

    def position(self, peer: str, vm: str) -> Position:
        self.known(peer, vm)
        return Position(vm=vm, state="replicating", epoch=0, latest=None, incoming=None, free_bytes=1)

    def remove(self, peer: str, vm: str, *, delete_copy: bool) -> None:
        self.removed.append((peer, vm, delete_copy))

    def points(self, peer: str, vm: str) -> PointsReport:
        return PointsReport(vm=vm, name=self.known(peer, vm).name, points=(SUMMARY,))

    def open_point(self, peer: str, opening: PointOpening) -> IncomingPoint:
        self.openings.append(opening)
        numbers = sorted(key[4] for key in self.segments if key[:3] == (peer, opening.vm, opening.point))
        ranges = tuple((number, number + 1) for number in numbers)
        return IncomingPoint(point=opening.point, held=(HeldSegments(target="vda", ranges=ranges),))

    def put_segment(self, peer: str, vm: str, point: str, target: str, number: int, body: memoryview) -> None:  # noqa: PLR0917
        self.segments[peer, vm, point, target, number] = bytes(body)

    def complete(self, peer: str, vm: str, point: str, closing: PointClosing) -> PointSummary:
        self.closed.append((peer, vm, point, closing))
        return SUMMARY

    def await_base(self, peer: str, base: AwaitedBase) -> PointSummary:
        self.awaited.append((peer, base))
        return SUMMARY

    def give_up_base(self, peer: str, vm: str) -> None:
        self.given_up.append((peer, vm))

    def reverse(self, peer: str, request: ReverseRequest) -> Position:
        self.reversed.append((peer, request))
        return Position(
            vm=request.vm, state="replicating", epoch=request.epoch, latest=None, incoming=None, free_bytes=1
        )

    def abandon(self, peer: str, vm: str, point: str) -> None:
        self.abandoned.append((peer, vm, point))

    def fingerprint(  # noqa: PLR0917
        self, peer: str, vm: str, point: str, target: str, key: int, first_block: int, blocks: int
    ) -> Hashes:
        self.known(peer, vm)
        self.asked.append((point, target, key, first_block, blocks))
        return np.arange(first_block, first_block + blocks, dtype=np.uint64) * np.uint64(self.stride)

    def runs_here(self, peer: str, vm: str) -> RunsHere:
        self.known(peer, vm)
        return RunsHere(vm=vm, runs=True, epoch=3)

    def known(self, peer: str, vm: str) -> ReplicaOffer:
        if (peer, vm) not in self.offers:
            raise NotFound("replica-unknown", f"no replica of {vm} belongs to you")
        return self.offers[peer, vm]


@dataclasses.dataclass
class Clock:
    """A clock that a test moves; it starts at the present."""

    ahead: dt.timedelta = dt.timedelta()

    def __call__(self) -> dt.datetime:
        return utc_now() + self.ahead


class Host:
    """A host with its state in a directory; call ``serve`` to let it answer."""

    def __init__(self, state: Path, name: str, make_service: "Callable[[Host], Any]" = KeepingService) -> None:
        state.mkdir(parents=True, exist_ok=True)
        self.state = state
        self.name = name
        self.clock = Clock()
        self.identity = Identity.load_or_create(state / "pki", name)
        self.book = PeerBook(state / "peers.json")
        self.invitations = Invitations(state / "invitations.json", self.clock)
        self.service = make_service(self)
        self.address = ""
        self.idle_limit = 30.0

    @contextlib.contextmanager
    def serve(self, port: int = 0) -> Iterator["Host"]:
        """Answer on a port of loopback (0: a free one) until the block ends."""
        started: list[tuple[PeerServer, asyncio.Event]] = []
        ready = threading.Event()

        async def run() -> None:
            app = make_app(
                self.identity, self.book, self.invitations, ["127.0.0.1:1"], self.service, idle_limit=self.idle_limit
            )
            server = await start_server(app, self.identity, "127.0.0.1", port, grace=1.0)
            stop = asyncio.Event()
            started.append((server, stop))
            self.loop = asyncio.get_running_loop()
            ready.set()
            await stop.wait()
            await server.stop()

        thread = threading.Thread(target=lambda: asyncio.run(run()), name=f"server-{self.name}")
        thread.start()
        try:
            assert ready.wait(10)
            self.address = f"127.0.0.1:{started[0][0].port}"
            yield self
        finally:
            self.loop.call_soon_threadsafe(started[0][1].set)
            thread.join(10)
            assert not thread.is_alive()

    def invite(self, *addresses: str, for_name: str | None = None) -> str:
        """Make a token for this host at its address, or at others."""
        return self.invitations.invite(self.identity, addresses or (self.address,), for_name).token

    def joins(self, other: "Host") -> None:
        """Pair with a serving host."""
        join(other.invite(), self.identity, self.book, [self.address or "127.0.0.1:1"])

    def client_of(self, other: "Host", **limits: float) -> PeerClient:
        """Make a client of a paired host."""
        return PeerClient(self.identity, self.book.by_id(other.identity.host_id), **limits)


def raw_connection(host: Host, context: ssl.SSLContext | None = None, *, named: bool = True) -> HTTPConnection:
    """Connect to a host's server without our client: for requests that it would never send."""
    if context is None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    name, port = host.address.split(":")
    connection = HTTPConnection(name, int(port))
    raw = socket.create_connection((name, int(port)), 10)
    connection.sock = context.wrap_socket(raw, server_hostname=host.identity.host_id if named else None)
    return connection


def code_of(act: Callable[..., object], *args: Any, **kwargs: Any) -> str:
    """Tell the code of the error that a call raises."""
    try:
        act(*args, **kwargs)
    except VmReplicaError as error:
        return error.code
    return "no error"


class Relay:
    """A wire between a client and a server that a test can cut.

    Args:
        target: address of the server.
        cuts: for each connection in turn, the bytes towards the server that still pass; None and later ones: all.
    """

    def __init__(self, target: str, cuts: Sequence[int | None] = ()) -> None:
        self._target = target
        self._cuts = list(cuts)
        self.connections = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._threads: list[threading.Thread] = []
        self._open: list[socket.socket] = []
        self._start(self._accept)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(10)

    def cut(self) -> None:
        """Cut all connections that exist now."""
        doomed, self._open = self._open, []
        for end in doomed:
            _end(end)

    def _start(self, act: Callable[..., None], *args: Any) -> None:
        thread = threading.Thread(target=act, args=args, name="relay", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            limit = self._cuts.pop(0) if self._cuts else None
            self.connections += 1
            name, port = self._target.split(":")
            far = socket.create_connection((name, int(port)))
            self._open += [near, far]
            self._start(self._carry, near, far, limit)

    def _carry(self, near: socket.socket, far: socket.socket, limit: int | None) -> None:
        with near, far:
            one = threading.Thread(target=_pump, args=(near, far, limit), daemon=True)
            two = threading.Thread(target=_pump, args=(far, near, None), daemon=True)
            one.start()
            two.start()
            one.join()
            two.join()


def _pump(source: socket.socket, sink: socket.socket, limit: int | None) -> None:
    passed = 0
    try:
        while data := source.recv(65536):
            kept = data if limit is None else data[: limit - passed]
            sink.sendall(kept)
            passed += len(kept)
            if limit is not None and passed >= limit:
                break
    except OSError:
        pass
    for end in (source, sink):
        _end(end)


def _end(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
