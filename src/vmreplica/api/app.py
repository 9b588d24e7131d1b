"""The routes of the local API."""

from collections.abc import Callable
from functools import partial
from typing import Final

from aiohttp import web
from pydantic import TypeAdapter, ValidationError

from vmreplica.api.answers import answer, problems, read_body
from vmreplica.api.boots import Boots
from vmreplica.api.calls import Calls
from vmreplica.api.facade import AgentFacade
from vmreplica.api.metrics import render_metrics
from vmreplica.api.records import Records
from vmreplica.api.requests import (
    CancelRequest,
    DisableRequest,
    DoctorRequest,
    EnableRequest,
    FailoverRequest,
    FailoverTestRequest,
    HandOverRequest,
    ImportRequest,
    InviteRequest,
    JoinRequest,
    LimitRequest,
    PlannedRequest,
)
from vmreplica.api.scrubs import Scrubs
from vmreplica.api.single_points import SinglePoints
from vmreplica.api.starts import Starts
from vmreplica.api.verifies import Verifies
from vmreplica.model.errors import BadRequest
from vmreplica.model.ids import PointChoice, VmName
from vmreplica.model.networks import NetworksChange
from vmreplica.model.report import PeersReport

MAX_BODY: Final = 1 << 20
_NAME: Final = TypeAdapter[str](VmName)
_POINT: Final = TypeAdapter[str](PointChoice)
# aiohttp's default pattern leaves out braces, which a VM's name may contain.
_VM: Final = "/v1/vms/{vm:[^/]+}"
_PEER: Final = "/v1/peers/{peer:[^/]+}"


def make_app(agent: AgentFacade) -> web.Application:
    """Build the application for an agent."""
    app = web.Application(middlewares=[problems], client_max_size=MAX_BODY)
    calls = Calls()
    starts = Starts(agent, calls, _vm, _VM)
    records = Records(agent, calls, vm=_vm, checked=_checked, path=_VM)
    parts = (_Vms(agent, calls), _Hosts(agent, calls), starts, records)
    app.add_routes([route for part in parts for route in part.routes()])
    app.on_shutdown.append(records.end)
    app.add_routes(Verifies(agent, calls, _vm).routes(_VM))
    app.add_routes([*Boots(agent, calls, _vm, _point).routes(_VM), *Scrubs(agent, calls, _vm).routes(_VM)])
    app.add_routes(SinglePoints(agent, calls, _vm).routes(_VM))

    async def close(_app: web.Application) -> None:
        starts.close()
        calls.close()

    app.on_cleanup.append(close)
    return app


