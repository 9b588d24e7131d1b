"""The routes that concern starts of protected VMs."""

from collections.abc import Callable
from functools import partial
from typing import Final

from aiohttp import web
from pydantic import TypeAdapter, ValidationError

from vmreplica.api.answers import answer, read_body
from vmreplica.api.calls import Calls
from vmreplica.api.facade import AgentFacade
from vmreplica.model.errors import BadRequest
from vmreplica.model.ids import VmId
from vmreplica.model.start import AutostartRequest, StartQuestion, StartRequest

_ID: Final = TypeAdapter[str](VmId)
#: A start may wait for the hook, and the hook for its answer: never behind other calls.
_QUESTIONS: Final = 16


class Starts:
    """Starts, and the hook's question.

    Args:
        agent: whom to ask.
        calls: threads for ordinary calls.
        vm: reads the VM's name out of a request.
        path: of a VM.
    """

    def __init__(self, agent: AgentFacade, calls: Calls, vm: Callable[[web.Request], str], path: str) -> None:
        self._agent = agent
        self._run = calls.run
        self._questions = Calls(threads=_QUESTIONS)
        self._vm = vm
        self._path = path

    def routes(self) -> list[web.RouteDef]:
        """List the routes."""
        return [
            web.post("/v1/starts/{vm}", self._question),
            web.post(f"{self._path}/start", self._start),
            web.put(f"{self._path}/autostart", self._autostart),
        ]

    def close(self) -> None:
        """Answer no more questions."""
        self._questions.close()

    async def _question(self, request: web.Request) -> web.Response:
        try:
            vm = _ID.validate_python(request.match_info["vm"])
        except ValidationError:
            raise BadRequest("vm-id-invalid", f"{request.match_info['vm']!r} is not the UUID of a VM") from None
        question = await read_body(request, StartQuestion)
        return answer(await self._questions.run(partial(self._agent.starts.may_start, vm, question)))

    async def _start(self, request: web.Request) -> web.Response:
        vm, body = self._vm(request), await read_body(request, StartRequest)
        call = partial(self._agent.starts.start, vm, sure=body.sure, dry_run=body.dry_run)
        return answer(await self._run(call))

    async def _autostart(self, request: web.Request) -> web.Response:
        vm, body = self._vm(request), await read_body(request, AutostartRequest)
        return answer(await self._run(partial(self._agent.starts.set_autostart, vm, on=body.on)))
