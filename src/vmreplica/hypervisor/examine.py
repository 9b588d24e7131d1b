"""A doctor's look at libvirt and its VMs: facts that say whether backup jobs can work. Changes nothing."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, TypeVar

import libvirt
from defusedxml.ElementTree import fromstring

from vmreplica.hypervisor import backup, checkpoints
from vmreplica.hypervisor.busy import require_idle
from vmreplica.hypervisor.connection import Connection
from vmreplica.hypervisor.inspection import disks_of, inspect
from vmreplica.hypervisor.job_files import JobFiles
from vmreplica.hypervisor.views import DomainView
from vmreplica.model.errors import HypervisorError, VmReplicaError
from vmreplica.model.ids import VmId

T = TypeVar("T")

JobOwner = Literal["ours", "foreign"]
GuestAgent = Literal["absent", "silent", "answers"]

#: Seconds that a look at libvirt may take: a person waits.
LOOK_LIMIT: Final = 20.0
_GUEST_LIMIT: Final = 6.0
_AGENT_CHANNEL: Final = "org.qemu.guest_agent.0"


@dataclass(frozen=True, slots=True, kw_only=True)
class DomainLook:
    """A domain as one of many."""

    vm: VmId
    name: str
    active: bool
    autostart: bool
    checkpoints: tuple[str, ...]
    #: Whose backup job runs.
    job: JobOwner | None
    #: Of all image files, as far as they have paths.
    images: tuple[Path, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class HostLook:
    """libvirt as a whole; versions as it counts them: a million for each major, a thousand for each minor one."""

    libvirt: int
    qemu: int
    #: Names of security models: ``dac``, ``apparmor``, ``selinux``.
    security: tuple[str, ...]
    #: uid and gid of QEMU.
    qemu_owner: tuple[int, int] | None
    #: Whether libvirt says that it can run backup jobs; None when it does not say.
    backup: bool | None
    domains: tuple[DomainLook, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class VmLook:
    """One domain closely."""

    view: DomainView
    checkpoints: tuple[str, ...]
    job: JobOwner | None
    #: What else of libvirt's jobs occupies it: a migration, a block copy.
    busy: str | None
    #: Whether the guest agent's channel is connected.
    guest_agent: bool


class Examiner:
    """Looks at a libvirt; every look has a time limit.

    Args:
        connection: to libvirt.
        files: of our backup jobs.
        limit: seconds for each look.

    Raises (every method):
        TimedOut: libvirt does not answer in time.
        Unreachable: it is away.
        VmReplicaError: it refuses.
    """

    def __init__(self, connection: Connection, files: JobFiles, limit: float = LOOK_LIMIT) -> None:
        self._connection = connection
        self._files = files
        self._limit = limit

    def host(self) -> HostLook:
        """Look at libvirt and at all domains."""
        return self._ask("look at this host", self._host)

    def vm(self, vm: VmId) -> VmLook:
        """Look at one domain."""
        return self._ask(f"look at {vm}", lambda raw: self._vm(raw.lookupByUUIDString(vm)))

    def guest_agent(self, vm: VmId) -> GuestAgent:
        """Tell whether the guest agent answers; asks it for the time, which leaves no trace on the domain."""
        try:
            return self._connection.call(
                f"ask the guest agent of {vm}", lambda raw: _agent(raw, vm), repeatable=True, limit=_GUEST_LIMIT
            )
        except VmReplicaError:
            return "silent"

    def _ask(self, what: str, work: Callable[[libvirt.virConnect], T]) -> T:
        return self._connection.call(what, work, repeatable=True, limit=self._limit)

    def _host(self, raw: libvirt.virConnect) -> HostLook:
        security, owner = parse_security(raw.getCapabilities())
        looks = (self._domain(domain) for domain in raw.listAllDomains())
        return HostLook(
            libvirt=raw.getLibVersion(),
            qemu=raw.getVersion(),
            security=security,
            qemu_owner=owner,
            backup=parse_backup_support(raw.getDomainCapabilities(None, None, None, None)),
            domains=tuple(look for look in looks if look is not None),
        )

    def _domain(self, domain: libvirt.virDomain) -> DomainLook | None:
        """Look at one of many; None when it is gone meanwhile."""
        try:
            active = bool(domain.isActive())
            xml = domain.XMLDesc(0 if active else libvirt.VIR_DOMAIN_XML_INACTIVE)
            return DomainLook(
                vm=domain.UUIDString(),
                name=domain.name(),
                active=active,
                autostart=bool(domain.isPersistent()) and bool(domain.autostart()),
                checkpoints=tuple(checkpoints.names(domain)),
                job=self._job(domain),
                images=tuple(Path(disk.path) for disk in disks_of(domain, xml) if disk.path),
            )
        except libvirt.libvirtError as error:
            if error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN:
                raise
            return None

    def _vm(self, domain: libvirt.virDomain) -> VmLook:
        view, job = inspect(domain), self._job(domain)
        return VmLook(
            view=view,
            checkpoints=tuple(checkpoints.names(domain)),
            job=job,
            busy=_busy(domain, view) if view.active and job is None else None,
            guest_agent=view.active and parse_agent_channel(domain.XMLDesc()),
        )

    def _job(self, domain: libvirt.virDomain) -> JobOwner | None:
        job = backup.running(domain)
        if job is None:
            return None
        return "ours" if self._files.is_ours(domain.UUIDString(), job) else "foreign"


def _busy(domain: libvirt.virDomain, view: DomainView) -> str | None:
    try:
        require_idle(domain, view.name, [disk.target for disk in view.disks if disk.device == "disk" and disk.path])
    except HypervisorError as error:
        return error.message
    return None


def _agent(raw: libvirt.virConnect, vm: VmId) -> GuestAgent:
    domain = raw.lookupByUUIDString(vm)
    if not domain.isActive() or not parse_agent_channel(domain.XMLDesc()):
        return "absent"
    domain.getTime()
    return "answers"


def parse_security(capabilities: str) -> tuple[tuple[str, ...], tuple[int, int] | None]:
    """Read the security models from libvirt's capabilities, and uid and gid of QEMU."""
    owner: tuple[int, int] | None = None
    models = []
    for model in fromstring(capabilities, forbid_dtd=True).iterfind("host/secmodel"):
        name = model.findtext("model", "")
        models.append(name)
        if name == "dac":
            uid, _, gid = model.findtext("baselabel", "").replace("+", "").partition(":")
            owner = (int(uid), int(gid)) if uid.isdecimal() and gid.isdecimal() else None
    return tuple(models), owner


def parse_backup_support(domain_capabilities: str) -> bool | None:
    """Read from libvirt's domain capabilities whether it can run backup jobs; None when it does not say."""
    said = fromstring(domain_capabilities, forbid_dtd=True).find("features/backup")
    return None if said is None else said.get("supported") == "yes"


def parse_agent_channel(live_xml: str) -> bool:
    """Tell whether a guest agent is connected to the channel of a running domain."""
    channels = fromstring(live_xml, forbid_dtd=True).iterfind("devices/channel/target")
    return any(one.get("name") == _AGENT_CHANNEL and one.get("state") == "connected" for one in channels)
