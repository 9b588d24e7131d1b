"""The administrator's own program that is told of changes of health: run with a time limit, one at a time."""

import contextlib
import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from vmreplica.model.telling import HealthMessage

#: Seconds between looks whether it has ended.
_GLANCE: Final = 0.1


class HookCommand:
    """Runs a program with the message as JSON on its standard input, and its gist in the environment.

    Args:
        path: the program.
        limit: seconds that it may take; then it is killed with all that it started.
    """

    def __init__(self, path: Path, limit: float) -> None:
        self._path = path
        self._limit = limit
        self.place = str(path)

    def tell(self, message: HealthMessage, stopping: threading.Event) -> str | None:
        """Run it; gives why it failed, or None."""
        with tempfile.TemporaryFile() as text:
            # A file, not a pipe: who does not read it must not keep us waiting.
            text.write(message.model_dump_json().encode() + b"\n")
            text.seek(0)
            try:
                process = subprocess.Popen(
                    [self._path],
                    stdin=text,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    env={**os.environ, **_environment(message)},
                    cwd="/",
                    start_new_session=True,
                )
            except OSError as error:
                return f"it cannot be run: {os.strerror(error.errno or 0)}"
        return self._wait(process, stopping)

    def _wait(self, process: "subprocess.Popen[bytes]", stopping: threading.Event) -> str | None:
        until = time.monotonic() + self._limit
        why = None
        while process.poll() is None and why is None:
            if time.monotonic() >= until:
                why = f"it did not end within {self._limit:.0f} s and was killed"
            elif stopping.wait(_GLANCE):
                why = "it was killed as the agent ends"
        if why is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return why
        return None if process.returncode == 0 else f"it ended with exit code {process.returncode}"


def _environment(message: HealthMessage) -> Mapping[str, str]:
    return {
        "VMREPLICA_TEST": "1" if message.test else "0",
        "VMREPLICA_HOST": message.host,
        "VMREPLICA_VM": message.vm or "",
        "VMREPLICA_NAME": message.name,
        "VMREPLICA_ROLE": message.role or "",
        "VMREPLICA_STATE": message.state,
        "VMREPLICA_WAS": message.was.level,
        "VMREPLICA_HEALTH": message.health.level,
        "VMREPLICA_REASONS": ",".join(sorted({reason.code for reason in message.health.reasons})),
    }
