"""The API's unix socket: one agent per socket, readable by its owner and group only."""

import asyncio
import fcntl
import os
import secrets
import socket as sockets
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from aiohttp import web

from vmreplica.api.app import make_app
from vmreplica.api.facade import AgentFacade
from vmreplica.model.errors import BadRequest, Conflict

_MODE: Final = 0o660
_BACKLOG: Final = 64
#: Turns of the loop in which what one began is certainly done. Not seconds: a busy machine has few turns in them.
_TURNS: Final = 100
_MAX_PATH: Final = 107  # bytes that sockaddr_un holds before its final NUL


@dataclass(slots=True)
class ApiServer:
    """A running API."""

    socket: Path
    _runner: web.AppRunner
    _listening: sockets.socket
    _lock: int

    async def stop(self) -> None:
        """Take no new request, let running ones end (for some seconds), remove the socket."""
        self.socket.unlink(missing_ok=True)
        # First accept no more: a connection that asyncio has accepted, and not set up when its server closes, is never
        # closed (CPython's Server._attach), and whoever asked over it waits in vain.
        asyncio.get_running_loop().remove_reader(self._listening)
        await _settled()
        await self._runner.cleanup()
        # And what was closed just now is really closed some turns later.
        await _settled()
        os.close(self._lock)


async def _settled() -> None:
    for _ in range(_TURNS):
        await asyncio.sleep(0)


async def start_api(agent: AgentFacade, socket: Path, *, grace: float = 10.0) -> ApiServer:
    """Serve an agent on a unix socket; a socket left by a crashed agent is replaced.

    Args:
        agent: whom to ask.
        socket: where; the directory is made if it is missing.
        grace: seconds that running requests get when the API is stopped.

    Raises:
        Conflict: another agent serves this socket, or the path is something else than a socket.
        BadRequest: the path cannot be a socket.
    """
    lock = _lock(socket)
    runner = web.AppRunner(make_app(agent), access_log=None, shutdown_timeout=grace)
    try:
        await runner.setup()
        listening = _listen(socket)
        await web.SockSite(runner, listening).start()
    except BaseException:
        await runner.cleanup()
        os.close(lock)
        raise
    return ApiServer(socket, runner, listening, lock)


def _lock(socket: Path) -> int:
    # The kernel drops the lock with its holder, however that dies, so a left-over socket is known to be stale.
    path = socket.with_name(f"{socket.name}.lock")
    try:
        socket.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise BadRequest(
            "socket-path-unusable",
            f"cannot make {path}: {error.strerror}",
            hint="set socket in [agent] to a path in a directory that the agent may write",
        ) from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise Conflict(
            "agent-already-running",
            f"another agent serves {socket}",
            hint="systemctl status vmreplica, or set another socket in [agent] of the configuration",
        ) from None
    return fd


def _listen(socket: Path) -> sockets.socket:
    # Bound under another name and then renamed: nobody can connect before the permissions are right.
    _require_free_name(socket)
    building = socket.with_name(f".{secrets.token_hex(4)}")
    if max(len(os.fsencode(path)) for path in (socket, building)) > _MAX_PATH:
        raise BadRequest(
            "socket-path-too-long",
            f"{socket} is longer than the {_MAX_PATH} bytes of a unix socket's path",
            hint="set socket in [agent] to a shorter path, for example /run/vmreplica/agent.sock",
        )
    listening = sockets.socket(sockets.AF_UNIX, sockets.SOCK_STREAM)
    try:
        listening.bind(str(building))
        building.chmod(_MODE)
        listening.listen(_BACKLOG)
        building.rename(socket)
    except BaseException:
        building.unlink(missing_ok=True)
        listening.close()
        raise
    return listening


def _require_free_name(socket: Path) -> None:
    if socket.exists() and not stat.S_ISSOCK(socket.stat().st_mode):
        raise Conflict(
            "socket-path-taken",
            f"{socket} exists and is not a socket",
            hint="remove it, or set another socket in [agent] of the configuration",
        )
