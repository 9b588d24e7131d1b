"""The routes that concern single points: pins, exports, mounts."""

from collections.abc import Callable
from functools import partial

from aiohttp import web

from vmreplica.api.answers import answer, read_body
from vmreplica.api.calls import Calls
from vmreplica.api.facade import AgentFacade
from vmreplica.api.requests import MountRequest, PinRequest
from vmreplica.model.taking import PointExportWish, UnmountReport


class SinglePoints:
    """Pins, exports, mounts.

    Args:
        agent: whom to ask.
        calls: threads for ordinary calls.
        vm: reads the VM's name out of a request.
    """

    def __init__(self, agent: AgentFacade, calls: Calls, vm: Callable[[web.Request], str]) -> None:
        self._agent = agent
        self._run = calls.run
        self._vm = vm

    def routes(self, path: str) -> list[web.RouteDef]:
        """List the routes of a VM's path."""
        point = f"{path}/points/{{point}}"
        return [
            web.put(f"{point}/pin", self._pin),
            web.delete(f"{point}/pin", self._unpin),
            web.post(f"{point}/export-plan", self._plan_export),
            web.post(f"{point}/export", self._export),
            web.post(f"{point}/mount", self._mount),
            web.delete(f"{point}/mount", self._unmount),
            web.delete(f"{path}/mounts", self._unmount),
        ]

    def _named(self, request: web.Request) -> tuple[str, str]:
        return self._vm(request), request.match_info["point"]

    async def _pin(self, request: web.Request) -> web.Response:
        body = await read_body(request, PinRequest)
        return answer(await self._run(partial(self._agent.single.pin, *self._named(request), body.reason)))

    async def _unpin(self, request: web.Request) -> web.Response:
        return answer(await self._run(partial(self._agent.single.unpin, *self._named(request))))

    async def _plan_export(self, request: web.Request) -> web.Response:
        body = await read_body(request, PointExportWish)
        return answer(await self._run(partial(self._agent.single.plan_export, *self._named(request), body)))

    async def _export(self, request: web.Request) -> web.Response:
        body = await read_body(request, PointExportWish)
        return answer(await self._run(partial(self._agent.single.export, *self._named(request), body)), status=202)

    async def _mount(self, request: web.Request) -> web.Response:
        body = await read_body(request, MountRequest)
        call = partial(
            self._agent.single.mount, *self._named(request), seconds=body.seconds, even_damaged=body.even_damaged
        )
        return answer(await self._run(call))

    async def _unmount(self, request: web.Request) -> web.Response:
        vm, point = self._vm(request), request.match_info.get("point")
        ended = await self._run(partial(self._agent.single.unmount, vm, point))
        return answer(UnmountReport(vm=vm, points=ended))