class _Vms:
    """What concerns VMs."""

    def __init__(self, agent: AgentFacade, calls: Calls) -> None:
        self._agent = agent
        self._run = calls.run

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/v1/status", self._status),
            web.get("/v1/tasks/{task}", self._task),
            web.delete("/v1/tasks/{task}", self._cancel_task),
            web.post("/v1/doctor", self._doctor),
            web.post(f"{_VM}/doctor", self._doctor),
            web.post("/v1/imports", self._import),
            web.get(f"{_VM}/points", self._points),
            web.post(f"{_VM}/enable", self._enable),
            web.post(f"{_VM}/disable", self._disable),
            web.post(f"{_VM}/pause", self._pause),
            web.post(f"{_VM}/release", self._release),
            web.post(f"{_VM}/resume", self._resume),
            web.post(f"{_VM}/sync", self._sync),
            web.put(f"{_VM}/limit", self._limit),
            web.get(f"{_VM}/failover-plan", self._plan),
            web.post(f"{_VM}/failover", self._failover),
            web.get(f"{_VM}/commit-plan", self._commit_plan),
            web.post(f"{_VM}/commit", self._commit),
            web.post(f"{_VM}/planned-plan", self._planned_plan),
            web.post(f"{_VM}/planned", self._planned),
            web.get(f"{_VM}/test-plan", self._test_plan),
            web.post(f"{_VM}/test", self._test),
            web.get(f"{_VM}/cancel-plan", self._cancel_plan),
            web.post(f"{_VM}/cancel", self._cancel),
            web.get(f"{_VM}/networks", self._networks),
            web.put(f"{_VM}/networks", self._change_networks),
            web.get(f"{_VM}/reverse-plan", self._reverse_plan),
            web.post(f"{_VM}/reverse", self._reverse),
            web.post(f"{_VM}/hand-over", self._hand_over),
        ]

    async def _status(self, request: web.Request) -> web.Response:
        vm = request.query.get("vm")
        checked = None if vm is None else _checked(vm)
        return answer(await self._run(partial(self._agent.status, checked)))

    async def _task(self, request: web.Request) -> web.Response:
        return answer(await self._run(partial(self._agent.task, request.match_info["task"])))

    async def _cancel_task(self, request: web.Request) -> web.Response:
        return answer(await self._run(partial(self._agent.cancel_task, request.match_info["task"])))

    async def _doctor(self, request: web.Request) -> web.Response:
        vm = _vm(request) if "vm" in request.match_info else None
        body = await read_body(request, DoctorRequest)
        return answer(await self._run(partial(self._agent.doctor, vm, trial=body.trial)))

    async def _import(self, request: web.Request) -> web.Response:
        body = await read_body(request, ImportRequest)
        call = partial(self._agent.import_export, body.directory, passphrase=body.passphrase, identity=body.identity)
        return answer(await self._run(call), status=202)

    async def _points(self, request: web.Request) -> web.Response:
        plan = request.query.get("plan") == "true"
        return answer(await self._run(partial(self._agent.points, _vm(request), plan=plan)))

    async def _enable(self, request: web.Request) -> web.Response:
        vm, body = _vm(request), await read_body(request, EnableRequest)
        call = partial(
            self._agent.enable,
            vm,
            to=body.to,
            every=body.every,
            excluded=body.excluded,
            keep=body.keep,
            base_devices=body.base_devices,
            erase=body.erase,
            seed=body.seed,
            give_up=body.give_up,
            drop_points=body.drop_points,
            limit=body.limit,
            at=body.at,
            app_consistent=body.app_consistent,
        )
        return answer(await self._run(call), status=202)

    async def _limit(self, request: web.Request) -> web.Response:
        vm, body = _vm(request), await read_body(request, LimitRequest)
        return answer(await self._run(partial(self._agent.limit, vm, body.limit)))

    async def _disable(self, request: web.Request) -> web.Response:
        vm, body = _vm(request), await read_body(request, DisableRequest)
        return await self._done(partial(self._agent.disable, vm, delete_copy=body.delete_copy))

    async def _pause(self, request: web.Request) -> web.Response:
        return await self._done(partial(self._agent.pause, _vm(request)))

    async def _release(self, request: web.Request) -> web.Response:
        return await self._done(partial(self._agent.release, _vm(request)))

    async def _resume(self, request: web.Request) -> web.Response:
        return await self._done(partial(self._agent.resume, _vm(request)))

    async def _sync(self, request: web.Request) -> web.Response:
        return answer(await self._run(partial(self._agent.sync, _vm(request))), status=202)

    async def _plan(self, request: web.Request) -> web.Response:
        vm, point, anyway = _vm(request), _point(request), request.query.get("even_damaged") == "true"
        return answer(await self._run(partial(self._agent.plan_failover, vm, point, even_damaged=anyway)))

    async def _failover(self, request: web.Request) -> web.Response:
        vm, body = _vm(request), await read_body(request, FailoverRequest)
        return answer(await self._run(partial(self._agent.failover, vm, body.point, even_damaged=body.even_damaged)))

    async def _commit_plan(self, request: web.Request) -> web.Response:
        return answer(await self._run(partial(self._agent.plan_commit, _vm(request))))

    async def _commit(self, request: web.Request) -> web.Response:
        return answer(await self._run(partial(self._agent.commit, _vm(request))), status=202)

    async def _planned_plan(self, request: web.Request) -> web.Response:
        vm, body = _vm(request), await read_body(request, PlannedRequest)
        call = partial(self._agent.plan_planned, vm, patience=body.patience, force=body.force)
        return answer(await self._run(call))

    async def _planned(self, request: web.Request) -> web.Response:
        vm, body = _vm(request), await read_body(request, PlannedRequest)
        call = partial(self._agent.planned_failover, vm, patience=body.patience, force=body.force)
        return answer(await self._run(call), status=202)

    async def _test_plan(self, request: web.Request) -> web.Response:
        vm, point, network = _vm(request), _point(request), request.query.get("network")
        anyway = request.query.get("even_damaged") == "true"
        return answer(await self._run(partial(self._agent.plan_test, vm, point, network, even_damaged=anyway)))

    async def _test(self, request: web.Request) -> web.Response:
        vm, body = _vm(request), await read_body(request, FailoverTestRequest)
        call = partial(self._agent.test_failover, vm, **body.model_dump())
        return answer(await self._run(call), status=201)

    async def _cancel_plan(self, request: web.Request) -> web.Response:
        vm, tests_only = _vm(request), request.query.get("tests_only") == "true"
        return answer(await self._run(partial(self._agent.plan_cancel, vm, tests_only=tests_only)))

    async def _cancel(self, request: web.Request) -> web.Response:
        vm, body = _vm(request), await read_body(request, CancelRequest)
        return answer(await self._run(partial(self._agent.cancel_failover, vm, tests_only=body.tests_only)))

    async def _reverse_plan(self, request: web.Request) -> web.Response:
        return answer(await self._run(partial(self._agent.plan_reverse, _vm(request))))

    async def _reverse(self, request: web.Request) -> web.Response:
        return answer(await self._run(partial(self._agent.reverse, _vm(request))), status=202)

    async def _networks(self, request: web.Request) -> web.Response:
        return answer(await self._run(partial(self._agent.networks, _vm(request))))

    async def _change_networks(self, request: web.Request) -> web.Response:
        vm, body = _vm(request), await read_body(request, NetworksChange)
        return answer(await self._run(partial(self._agent.change_networks, vm, body)))

    async def _hand_over(self, request: web.Request) -> web.Response:
        vm, body = _vm(request), await read_body(request, HandOverRequest)
        return answer(await self._run(partial(self._agent.hand_over, vm, body.to)))

    async def _done(self, call: Callable[[], object]) -> web.Response:
        await self._run(call)
        return web.Response(status=204)


