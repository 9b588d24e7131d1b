"""The routes that concern boot tests."""

from collections.abc import Callable
from functools import partial

from aiohttp import web

from vmreplica.api.answers import answer, read_body
from vmreplica.api.calls import Calls
from vmreplica.api.facade import AgentFacade
from vmreplica.api.requests import BootScheduleRequest, BootTestRequest
from vmreplica.model.report import BootScheduleReport


class Boots:
    """Boot tests.

    Args:
        agent: whom to ask.
        calls: threads for ordinary calls.
        vm: reads the VM's name out of a request.
        point: reads the point's id out of a request's query.
    """

    def __init__(
        self,
        agent: AgentFacade,
        calls: Calls,
        vm: Callable[[web.Request], str],
        point: Callable[[web.Request], str | None],
    ) -> None:
        self._agent = agent
        self._run = calls.run
        self._vm = vm
        self._point = point

    def routes(self, path: str) -> list[web.RouteDef]:
        """List the routes of a VM's path."""
        return [
            web.post(f"{path}/boot-test-plan", self._plan),
            web.post(f"{path}/boot-test", self._begin),
            web.put(f"{path}/boot-test-schedule", self._schedule),
            web.get(f"{path}/boot-test-picture", self._picture),
        ]

    async def _plan(self, request: web.Request) -> web.Response:
        vm, body = self._vm(request), await read_body(request, BootTestRequest)
        return answer(await self._run(partial(self._agent.boots.plan, vm, body.point, body.wish)))

    async def _begin(self, request: web.Request) -> web.Response:
        vm, body = self._vm(request), await read_body(request, BootTestRequest)
        return answer(await self._run(partial(self._agent.boots.begin, vm, body.point, body.wish)), status=202)

    async def _schedule(self, request: web.Request) -> web.Response:
        vm, body = self._vm(request), await read_body(request, BootScheduleRequest)
        call = partial(self._agent.boots.schedule, vm, every=body.every, at=body.at, wish=body.wish)
        return answer(BootScheduleReport(vm=vm, boot=await self._run(call)))

    async def _picture(self, request: web.Request) -> web.Response:
        vm, point = self._vm(request), self._point(request)
        picture = await self._run(partial(self._agent.boots.picture, vm, point))
        return web.Response(body=picture, content_type="image/png")
