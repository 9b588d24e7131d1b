"""The route that concerns scrub."""

from collections.abc import Callable
from functools import partial

from aiohttp import web

from vmreplica.api.answers import answer, read_body
from vmreplica.api.calls import Calls
from vmreplica.api.facade import AgentFacade
from vmreplica.api.requests import ScrubRequest


class Scrubs:
    """Scrub.

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
        return [web.post(f"{path}/scrub", self._begin)]

    async def _begin(self, request: web.Request) -> web.Response:
        vm, body = self._vm(request), await read_body(request, ScrubRequest)
        return answer(await self._run(partial(self._agent.scrubs.begin, vm, body.point)), status=202)
