"""Serving the data plane over mutual TLS, with certificates that are renewed while it runs."""

import asyncio
import contextlib
import ssl
import weakref
from typing import Final

import structlog
from aiohttp import web

from vmreplica.model.errors import Unreachable, VmReplicaError
from vmreplica.model.units import MiB
from vmreplica.peer.access import Trust
from vmreplica.peer.book import PeerBook
from vmreplica.peer.identity import Identity

_log = structlog.get_logger(__name__)

BOOK: Final = web.AppKey("book", PeerBook)
#: Connections that a request came over: also those that are being closed, which the server no longer lists.
SEEN: Final = web.AppKey[weakref.WeakSet[asyncio.Transport]]("seen", weakref.WeakSet)

#: Seconds an idle connection stays open; also the limit for a request's head to arrive.
_KEEP_ALIVE: Final = 75.0
#: Seconds for the TLS handshake and for its goodbye.
_HANDSHAKE: Final = 15.0
_GOODBYE: Final = 2.0
#: Seconds in which aborted connections are really closed.
_LAST_MOMENT: Final = 0.05
#: Seconds that running requests get when the agent stops.
_GRACE: Final = 5.0
#: Bytes of a body that may wait unread per connection, half of it before reading goes on.
_READ_AHEAD: Final = 1 * MiB
_RENEWAL_CHECK: Final = 3600.0


class PeerServer:
    """A listening server. Made by ``start_server``; stop it in the same event loop."""

    def __init__(self, runner: web.AppRunner, listener: asyncio.Server, renewal: asyncio.Task[None]) -> None:
        self._runner = runner
        self._seen = runner.app[SEEN]
        self._listener = listener
        self._renewal = renewal

    @property
    def port(self) -> int:
        """The port it listens on, also when it was asked for any (0)."""
        return int(self._listener.sockets[0].getsockname()[1])

    async def stop(self) -> None:
        """Stop listening, give running requests some seconds, close all connections."""
        self._listener.close()
        self._renewal.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._renewal
        server = self._runner.server
        idle = [handler.transport for handler in server.connections] if server else []
        await self._runner.cleanup()
        # TLS says goodbye and waits for an answer; whoever has not given it by now is not waited for.
        for transport in (*idle, *self._seen):
            # None: closed. AttributeError: asyncio's TLS transport, closed twice, has let go of its connection.
            with contextlib.suppress(AttributeError):
                if transport is not None:
                    transport.abort()
        await asyncio.sleep(_LAST_MOMENT)


async def start_server(
    app: web.Application, identity: Identity, host: str | None, port: int, *, grace: float = _GRACE
) -> PeerServer:
    """Serve an application of ``make_app``.

    Args:
        app: what is served.
        identity: whose certificate is shown; renewed in time.
        host: address to listen on; None for all.
        port: TCP port; 0 for any free one.
        grace: seconds that running requests get when the server stops.

    Raises:
        Unreachable: ``cannot-listen``; a moment later it may work: when the host boots, addresses come one by one.
    """
    context = identity.server_context()
    Trust(app[BOOK]).attach(context)
    runner = web.AppRunner(
        app,
        access_log=None,
        keepalive_timeout=_KEEP_ALIVE,
        shutdown_timeout=grace,
        read_bufsize=_READ_AHEAD,
        auto_decompress=False,
    )
    await runner.setup()
    try:
        listener = await _listen(runner, context, host, port)
    except OSError as error:
        await runner.cleanup()
        raise Unreachable(
            "cannot-listen",
            f"cannot listen on {host or 'all addresses'}, port {port}: {error.strerror or error}",
            hint="set `listen` under [agent] to a free address of this host; systemd starts the agent again until then",
        ) from error
    return PeerServer(runner, listener, asyncio.create_task(_renew(identity, context)))


async def _listen(runner: web.AppRunner, context: ssl.SSLContext, host: str | None, port: int) -> asyncio.Server:
    protocol = runner.server
    if protocol is None:
        raise RuntimeError("the runner was not set up")
    return await asyncio.get_running_loop().create_server(
        protocol,
        host,
        port,
        ssl=context,
        ssl_handshake_timeout=_HANDSHAKE,
        ssl_shutdown_timeout=_GOODBYE,
        reuse_address=True,
    )


async def _renew(identity: Identity, context: ssl.SSLContext, every: float = _RENEWAL_CHECK) -> None:
    shown = identity.generation
    while True:
        await asyncio.sleep(every)
        try:
            await asyncio.to_thread(identity.refresh)
        except VmReplicaError as error:
            _log.warning("certificate not renewed", code=error.code, message=error.message)
        if identity.generation != shown:
            shown = identity.generation
            identity.show_in(context)
