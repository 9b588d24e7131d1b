"""Proof of points: what a primary asks of the host that holds them, and how it is served."""

from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Final, Protocol

from aiohttp import web
from pydantic import Field, StringConstraints

from vmreplica.model.errors import BadRequest
from vmreplica.model.ids import DiskTarget, HostId, PointId, VmId
from vmreplica.model.shape import Shape
from vmreplica.model.verified import Verified
from vmreplica.peer import params
from vmreplica.peer.bodies import read_shape
from vmreplica.peer.hashes import MAX_HASHES
from vmreplica.peer.wire import MAX_JSON, PREFIX

#: Blocks of 4 KiB that one sum is about: 512 MiB of disk.
REGION_BLOCKS: Final = 1 << 17
#: Seconds that a point stays as it is after the last request to keep it so.
READING_LEASE: Final = 300.0


class RegionSums(Shape):
    """Sums over the hashes of a range of blocks, one for each 512 MiB from its first block on."""

    sums: Annotated[
        tuple[Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$")], ...],
        Field(max_length=MAX_HASHES // REGION_BLOCKS),
    ]
    #: Blocks of the range that are not zero.
    used: Annotated[int, Field(ge=0)]


class ProvingService(Protocol):
    """Blocking and thread-safe, like ``PeerService``; all methods are idempotent."""

    def keep_still(self, peer: HostId, vm: VmId, point: PointId) -> None:
        """Let nobody change the files of a point for some minutes; asked again, for as long again."""
        ...

    def let_go(self, peer: HostId, vm: VmId, point: PointId) -> None:
        """The point may be changed again."""
        ...

    def sums(  # noqa: PLR0917 - in the order of the request's path
        self, peer: HostId, vm: VmId, point: PointId, target: DiskTarget, key: int, first_block: int, blocks: int
    ) -> RegionSums:
        """Sum up blocks of a disk as a published point holds it."""
        ...

    def keep_verdict(self, peer: HostId, vm: VmId, verified: Verified) -> None:
        """Keep with a point what verifying it came to; what is wrong is not used, and asked for again."""
        ...


#: Runs a blocking call in a thread.
Run = Callable[..., Awaitable[Any]]


def add_routes(
    app: web.Application, service: ProvingService, run: Run, read: Run, caller: Callable[[web.Request], HostId]
) -> None:
    """Serve the requests of proof; ``read`` has threads for what reads whole disks."""
    _Routes(service, run, read, caller).add_to(app)


class _Routes:
    def __init__(self, service: ProvingService, run: Run, read: Run, caller: Callable[[web.Request], HostId]) -> None:
        self._service = service
        self._run = run
        self._read = read
        self._caller = caller

    def add_to(self, app: web.Application) -> None:
        point = f"{PREFIX}/replicas/{{vm}}/points/{{point}}"
        app.add_routes(
            [
                web.put(f"{point}/reading", self._keep_still),
                web.delete(f"{point}/reading", self._let_go),
                web.get(f"{point}/sums/{{target}}", self._sums),
                web.put(f"{point}/verified", self._keep_verdict),
            ]
        )

    async def _keep_still(self, request: web.Request) -> web.Response:
        vm, point = params.vm(request), params.point(request)
        await self._run(self._service.keep_still, self._caller(request), vm, point)
        return web.Response(status=204)

    async def _let_go(self, request: web.Request) -> web.Response:
        vm, point = params.vm(request), params.point(request)
        await self._run(self._service.let_go, self._caller(request), vm, point)
        return web.Response(status=204)

    async def _sums(self, request: web.Request) -> web.Response:
        about = params.vm(request), params.point(request), params.target(request), params.hash_key(request)
        about_blocks, caller = params.block_range(request), self._caller(request)
        found: RegionSums = await self._read(lambda: self._service.sums(caller, *about, *about_blocks))
        return web.Response(text=found.model_dump_json(), content_type="application/json")

    async def _keep_verdict(self, request: web.Request) -> web.Response:
        vm, point = params.vm(request), params.point(request)
        verified = await read_shape(request, Verified, MAX_JSON)
        if verified.point != point:
            raise BadRequest("body-invalid", f"the verdict on {verified.point} was sent to the address of {point}")
        await self._run(self._service.keep_verdict, self._caller(request), vm, verified)
        return web.Response(status=204)
