"""Namespaces held by a keeper process: process ids, network, mounts, host name. The keeper's death is a power cut.

The keepers carry the lab's directory in their environment, so that ``down`` finds all of them even when the lab's own
files are gone.
"""

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from vmreplica.lab import keeper
from vmreplica.lab.commands import run, search_path
from vmreplica.lab.waiting import until
from vmreplica.model.errors import Conflict, Refused, TimedOut

_MARK: Final = "VMREPLICA_LAB_KEEPER"
_START_LIMIT: Final = 20.0
_DEATH_LIMIT: Final = 20.0


@dataclasses.dataclass(frozen=True, slots=True)
class Namespace:
    """One set of namespaces of a lab.

    Args:
        lab: the lab's directory.
        name: the host's name, or ``middle``.
    """

    lab: Path
    name: str

    def start(self, *, binds: Mapping[str, str], hidden: Sequence[str], read_only: Mapping[str, str]) -> None:
        """Make the namespaces.

        Args:
            binds: directories that appear over others inside.
            hidden: directories that look empty inside.
            read_only: files that appear over others inside and cannot be opened for writing, not even by root.

        Raises:
            Refused: the machine does not allow it (code ``lab-namespace-failed``).
        """
        self._pid_file.unlink(missing_ok=True)
        self._pid_file.parent.mkdir(parents=True, exist_ok=True)
        spec = {
            "name": self.name,
            "binds": dict(binds),
            "hidden": list(hidden),
            "read_only": dict(read_only),
            "pid_file": str(self._pid_file),
        }
        log = self._pid_file.with_suffix(".log")
        with log.open("w") as said:
            subprocess.run(
                ["setsid", "--fork", "unshare", "--fork", "--pid", "--net", "--mount", "--uts", "--ipc",
                 sys.executable, "-I", "-S", keeper.__file__, json.dumps(spec)],
                stdin=subprocess.DEVNULL, stdout=said, stderr=said, check=True,
                env={"PATH": search_path(), _MARK: str(self.lab)},
            )  # fmt: skip
        if not until(self._is_ready, _START_LIMIT):
            raise Refused(
                "lab-namespace-failed",
                f"cannot make the namespaces of {self.name}: {log.read_text().strip() or 'no answer'}",
                hint="the lab needs a machine or container that may create namespaces and mount",
            )

    def _is_ready(self) -> bool:
        """Tell whether the keeper has become ``sleep``: while it does, its environment is nowhere for an instant."""
        pid = self.find_pid()
        if pid is None:
            return False
        with contextlib.suppress(OSError):
            return Path(f"/proc/{pid}/comm").read_text() == "sleep\n" and self.find_pid() is not None
        return False

    def find_pid(self) -> int | None:
        """Tell the keeper's process id, or None when the host is down."""
        try:
            pid = int(self._pid_file.read_text())
            environment = Path(f"/proc/{pid}/environ").read_bytes()
        except (OSError, ValueError):
            return None
        return pid if _mark_of(self.lab) in environment.split(b"\0") else None

    @property
    def pid(self) -> int:
        """The keeper's process id.

        Raises:
            Conflict: the host is down (code ``lab-host-down``).
        """
        pid = self.find_pid()
        if pid is None:
            raise Conflict(
                "lab-host-down", f"host {self.name} is down", hint=f"start it: vmreplica lab start {self.name}"
            )
        return pid

    def enter(self, argv: Sequence[str]) -> list[str]:
        """Give the command line that runs a command inside."""
        return ["nsenter", "-t", str(self.pid), "-p", "-n", "-m", "-u", "-i", "--", *argv]

    def ip_batch(self, *lines: str) -> None:
        """Run ip(8) commands in the network namespace; process ids in them are the machine's."""
        run(["nsenter", "-t", str(self.pid), "-n", "--", "ip", "-batch", "-"], stdin="\n".join(lines) + "\n")

    def processes(self) -> Iterator[int]:
        """Yield the ids, as seen from outside, of all processes inside."""
        inside = _pid_namespace(self.pid)
        for pid in all_pids():
            if _pid_namespace(pid) == inside:
                yield pid

    def kill(self) -> None:
        """End everything inside at once and wait until it is gone; nothing to do when the host is down."""
        pid = self.find_pid()
        if pid is not None:
            kill_keepers([pid])
        self._pid_file.unlink(missing_ok=True)

    @property
    def _pid_file(self) -> Path:
        return self.lab / "keepers" / f"{self.name}.pid"


def keepers_of(lab: Path) -> list[int]:
    """Find the keepers of a lab among all processes, whatever became of its files."""
    mark = _mark_of(lab)
    found = []
    for pid in all_pids():
        with contextlib.suppress(OSError):
            if mark in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                found.append(pid)
    return found


def kill_keepers(pids: Sequence[int]) -> None:
    """Kill keepers and wait until the kernel has ended their namespaces with them.

    Raises:
        TimedOut: a process does not die (code ``lab-does-not-die``).
    """
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    if not until(lambda: not any(is_alive(pid) for pid in pids), _DEATH_LIMIT):
        raise TimedOut("lab-does-not-die", f"processes {list(pids)} of the lab do not end")


def is_alive(pid: int) -> bool:
    """Tell whether a process exists and is more than a zombie.

    Its first thread may be one while others still end, and hold what it held: locks on its files.
    """
    try:
        process = Path(f"/proc/{pid}")
        if (process / "stat").read_text().rpartition(")")[2].split()[0] not in {"Z", "X"}:
            return True
        return sum(1 for _thread in (process / "task").iterdir()) > 1
    except OSError:
        return False


def all_pids() -> Iterator[int]:
    """Yield all process ids of the machine."""
    yield from (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())


def _mark_of(lab: Path) -> bytes:
    return f"{_MARK}={lab}".encode()


def _pid_namespace(pid: int) -> str | None:
    try:
        return str(Path(f"/proc/{pid}/ns/pid").readlink())
    except OSError:
        return None
