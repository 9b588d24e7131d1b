"""Request bodies under limits: how large, how many at once, how slow."""

import asyncio
import collections
import contextlib
from collections.abc import AsyncIterator
from typing import Final, TypeVar

from aiohttp import web
from pydantic import ValidationError

from vmreplica.model.errors import BadRequest, TimedOut
from vmreplica.model.shape import Shape
from vmreplica.model.units import format_size

T = TypeVar("T", bound=Shape)

#: Segment bodies in memory at once, of all peers and of one: a peer on a slow line cannot take all places.
MAX_BODIES: Final = 4
MAX_BODIES_OF_ONE: Final = 3
#: Seconds without a byte before a sender is given up.
IDLE_LIMIT: Final = 30.0


class BodySlots:
    """Memory for segment bodies: at most four buffers, used again and again. Belongs to one event loop."""

    def __init__(self, idle_limit: float) -> None:
        self._idle_limit = idle_limit
        self._all = asyncio.Semaphore(MAX_BODIES)
        self._of_one: dict[str, asyncio.Semaphore] = collections.defaultdict(
            lambda: asyncio.Semaphore(MAX_BODIES_OF_ONE)
        )
        self._spare: list[bytearray] = []

    @contextlib.asynccontextmanager
    async def whole_body(self, request: web.Request, sender: str, limit: int) -> AsyncIterator[memoryview]:
        """Read a body into one buffer and lend it until the block ends.

        Raises:
            BadRequest: no length, too long, or cut short.
            TimedOut: the sender stopped sending.
        """
        length = _length(request, limit)
        async with self._of_one[sender], self._all:
            buffer = self._spare.pop() if self._spare else bytearray()
            if len(buffer) < length or not buffer:
                buffer = bytearray(length or 1)
            whole = memoryview(buffer)
            body = whole[:length]
            try:
                await _fill(body, request, self._idle_limit)
                yield body
            finally:
                # An error's traceback may still hold an array over the body, which forbids releasing it.
                with contextlib.suppress(BufferError):
                    body.release()
                whole.release()
                if _nobody_looks_at(buffer):
                    self._spare.append(buffer)


async def discard(request: web.Request, limit: int, idle_limit: float = IDLE_LIMIT) -> None:
    """Read a body and throw it away.

    Raises:
        BadRequest: no length, too long, or cut short.
        TimedOut: the sender stopped sending.
    """
    left = _length(request, limit)
    async for chunk in _chunks(request, idle_limit):
        left -= len(chunk)
    if left:
        raise _cut_short()


async def read_shape(request: web.Request, shape: type[T], limit: int) -> T:
    """Read a JSON body as a shape of the model.

    Raises:
        BadRequest: too long, or not that shape.
        TimedOut: the sender stopped sending.
    """
    body = bytearray()
    async for chunk in _chunks(request, IDLE_LIMIT):
        body += chunk
        if len(body) > limit:
            raise _too_large(len(body), limit)
    try:
        return shape.model_validate_json(bytes(body))
    except ValidationError as error:
        raise BadRequest("body-invalid", f"{shape.__name__}: {summary(error)}") from None


def summary(error: ValidationError) -> str:
    """Name the first few faults, without the values that caused them."""
    faults = error.errors(include_url=False, include_input=False, include_context=False)
    told = [f"{'.'.join(map(str, fault['loc'])) or 'body'}: {fault['msg']}" for fault in faults[:3]]
    more = [f"and {len(faults) - len(told)} more"] if len(faults) > len(told) else []
    return "; ".join(told + more)


async def _fill(body: memoryview, request: web.Request, idle_limit: float) -> None:
    position = 0
    async for chunk in _chunks(request, idle_limit):
        end = position + len(chunk)
        if end > len(body):
            raise _too_large(end, len(body))
        body[position:end] = chunk
        position = end
    if position != len(body):
        raise _cut_short()


async def _chunks(request: web.Request, idle_limit: float) -> AsyncIterator[bytes]:
    while True:
        try:
            async with asyncio.timeout(idle_limit):
                chunk = await request.content.readany()
        except TimeoutError:
            raise TimedOut("peer-stopped-sending", f"no byte of the request came for {idle_limit:g} s") from None
        if not chunk:
            return
        yield chunk


def _nobody_looks_at(buffer: bytearray) -> bool:
    # A bytearray with a view on it cannot be resized: the cheap way to ask. One that somebody kept is theirs now.
    try:
        buffer.append(buffer.pop())
    except BufferError:
        return False
    return True


def _length(request: web.Request, limit: int) -> int:
    length = request.content_length
    if length is None:
        raise BadRequest("length-required", "the request does not say how long its body is")
    if length > limit:
        raise _too_large(length, limit)
    return length


def _too_large(length: int, limit: int) -> BadRequest:
    return BadRequest("body-too-large", f"a body of {format_size(length)} or more; the limit is {format_size(limit)}")


def _cut_short() -> BadRequest:
    return BadRequest("body-cut-short", "the body is shorter than announced")
