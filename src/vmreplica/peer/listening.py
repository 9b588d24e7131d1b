"""Serving the data plane over mutual TLS, with certificates that are renewed while it runs."""

import asyncio
import contextlib
import ssl
from typing import Final

import structlog
from aiohttp import web

from vmreplica.model.errors import Conflict, VmReplicaError
from vmreplica.model.units import MiB
from vmreplica.peer.access import Trust
from vmreplica.peer.book import PeerBook
from vmreplica.peer.identity import Identity

_log = structlog.get_logger(__name__)

BOOK: Final = web.AppKey("book", PeerBook)

#: Seconds an idle connection stays open; also the limit for a request's head to arrive.
_KEEP_ALIVE: Final = 75.0
#: Seconds that running requests get when the agent stops.
_GRACE: Final = 5.0
#: Bytes of a body that may wait unread per connection, half of it before reading goes on.
_READ_AHEAD: Final = 1 * MiB
_RENEWAL_CHECK: Final = 3600.0


class PeerServer:
    """A listening server. Made by ``start_server``; stop it in the same event loop."""

    def __init__(self, runner: web.AppRunner, renewal: asyncio.Task[None]) -> None:
        self._runner = runner
        self._renewal = renewal

    @property
    def port(self) -> int:
        """The port it listens on, also when it was asked for any (0)."""
        return int(self._runner.addresses[0][1])

    async def stop(self) -> None:
        """Stop listening, give running requests five seconds, close all connections."""
        self._renewal.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._renewal
        await self._runner.cleanup()


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
        Conflict: the address cannot be listened on.
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
        await web.TCPSite(runner, host, port, ssl_context=context).start()
    except OSError as error:
        await runner.cleanup()
        raise Conflict(
            "cannot-listen",
            f"cannot listen on {host or 'all addresses'}, port {port}: {error.strerror or error}",
            hint="set `listen` under [agent] to a free address of this host",
        ) from error
    return PeerServer(runner, asyncio.create_task(_renew(identity, context)))


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
