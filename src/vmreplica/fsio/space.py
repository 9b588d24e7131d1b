"""Room on file systems: asked before work, and named when it ran out."""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from vmreplica.model.errors import NoSpace
from vmreplica.model.units import format_size


def free_bytes(path: Path) -> int:
    """Tell the bytes an ordinary writer may still use on the file system of a path."""
    stat = os.statvfs(path)
    return stat.f_bavail * stat.f_frsize


def require_free(path: Path, needed: int, what: str) -> None:
    """Refuse work that would fill a file system.

    Raises:
        NoSpace: fewer than ``needed`` bytes are free.
    """
    free = free_bytes(path)
    if free < needed:
        raise NoSpace(
            "no-space",
            f"{what} needs {format_size(needed)} on the file system of {path}, {format_size(free)} are free",
            hint=f"make room on the file system of {path}; replication goes on by itself",
        )


@contextlib.contextmanager
def no_space(path: Path) -> Iterator[None]:
    """Turn ENOSPC and EDQUOT inside the block into NoSpace naming the path."""
    try:
        yield
    except OSError as error:
        if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
            raise
        raise NoSpace(
            "no-space",
            f"the file system of {path} is full",
            hint=f"make room on the file system of {path}; replication goes on by itself",
        ) from error
