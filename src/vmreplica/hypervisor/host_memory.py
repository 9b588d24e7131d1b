"""How much memory this host could give, and how much a VM would take."""

import re
from pathlib import Path
from typing import Final

from vmreplica.hypervisor.definition import parse_untrusted
from vmreplica.model.errors import BadRequest
from vmreplica.model.units import GiB, KiB, MiB, TiB

_MEMINFO: Final = Path("/proc/meminfo")
_LINE: Final = re.compile(r"^(MemTotal|MemAvailable):\s+(\d+) kB$", re.MULTILINE)
_KILO: Final = 1000
#: Factors of libvirt's units; without one it is KiB.
_UNITS: Final = {
    "b": 1, "bytes": 1, "KB": _KILO, "k": KiB, "KiB": KiB, "MB": _KILO**2, "M": MiB, "MiB": MiB,
    "GB": _KILO**3, "G": GiB, "GiB": GiB, "TB": _KILO**4, "T": TiB, "TiB": TiB,
}  # fmt: skip


def host_memory(meminfo: Path = _MEMINFO) -> tuple[int, int]:
    """Tell this host's memory and how much of it is available without swapping, in bytes."""
    found = {name: int(number) * KiB for name, number in _LINE.findall(meminfo.read_text())}
    return found["MemTotal"], found["MemAvailable"]


def vm_memory(untrusted: str) -> int:
    """Tell how many bytes of memory a definition that a peer sent wants.

    Raises:
        BadRequest: it is no domain, or names no memory (``definition-...``).
    """
    memory = parse_untrusted(untrusted).find("memory")
    text = (memory.text or "").strip() if memory is not None else ""
    factor = _UNITS.get(memory.get("unit", "KiB")) if memory is not None else None
    if factor is None or re.fullmatch(r"[0-9]{1,18}", text) is None:
        raise BadRequest(
            "definition-incomplete",
            "the VM's definition from the primary names no acceptable memory",
            hint="virsh dumpxml --inactive on the primary shows it; correct it there and run a cycle",
        )
    return int(text) * factor
