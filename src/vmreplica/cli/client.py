"""The local agent's REST API over its unix socket. Answers are bytes of JSON; errors come back as they were raised."""

import http.client
import socket as sockets
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import quote, urlencode

if TYPE_CHECKING:
    from pydantic import BaseModel

    from vmreplica.model.errors import VmReplicaError

#: Seconds for an ordinary request; those that move data or start VMs get more.
ORDINARY: Final = 60.0
LONG: Final = 900.0
_MAX_ANSWER: Final = 64 << 20
_ERROR: Final = 400


class AgentClient:
    """Requests to the agent behind a socket.

    Raises (every method):
        Unreachable: no agent answers there.
        TimedOut: it did not answer in time.
        VmReplicaError: whatever the agent answered.
    """

    def __init__(self, socket: Path) -> None:
        self._socket = socket

    def get(self, path: str, **query: str | None) -> bytes:
        """Ask for a report; query parameters that are None are left out."""
        given = {key: value for key, value in query.items() if value is not None}
        # Not every argument that a shell can pass is text; such bytes travel as they are and match nothing.
        suffix = f"?{urlencode(given, errors='surrogateescape')}" if given else ""
        return self._call("GET", f"{path}{suffix}", b"", ORDINARY)

    def send(self, method: str, path: str, body: "BaseModel | None" = None, *, timeout: float = ORDINARY) -> bytes:
        """Send a request with a body; the answer is empty when there is nothing to say."""
        return self._call(method, path, b"" if body is None else body.model_dump_json().encode(), timeout)

    def _call(self, method: str, path: str, body: bytes, timeout: float) -> bytes:
        connection = _UnixConnection(self._socket, timeout)
        try:
            connection.request(method, path, body or None, {"Content-Type": "application/json"} if body else {})
            answer = connection.getresponse()
            content = answer.read(_MAX_ANSWER)
            if answer.length:  # what is still missing; read() with a limit does not complain
                raise http.client.IncompleteRead(content, answer.length)
        except (OSError, http.client.HTTPException) as error:
            raise _connection_error(self._socket, timeout, error) from error
        finally:
            connection.close()
        if answer.status >= _ERROR:
            raise _answered_error(answer.status, content)
        return content


def vm_path(vm: str, act: str) -> str:
    """Spell the path of an act on a VM, whatever characters its name has."""
    return f"/v1/vms/{quoted(vm)}/{act}"


def peer_path(name: str, act: str = "") -> str:
    """Spell the path of a peer or of an act on it."""
    return f"/v1/peers/{quoted(name)}{act}"


def quoted(name: str) -> str:
    """Spell a name as a part of a path.

    Raises:
        BadRequest: it is empty.
    """
    if not name:
        from vmreplica.model.errors import BadRequest  # noqa: PLC0415 - pydantic is needed on failure only

        raise BadRequest("name-missing", "the name is empty", hint="vmreplica status lists the protected VMs")
    return quote(name, safe="", errors="surrogateescape")


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, socket: Path, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = socket

    def connect(self) -> None:
        self.sock = sockets.socket(sockets.AF_UNIX, sockets.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def _connection_error(socket: Path, timeout: float, error: Exception) -> "VmReplicaError":
    from vmreplica.model.errors import Refused, TimedOut, Unreachable  # noqa: PLC0415 - needed on failure only

    if isinstance(error, TimeoutError):
        return TimedOut(
            "agent-timeout",
            f"the agent at {socket} did not answer in {timeout:.0f} s",
            hint="what was asked may still be done: vmreplica status",
        )
    if isinstance(error, PermissionError):
        return Refused(
            "agent-socket-forbidden", f"you may not use {socket}", hint="run the command as root: sudo vmreplica ..."
        )
    if isinstance(error, FileNotFoundError | ConnectionRefusedError | NotADirectoryError):
        return Unreachable(
            "agent-not-running",
            f"no agent answers at {socket}",
            hint="systemctl start vmreplica, or vmreplica agent --config FILE; --socket names another agent",
        )
    return Unreachable(
        "agent-connection-lost",
        f"the connection to the agent at {socket} failed: {str(error) or type(error).__name__}",
        hint="vmreplica status tells whether what was asked is done; journalctl -u vmreplica tells why",
    )


def _answered_error(status: int, content: bytes) -> "VmReplicaError":
    from vmreplica.model.errors import Internal, Problem, from_problem  # noqa: PLC0415 - needed on failure only

    try:
        return from_problem(Problem.model_validate_json(content))
    except ValueError:
        return Internal(
            "agent-answer-unknown",
            f"the agent answered with HTTP status {status} and a body that is not ours",
            hint="is the socket really vmreplica's, and of the same version? vmreplica version",
        )
