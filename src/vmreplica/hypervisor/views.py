"""What the rest of the house learns about a domain: plain values, no libvirt objects."""

from dataclasses import dataclass

from vmreplica.model.ids import VmId


@dataclass(frozen=True, slots=True)
class DomainBrief:
    """A domain in lists. ``active`` means it has a running QEMU, paused or not."""

    vm: VmId
    name: str
    active: bool


@dataclass(frozen=True, slots=True)
class DiskView:
    """One device below ``<disk>``: ``size`` in bytes, 0 when nobody could tell; ``path`` None without a file.

    ``reason_ineligible`` is None for a disk that can be replicated, else a sentence for a person.
    """

    target: str
    device: str
    format: str
    path: str | None
    size: int
    reason_ineligible: str | None


@dataclass(frozen=True, slots=True)
class DomainView:
    """A domain looked at closely. ``definition`` is the inactive XML without passwords."""

    vm: VmId
    name: str
    active: bool
    autostart: bool
    definition: str
    disks: tuple[DiskView, ...]
