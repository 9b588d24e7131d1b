"""What this host can really do, found out by trying: hardware virtualisation, and its bridges."""

import functools
import os
import platform
import selectors
import shutil
import subprocess
import time
from pathlib import Path
from typing import Final

_OVERRIDE: Final = "VMREPLICA_DOMAIN_TYPE"
_LIMIT: Final = 3.0
#: The firmware's last word on a machine without disks: it has run its whole course by then.
_SIGN_OF_LIFE: Final = b"No bootable device"
_QEMU_PATHS: Final = ("qemu-system-x86_64", "/usr/libexec/qemu-kvm")
_MACHINE: Final = (
    "-accel", "kvm", "-cpu", "host", "-machine", "pc", "-m", "16", "-nodefaults", "-no-user-config",
    "-display", "none", "-serial", "none", "-monitor", "none",
    "-chardev", "stdio,id=life", "-device", "isa-debugcon,iobase=0x402,chardev=life",
)  # fmt: skip


@functools.cache
def usable_domain_type() -> str:
    """Tell ``kvm`` or ``qemu``: asked once, by letting the firmware of a tiny machine run its whole course.

    /dev/kvm may open and yet run no guest, or a crawling one, as in nested sandboxes. The environment variable
    VMREPLICA_DOMAIN_TYPE overrides the answer.
    """
    forced = os.environ.get(_OVERRIDE)
    if forced in {"kvm", "qemu"}:
        return forced
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "qemu"
    if platform.machine() != "x86_64":
        return "kvm"
    binary = next((path for path in _QEMU_PATHS if shutil.which(path)), None)
    return "kvm" if binary is not None and _firmware_speaks(binary) else "qemu"


def _firmware_speaks(binary: str) -> bool:
    with subprocess.Popen(
        [binary, *_MACHINE], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as machine:
        try:
            return machine.stdout is not None and _says(machine.stdout.fileno(), _SIGN_OF_LIFE)
        finally:
            machine.kill()


def _says(descriptor: int, wanted: bytes) -> bool:
    heard, deadline = b"", time.monotonic() + _LIMIT
    with selectors.DefaultSelector() as selector:
        selector.register(descriptor, selectors.EVENT_READ)
        while wanted not in heard:
            if not selector.select(max(0.0, deadline - time.monotonic())):
                return False
            chunk = os.read(descriptor, 4096)
            if not chunk:
                return False
            heard += chunk
    return True


def bridges() -> frozenset[str]:
    """List the Linux bridges of this host."""
    return frozenset(place.parent.name for place in Path("/sys/class/net").glob("*/bridge"))


def vlan_bridges() -> frozenset[str]:
    """List the bridges of Open vSwitch on this host; none where it does not run."""
    tool = shutil.which("ovs-vsctl")
    if tool is None:
        return frozenset()
    try:
        done = subprocess.run(
            [tool, "--timeout=2", "list-br"], capture_output=True, text=True, timeout=_LIMIT, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return frozenset()
    return frozenset(done.stdout.split()) if done.returncode == 0 else frozenset()
