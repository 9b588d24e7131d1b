"""The host a definition is built for, and the notes taken while building."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

_MOST_NOTES: Final = 100


@dataclass(slots=True)
class Site:
    """What the replica has; None for a list accepts anything. Fields as in ``definition.build``."""

    disks: Mapping[str, Path]
    network_map: Mapping[str, str]
    networks: Collection[str]
    domain_type: str
    bridges: Collection[str]
    machines: Collection[str] | None
    cpu_models: Collection[str] | None
    graphics: Collection[str] | None
    videos: Collection[str] | None
    tpm_backends: Collection[str] | None
    efi: bool
    console_log: Path | None
    _notes: dict[str, None] = field(default_factory=dict)

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
