"""The receiving end of the data plane: requests of paired hosts to calls of the service, errors to problem+json."""

import asyncio
import concurrent.futures
import functools
import weakref
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Final, ParamSpec, TypeVar

import structlog
from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from vmreplica.model.errors import BadRequest, Internal, NotFound, VmReplicaError
from vmreplica.model.export import AwaitedBase
from vmreplica.model.ids import HostId
from vmreplica.model.point import PointClosing, PointOpening
from vmreplica.model.policy import ReplicaOffer
from vmreplica.model.shape import Shape
from vmreplica.peer import params
from vmreplica.peer.access import Access
from vmreplica.peer.bodies import IDLE_LIMIT, MAX_BODIES, BodySlots, discard, read_shape
from vmreplica.peer.book import Peer, PeerBook
from vmreplica.peer.hashes import pack_hashes
from vmreplica.peer.identity import Identity
from vmreplica.peer.listening import BOOK, SEEN, PeerServer, start_server
from vmreplica.peer.pairing import Invitations, accept
from vmreplica.peer.planned import PlannedService, add_routes
from vmreplica.peer.proving import ProvingService
from vmreplica.peer.proving import add_routes as add_proving
from vmreplica.peer.service import PeerService
from vmreplica.peer.wire import MAX_BODY, MAX_JSON, MAX_PAIR, MAX_SINK, PREFIX, PairRequest, ReverseRequest

__all__ = ["PeerServer", "make_app", "start_server"]

_log = structlog.get_logger(__name__)
_P = ParamSpec("_P")
_R = TypeVar("_R")

#: Threads for calls without large bodies; one may take minutes (completing a point).
_CALLS: Final = 8
#: Threads for reading whole disks: each keeps a processor and the store busy for a long time, other calls go on.
_READS: Final = 2
_REPLICA: Final = PREFIX + "/replicas/{vm}"
_POINT: Final = _REPLICA + "/points/{point}"
#: What a host that is not paired yet may ask.
_OPEN: Final = frozenset({f"{PREFIX}/ca", f"{PREFIX}/pair"})
_CALLER: Final = web.RequestKey("caller", Peer)


def make_app(
    identity: Identity,
    book: PeerBook,
    invitations: Invitations,
    addresses: Sequence[str],
    service: PeerService,
    *,
    idle_limit: float = IDLE_LIMIT,
    planned: PlannedService | None = None,
    proving: ProvingService | None = None,
) -> web.Application:
    """Make the application that ``start_server`` serves.

    Args:
        identity: of this host.
        book: the hosts that may call; changes count from the next request on.
        invitations: what a host that wants to be paired must show.
        addresses: where peers reach this host, told to those who join.
        service: what is done for peers.
        idle_limit: seconds without a byte before the sender of a segment is given up.
        planned: what is done in planned failovers; None: such requests are unknown.
        proving: what is done for the proof of points; None: such requests are unknown.
    """
    app = web.Application(middlewares=[_problems, _authorise(Access(book))])
    app[BOOK] = book
    app[SEEN] = weakref.WeakSet()
    pool = _Pool()
    app.cleanup_ctx.append(pool.closing)
    _Pairing(identity, book, invitations, tuple(addresses), pool).add_to(app)
    _Routes(service, pool, BodySlots(idle_limit)).add_to(app)
    if planned is not None:
        add_routes(app, planned, pool.call, _caller)
    if proving is not None:
        add_proving(app, proving, pool.call, pool.read, _caller)
    return app


class _Pool:
    """Threads in which the blocking service is called: few, and bodies never wait behind long calls."""

    def __init__(self) -> None:
        self._calls = concurrent.futures.ThreadPoolExecutor(_CALLS, "peer-call")
        self._reads = concurrent.futures.ThreadPoolExecutor(_READS, "peer-read")
        self._bodies = concurrent.futures.ThreadPoolExecutor(MAX_BODIES, "peer-body")

    async def call(self, act: Callable[_P, _R], *args: _P.args, **kwargs: _P.kwargs) -> _R:
        return await self._run(self._calls, functools.partial(act, *args, **kwargs))

    async def read(self, act: Callable[[], _R]) -> _R:
        return await self._run(self._reads, act)

    async def store(self, act: Callable[_P, _R], *args: _P.args, **kwargs: _P.kwargs) -> _R:
        return await self._run(self._bodies, functools.partial(act, *args, **kwargs))

    async def closing(self, _app: web.Application) -> AsyncIterator[None]:
        yield
        for pool in (self._calls, self._reads, self._bodies):
            await asyncio.to_thread(pool.shutdown, wait=True, cancel_futures=True)

    @staticmethod
    async def _run(pool: concurrent.futures.Executor, act: Callable[[], _R]) -> _R:
        return await asyncio.get_running_loop().run_in_executor(pool, act)


