"""Freezing and thawing the file systems of a guest by its agent (qemu-ga), each question with a short limit.

libvirt's own calls for it wait for ever and keep the agent's channel meanwhile, so that nobody could thaw; and they do
not tell a guest that is frozen already from one that cannot freeze.
"""

import json
from dataclasses import dataclass
from typing import Any, Final

import libvirt
import libvirt_qemu

from vmreplica.hypervisor.connection import Connection
from vmreplica.hypervisor.faults import said
from vmreplica.model.errors import HypervisorError
from vmreplica.model.ids import VmId

#: Seconds for a question that is answered at once, and for a thaw, whose hooks may start a database's writers again.
_ANSWER: Final = 5
_THAW: Final = 10
#: What libvirt may take besides, to find out whether the agent listens at all.
_SLACK: Final = 15.0
_MAX_SAID: Final = 300
#: Newer than the oldest bindings that we work with: a command that timed out, and one that the agent refused.
_COMMAND_TIMEOUT: Final = 111
_COMMAND_FAILED: Final = 112
_SILENT: Final = frozenset({libvirt.VIR_ERR_AGENT_UNRESPONSIVE, libvirt.VIR_ERR_AGENT_UNSYNCED, _COMMAND_TIMEOUT})
#: Older daemons call it an internal error.
_REFUSED: Final = frozenset({_COMMAND_FAILED, libvirt.VIR_ERR_INTERNAL_ERROR})
_NEEDED: Final = ("guest-fsfreeze-status", "guest-fsfreeze-freeze", "guest-fsfreeze-thaw")
#: Where distributions look for the script that runs before the freeze and after the thaw.
HOOK: Final = "/etc/qemu/fsfreeze-hook"
_HINT: Final = "look at the service qemu-guest-agent in the guest, and restart it"


@dataclass(frozen=True, slots=True, kw_only=True)
class FreezeLook:
    """What a guest's agent tells about its ability to freeze."""

    #: Commands that are needed and that the agent lacks or was told not to obey.
    missing: tuple[str, ...]
    frozen: bool
    #: Whether a hook stands where distributions look for it; None: the agent does not tell, or it is Windows.
    hook: bool | None


class GuestFreezer:
    """One guest's agent, as far as freezing goes.

    Args:
        connection: to libvirt.
        vm: the VM.
        name: its name, for messages.

    Raises (every method):
        HypervisorError: ``guest-agent-silent``, ``guest-agent-absent``, ``guest-agent-refused``.
        VmReplicaError: libvirt does not answer.
    """

    def __init__(self, connection: Connection, vm: VmId, name: str) -> None:
        self._connection = connection
        self._vm = vm
        self._name = name

    def frozen(self) -> bool:
        """Tell whether the agent says that file systems are frozen."""
        status = self._ask("guest-fsfreeze-status", _ANSWER)
        if status not in ("frozen", "thawed"):
            raise self._nonsense("guest-fsfreeze-status")
        return bool(status == "frozen")

    def freeze(self, limit: int) -> int:
        """Freeze all file systems; tells how many. After an error some of them may be frozen, now or later.

        Args:
            limit: seconds.
        """
        return self._count("guest-fsfreeze-freeze", limit)

    def thaw(self) -> int:
        """Thaw all file systems; tells how many were frozen."""
        return self._count("guest-fsfreeze-thaw", _THAW)

    def look(self) -> FreezeLook:
        """Look at what freezing would meet; changes nothing."""
        info = self._ask("guest-info", _ANSWER)
        commands = info.get("supported_commands") if isinstance(info, dict) else None
        if not isinstance(commands, list):
            raise self._nonsense("guest-info")
        enabled = {one.get("name") for one in commands if isinstance(one, dict) and one.get("enabled")}
        missing = tuple(name for name in _NEEDED if name not in enabled)
        frozen = _NEEDED[0] in enabled and self.frozen()
        return FreezeLook(missing=missing, frozen=frozen, hook=None if frozen else self._hook())

    def _hook(self) -> bool | None:
        """Look for the hook by opening it for reading, the only look that every agent offers."""
        try:
            handle = self._ask("guest-file-open", _ANSWER, path=HOOK, mode="r")
        except HypervisorError as error:
            return False if "No such file" in error.message else None
        self._ask("guest-file-close", _ANSWER, handle=handle)
        return True

    def _count(self, command: str, limit: int) -> int:
        count = self._ask(command, limit)
        if not isinstance(count, int) or isinstance(count, bool) or count < 0:
            raise self._nonsense(command)
        return count

    def _ask(self, command: str, limit: int, **arguments: Any) -> Any:
        request = json.dumps({"execute": command, **({"arguments": arguments} if arguments else {})})

        def ask(raw: libvirt.virConnect) -> str:
            try:
                return str(libvirt_qemu.qemuAgentCommand(raw.lookupByUUIDString(self._vm), request, limit, 0))
            except libvirt.libvirtError as error:
                refusal = self._refusal(command, error)
                if refusal is None:
                    raise
                raise refusal from error

        answer = self._connection.call(f"ask the guest agent of {self._name}", ask, limit=limit + _SLACK)
        try:
            return json.loads(answer)["return"]
        except (ValueError, KeyError, TypeError) as error:
            raise self._nonsense(command) from error

    def _refusal(self, command: str, error: libvirt.libvirtError) -> HypervisorError | None:
        """Say what the agent did instead of answering; None when it was not the agent."""
        code = error.get_error_code()
        about = f"the guest agent of {self._name}"
        if code in _SILENT:
            return HypervisorError("guest-agent-silent", f"{about} does not answer {command} in time", hint=_HINT)
        if code in _REFUSED:
            told = "".join(c if c.isprintable() else "?" for c in said(error))[:_MAX_SAID]
            return HypervisorError("guest-agent-refused", f"{about} refuses {command}: {told}", hint=_HINT)
        if code in {libvirt.VIR_ERR_OPERATION_INVALID, libvirt.VIR_ERR_ARGUMENT_UNSUPPORTED}:
            # It is off or paused, has no channel, or nothing in the guest has opened it.
            return HypervisorError("guest-agent-absent", f"{about} cannot be asked: {said(error)}", hint=_HINT)
        return None

    def _nonsense(self, command: str) -> HypervisorError:
        what = f"the answer of the guest agent of {self._name} to {command} makes no sense"
        return HypervisorError("guest-agent-refused", what, hint=_HINT)
