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

    ``reason_ineligible`` is None for a disk that can be replicated, else a sentence for a person;
    ``reason_untracked`` likewise for a disk whose changes QEMU can keep in a bitmap.
    """

    target: str
    device: str
    format: str
    path: str | None
    size: int
    reason_ineligible: str | None
    reason_untracked: str | None = None

    @property
    def tracked(self) -> bool:
        """Tell whether it can be replicated by bitmaps; else it is compared with its fingerprint."""
        return self.reason_ineligible is None and self.reason_untracked is None


@dataclass(frozen=True, slots=True)
class DomainView:
    """A domain looked at closely. ``definition`` is the inactive XML without passwords."""

    vm: VmId
    name: str
    active: bool
    autostart: bool
    definition: str
    disks: tuple[DiskView, ...]
