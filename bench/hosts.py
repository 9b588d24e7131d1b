"""What the bench needs to know of a host, and nothing of how the lab makes one."""

import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

PathLike = str | Path


class Host(Protocol):
    """One host of the lab."""

    name: str
    address: str
    libvirt_uri: str
    scratch: Path

    def argv(self, *command: PathLike) -> list[str]:
        """Turn a command into one that runs on this host (in its namespaces)."""
        ...

    def vmreplica(self, *arguments: str) -> dict[str, Any]:
        """Run a ``vmreplica`` command with ``--json`` and return its document."""
        ...

    def network_table(self) -> str:
        """Give /proc/net/dev as it is on this host."""
        ...

    def agent_pid(self) -> int:
        """Tell the process id of this host's agent."""
        ...


@dataclass(frozen=True, slots=True)
class Finished:
    """A command that ended well: how long it took, and the most memory it had."""

    seconds: float
    peak_bytes: int


def run(host: Host, *command: PathLike, limit: float = 900) -> Finished:
    """Run a command on a host and measure it.

    Args:
        host: where.
        command: program and arguments.
        limit: seconds after which it is killed.

    Raises:
        RuntimeError: it failed, with what it said.
    """
    with tempfile.TemporaryFile() as said:
        begun = time.perf_counter()
        process = subprocess.Popen(host.argv(*command), stdin=subprocess.DEVNULL, stdout=said, stderr=said)
        killer = threading.Timer(limit, process.kill)
        killer.start()
        _, status, usage = os.wait4(process.pid, 0)  # the only wait that tells the memory of this one process
        seconds = time.perf_counter() - begun
        killer.cancel()
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != 0:
            said.seek(0)
            words = said.read().decode(errors="replace").strip()
            raise RuntimeError(f"{command[0]} on {host.name} ended with {process.returncode}: {words}")
    return Finished(seconds, usage.ru_maxrss * 1024)


@contextmanager
def running(host: Host, command: Sequence[PathLike]) -> Iterator[subprocess.Popen[bytes]]:
    """Keep a server running on a host; it is ended, and waited for, at the end of the block."""
    with (host.scratch / f"{command[0]}.log").open("wb") as log:
        process = subprocess.Popen(host.argv(*command), stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(timeout=30)


def virsh(host: Host, *arguments: PathLike) -> str:
    """Run virsh against the host's libvirt daemon; tell what it printed.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    command = ["virsh", "-q", "-c", host.libvirt_uri, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout


def sent_bytes(host: Host) -> int:
    """Count all bytes that the host's network interfaces but the loopback have sent so far."""
    rows = (line.split(":") for line in host.network_table().splitlines()[2:])
    return sum(int(values.split()[8]) for name, values in rows if name.strip() != "lo")


def peak_memory(pid: int) -> int:
    """Tell the most resident memory that a process has had, in bytes."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"process {pid} tells no peak memory")
