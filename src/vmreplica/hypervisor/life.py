"""Looking at a VM for signs of life: its agent, its addresses, its screen. What a guest says is untrusted."""

import ipaddress
import json
from typing import Any, Final, Literal

import libvirt
import libvirt_qemu
from defusedxml.ElementTree import fromstring

from vmreplica.hypervisor.connection import Connection
from vmreplica.hypervisor.picture import MAX_PICTURE
from vmreplica.model.errors import HypervisorError
from vmreplica.model.ids import VmId

#: Seconds an agent has to answer; one that is there answers at once.
_ANSWER: Final = 3
_PAUSED: Final = frozenset({libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PMSUSPENDED, libvirt.VIR_DOMAIN_CRASHED})
_OFF: Final = frozenset({libvirt.VIR_DOMAIN_SHUTOFF})
#: Where libvirt learns a guest's addresses from: its own DHCP servers, the guest agent, this host's neighbours.
_SOURCES: Final = (
    libvirt.VIR_DOMAIN_INTERFACE_ADDRESSES_SRC_LEASE,
    libvirt.VIR_DOMAIN_INTERFACE_ADDRESSES_SRC_AGENT,
    libvirt.VIR_DOMAIN_INTERFACE_ADDRESSES_SRC_ARP,
)
_MAX_ADDRESSES: Final = 8

LifeState = Literal["running", "paused", "off"]


class Life:
    """One VM.

    Args:
        connection: to libvirt.
        vm: which.

    Raises (every method):
        Unreachable, TimedOut: libvirt does not answer.
        NotFound: the VM is gone (``vm-unknown``).
    """

    def __init__(self, connection: Connection, vm: VmId) -> None:
        self._connection = connection
        self._vm = vm

    def state(self) -> LifeState:
        """Tell whether QEMU runs, and runs the guest: it is paused after an error of its disk, or when it crashed."""

        def look(raw: libvirt.virConnect) -> LifeState:
            state = raw.lookupByUUIDString(self._vm).state()[0]
            return "off" if state in _OFF else "paused" if state in _PAUSED else "running"

        return self._connection.call(f"look at {self._vm}", look, repeatable=True)

    def agent_answers(self) -> bool:
        """Ask the guest agent for a sign; False when there is none, or it does not answer."""
        request = json.dumps({"execute": "guest-ping"})

        def ping(raw: libvirt.virConnect) -> str:
            return libvirt_qemu.qemuAgentCommand(raw.lookupByUUIDString(self._vm), request, _ANSWER, 0)

        try:
            answer = self._connection.call(f"ask the guest agent of {self._vm}", ping, repeatable=True)
            return "return" in json.loads(answer)
        except (HypervisorError, ValueError, TypeError):
            return False

    def addresses(self) -> list[str]:
        """List the IP addresses of the guest that libvirt can find out, those it gave itself first."""

        def ask(raw: libvirt.virConnect) -> list[dict[str, Any]]:
            domain = raw.lookupByUUIDString(self._vm)
            return [found for source in _SOURCES if (found := _addresses(domain, source))]

        answers = self._connection.call(f"ask for the addresses of {self._vm}", ask, repeatable=True)
        texts = [
            str(address.get("addr"))
            for answer in answers
            for interface in answer.values()
            for address in interface.get("addrs") or ()
        ]
        return list(dict.fromkeys(text for text in texts if _reachable(text)))[:_MAX_ADDRESSES]

    def screenshot(self) -> bytes:
        """Take a picture of the first screen, as QEMU gives it.

        Raises:
            HypervisorError: it has no screen, or one too large (``no-picture``, ``libvirt-refused``).
        """

        def take(raw: libvirt.virConnect) -> bytes:
            domain, stream = raw.lookupByUUIDString(self._vm), raw.newStream()
            if not _has_display(domain.XMLDesc()):
                return b""
            domain.screenshot(stream, 0)
            taken = bytearray()
            stream.recvAll(_collect, taken)  # which aborts the stream when it fails
            stream.finish()
            return bytes(taken)

        try:
            taken = self._connection.call(f"take a screenshot of {self._vm}", take, repeatable=True)
        except _TooLargeError as error:
            raise HypervisorError("no-picture", "its screen is too large for a picture") from error
        if not taken:
            raise HypervisorError("no-picture", "it has no display")
        return taken


class _TooLargeError(Exception):
    """A picture is larger than any screen."""


def _has_display(definition: str) -> bool:
    models = [model.get("type") for model in fromstring(definition, forbid_dtd=True).iterfind("devices/video/model")]
    return any(model != "none" for model in models)


def _collect(_stream: libvirt.virStream, data: bytes, taken: bytearray) -> int:
    taken += data
    if len(taken) > MAX_PICTURE:
        raise _TooLargeError
    return len(data)


def _addresses(domain: libvirt.virDomain, source: int) -> dict[str, Any] | None:
    """Ask one source; most VMs have not all of them."""
    try:
        return domain.interfaceAddresses(source)
    except libvirt.libvirtError:
        return None


def _reachable(text: str) -> bool:
    """Tell whether a text is an address that another machine may be at: a guest's agent may say anything."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    return not (address.is_loopback or address.is_link_local or address.is_multicast or address.is_unspecified)
