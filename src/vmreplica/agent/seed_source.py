"""Where existing copies may stand on this host, and opening one that a primary named: its word is not trusted."""

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from vmreplica.fsio import open_beneath
from vmreplica.model.errors import BadRequest, Corrupt, NotFound, Refused, VmReplicaError
from vmreplica.model.seed import SeedDisk
from vmreplica.qcow2.foreign import ForeignImage, check_header, format_of, virtual_size

_SECTOR = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class SeedRules:
    """What the administrator of this host allows to be read: directories, and patterns of block devices."""

    dirs: tuple[Path, ...]
    devices: tuple[str, ...]


@contextlib.contextmanager
def opened(disk: SeedDisk, rules: SeedRules) -> Iterator[ForeignImage]:
    """Open a copy under its rules and check its header; nothing is written.

    Raises:
        Refused: ``seed-path-forbidden``, and those of ``check_header``.
        NotFound: ``seed-path-missing``.
        BadRequest: ``seed-not-a-file``, ``seed-format-unknown``.
        Corrupt: ``seed-not-an-image``, ``seed-unreadable``.
    """
    path = PurePosixPath(disk.path)
    fd = _open(disk, path, rules)
    try:
        device = _kind(disk, fd, path, rules)
        kind = format_of(disk.path, disk.format, device=device)
        image = ForeignImage(fd=fd, name=disk.path, format=kind, device=device)
        with _os_errors(disk):
            check_header(image, said=disk.format is not None or device)
        yield image
    finally:
        os.close(fd)


def usable_size(disk: SeedDisk, image: ForeignImage) -> int:
    """Tell how many bytes of a copy are read: what is behind the end of the VM's disk is of no use.

    Raises:
        Corrupt: ``seed-not-an-image``: it is empty, or QEMU cannot open it.
        VmReplicaError: see ``virtual_size``.
    """
    size = min(disk.size, virtual_size(image)) // _SECTOR * _SECTOR
    if not size:
        raise Corrupt("seed-not-an-image", f"{disk.path} is empty", hint="restore it again, or --seed network")
    return size


def _open(disk: SeedDisk, path: PurePosixPath, rules: SeedRules) -> int:
    if ".." in path.parts:
        raise _forbidden(disk, rules)
    with _os_errors(disk):
        if any(path.match(pattern) for pattern in rules.devices):
            return os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        for root in rules.dirs:
            if path.is_relative_to(root) and path != PurePosixPath(root):
                return open_beneath(root, path.relative_to(root))
    raise _forbidden(disk, rules)


def _kind(disk: SeedDisk, fd: int, path: PurePosixPath, rules: SeedRules) -> bool:
    """Tell whether it is a block device; anything but that or a file is refused."""
    mode = os.fstat(fd).st_mode
    named_as_device = any(path.match(pattern) for pattern in rules.devices)
    if stat.S_ISBLK(mode):
        if not named_as_device:
            # A device file that somebody put into a directory of images leads to whatever he likes.
            raise _forbidden(disk, rules)
        return True
    if not stat.S_ISREG(mode) or named_as_device:
        raise BadRequest(
            "seed-not-a-file",
            f"{disk.path} is neither a file nor a block device",
            hint="name the image itself, for example --seed existing:/srv/seeds/web.qcow2",
        )
    return False


@contextlib.contextmanager
def _os_errors(disk: SeedDisk) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _unopened(disk, error) from error


def _unopened(disk: SeedDisk, error: OSError) -> VmReplicaError:
    if error.errno == errno.ENOENT:
        return NotFound(
            "seed-path-missing", f"there is no {disk.path} on the replica", hint="look at its name there: ls -l"
        )
    if error.errno in {errno.ELOOP, errno.ENOTDIR}:
        return Refused(
            "seed-path-forbidden",
            f"a symbolic link or a file stands on the way to {disk.path}: links are not followed",
            hint="name the real path, below a directory of replica.seed_dirs",
        )
    return Corrupt(
        "seed-unreadable",
        f"{disk.path} cannot be read: {error.strerror}",
        hint="look at its rights and at the kernel log of the replica's host",
        kind="operator",
    )


def _forbidden(disk: SeedDisk, rules: SeedRules) -> Refused:
    allowed = ", ".join([*map(str, rules.dirs), *rules.devices]) or "nowhere"
    return Refused(
        "seed-path-forbidden",
        f"the replica does not read {disk.path}: it reads copies from {allowed} only",
        hint="put the copy there, or extend replica.seed_dirs or seed_devices in the replica's configuration",
    )
