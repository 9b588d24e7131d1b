"""QEMU's guest agent for the lab's guest: the distribution's own program with the libraries it needs."""

import re
import shutil
from pathlib import Path
from typing import Final

from vmreplica.lab.commands import run, search_path
from vmreplica.lab.cpio import Archive

#: What the agent runs when it is asked to shut the guest down.
_SHUTDOWN: Final = b'#!/bin/sh\necho "lab-guest: shut down by the agent" > /dev/console\npoweroff -f\n'
_LIBRARY: Final = re.compile(r"(?:=> )?(/\S+) \(0x")


def guest_agent() -> Path | None:
    """Tell where the agent is installed; None if it is not."""
    found = shutil.which("qemu-ga", path=search_path())
    return Path(found) if found else None


def guest_agent_archive() -> bytes:
    """Make an archive that is unpacked over the guest's root: the agent, its libraries and their loader.

    It is empty if none is installed.
    """
    agent, archive = guest_agent(), Archive()
    if agent is None:
        return archive.finish()
    for directory in ("lib", "lib64", "usr", "usr/sbin", "sbin", "etc"):
        archive.directory(directory)
    archive.file("usr/sbin/qemu-ga", agent.read_bytes(), 0o755)
    archive.file("sbin/shutdown", _SHUTDOWN, 0o755)
    archive.file("etc/os-release", b'ID=lab\nPRETTY_NAME="guest of the lab"\n', 0o644)
    for library in sorted(set(map(Path, _LIBRARY.findall(run(["ldd", str(agent)]).stdout)))):
        place = "lib64" if library.name.startswith("ld-") else "lib"
        archive.file(f"{place}/{library.name}", library.read_bytes(), 0o755)
    return archive.finish()