class _Hosts:
    """What concerns other hosts, and the metrics of this one."""

    def __init__(self, agent: AgentFacade, calls: Calls) -> None:
        self._agent = agent
        self._run = calls.run

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/v1/peers", self._peers),
            web.post("/v1/peers", self._join),
            web.post("/v1/invitations", self._invite),
            web.delete(_PEER, self._remove),
            web.post(f"{_PEER}/test", self._test),
            web.get("/v1/metrics", self._metrics),
        ]

    async def _peers(self, _request: web.Request) -> web.Response:
        return answer(PeersReport(peers=await self._run(self._agent.peers)))

    async def _join(self, request: web.Request) -> web.Response:
        body = await read_body(request, JoinRequest)
        return answer(await self._run(partial(self._agent.join, body.token)), status=201)

    async def _invite(self, request: web.Request) -> web.Response:
        body = await read_body(request, InviteRequest)
        return answer(await self._run(partial(self._agent.invite, body.for_name)), status=201)

    async def _remove(self, request: web.Request) -> web.Response:
        await self._run(partial(self._agent.remove_peer, request.match_info["peer"]))
        return web.Response(status=204)

    async def _test(self, request: web.Request) -> web.Response:
        return answer(await self._run(partial(self._agent.test_peer, request.match_info["peer"])))

    async def _metrics(self, _request: web.Request) -> web.Response:
        report = await self._run(partial(self._agent.status, None))
        return web.Response(
            body=render_metrics(report, self._agent.records.totals), content_type="text/plain", charset="utf-8"
        )


def _vm(request: web.Request) -> str:
    return _checked(request.match_info["vm"])


def _checked(vm: str) -> str:
    try:
        return _NAME.validate_python(vm)
    except ValidationError:
        raise BadRequest(
            "vm-name-invalid",
            f"{vm!r} cannot be a VM's name: slashes, control characters and a leading dash are not supported",
            hint="vmreplica status lists the protected VMs, virsh list --all all of them",
        ) from None


def _point(request: web.Request) -> str | None:
    point = request.query.get("point")
    if point is None:
        return None
    try:
        return _POINT.validate_python(point)
    except ValidationError:
        raise BadRequest(
            "point-id-invalid",
            f"{point!r} is not the id of a recovery point",
            hint="vmreplica points VM lists them",
        ) from None
