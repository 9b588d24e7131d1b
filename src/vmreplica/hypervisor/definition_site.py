"""The host a definition is built for, and the notes taken while building."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from vmreplica.hypervisor.firmware import Firmware

_MOST_NOTES: Final = 100


@dataclass(slots=True, kw_only=True)
class Site:
    """What the replica has, for one definition; ``**hypervisor.abilities()`` fills in what the host offers.

    None for a list accepts anything.
    """

    #: Our own qcow2 image for each disk target; all other disks are left out.
    disks: Mapping[str, Path]
    #: From the primary's network, bridge or device to a network here, ``bridge:NAME`` or ``none``.
    network_map: Mapping[str, str]
    #: libvirt networks that are active here.
    networks: Collection[str]
    #: ``kvm`` or ``qemu``.
    domain_type: str
    #: Bridges of this host.
    bridges: Collection[str] = ()
    #: Those of them that are of Open vSwitch, to which libvirt gives VLAN tags.
    vlan_bridges: Collection[str] = ()
    #: Machine types of this host, aliases included.
    machines: Collection[str] | None = None
    #: CPU models that run here.
    cpu_models: Collection[str] | None = None
    #: Kinds of displays.
    graphics: Collection[str] | None = None
    #: Kinds of video cards.
    videos: Collection[str] | None = None
    #: ``emulator`` when swtpm is installed.
    tpm_backends: Collection[str] | None = None
    #: Whether UEFI firmware is installed.
    efi: bool = True
    #: The UEFI variables that the VM brings along, where they will stand, and their bytes; None: it brings none.
    nvram: Path | None = None
    nvram_size: int = 0
    #: UEFI firmware here, for a VM with variables of its own.
    firmwares: Sequence[Firmware] = ()
    #: Version of the TPM (``2.0``, ``1.2``) whose state the VM brings along; None: it brings none.
    tpm: str | None = None
    #: A file of this host that gets a copy of the first serial port's output.
    console_log: Path | None = None
    _notes: dict[str, None] = field(default_factory=dict, init=False)

    def note(self, text: str) -> None:
        """Tell a person something once; hostile definitions cannot make endless notes."""
        if len(self._notes) < _MOST_NOTES:
            self._notes.setdefault("".join(c if c.isprintable() else "?" for c in text)[:300])

    def drop(self, what: str) -> None:
        """Note that something was left out."""
        self.note(f"left out: {what}")

    def notes(self) -> tuple[str, ...]:
        """Return all notes in the order taken."""
        return tuple(self._notes)


def offers(choices: Collection[str] | None, wanted: str) -> bool:
    """Tell whether a list of what the host has contains something; None has everything."""
    return choices is None or wanted in choices
