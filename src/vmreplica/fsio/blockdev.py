"""Block devices: what they are, how one is known again after a reboot, and whether anybody uses them."""

import contextlib
import errno
import os
import stat
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import xxhash

from vmreplica.model.errors import BadRequest, Conflict, NotFound

_SYSFS: Final = Path("/sys/dev/block")
#: What stays the same over a reboot, the most telling first.
_MARKS: Final = ("dm/uuid", "dm/name", "md/uuid", "loop/backing_file", "wwid", "device/wwid", "serial")
_PROBE_LIMIT: Final = 30.0
#: A seal samples so many blocks of so many bytes.
_SAMPLES: Final = 64
_BLOCK: Final = 4096


@dataclass(frozen=True, slots=True)
class DeviceFacts:
    """A block device: size in bytes, and what identifies it; empty when the kernel knows no such mark."""

    number: int
    size: int
    identity: str


def look(path: str) -> DeviceFacts:
    """Look at a block device.

    Raises:
        NotFound: ``device-missing``.
        BadRequest: ``device-not-block``.
    """
    try:
        info = os.stat(path)  # noqa: PTH116 - a device's number is wanted, by its name as the user gave it
        if not stat.S_ISBLK(info.st_mode):
            raise BadRequest(
                "device-not-block", f"{path} is no block device", hint="name a device, such as a logical volume"
            )
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            size = os.lseek(fd, 0, os.SEEK_END)
        finally:
            os.close(fd)
    except OSError as error:
        raise NotFound(
            "device-missing",
            f"the device {path} cannot be opened on this host: {error.strerror}",
            hint="activate it (lvchange -ay), or correct its name",
        ) from error
    return DeviceFacts(info.st_rdev, size, _identity(info.st_rdev))


def _identity(number: int) -> str:
    place = _SYSFS / f"{os.major(number)}:{os.minor(number)}"
    for mark in _MARKS:
        if found := _mark(place, mark):
            return f"{mark}:{found}"
    if part := _mark(place, "partition"):
        disk = place.resolve().parent
        whole = next((f"{mark}:{found}" for mark in _MARKS if (found := _mark(disk, mark))), disk.name)
        return f"{whole}:part{part}:{_mark(place, 'start')}"
    return ""


def _mark(place: Path, name: str) -> str:
    with contextlib.suppress(OSError):
        return (place / name).read_text(errors="replace").strip()[:500]
    return ""


@contextlib.contextmanager
def opened_alone(path: str) -> Iterator[int]:
    """Open a device for writing; while it is open nobody can mount it or make it a part of another one.

    Raises:
        Conflict: ``device-in-use``: it is mounted, or part of another device.
        NotFound: ``device-missing``.
    """
    try:
        fd = os.open(path, os.O_RDWR | os.O_EXCL | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise _in_use(path, "it is mounted, or a part of another device") from error
        raise NotFound(
            "device-missing",
            f"the device {path} cannot be written on this host: {error.strerror}",
            hint="activate it (lvchange -ay), or correct its name",
        ) from error
    try:
        yield fd
    finally:
        os.close(fd)


def require_unused(path: str, number: int) -> None:
    """Make sure that neither the kernel nor a program uses a device.

    Raises:
        Conflict: ``device-in-use``.
        NotFound: ``device-missing``.
    """
    with opened_alone(path):
        pass
    for process in Path("/proc").iterdir():
        if process.name.isdigit() and _has_open(process, number):
            name = _mark(process, "comm") or "?"
            raise _in_use(path, f"process {process.name} ({name}) has it open")


def _has_open(process: Path, number: int) -> bool:
    try:
        fds = list((process / "fd").iterdir())
    except OSError:
        return False  # it has just ended
    for fd in fds:
        with contextlib.suppress(OSError):
            info = fd.stat()
            if stat.S_ISBLK(info.st_mode) and info.st_rdev == number:
                return True
    return False


def _in_use(path: str, why: str) -> Conflict:
    return Conflict("device-in-use", f"the device {path} is in use: {why}", hint="free it first, or name another one")


def contents(path: str) -> str:
    """Tell in words what is on a device, as far as blkid knows it."""
    try:
        run = subprocess.run(
            ["blkid", "-p", "-o", "export", path], capture_output=True, text=True, timeout=_PROBE_LIMIT, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return "nobody can tell what is on it (blkid does not run)"
    found = dict(line.split("=", 1) for line in run.stdout.splitlines() if "=" in line)
    kind = found.get("TYPE") or found.get("PTTYPE")
    if kind is None:
        return "blkid recognises nothing on it"
    label = "".join(c if c.isprintable() else "?" for c in found.get("LABEL", ""))[:100]
    what = kind if "TYPE" in found else f"a partition table ({kind})"
    return f"on it is {what}" + (f" with the label {label!r}" if label else "")


def seal(fd: int, size: int) -> str:
    """Digest samples of the first bytes of a device, so that foreign writes and mix-ups are noticed later."""
    hasher = xxhash.xxh3_128()
    step = max(_BLOCK, size // _SAMPLES // _BLOCK * _BLOCK)
    for offset in range(0, size, step):
        hasher.update(os.pread(fd, min(_BLOCK, size - offset), offset))
    return hasher.hexdigest()