class _Pairing:
    """What a host may ask before it is paired."""

    def __init__(
        self, identity: Identity, book: PeerBook, invitations: Invitations, addresses: tuple[str, ...], pool: _Pool
    ) -> None:
        self._identity = identity
        self._accept = functools.partial(accept, identity, book, invitations, addresses)
        self._pool = pool

    def add_to(self, app: web.Application) -> None:
        app.router.add_get(f"{PREFIX}/ca", self._ca)
        app.router.add_post(f"{PREFIX}/pair", self._pair)

    async def _ca(self, _request: web.Request) -> web.Response:
        return web.Response(text=self._identity.ca_pem, content_type="application/x-pem-file")

    async def _pair(self, request: web.Request) -> web.Response:
        wanted = await read_shape(request, PairRequest, MAX_PAIR)
        answer = await self._pool.call(self._accept, wanted)
        _log.info("host paired", peer=wanted.name, remote=request.remote)
        return _json(answer)


class _Routes:
    """Requests of paired hosts, each one call of the service."""

    def __init__(self, service: PeerService, pool: _Pool, slots: BodySlots) -> None:
        self._service = service
        self._pool = pool
        self._slots = slots

    def add_to(self, app: web.Application) -> None:
        app.add_routes(
            [
                web.get(f"{PREFIX}/hello", self._hello),
                web.put(f"{PREFIX}/sink", self._sink),
                web.get(f"{PREFIX}/vms/{{vm}}", self._runs_here),
                web.put(_REPLICA, self._offer),
                web.get(_REPLICA, self._position),
                web.delete(_REPLICA, self._remove),
                web.get(f"{_REPLICA}/points", self._points),
                web.put(_POINT, self._open_point),
                web.delete(_POINT, self._abandon),
                web.post(f"{_REPLICA}/reverse", self._reverse),
                web.post(f"{_POINT}/complete", self._complete),
                web.post(f"{_POINT}/await", self._await_base),
                web.delete(f"{_REPLICA}/awaited", self._give_up_base),
                web.get(f"{_POINT}/fingerprint/{{target}}", self._fingerprint),
                web.put(f"{_POINT}/{{target}}/{{number}}", self._put_segment),
            ]
        )

    async def _hello(self, _request: web.Request) -> web.Response:
        return _json(await self._pool.call(self._service.hello))

    async def _sink(self, request: web.Request) -> web.Response:
        await discard(request, MAX_SINK)
        return _done()

    async def _runs_here(self, request: web.Request) -> web.Response:
        vm = params.vm(request)
        return _json(await self._pool.call(self._service.runs_here, _caller(request), vm))

    async def _offer(self, request: web.Request) -> web.Response:
        vm = params.vm(request)
        offer = await read_shape(request, ReplicaOffer, MAX_JSON)
        return _json(await self._pool.call(self._service.offer, _caller(request), vm, offer))

    async def _position(self, request: web.Request) -> web.Response:
        vm = params.vm(request)
        return _json(await self._pool.call(self._service.position, _caller(request), vm))

    async def _remove(self, request: web.Request) -> web.Response:
        vm, fate = params.vm(request), params.copy_fate(request)
        await self._pool.call(self._service.remove, _caller(request), vm, delete_copy=fate == "delete")
        return _done()

    async def _reverse(self, request: web.Request) -> web.Response:
        vm = params.vm(request)
        wish = await read_shape(request, ReverseRequest, MAX_JSON)
        if wish.vm != vm:
            raise BadRequest("body-invalid", f"a request about {wish.vm} was sent to the address of {vm}")
        return _json(await self._pool.call(self._service.reverse, _caller(request), wish))

    async def _points(self, request: web.Request) -> web.Response:
        vm = params.vm(request)
        return _json(await self._pool.call(self._service.points, _caller(request), vm))

    async def _open_point(self, request: web.Request) -> web.Response:
        vm, point = params.vm(request), params.point(request)
        opening = await read_shape(request, PointOpening, MAX_JSON)
        if (opening.vm, opening.point) != (vm, point):
            raise BadRequest("body-invalid", f"the opening of {opening.point} was sent to the address of {point}")
        return _json(await self._pool.call(self._service.open_point, _caller(request), opening))

    async def _abandon(self, request: web.Request) -> web.Response:
        vm, point = params.vm(request), params.point(request)
        await self._pool.call(self._service.abandon, _caller(request), vm, point)
        return _done()

    async def _complete(self, request: web.Request) -> web.Response:
        vm, point = params.vm(request), params.point(request)
        closing = await read_shape(request, PointClosing, MAX_JSON)
        return _json(await self._pool.call(self._service.complete, _caller(request), vm, point, closing))

    async def _await_base(self, request: web.Request) -> web.Response:
        vm, point = params.vm(request), params.point(request)
        base = await read_shape(request, AwaitedBase, MAX_JSON)
        if (base.opening.vm, base.opening.point) != (vm, point):
            raise BadRequest("body-invalid", f"what {base.opening.point} shall be was sent to the address of {point}")
        return _json(await self._pool.call(self._service.await_base, _caller(request), base))

    async def _give_up_base(self, request: web.Request) -> web.Response:
        vm = params.vm(request)
        await self._pool.call(self._service.give_up_base, _caller(request), vm)
        return _done()

    async def _fingerprint(self, request: web.Request) -> web.Response:
        about = params.vm(request), params.point(request), params.target(request), params.hash_key(request)
        about_blocks = params.block_range(request)
        caller, service = _caller(request), self._service

        def hashes() -> bytes:
            return pack_hashes(service.fingerprint(caller, *about, *about_blocks))

        return web.Response(body=await self._pool.read(hashes), content_type="application/octet-stream")

    async def _put_segment(self, request: web.Request) -> web.Response:
        vm, point = params.vm(request), params.point(request)
        target, number = params.target(request), params.number(request)
        caller = _caller(request)
        async with self._slots.whole_body(request, caller, MAX_BODY) as body:
            await self._pool.store(self._service.put_segment, caller, vm, point, target, number, body)
        return _done()


