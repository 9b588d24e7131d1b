"""Signs of life of a copy that boots: each is asked again and again until it says what it has seen."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, Protocol

from vmreplica.hypervisor.life import Life
from vmreplica.model.boot import BootSign
from vmreplica.model.errors import BadRequest

#: What a login prompt looks like on a serial console, whatever the system's language leaves of it.
_LOGIN: Final = re.compile(r"\blogin: ?$|SAC>", re.IGNORECASE | re.MULTILINE)
#: Characters of the console that are looked at together: a sign may come in two pieces.
_WINDOW: Final = 8192
#: Bytes of the console's log that are kept: a guest may say whatever it likes for as long as it is let.
_LOG_CAP: Final = 16 << 20
_CONNECT: Final = 1.0
#: Seconds before a program that said no is asked again.
_SCRIPT_PAUSE: Final = 5.0
_TAIL: Final = 300


class Sign(Protocol):
    """One sign of life."""

    def look(self) -> str | None:
        """Tell what was seen; None: nothing yet."""

    def told(self) -> str:
        """Tell what there was instead, for a person; may be empty."""

    def close(self) -> None:
        """Let go of everything."""


def signs_of(wish: BootSign, life: Life, console: Path, environment: Mapping[str, str]) -> list[Sign]:
    """Make what looks for a wished sign.

    Args:
        wish: as a person said.
        life: of the copy.
        console: the log of its serial console.
        environment: for a program of the user's, besides our own.
    """
    log = _Log(console)
    if wish.kind == "agent":
        return [AgentSign(life)]
    if wish.kind == "console":
        return [ConsoleSign(log, wish.value)]
    if wish.kind == "tcp":
        return [TcpSign(life.addresses, int(wish.value))]
    if wish.kind == "script":
        return [ScriptSign(wish.value, environment)]
    return [AgentSign(life), ConsoleSign(log, None)]


def require_usable(wish: BootSign) -> None:
    """See that a program of the user's can be run.

    Raises:
        BadRequest: ``boot-script-unusable``.
    """
    if wish.kind == "script" and not (Path(wish.value).is_file() and os.access(wish.value, os.X_OK)):
        raise BadRequest(
            "boot-script-unusable",
            f"{wish.value} is no program that can be run on this host",
            hint="--sign script:/usr/local/bin/is-web-alive; it needs a first line such as #!/bin/sh, and chmod +x",
        )


class AgentSign:
    """The guest agent answers."""

    def __init__(self, life: Life) -> None:
        self._life = life

    def look(self) -> str | None:
        """Ask it."""
        return "the guest agent answers" if self._life.agent_answers() else None

    def told(self) -> str:
        """Nothing is known but that it did not."""
        return ""

    def close(self) -> None:
        """Nothing was opened."""


class ConsoleSign:
    """A text, or any login prompt, on the serial console."""

    def __init__(self, log: "_Log", text: str | None) -> None:
        self._log = log
        self._text = text

    def look(self) -> str | None:
        """Read what was said since."""
        window = self._log.read()
        if self._text is None:
            return "a login prompt on the serial console" if _LOGIN.search(window) else None
        return f"{self._text!r} on the serial console" if self._text in window else None

    def told(self) -> str:
        """Give the end of what was said."""
        tail = " ".join(shown(self._log.read())[-_TAIL:].split())
        return f"the serial console ends with: {tail}" if tail else "the serial console said nothing"

    def close(self) -> None:
        """Nothing is open."""


class TcpSign:
    """Something accepts connections to a port."""

    def __init__(self, addresses: Callable[[], list[str]], port: int) -> None:
        self._addresses = addresses
        self._port = port
        self._seen: list[str] = []

    def look(self) -> str | None:
        """Connect."""
        self._seen = self._addresses()
        for address in self._seen:
            with contextlib.suppress(OSError), socket.create_connection((address, self._port), timeout=_CONNECT):
                return f"{address} accepts connections to TCP port {self._port}"
        return None

    def told(self) -> str:
        """Tell where it was looked for."""
        if self._seen:
            return f"nothing accepts connections at {', '.join(self._seen)}"
        return "libvirt knows no address of it: the network needs a DHCP server of libvirt's, or the guest an agent"

    def close(self) -> None:
        """Nothing is open."""


class ScriptSign:
    """A program of the user's ends with 0; until then it is run again and again."""

    def __init__(self, path: str, environment: Mapping[str, str]) -> None:
        self._path = path
        self._environment = {**os.environ, **environment}
        self._process: subprocess.Popen[bytes] | None = None
        self._said = ""
        self._next = 0.0

    def look(self) -> str | None:
        """Start it, or see how it ended."""
        if self._process is None:
            if time.monotonic() >= self._next:
                self._start()
            return None
        self._listen(self._process)
        code = self._process.poll()
        if code is None:
            return None
        self._listen(self._process)
        self.close()
        self._next = time.monotonic() + _SCRIPT_PAUSE
        return f"{self._path} ended with 0" if code == 0 else None

    def told(self) -> str:
        """Give the end of what it said."""
        said = " ".join(self._said.split())
        return f"{self._path} said: {said}" if said else ""

    def close(self) -> None:
        """End it, with all that it started and did not put elsewhere."""
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if process.stdout is not None:
            process.stdout.close()

    def _start(self) -> None:
        self._said = ""
        try:
            self._process = subprocess.Popen(
                [self._path], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                env=self._environment, start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            self._said, self._next = str(error.strerror), time.monotonic() + _SCRIPT_PAUSE
            return
        if self._process.stdout is not None:
            os.set_blocking(self._process.stdout.fileno(), False)

    def _listen(self, process: subprocess.Popen[bytes]) -> None:
        if process.stdout is not None:
            with contextlib.suppress(BlockingIOError):
                said = os.read(process.stdout.fileno(), 65536).decode(errors="replace")
                self._said = (self._said + shown(said))[-_TAIL:]


class _Log:
    """The log of a serial console, read as it grows; libvirt may begin a new one when it has grown large."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._at = 0
        self._window = ""

    def read(self) -> str:
        """Give the end of what was said until now."""
        try:
            with self._path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                self._at = 0 if size < self._at else max(self._at, size - _LOG_CAP)
                file.seek(self._at)
                new = file.read(_LOG_CAP)
        except FileNotFoundError:
            return self._window
        self._at += len(new)
        self._window = (self._window + new.decode(errors="replace").replace("\r", ""))[-_WINDOW - len(new) :]
        whole, self._window = self._window, self._window[-_WINDOW:]
        if self._at > _LOG_CAP:
            os.truncate(self._path, 0)  # QEMU and virtlogd append
            self._at = 0
        return whole


def shown(text: str) -> str:
    """Make a guest's or program's text harmless on a terminal."""
    return "".join(c if c.isprintable() or c.isspace() else "?" for c in text)
