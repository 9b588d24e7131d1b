"""This machine as a host of the bench."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.hosts import run, running


class ThisMachine:
    """A host that is nothing but this machine."""

    name = "here"
    address = "127.0.0.1"
    libvirt_uri = "qemu:///session"

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch
        scratch.mkdir()

    def argv(self, *command: str | Path) -> list[str]:
        """Run commands as they are."""
        return [str(part) for part in command]

    def vmreplica(self, *arguments: str) -> dict[str, Any]:
        """There is no agent here."""
        raise NotImplementedError(arguments)

    def network_table(self) -> str:
        """Read this machine's own."""
        return Path("/proc/net/dev").read_text()

    def agent_pid(self) -> int:
        """There is no agent here."""
        raise NotImplementedError


@contextmanager
def served(host: ThisMachine, image: Path) -> Iterator[Path]:
    """Serve a qcow2 image read-only over NBD; yields the socket, which is listened on."""
    socket = host.scratch / "nbd.sock"
    with running(host, ["qemu-nbd", "-r", "-t", "-e", "8", "-f", "qcow2", "-k", socket, image]):
        run(host, "bash", "-c", f"for i in {{1..100}}; do [ -S {socket} ] && exit; sleep 0.05; done; exit 1")
        yield socket
