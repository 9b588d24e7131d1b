"""tmp -> write -> fsync -> rename -> fsync(dir): a reader sees the old file or the new one, never a torn one."""

import contextlib
import os
import secrets
import shutil
from collections.abc import Sequence
from pathlib import Path

from vmreplica.fsio.space import no_space


def publish_bytes(
    path: Path, *data: bytes | memoryview, mode: int = 0o600, durable: bool = True, over: Path | None = None
) -> None:
    """Put a whole file in place atomically.

    Args:
        path: final name; its directory exists.
        data: content, in buffers that stand one behind the other.
        mode: permission bits.
        durable: sync before the rename; False where only a process crash must be survived.
        over: a file in the same directory that is written over and takes the name; it is lost whatever happens.

    Raises:
        NoSpace: the file system is full; nothing is left behind.
    """
    tmp = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with no_space(path.parent):
            if over is not None:
                over.rename(tmp)
            _write(tmp, data, mode, durable=durable, there=over is not None)
            tmp.replace(path)
    except BaseException:
        tmp.unlink(missing_ok=True)
        raise
    if durable:
        fsync_dir(path.parent)


def publish_dir(building: Path, final: Path) -> None:
    """Make a finished directory visible under its final name: sync it, rename it, sync both parents."""
    fsync_dir(building)
    building.rename(final)
    fsync_dir(final.parent)
    if building.parent != final.parent:
        fsync_dir(building.parent)


def fsync_dir(path: Path) -> None:
    """Make a directory's entries durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def remove_tree(path: Path) -> None:
    """Remove a directory with all in it, first renaming it away so that a crash leaves no half of it in sight."""
    doomed = path.with_name(f".{path.name}.{secrets.token_hex(4)}.gone")
    with contextlib.suppress(FileNotFoundError):
        path.rename(doomed)
        shutil.rmtree(doomed)


def _write(path: Path, data: Sequence[bytes | memoryview], mode: int, *, durable: bool, there: bool) -> None:
    # A file that is not ours yet must be new: others may write in the directory of an export.
    fd = os.open(path, os.O_WRONLY | (os.O_NOFOLLOW if there else os.O_CREAT | os.O_EXCL), mode)
    try:
        for buffer in data:
            view = memoryview(buffer)
            while view:
                view = view[os.write(fd, view) :]
        os.ftruncate(fd, os.lseek(fd, 0, os.SEEK_CUR))
        if durable:
            os.fsync(fd)
    finally:
        os.close(fd)
