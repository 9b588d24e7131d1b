"""Can this machine really run a guest under KVM? Asked by running instructions, with a time limit.

In nested sandboxes /dev/kvm may open and still not run a guest, or run it a hundred times slower than software
emulation, which starts the probe's boot sector in half a second.
"""

import functools
import tempfile
from pathlib import Path
from typing import Final, Literal

from vmreplica.lab.commands import run
from vmreplica.model.errors import TimedOut

DomainType = Literal["kvm", "qemu"]
#: mov al, 0x10; out 0xf4, al; hlt; jmp $ -- as a boot sector; the exit device then ends QEMU with (0x10 << 1) | 1.
_SECTOR: Final = (b"\xb0\x10\xe6\xf4\xf4\xeb\xfe").ljust(510, b"\0") + b"\x55\xaa"
_EXIT: Final = 0x21
_LIMIT: Final = 2.0


@functools.cache
def domain_type() -> DomainType:
    """Tell ``kvm`` when a guest's first instructions run under it, ``qemu`` (software emulation) otherwise."""
    return "kvm" if Path("/dev/kvm").exists() and runs_under("kvm") else "qemu"


def runs_under(accelerator: str) -> bool:
    """Boot a sector that ends QEMU with a certain exit code, soon enough."""
    with tempfile.NamedTemporaryFile(suffix=".img") as disk:
        disk.write(_SECTOR)
        disk.flush()
        argv = [
            "qemu-system-x86_64", "-accel", accelerator, "-M", "pc", "-m", "16", "-nodefaults", "-display", "none",
            "-no-reboot", "-device", "isa-debug-exit,iobase=0xf4,iosize=0x04",
            "-drive", f"file={disk.name},format=raw,if=ide,read-only=off",
        ]  # fmt: skip
        try:
            return run(argv, timeout=_LIMIT, check=False).returncode == _EXIT
        except TimedOut:
            return False
