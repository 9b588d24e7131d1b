"""UEFI firmware of this host: images and the templates of their variables, as QEMU's firmware descriptors name them.

Variables fit only a firmware that keeps a store of their size, so a machine that brings its own gets such a one, by
name. libvirt's own choice knows nothing of that.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Final

_DESCRIPTORS: Final = (Path("/usr/share/qemu/firmware"), Path("/etc/qemu/firmware"))
_MAX_DESCRIPTOR: Final = 1 << 20
#: Images that some distributions ship without a descriptor any more: code, template, secure.
_OLDER: Final = (
    ("/usr/share/OVMF/OVMF_CODE.fd", "/usr/share/OVMF/OVMF_VARS.fd", False),
    ("/usr/share/OVMF/OVMF_CODE.secboot.fd", "/usr/share/OVMF/OVMF_VARS.fd", True),
    ("/usr/share/edk2/ovmf/OVMF_CODE.fd", "/usr/share/edk2/ovmf/OVMF_VARS.fd", False),
    ("/usr/share/edk2/ovmf/OVMF_CODE.secboot.fd", "/usr/share/edk2/ovmf/OVMF_VARS.secboot.fd", True),
)
_OLDER_MACHINES: Final = ("pc-q35-*", "pc-i440fx-*")
_ALIASES: Final = {"q35": "pc-q35-", "pc": "pc-i440fx-", "virt": "virt-"}


@dataclass(frozen=True, slots=True)
class Firmware:
    """One UEFI firmware: raw image, template, bytes of its variables, and what it is for."""

    code: str
    template: str
    size: int
    secure: bool
    arch: str
    #: Patterns of machine types.
    machines: tuple[str, ...]


def installed_firmware(directories: Sequence[Path] = _DESCRIPTORS) -> tuple[Firmware, ...]:
    """List this host's UEFI firmware, the preferred ones first; what is described and not installed is left out."""
    found: dict[str, Path] = {}
    for directory in directories:
        found.update((path.name, path) for path in sorted(directory.glob("*.json")))
    described = [firmware for name in sorted(found) for firmware in _described(found[name])]
    older = [
        Firmware(code, template, size, secure, "x86_64", _OLDER_MACHINES)
        for code, template, secure in _OLDER
        if Path(code).is_file() and (size := _size(template))
    ]
    return (*described, *older)


def fitting(
    firmwares: Sequence[Firmware], *, size: int, secure: bool | None, machine: str, arch: str
) -> Firmware | None:
    """Choose the firmware for a machine that brings its own variables.

    Args:
        firmwares: of this host.
        size: bytes of the variables.
        secure: whether the machine has secure boot; None: it leaves that to the host.
        machine: its type, or an alias such as ``q35``.
        arch: its architecture.
    """
    machine = _ALIASES.get(machine, machine)
    for firmware in firmwares:
        fits = (firmware.size, firmware.arch) == (size, arch) and secure in {None, firmware.secure}
        if fits and any(fnmatchcase(machine, pattern) for pattern in firmware.machines):
            return firmware
    return None


def _described(path: Path) -> Iterator[Firmware]:
    try:
        document = json.loads(path.read_bytes()[:_MAX_DESCRIPTOR])
        mapping, features = document["mapping"], document["features"]
        if "uefi" not in document["interface-types"] or mapping["device"] != "flash":
            return
        code, template = mapping["executable"], mapping["nvram-template"]
        if code["format"] != "raw" or template["format"] != "raw" or not Path(code["filename"]).is_file():
            return
        size = _size(template["filename"])
        for target in document["targets"] if size else ():
            yield _firmware(code, template, size, features, target)
    except (OSError, ValueError, KeyError, TypeError):
        return


def _firmware(
    code: dict[str, Any], template: dict[str, Any], size: int, features: Sequence[str], target: dict[str, Any]
) -> Firmware:
    return Firmware(
        code=str(code["filename"]),
        template=str(template["filename"]),
        size=size,
        secure="secure-boot" in features,
        arch=str(target["architecture"]),
        machines=tuple(map(str, target["machines"])),
    )


def _size(template: str) -> int:
    try:
        return Path(template).stat().st_size
    except OSError:
        return 0
