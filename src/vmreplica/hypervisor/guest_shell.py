"""Programs run inside a guest by its agent (qemu-ga); what it answers is untrusted text, read within bounds."""

import base64
import binascii
import json
import time
from collections.abc import Sequence
from typing import Any, Final

import libvirt_qemu

from vmreplica.hypervisor.connection import Connection
from vmreplica.model.errors import HypervisorError, TimedOut
from vmreplica.model.ids import VmId

#: Seconds an agent has to answer one question; one that is there answers at once.
_ANSWER: Final = 5
_POLL: Final = 0.2
_MAX_TEXT: Final = 2000
_HINT: Final = "look at the service qemu-guest-agent in the guest, and restart it"


class GuestShell:
    """One guest's agent.

    Args:
        connection: to libvirt.
        vm: a running VM.

    Raises (every method):
        HypervisorError: there is no agent, or it refuses (``guest-agent-refused``, ``libvirt-refused``).
        TimedOut: it does not answer, or the program does not end (``guest-agent-silent``).
        VmReplicaError: libvirt does not answer.
    """

    def __init__(self, connection: Connection, vm: VmId) -> None:
        self._connection = connection
        self._vm = vm

    def system(self) -> str:
        """Tell the guest's operating system as its agent names it: ``mswindows``, ``debian``..."""
        answer = self._ask("guest-get-osinfo")
        return str(answer.get("id", ""))[:64] if isinstance(answer, dict) else ""

    def run(self, program: str, args: Sequence[str], *, limit: float) -> tuple[int, str]:
        """Run a program and wait for its end.

        Args:
            program: its path in the guest.
            args: what it is given.
            limit: seconds.

        Returns:
            Its exit code, and the end of what it printed.
        """
        started = self._ask("guest-exec", path=program, arg=list(args), **{"capture-output": True})
        pid = started.get("pid") if isinstance(started, dict) else None
        deadline = time.monotonic() + limit
        while isinstance(pid, int):
            status = self._ask("guest-exec-status", pid=pid)
            if isinstance(status, dict) and status.get("exited"):
                code = status.get("exitcode")
                return code if isinstance(code, int) else -1, _text(status, "out-data") + _text(status, "err-data")
            if time.monotonic() > deadline:
                raise TimedOut(
                    "guest-agent-silent", f"{program} in the guest does not end within {limit:g} s", hint=_HINT
                )
            time.sleep(_POLL)
        raise HypervisorError("guest-agent-refused", "the guest agent does not say what it started", hint=_HINT)

    def _ask(self, command: str, **arguments: Any) -> Any:
        request = json.dumps({"execute": command, **({"arguments": arguments} if arguments else {})})
        answer = self._connection.call(
            f"ask the guest agent of {self._vm}",
            lambda raw: libvirt_qemu.qemuAgentCommand(raw.lookupByUUIDString(self._vm), request, _ANSWER, 0),
        )
        try:
            return json.loads(answer)["return"]
        except (ValueError, KeyError, TypeError) as error:
            what = f"the guest agent's answer to {command} is none"
            raise HypervisorError("guest-agent-refused", what, hint=_HINT) from error


def _text(status: dict[str, Any], name: str) -> str:
    try:
        text = base64.b64decode(str(status.get(name) or "")).decode(errors="replace")
    except (binascii.Error, ValueError):
        return ""
    return "".join(c if c.isprintable() or c == "\n" else "?" for c in text[-_MAX_TEXT:])
