"""Requests over TLS connections that are kept alive: blocking, thread-safe, every failure one of our errors."""

import contextlib
import dataclasses
import errno
import http.client
import select
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Final, Self

from vmreplica.model.body import Body, Buffers
from vmreplica.model.errors import Refused, TimedOut, Unreachable, VmReplicaError
from vmreplica.model.units import KiB, MiB
from vmreplica.peer.line import Line, stopped
from vmreplica.peer.wire import PREFIX, split_address

#: The body of a request that has none.
NOTHING: Final = Buffers()

#: Connections kept open while idle; more are opened when more threads ask at once.
_MAX_IDLE: Final = 4
#: The time limit is for each piece, so that a slow line is not taken for a dead one.
_PIECE: Final = 256 * KiB
_MAX_ANSWER: Final = 16 * MiB
#: Seconds of silence before the other kernel is asked whether it lives, seconds between questions, and their number.
_PROBE_AFTER, _PROBE_EVERY, _PROBES = 10, 5, 4
#: Such a body finds room in the other kernel however busy its agent is.
_SMALL: Final = 64 * KiB
#: Seconds in which the other kernel has to confirm a small request: a dead line is noticed long before the time limit.
_UNHEARD_LIMIT: Final = 20

#: Makes closing a connection throw away what waits to be sent.
_NO_LINGER: Final = struct.pack("ii", 1, 0)

_REFUSING_ALERTS: Final = ("CERTIFICATE", "UNKNOWN_CA", "ACCESS_DENIED", "DECRYPT_ERROR")
_PAIR_AGAIN: Final = "pair again: vmreplica peer invite on one host, vmreplica peer join on the other"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A peer's answer and the connection it came over."""

    status: int
    content_type: str
    body: bytes
    address: str
    #: The certificate (DER) that the peer showed.
    leaf: bytes


@dataclasses.dataclass(frozen=True, slots=True)
class _Request:
    method: str
    path: str
    body: Body
    content_type: str
    timeout: float
    line: Line | None

    def require_wanted(self) -> None:
        """Refuse to go on when the caller was halted.

        Raises:
            Conflict: ``cycle-stopped``.
        """
        if self.line is not None and self.line.halt.is_set():
            raise stopped()


class Connection(http.client.HTTPConnection):
    """One TLS connection to one address."""

    def __init__(self, address: str, context: ssl.SSLContext, server_name: str, connect_timeout: float) -> None:
        host, port = split_address(address)
        super().__init__(host, port)
        self.address = address
        self.leaf = b""
        self._context = context
        self._server_name = server_name
        self._connect_timeout = connect_timeout

    def connect(self) -> None:
        """Connect and shake hands.

        Raises:
            Unreachable: nobody listens there, or not with TLS.
            TimedOut: somebody accepts connections and says nothing.
            Refused: another host answers.
        """
        try:
            raw = socket.create_connection((self.host, self.port), self._connect_timeout)
        except OSError as error:
            raise Unreachable("peer-unreachable", f"{self.address}: {_reason(error)}", hint=_CHECK_LINE) from error
        try:
            _set_options(raw)
            self.sock = self._context.wrap_socket(raw, server_hostname=self._server_name)
        except OSError as error:
            raw.close()
            raise failure_of(error, self.address, self._connect_timeout) from error
        self.leaf = self.sock.getpeercert(True) or b""

    def went_stale(self) -> bool:
        """Tell whether the other side has closed an idle connection: it never says anything else unasked."""
        poll = select.poll()
        poll.register(self.sock, select.POLLIN)
        return bool(poll.poll(0))

    def hang_up(self) -> None:
        """End what another thread does on the connection, at once: what waits to be sent is thrown away."""
        sock: socket.socket | None = self.sock
        if sock is None:
            return
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
            # The plain socket's method: that of TLS would let the other thread go on without encryption for a moment.
            socket.socket.shutdown(sock, socket.SHUT_RDWR)


