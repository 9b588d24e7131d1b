"""The administrator's own service that is told of changes of health: one POST for each, tried again a few times.

Its address may have a secret in it: only scheme, host and port are ever shown or logged.
"""

import base64
import contextlib
import hashlib
import hmac
import http.client
import os
import secrets
import socket
import ssl
import threading
import time
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

from vmreplica import __version__
from vmreplica.model.telling import HealthMessage

#: Seconds between attempts; after the last one the message is given up.
RETRIES: Final = (1.0, 5.0, 25.0)
_MAX_SECRET: Final = 4096
#: Statuses of the service that may be other ones a moment later.
_PASSING: Final = frozenset({408, 425, 429})
_OK: Final = range(200, 300)
_SERVER_ERRORS: Final = range(500, 600)


class Webhook:
    """Posts messages.

    Args:
        url: http or https; validated by the configuration.
        limit: seconds that one attempt may take as a whole.
        secret_file: its content signs each message; read anew each time.
        ca_file: whom to trust besides the host's authorities.
        retries: seconds between attempts.
    """

    def __init__(
        self,
        url: str,
        limit: float,
        *,
        secret_file: Path | None = None,
        ca_file: Path | None = None,
        retries: tuple[float, ...] = RETRIES,
    ) -> None:
        parts = urlsplit(url)
        self._tls = parts.scheme == "https"
        self._host = parts.hostname or ""
        self._port = parts.port or (443 if self._tls else 80)
        self._target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        self._login = _login(parts.username, parts.password)
        self._limit = limit
        self._secret_file = secret_file
        self._ca_file = ca_file
        self._retries = retries
        shown = f"[{self._host}]" if ":" in self._host else self._host
        self.place = f"{parts.scheme}://{shown}:{self._port}"

    def tell(self, message: HealthMessage, stopping: threading.Event) -> str | None:
        """Post it; gives why it failed in the end, or None."""
        body = message.model_dump_json().encode()
        delivery = secrets.token_hex(16)
        why, passing = self._attempt(body, delivery, test=message.test)
        for wait in () if message.test else self._retries:
            if why is None or not passing or stopping.wait(wait):
                break
            why, passing = self._attempt(body, delivery, test=False)
        return why

    def _attempt(self, body: bytes, delivery: str, *, test: bool) -> tuple[str | None, bool]:
        """Post once; gives why it failed, and whether another attempt may help."""
        try:
            headers = self._headers(body, delivery, test=test)
        except OSError as error:
            return f"the file of its secret cannot be read: {os.strerror(error.errno or 0)}", False
        try:
            status = self._post(body, headers)
        except (OSError, http.client.HTTPException, ValueError) as error:
            return _why(error), not isinstance(error, ssl.SSLCertVerificationError | ValueError)
        if status in _OK:
            return None, False
        return f"it answered with HTTP status {status}", status in _PASSING or status in _SERVER_ERRORS

    def _post(self, body: bytes, headers: dict[str, str]) -> int:
        connection = self._connection()
        watch = threading.Timer(self._limit, _cut, (connection,))
        watch.daemon = True
        watch.start()
        try:
            connection.request("POST", self._target, body, headers)
            return connection.getresponse().status
        finally:
            watch.cancel()
            connection.close()

    def _connection(self) -> http.client.HTTPConnection:
        if not self._tls:
            return http.client.HTTPConnection(self._host, self._port, timeout=self._limit)
        context = ssl.create_default_context()
        if self._ca_file is not None:
            context.load_verify_locations(self._ca_file)
        return http.client.HTTPSConnection(self._host, self._port, timeout=self._limit, context=context)

    def _headers(self, body: bytes, delivery: str, *, test: bool) -> dict[str, str]:
        when = str(int(time.time()))
        headers = {
            "Content-Type": "application/json",
            "User-Agent": f"vmreplica/{__version__}",
            "X-VMReplica-Event": "test" if test else "health",
            "X-VMReplica-Delivery": delivery,
            "X-VMReplica-Timestamp": when,
        }
        if self._login is not None:
            headers["Authorization"] = self._login
        if self._secret_file is not None:
            with self._secret_file.open("rb") as file:
                secret = file.read(_MAX_SECRET).strip()
            headers["X-VMReplica-Signature"] = signature(secret, when, body)
        return headers


def signature(secret: bytes, when: str, body: bytes) -> str:
    """Sign a body and the second it was sent in: ``sha256=`` and hex digits of an HMAC over ``when.body``."""
    return f"sha256={hmac.new(secret, when.encode() + b'.' + body, hashlib.sha256).hexdigest()}"


def _login(user: str | None, password: str | None) -> str | None:
    if user is None:
        return None
    pair = f"{unquote(user)}:{unquote(password or '')}".encode()
    return f"Basic {base64.b64encode(pair).decode()}"


def _cut(connection: http.client.HTTPConnection) -> None:
    """End a connection whose other side answers a byte now and then."""
    with contextlib.suppress(OSError, AttributeError):
        connection.sock.shutdown(socket.SHUT_RDWR)


def _why(error: Exception) -> str:
    """Say why, without the address that some errors repeat."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {error.verify_message}"
    if isinstance(error, TimeoutError):
        return "it did not answer in time"
    if isinstance(error, ssl.SSLError):
        # Its errno is a number of the TLS library's own, which no system error goes by.
        return f"no TLS connection can be made with it: {error.reason or type(error).__name__}"
    if isinstance(error, socket.gaierror):
        return "its name cannot be resolved"
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)
    return f"the connection failed ({type(error).__name__})"
