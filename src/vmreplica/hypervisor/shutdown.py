"""Shutting a VM down as its guest wishes, and what must be known before; whether libvirt would accept a definition."""

import time
from dataclasses import dataclass
from typing import Final, Literal

import libvirt
from defusedxml.ElementTree import fromstring

from vmreplica.hypervisor import backup
from vmreplica.hypervisor.busy import require_idle
from vmreplica.hypervisor.connection import DEFAULT_LIMIT, LONG_LIMIT, Connection
from vmreplica.hypervisor.job_files import JobFiles
from vmreplica.model.errors import HypervisorError
from vmreplica.model.ids import VmId

#: How a guest is asked: through its agent, or by the power button.
Bell = Literal["agent", "button"]

_FLAGS: Final = {
    "agent": libvirt.VIR_DOMAIN_SHUTDOWN_GUEST_AGENT,
    "button": libvirt.VIR_DOMAIN_SHUTDOWN_ACPI_POWER_BTN,
}
#: Looks at jobs, and seconds between them.
_LOOKS: Final = 5
_STEP: Final = 0.2
_AGENT: Final = "org.qemu.guest_agent.0"


@dataclass(frozen=True, slots=True, kw_only=True)
class Power:
    """What matters for shutting a VM down."""

    #: It has a running QEMU, paused or not.
    active: bool
    #: Its processors run: a paused guest hears nothing.
    awake: bool
    #: A transient VM is gone, with all that libvirt knows of it, when it goes off.
    persistent: bool
    #: Its memory was saved to a file, from which its next start would go on.
    saved: bool
    #: What libvirt does when the guest goes off: ``destroy``, unless somebody wanted something else.
    on_poweroff: str
    #: Its guest agent answers.
    agent: bool
    #: It has a power button.
    button: bool


class PowerSwitch:
    """Thread-safe. Every method may raise what those of ``Hypervisor`` may.

    Args:
        connection: to libvirt.
        files: tell our own backup jobs from foreign ones.
    """

    def __init__(self, connection: Connection, files: JobFiles) -> None:
        self._connection = connection
        self._files = files

    def look(self, vm: VmId) -> Power:
        """Tell how a VM can be shut down."""
        return self._connection.call(
            f"look at {vm}", lambda raw: _look(raw.lookupByUUIDString(vm)), repeatable=True, limit=DEFAULT_LIMIT
        )

    def require_idle(self, vm: VmId, name: str) -> None:
        """See that nobody else works on a VM.

        Raises:
            HypervisorError: ``vm-busy``.
        """

        def check(raw: libvirt.virConnect) -> None:
            domain = raw.lookupByUUIDString(vm)
            if not domain.isActive():
                return
            job = backup.running(domain)
            if job is None:
                require_idle(domain, name, ())
            elif not self._files.is_ours(vm, job):
                hint = f"wait until it has ended; virsh domjobinfo {name} shows it"
                raise HypervisorError("vm-busy", f"{name} is busy: a foreign backup job works on it", hint=hint)

        for left in range(_LOOKS, 0, -1):
            try:
                self._connection.call(f"look at the jobs of {name}", check, repeatable=True)
            except HypervisorError:
                # A job of ours that begins or ends just now is not told as ours, or makes libvirt refuse the look.
                if left == 1:
                    raise
                time.sleep(_STEP)
            else:
                return

    def ask(self, vm: VmId, bell: Bell) -> None:
        """Ask a guest to shut itself down; it may take its time, or not hear it. One that is off is fine."""

        def ring(raw: libvirt.virConnect) -> None:
            domain = raw.lookupByUUIDString(vm)
            if domain.isActive():
                domain.shutdownFlags(_FLAGS[bell])

        self._connection.call(f"shut down {vm}", ring, limit=LONG_LIMIT)

    def require_acceptable(self, name: str, xml: str) -> None:
        """Let libvirt work a definition out to QEMU's command line: what it refuses there it would refuse to start.

        Nothing is defined.

        Raises:
            HypervisorError: ``libvirt-refused``.
        """
        self._connection.call(
            f"work out the definition of {name}", lambda raw: _discard(raw.domainXMLToNative("qemu-argv", xml))
        )


def _look(domain: libvirt.virDomain) -> Power:
    active = bool(domain.isActive())
    root = fromstring(domain.XMLDesc(), forbid_dtd=True)
    channels = root.iterfind(f"devices/channel/target[@name='{_AGENT}']")
    return Power(
        active=active,
        awake=active and domain.state()[0] in {libvirt.VIR_DOMAIN_RUNNING, libvirt.VIR_DOMAIN_BLOCKED},
        persistent=bool(domain.isPersistent()),
        saved=bool(domain.isPersistent()) and bool(domain.hasManagedSaveImage()),
        on_poweroff=root.findtext("on_poweroff") or "destroy",
        agent=active and any(channel.get("state") == "connected" for channel in channels),
        button=root.find("features/acpi") is not None,
    )


def _discard(_result: str) -> None:
    return None
