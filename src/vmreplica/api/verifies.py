"""The routes that concern the verification of points."""

from collections.abc import Callable
from functools import partial

from aiohttp import web

from vmreplica.api.answers import answer, read_body
from vmreplica.api.calls import Calls
from vmreplica.api.facade import AgentFacade
from vmreplica.api.requests import VerifyRequest


class Verifies:
    """Verification.

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
        return [web.post(f"{path}/verify", self._begin), web.delete(f"{path}/verify", self._cancel)]

    async def _begin(self, request: web.Request) -> web.Response:
        vm, body = self._vm(request), await read_body(request, VerifyRequest)
        call = partial(self._agent.verify, vm, point=body.point, repair=body.repair, rate=body.rate)
        return answer(await self._run(call), status=202)

    async def _cancel(self, request: web.Request) -> web.Response:
        await self._run(partial(self._agent.cancel_verify, self._vm(request)))
        return web.Response(status=204)