def _caller(request: web.Request) -> HostId:
    return request[_CALLER].host_id


def _json(shape: Shape) -> web.Response:
    return web.Response(text=shape.model_dump_json(), content_type="application/json")


def _done() -> web.Response:
    return web.Response(status=204)


def _authorise(access: Access) -> Middleware:
    @web.middleware
    async def authorise(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.transport is not None:
            request.app[SEEN].add(request.transport)
        resource = request.match_info.route.resource
        if resource is None or resource.canonical not in _OPEN:
            request[_CALLER] = access.caller(request)
        return await handler(request)

    return authorise


@web.middleware
async def _problems(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except VmReplicaError as error:
        return _problem(request, error)
    except web.HTTPException as error:
        return _problem(request, _of_http(error, request))
    except (ConnectionError, web.RequestPayloadError) as error:
        # The sender is gone: nobody reads this answer, the log tells.
        return _problem(request, BadRequest("body-cut-short", f"the connection ended within the request: {error}"))
    except Exception:  # noqa: BLE001 - the edge of the process: a defect is logged here and named to the peer
        _log.exception("defect while answering a peer", **_who(request))
        return _problem(request, Internal("internal", "the peer met a defect of its own", hint="see the peer's log"))


def _of_http(error: web.HTTPException, request: web.Request) -> VmReplicaError:
    if error.status == web.HTTPNotFound.status_code:
        return NotFound("request-unknown", f"there is no {request.path} here", hint="both hosts need the same version")
    return BadRequest("request-invalid", f"{request.method} {request.path}: {error.reason}")


def _problem(request: web.Request, error: VmReplicaError) -> web.Response:
    problem = error.problem()
    _log.warning("request failed", code=error.code, status=error.status, message=error.message, **_who(request))
    return web.Response(status=error.status, text=problem.model_dump_json(), content_type="application/problem+json")


def _who(request: web.Request) -> dict[str, str | None]:
    caller = request.get(_CALLER)
    peer = caller.name if caller else None
    return {"peer": peer, "remote": request.remote, "method": request.method, "path": request.path}
