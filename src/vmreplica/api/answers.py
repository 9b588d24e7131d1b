"""From reports and errors to HTTP answers, and from HTTP bodies to request shapes."""

from collections.abc import Awaitable, Callable
from typing import TypeVar

import structlog
from aiohttp import web
from pydantic import BaseModel, ValidationError

from vmreplica.model.errors import BadRequest, Internal, Problem, VmReplicaError

_LOG = structlog.get_logger()
_Shape = TypeVar("_Shape", bound=BaseModel)
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def answer(report: BaseModel, *, status: int = 200) -> web.Response:
    """Answer with a report."""
    return web.Response(body=report.model_dump_json().encode(), content_type="application/json", status=status)


def problem_answer(problem: Problem) -> web.Response:
    """Answer with an error."""
    return web.Response(
        body=problem.model_dump_json().encode(), content_type="application/problem+json", status=problem.status
    )


async def read_body(request: web.Request, shape: type[_Shape]) -> _Shape:
    """Read a request's JSON body; an absent body counts as an empty object.

    Raises:
        BadRequest: the body is not JSON or does not fit; every wrong field is named.
    """
    try:
        return shape.model_validate_json(await request.read() or b"{}")
    except ValidationError as error:
        raise BadRequest(
            "request-invalid",
            f"{request.method} {request.path}: {complaints(error)}",
            hint="vmreplica COMMAND --help shows what is allowed",
        ) from error


def complaints(error: ValidationError) -> str:
    """Say in one line which fields are wrong and why."""
    found = []
    for detail in error.errors(include_url=False, include_context=False):
        place = ".".join(str(part) for part in detail["loc"])
        found.append(f"{place}: {detail['msg']}" if place else detail["msg"])
    return "; ".join(found)


@web.middleware
async def problems(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn every error into problem+json, those of the router too."""
    try:
        return await handler(request)
    except VmReplicaError as error:
        return problem_answer(error.problem())
    except web.HTTPException as error:
        return problem_answer(_of_http(request, error))
    except Exception:  # noqa: BLE001 - the outermost edge: the caller gets an answer, the log the traceback
        _LOG.exception("api-request-failed", method=request.method, path=request.path)
        defect = Internal(
            "agent-internal",
            f"the agent failed at {request.method} {request.path}: a defect",
            hint="the agent's log has the details: journalctl -u vmreplica",
        )
        return problem_answer(defect.problem())


_HTTP_CODES = {404: "route-unknown", 405: "method-not-allowed", 413: "request-too-large"}


def _of_http(request: web.Request, error: web.HTTPException) -> Problem:
    return Problem(
        code=_HTTP_CODES.get(error.status, "http-error"),
        kind="permanent",
        status=error.status,
        message=f"{request.method} {request.path}: {error.reason}",
        hint="command line and agent should have the same version: vmreplica version",
    )