class Connections:
    """Connections to one peer.

    Tries the addresses in their order, the one that worked last first. A request is sent a second time only when a
    connection that was idle turns out to be closed.

    Args:
        name: what people call the peer.
        addresses: where it may be reached.
        context: the TLS context to use, asked for each new connection.
        anonymous: one that shows no certificate, if the other does: to find out whether ours is refused.
        server_name: the host id that its certificate must carry.
        connect_timeout: seconds for connecting and shaking hands with one address.
    """

    def __init__(
        self,
        *,
        name: str,
        addresses: Sequence[str],
        context: Callable[[], ssl.SSLContext],
        anonymous: Callable[[], ssl.SSLContext] | None = None,
        server_name: str,
        connect_timeout: float,
    ) -> None:
        self._name = name
        self._addresses = tuple(addresses)
        self._context = context
        self._anonymous = anonymous
        self._server_name = server_name
        self._connect_timeout = connect_timeout
        self._lock = threading.Lock()
        self._idle: list[Connection] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close idle connections; those in use are closed when their requests end."""
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def exchange(
        self,
        method: str,
        path: str,
        body: Body = NOTHING,
        *,
        content_type: str = "",
        timeout: float,
        line: Line | None = None,
    ) -> Answer:
        """Send a request and read the answer, whatever its status.

        Args:
            method: HTTP method.
            path: path and query.
            body: sent piece by piece.
            content_type: of the body.
            timeout: seconds in which each piece must be taken, and the answer begin.
            line: when to hang up, and how fast to send.

        Raises:
            Conflict: ``cycle-stopped``: the line's halt was set.
            Unreachable: no address answers, or the connection broke.
            TimedOut: the peer accepts connections and does not answer.
            Refused: one of the two hosts does not accept the other's certificate.
        """
        request = _Request(method, path, body, content_type, timeout, line)
        request.require_wanted()
        idle = self._take_idle()
        if idle is not None:
            try:
                return self._use(idle, request)
            except Unreachable:
                self.close()
        return self._use_fresh(request)

    def _take_idle(self) -> Connection | None:
        while True:
            with self._lock:
                connection = self._idle.pop() if self._idle else None
            if connection is None or not connection.went_stale():
                return connection
            connection.close()

    def _use_fresh(self, request: _Request) -> Answer:
        connection = self._connect()
        try:
            return self._use(connection, request)
        except Unreachable as error:
            raise self._refusal(connection.address) or error from error.__cause__

    def _refusal(self, address: str) -> Refused | None:
        """Find out whether a connection ended because our certificate was refused.

        In TLS 1.3 the client has finished its handshake when the server looks at the certificate, and the server may
        hang up without a word. So ask for what needs no certificate, once with and once without ours.
        """
        if self._anonymous is None or self._answers(address, self._context):
            return None
        if not self._answers(address, self._anonymous):
            return None
        return _refused_us(f"{self._name}: {address}", "it hangs up when it sees it")

    def _answers(self, address: str, context: Callable[[], ssl.SSLContext]) -> bool:
        connection = Connection(address, context(), self._server_name, self._connect_timeout)
        try:
            connection.connect()
            _talk(connection, _Request("GET", f"{PREFIX}/ca", NOTHING, "", self._connect_timeout, None))
        except (VmReplicaError, OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()
        return True

    def _connect(self) -> Connection:
        context = self._context()
        failures: list[VmReplicaError] = []
        for address in self._addresses:
            connection = Connection(address, context, self._server_name, self._connect_timeout)
            try:
                connection.connect()
            except (Unreachable, TimedOut, Refused) as error:
                failures.append(error)
                continue
            self._prefer(address)
            return connection
        raise self._none_answers(failures)

    def _prefer(self, address: str) -> None:
        if self._addresses[0] != address:
            self._addresses = (address, *(other for other in self._addresses if other != address))

    def _none_answers(self, failures: list[VmReplicaError]) -> VmReplicaError:
        if not failures:
            return Unreachable("peer-unreachable", f"{self._name} has no address", hint=_PAIR_AGAIN)
        by_weight = (Refused, TimedOut, Unreachable)
        worst = min(failures, key=lambda error: by_weight.index(type(error)))
        told = "; ".join(error.message for error in failures)
        return type(worst)(worst.code, f"{self._name} cannot be reached: {told}", hint=worst.hint)

    def _use(self, connection: Connection, request: _Request) -> Answer:
        done = False
        try:
            with _ended_by(request.line, connection):
                answer = _talk(connection, request)
            done = True
        except (OSError, http.client.HTTPException) as error:
            request.require_wanted()
            failure = failure_of(error, connection.address, request.timeout)
            raise type(failure)(failure.code, f"{self._name}: {failure.message}", hint=failure.hint) from error
        finally:
            self._give_back(connection, done)
        return answer

    def _give_back(self, connection: Connection, done: bool) -> None:
        with self._lock:
            if done and connection.sock is not None and len(self._idle) < _MAX_IDLE:
                self._idle.append(connection)
                return
        connection.close()


def _talk(connection: Connection, request: _Request) -> Answer:
    headers = {"Content-Type": request.content_type} if request.content_type else {}
    headers["Content-Length"] = str(request.body.size)
    # The kernel's limit also ends the wait for a busy peer to take more, so it is for what always finds room there.
    limit = _UNHEARD_LIMIT if request.body.size <= _SMALL else 0
    connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, limit * 1000)
    connection.sock.settimeout(request.timeout)
    # A peer that refuses early stops reading; what it has to say about that is still read.
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        connection.request(request.method, request.path, _pieces(request.body, request.line), headers)
    response = connection.getresponse()
    content = response.read(_MAX_ANSWER + 1)
    if len(content) > _MAX_ANSWER:
        raise http.client.HTTPException(f"its answer is larger than {_MAX_ANSWER} bytes")
    response.close()
    return Answer(
        status=response.status,
        content_type=response.headers.get_content_type(),
        body=content,
        address=connection.address,
        leaf=connection.leaf,
    )


def _ended_by(line: Line | None, connection: Connection) -> contextlib.AbstractContextManager[None]:
    return contextlib.nullcontext() if line is None else line.halt.ending(connection.hang_up)


def _pieces(body: Body, line: Line | None) -> Iterator[memoryview]:
    for piece in body.pieces():
        view = memoryview(piece)
        while view:
            size = min(len(view), _PIECE)
            if line is not None and line.pace is not None:
                size = line.pace.allow(size, line.halt)
            yield view[:size]
            view = view[size:]


def _set_options(raw: socket.socket) -> None:
    """Let the kernels keep in touch while an answer takes its time: a host without power says no farewell."""
    raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _PROBE_AFTER)
    raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _PROBE_EVERY)
    raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _PROBES)


_CHECK_LINE: Final = "check that the agent runs there, and that network and firewall let this port through"


def failure_of(error: OSError | http.client.HTTPException, address: str, timeout: float) -> VmReplicaError:
    """Say what a failure of a connection means."""
    if isinstance(error, TimeoutError) and error.errno != errno.ETIMEDOUT:
        text = f"{address} accepts connections and does not answer within {timeout:g} s"
        return TimedOut("peer-timeout", text, hint="look at the agent's log on that host")
    if isinstance(error, ssl.SSLCertVerificationError):
        text = f"{address} is answered by another host, or with an expired certificate ({error.verify_message})"
        return Refused("peer-certificate-unexpected", text, hint=f"check address and clocks, or {_PAIR_AGAIN}")
    reason = str(getattr(error, "reason", None) or "")
    if isinstance(error, ssl.SSLError) and "ALERT" in reason and any(word in reason for word in _REFUSING_ALERTS):
        return _refused_us(address, reason.lower())
    return Unreachable("peer-unreachable", f"{address}: {_reason(error)}", hint=_CHECK_LINE)


def _refused_us(address: str, how: str) -> Refused:
    text = f"{address} does not accept the certificate of this host ({how})"
    return Refused("peer-certificate-refused", text, hint=f"check the clocks of both hosts, or {_PAIR_AGAIN}")


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLEOFError):
        return "the connection ended"
    if isinstance(error, ssl.SSLError):
        return f"no agent speaks TLS there ({error.reason or error})"
    if isinstance(error, TimeoutError):
        return "no answer: the line is dead" if error.errno == errno.ETIMEDOUT else "no answer"
    if isinstance(error, http.client.IncompleteRead | http.client.RemoteDisconnected | ConnectionError):
        return f"the connection ended ({getattr(error, 'strerror', None) or error})"
    return str(getattr(error, "strerror", None) or error)
