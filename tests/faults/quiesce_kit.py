"""A guest with its agent and a database, how it is told to misbehave, and what became of its points."""

import json
import re
from typing import Any

from job_kit import Document

from vmreplica.lab import Guest, Host
from vmreplica.lab.waiting import until

_CHECKED = re.compile(r"database: integrity (\w+), newest (\d+), file (\d+), hook (?:stopped at (\d+)|(\w+))")


def ask_agent(guest: Guest, command: str, **arguments: Any) -> Any:
    """Ask a guest's agent as a person could."""
    request = json.dumps({"execute": command, "arguments": arguments})
    return json.loads(guest.host.virsh("qemu-agent-command", guest.name, request).stdout)["return"]


def run_inside(guest: Guest, script: str) -> None:
    """Run a script in the guest by its real agent; does not wait for its end."""
    ask_agent(guest, "guest-exec", path="/bin/sh", arg=["-c", script])


def agent_answers(guest: Guest) -> bool:
    """Tell whether the agent answers."""
    return guest.host.virsh("qemu-agent-command", guest.name, '{"execute":"guest-ping"}', check=False).returncode == 0


def put_liar(guest: Guest) -> None:
    """Let the agent that lies take the place of the real one."""
    run_inside(guest, "setsid start-agent liar > /dev/null 2>&1 &")

    def lies() -> bool:
        request = '{"execute": "lab-be", "arguments": {"as": "honest"}}'
        return guest.host.virsh("qemu-agent-command", guest.name, request, check=False).returncode == 0

    assert until(lies, 60)


def put_real(guest: Guest) -> None:
    """Let the real agent come back."""
    ask_agent(guest, "lab-be", **{"as": "real"})
    assert until(lambda: agent_answers(guest), 60)


def quiesce_now(host: Host, vm: str, rule: str = "cycles=1") -> Document:
    """Ask for an application-consistent point, however long ago the last one was; gives how the cycle went."""
    done: Document = host.ask("enable", vm, "--to", "b", "--every", "24h", "--app-consistent", rule, timeout=300)
    result: Document = done["result"]
    return result


def database_said(console: str) -> tuple[str, int, int, int | None]:
    """Read what the database found when it booted.

    Returns:
        Its integrity, the newest number in it and in the file beside it, and at which number the hook had stopped the
        writer, if it had.
    """
    found = _CHECKED.search(console)
    assert found, console[-800:]
    return found[1], int(found[2]), int(found[3]), int(found[4]) if found[4] else None
