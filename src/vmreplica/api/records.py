"""The routes that concern the past: history, events, and the test of who is told of health."""

import asyncio
import re
from collections.abc import Callable
from functools import partial
from typing import Final

from aiohttp import web
from pydantic import ValidationError

from vmreplica.api.answers import answer, complaints
from vmreplica.api.calls import Calls
from vmreplica.api.facade import AgentFacade
from vmreplica.model.errors import BadRequest, Unreachable
from vmreplica.model.events import KINDS, EventsReport, RecordsQuery

MAX_LIMIT: Final = 1000
#: Seconds that a question may wait for news, and between looks for them.
MAX_WAIT: Final = 30.0
_LOOK: Final = 0.5
#: Who wait at the same time.
MAX_WAITING: Final = 64
_LIMIT: Final = re.compile("[0-9]{1,4}")
_ID: Final = re.compile("[0-9]{1,18}")
_SECONDS: Final = re.compile(r"[0-9]{1,2}(\.[0-9]{1,3})?")


class Records:
    """History, and events by long polling.

    Args:
        agent: whom to ask.
        calls: threads for ordinary calls.
        vm: reads the VM's name out of a request.
        checked: checks a VM's name.
        path: of a VM.
    """

    def __init__(
        self,
        agent: AgentFacade,
        calls: Calls,
        *,
        vm: Callable[[web.Request], str],
        checked: Callable[[str], str],
        path: str,
    ) -> None:
        self._agent = agent
        self._run = calls.run
        self._vm = vm
        self._checked = checked
        self._path = path
        self._ending = asyncio.Event()
        self._waiting = 0

    def routes(self) -> list[web.RouteDef]:
        """List the routes."""
        return [
            web.get(f"{self._path}/history", self._history),
            web.get("/v1/events", self._events),
            web.post("/v1/health-test", self._health_test),
        ]

    async def end(self, _app: web.Application) -> None:
        """Let nobody wait any longer: the API is stopped."""
        self._ending.set()

    async def _history(self, request: web.Request) -> web.Response:
        vm, query = self._vm(request), _query(request)
        return answer(await self._run(partial(self._agent.records.history, vm, query)))

    async def _events(self, request: web.Request) -> web.Response:
        given = request.query
        vm = None if "vm" not in given else self._checked(given["vm"])
        after = int(_matching(request, "after", _ID)) if "after" in given else None
        wait = min(MAX_WAIT, float(_matching(request, "wait", _SECONDS))) if "wait" in given else 0.0
        ask = partial(self._agent.records.events, vm, _query(request), after)
        report = await self._run(ask)
        if after is not None and wait and not report.events:
            report = await self._await_news(request, ask, wait, report)
        return answer(report)

    async def _await_news(
        self, request: web.Request, ask: Callable[[], EventsReport], wait: float, report: EventsReport
    ) -> EventsReport:
        if self._waiting >= MAX_WAITING:
            raise Unreachable(
                "agent-busy", f"{self._waiting} others wait for events already", hint="try again in a moment"
            )
        self._waiting += 1
        try:
            until = asyncio.get_running_loop().time() + wait
            while not report.events and asyncio.get_running_loop().time() < until:
                if self._ending.is_set() or request.transport is None or request.transport.is_closing():
                    break
                await self._pause()
                report = await self._run(ask)
        finally:
            self._waiting -= 1
        return report

    async def _pause(self) -> None:
        try:
            await asyncio.wait_for(self._ending.wait(), _LOOK)
        except TimeoutError:
            return

    async def _health_test(self, _request: web.Request) -> web.Response:
        return answer(await self._run(self._agent.records.health_test))


def _query(request: web.Request) -> RecordsQuery:
    kinds = tuple(kind for text in request.query.getall("kind", []) for kind in text.split(",") if kind)
    for kind in kinds:
        if kind not in KINDS:
            raise BadRequest("kind-unknown", f"{kind!r} is no kind of event", hint=f"kinds are {', '.join(KINDS)}")
    fields = {"limit": _limit(request), "kinds": kinds, "since": request.query.get("since")}
    try:
        return RecordsQuery.model_validate(fields)
    except ValidationError as error:
        raise BadRequest("request-invalid", complaints(error), hint="since takes 2026-11-25T14:00:00Z") from error


def _matching(request: web.Request, key: str, pattern: re.Pattern[str]) -> str:
    text = request.query[key]
    if pattern.fullmatch(text) is None:
        raise BadRequest("request-invalid", f"{key}={text!r} is not a number", hint="take `newest` of the last answer")
    return text


def _limit(request: web.Request) -> int:
    text = request.query.get("limit", "20")
    if _LIMIT.fullmatch(text) is None or not 1 <= int(text) <= MAX_LIMIT:
        raise BadRequest(
            "limit-invalid", f"limit={text!r} is not a number from 1 to {MAX_LIMIT}", hint="for example --limit 50"
        )
    return int(text)
