"""QEMU's guest agent for the lab's guest: the distribution's own program, its hook, and one that lies."""

from pathlib import Path
from typing import Final

from vmreplica.lab.cpio import Archive
from vmreplica.lab.guest_programs import installed, pack_program, script

#: What the agent runs when it is asked to shut the guest down.
_SHUTDOWN: Final = b'#!/bin/sh\necho "lab-guest: shut down by the agent" > /dev/console\npoweroff -f\n'
_SCRIPTS: Final = ("fsfreeze-hook", "liar", "start-agent")


def guest_agent() -> Path | None:
    """Tell where the agent is installed; None if it is not."""
    return installed("qemu-ga")


def guest_agent_archive() -> bytes:
    """Make an archive that is unpacked over the guest's root: the agent, its libraries and their loader.

    It is empty if none is installed.
    """
    agent, archive = guest_agent(), Archive()
    if agent is None:
        return archive.finish()
    pack_program(archive, agent)
    for directory in ("sbin", "etc"):
        archive.directory(directory)
    for name in _SCRIPTS:
        archive.file(f"bin/{name}", script(name), 0o755)
    archive.file("sbin/shutdown", _SHUTDOWN, 0o755)
    archive.file("etc/os-release", b'ID=lab\nPRETTY_NAME="guest of the lab"\n', 0o644)
    return archive.finish()
