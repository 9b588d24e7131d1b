"""What the operating system tells about this host. Only looks."""

import ctypes
import os
import platform
import re
import resource
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import nbd

Owner = tuple[int, int]

_NUMBER: Final = re.compile("[0-9]{1,9}")
_MOUNTS: Final = Path("/proc/self/mountinfo")
#: From <sys/timex.h>: where ``status`` is in ``struct timex`` of 64-bit Linux, and the kernel's word for a free clock.
_STATUS_AT: Final = 40
_STA_UNSYNC: Final = 0x40
_TIMEX_BYTES: Final = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectoryFacts:
    """A configured directory. All but ``key``, ``path`` and ``exists`` mean nothing when it is not there."""

    #: Of the configuration.
    key: str
    path: Path
    exists: bool = True
    writable: bool = True
    mode: int = 0o711
    free: int = 0
    #: 0 on file systems that do not count them.
    inodes: int = 0
    free_inodes: int = 0
    #: As mount(8) calls it: ``ext4``, ``nfs4``...
    kind: str = ""
    #: Number of the file system.
    device: int = 0
    #: The first directory on the way that QEMU's user may not pass.
    blocked_at: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SystemFacts:
    """The system below libvirt."""

    python: tuple[int, int, int]
    kernel: str
    libnbd: tuple[int, int, int]
    root: bool
    #: How many files this process may open.
    open_files: int
    #: None when the kernel does not tell.
    clock_synchronised: bool | None


def system_facts() -> SystemFacts:
    """Look at the system."""
    return SystemFacts(
        python=version_of(platform.python_version()),
        kernel=platform.release(),
        libnbd=version_of(nbd.NBD().get_version()),
        root=os.geteuid() == 0,
        open_files=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        clock_synchronised=_clock_synchronised(),
    )


def directory_facts(key: str, path: Path, qemu: Owner | None) -> DirectoryFacts:
    """Look at a directory.

    Args:
        key: of the configuration.
        path: the directory.
        qemu: uid and gid of QEMU, where it must be able to pass through; None where not, or when nobody could tell.
    """
    try:
        status, room = path.stat(), os.statvfs(path)
    except (FileNotFoundError, NotADirectoryError):
        return DirectoryFacts(key=key, path=path, exists=False)
    return DirectoryFacts(
        key=key,
        path=path,
        exists=stat.S_ISDIR(status.st_mode),
        writable=os.access(path, os.W_OK | os.X_OK),
        mode=stat.S_IMODE(status.st_mode),
        free=room.f_bavail * room.f_frsize,
        inodes=room.f_files,
        free_inodes=room.f_favail,
        kind=kind_of(_MOUNTS.read_text(errors="replace"), path.resolve()),
        device=status.st_dev,
        blocked_at=blocked_at(path, qemu) if qemu is not None else None,
    )


def blocked_at(path: Path, owner: Owner) -> Path | None:
    """Find the first directory on the way to a path, the path included, that a user may not pass through."""
    uid, gid = owner
    if uid == 0:
        return None
    for place in reversed([path, *path.parents]):
        status = place.stat()
        if not status.st_mode & _passing_bit(status, uid, gid):
            return place
    return None


def _passing_bit(status: os.stat_result, uid: int, gid: int) -> int:
    if status.st_uid == uid:
        return stat.S_IXUSR
    return stat.S_IXGRP if status.st_gid == gid else stat.S_IXOTH


def kind_of(mountinfo: str, path: Path) -> str:
    """Tell the kind of file system that a resolved path lies on, from ``/proc/self/mountinfo``."""
    best, kind = -1, ""
    for place, name in _mounts(mountinfo.splitlines()):
        if path.is_relative_to(place) and len(place.parts) >= best:
            best, kind = len(place.parts), name
    return kind


def _mounts(lines: Iterable[str]) -> Iterator[tuple[Path, str]]:
    for line in lines:
        head, _, tail = line.partition(" - ")
        words, kinds = head.split(" "), tail.split(" ")
        if len(words) > 4 and kinds[0]:  # noqa: PLR2004 - the mount point is the fifth word
            yield Path(words[4].encode().decode("unicode_escape")), kinds[0]


def version_of(text: str) -> tuple[int, int, int]:
    """Read the first three numbers of a version."""
    leading = (_NUMBER.match(part) for part in text.split(".")[:3])
    numbers = [int(match[0]) if match else 0 for match in leading]
    first, second, third = [*numbers, 0, 0, 0][:3]
    return first, second, third


def _clock_synchronised() -> bool | None:
    """Ask the kernel whether anything disciplines its clock."""
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "adjtimex") or ctypes.sizeof(ctypes.c_long) != 8:  # noqa: PLR2004 - the layout is 64-bit
        return None
    timex = ctypes.create_string_buffer(_TIMEX_BYTES)
    if libc.adjtimex(timex) < 0:
        return None
    return not int.from_bytes(timex.raw[_STATUS_AT : _STATUS_AT + 4], "little") & _STA_UNSYNC
