"""The real agent with one trap in it: it kills itself with SIGKILL just before or just after a named call.

Started in place of ``vmreplica agent`` with ``--config FILE``. Environment:

- ``VMREPLICA_TRAP``: ``PLACE.NAME:before|after|hold[:COUNT]``, for example ``SpoolDisk.append:after:3``; empty: no
  trap. ``hold`` does not kill: the call waits until there is a file of the name in ``VMREPLICA_SENT`` with ``.go``.
- ``VMREPLICA_SENT``: a file that is told of each segment that is sent, of each that was answered, and of the trap.

Nothing is imitated: the real function runs, what is put around it only watches and kills.
"""

import functools
import importlib
import itertools
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from vmreplica.api.daemon import run

#: Classes and modules that a trap may name, and where they are.
_PLACES: Final = {
    "Hypervisor": "vmreplica.hypervisor.hypervisor",
    "GuestFreezer": "vmreplica.hypervisor.quiesce",
    "Freeze": "vmreplica.agent.frozen",
    "CheckpointShelf": "vmreplica.hypervisor.checkpoints",
    "Spool": "vmreplica.spool.spool",
    "SpoolPoint": "vmreplica.spool.point",
    "SpoolDisk": "vmreplica.spool.disk",
    "PeerClient": "vmreplica.peer.client",
    "Replica": "vmreplica.repository.replica",
    "Repository": "vmreplica.repository.store",
    "adopting": "vmreplica.repository.adopting",
    "publish": "vmreplica.repository.publish",
    "Damages": "vmreplica.repository.damage",
    "Awaiting": "vmreplica.repository.awaiting",
    "Parcel": "vmreplica.parcel.parcel",
    "Place": "vmreplica.parcel.place",
    "folding": "vmreplica.repository.folding",
    "merging": "vmreplica.repository.merging",
}


def main() -> None:
    """Set the trap and run the agent."""
    log = os.open(os.environ["VMREPLICA_SENT"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    _tap(log)
    trap = os.environ.get("VMREPLICA_TRAP")
    if trap:
        _set(trap, log)
    run(Path(sys.argv[sys.argv.index("--config") + 1]))


def _set(trap: str, log: int) -> None:
    where, when, *count = trap.split(":")
    place, name = where.split(".")
    module = importlib.import_module(_PLACES[place])
    owner = getattr(module, place) if place[0].isupper() else module
    setattr(owner, name, _trapped(getattr(owner, name), when, int(count[0]) if count else 1, log))


def _trapped(real: Callable[..., Any], when: str, count: int, log: int) -> Callable[..., Any]:
    calls = itertools.count(1)

    def spring() -> None:
        os.write(log, b"trapped\n")
        os.kill(os.getpid(), signal.SIGKILL)

    @functools.wraps(real)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        chosen = next(calls) == count
        if chosen and when == "before":
            spring()
        if chosen and when == "hold":
            os.write(log, b"trapped\n")
            while not Path(os.environ["VMREPLICA_SENT"] + ".go").exists():
                time.sleep(0.05)
        result = real(*args, **kwargs)
        if chosen and when == "after":
            spring()
        return result

    return wrapped


def _tap(log: int) -> None:
    """Note each segment in a file: what was written there outlives the process."""
    client = importlib.import_module(_PLACES["PeerClient"]).PeerClient
    real = client.put_segment

    @functools.wraps(real)
    def put_segment(self: Any, vm: str, point: str, target: str, number: int, body: Any) -> None:  # noqa: PLR0917 - as the real one
        line = f"{vm} {point} {target} {number} {body.size}\n"
        os.write(log, f"sent {line}".encode())
        real(self, vm, point, target, number, body)
        os.write(log, f"answered {line}".encode())

    client.put_segment = put_segment


if __name__ == "__main__":
    main()
