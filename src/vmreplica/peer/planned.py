"""What agents say to each other in a planned failover: the shapes, who does it, and its requests."""

from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Final, Protocol

from aiohttp import web
from pydantic import Field

from vmreplica.model.ids import DiskTarget, HostId, PointId, VmId
from vmreplica.model.point import MAX_DEFINITION, Position
from vmreplica.model.report import FailoverPlan, TaskReport
from vmreplica.model.shape import Shape
from vmreplica.peer import params
from vmreplica.peer.bodies import read_shape
from vmreplica.peer.wire import MAX_JSON, PREFIX

#: Seconds that a guest has for shutting itself down.
MIN_PATIENCE: Final = 5
MAX_PATIENCE: Final = 86400
DEFAULT_PATIENCE: Final = 300


class PlannedWish(Shape):
    """How a planned failover is wanted; the replica passes it on to the primary."""

    #: Seconds that the guest has for shutting itself down.
    patience: Annotated[int, Field(ge=MIN_PATIENCE, le=MAX_PATIENCE)] = DEFAULT_PATIENCE
    #: Pull its plug after that.
    force: bool = False


class ReadinessQuestion(Shape):
    """Asked by the primary before it touches the guest."""

    definition: Annotated[str, Field(max_length=MAX_DEFINITION)]
    disks: Annotated[tuple[DiskTarget, ...], Field(min_length=1, max_length=64)]


class Readiness(Shape):
    """The replica can run it; what stands against it comes as an error."""

    #: What a person should know.
    notes: tuple[str, ...] = ()


class StartWish(Shape):
    """Start the VM from this point, unless the epoch has passed."""

    point: PointId
    epoch: Annotated[int, Field(ge=0)]


class StartedThere(Shape):
    """The VM was started from that point, now or when this was asked before."""

    epoch: Annotated[int, Field(ge=0)]
    #: Seconds that starting took; 0: it was started before.
    seconds: Annotated[float, Field(ge=0)]
    notes: tuple[str, ...] = ()


class Withdrawal(Shape):
    """Forget about the start: from this epoch on nobody may ask for it any more."""

    epoch: Annotated[int, Field(ge=1)]


class PlannedService(Protocol):
    """Blocking and thread-safe, like ``PeerService``; all methods are idempotent."""

    def readiness(self, peer: HostId, vm: VmId, question: ReadinessQuestion) -> Readiness:
        """On the replica: see whether the VM can run here, and the way back is open."""
        ...

    def start(self, peer: HostId, vm: VmId, wish: StartWish) -> StartedThere:
        """On the replica: start it, and begin to reverse replication."""
        ...

    def withdraw(self, peer: HostId, vm: VmId, withdrawal: Withdrawal) -> Position:
        """On the replica: never start it any more for a wish of an epoch before."""
        ...

    def wish(self, peer: HostId, vm: VmId, wish: PlannedWish) -> TaskReport:
        """On the primary: begin, or go on with, a planned failover."""
        ...

    def progress(self, peer: HostId, vm: VmId) -> TaskReport:
        """On the primary: tell how it is doing."""
        ...

    def plan(self, peer: HostId, vm: VmId, wish: PlannedWish) -> FailoverPlan:
        """On the primary: tell what it would do."""
        ...


#: Runs a blocking call in a thread.
Run = Callable[..., Awaitable[Any]]


def add_routes(
    app: web.Application, service: PlannedService, run: Run, caller: Callable[[web.Request], HostId]
) -> None:
    """Serve the requests of planned failovers."""
    _Routes(service, run, caller).add_to(app)


class _Routes:
    def __init__(self, service: PlannedService, run: Run, caller: Callable[[web.Request], HostId]) -> None:
        self._service = service
        self._run = run
        self._caller = caller

    def add_to(self, app: web.Application) -> None:
        replica, vm = f"{PREFIX}/replicas/{{vm}}/planned", f"{PREFIX}/vms/{{vm}}/planned"
        app.add_routes(
            [
                web.post(f"{replica}/readiness", self._posted(ReadinessQuestion, self._service.readiness)),
                web.post(f"{replica}/start", self._posted(StartWish, self._service.start)),
                web.post(f"{replica}/withdraw", self._posted(Withdrawal, self._service.withdraw)),
                web.post(vm, self._posted(PlannedWish, self._service.wish)),
                web.post(f"{vm}/plan", self._posted(PlannedWish, self._service.plan)),
                web.get(vm, self._progress),
            ]
        )

    def _posted(
        self, shape: type[Shape], act: Callable[..., Shape]
    ) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        async def handle(request: web.Request) -> web.Response:
            vm = params.vm(request)
            body = await read_shape(request, shape, MAX_JSON)
            return _json(await self._run(act, self._caller(request), vm, body))

        return handle

    async def _progress(self, request: web.Request) -> web.Response:
        vm = params.vm(request)
        return _json(await self._run(self._service.progress, self._caller(request), vm))


def _json(shape: Shape) -> web.Response:
    return web.Response(text=shape.model_dump_json(), content_type="application/json")
