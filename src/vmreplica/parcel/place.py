"""An export's directory, opened for one act: what is mounted, renamed or linked meanwhile leads nowhere else.

Nothing is kept open between two acts, so that a medium can be unmounted; no symlink below the directory is followed.
"""

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Self

from vmreplica.fsio import free_bytes, no_space, publish_bytes, remove_tree
from vmreplica.model.errors import Corrupt, NoSpace, Unreachable
from vmreplica.model.units import format_size

_DIR: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_FORBIDDEN: Final = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})


class Place:
    """Used as a context manager; paths are relative, with slashes, and of our own making.

    Args:
        directory: absolute.

    Raises (every method):
        Unreachable: ``export-gone``: the medium or the file is not there; ``export-not-writable``.
        NoSpace: the file system is full.
        Corrupt: ``export-damaged``: something stands there that is no file or directory of ours.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._fd = -1

    def __enter__(self) -> Self:
        with place_errors(self.directory):
            self._fd = os.open(self.directory, _DIR)
        return self

    def __exit__(self, *_exc: object) -> None:
        os.close(self._fd)
        self._fd = -1

    def names(self) -> list[str]:
        """List what is in the directory itself."""
        with place_errors(self.directory):
            return sorted(os.listdir(self._fd))  # noqa: PTH208 - of a descriptor

    def read(self, path: str, limit: int) -> bytes | None:
        """Read a file; None if there is none.

        Args:
            path: of the file.
            limit: bytes; a longer one is not ours and not read.
        """
        try:
            with place_errors(self.directory, path, optional=True), self._folder(path) as (folder, name):
                fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
                with os.fdopen(fd, "rb") as fh:
                    self._require_file(os.fstat(fd), path, limit)
                    return fh.read(limit)
        except _Missing:
            return None

    def size(self, path: str) -> int | None:
        """Tell the bytes of a file; None if there is none."""
        try:
            with place_errors(self.directory, path, optional=True), self._folder(path) as (folder, name):
                found = os.stat(name, dir_fd=folder, follow_symlinks=False)
        except _Missing:
            return None
        return found.st_size if stat.S_ISREG(found.st_mode) else None

    def publish(self, path: str, content: bytes, *, reserve: int = 0) -> None:
        """Put a whole file in place durably; its folders are made.

        Args:
            path: of the file.
            content: of the file.
            reserve: bytes to leave free on the file system.
        """
        with place_errors(self.directory, path), self._folder(path, make=True) as (folder, name):
            self._require_room(len(content) + reserve)
            publish_bytes(Path(f"/proc/self/fd/{folder}") / name, content)

    def append(self, path: str, content: bytes) -> None:
        """Add to a file durably; a part of it may have been added when it fails."""
        with place_errors(self.directory, path), self._folder(path) as (folder, name):
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
            fd = os.open(name, flags, 0o600, dir_fd=folder)
            with os.fdopen(fd, "ab") as fh:
                fh.write(content)
                fh.flush()
                os.fsync(fd)

    def remove(self, path: str) -> None:
        """Remove a file or a whole directory; a missing one is no error."""
        missing = contextlib.suppress(_Missing)
        with missing, place_errors(self.directory, path, optional=True), self._folder(path) as (folder, name):
            full = Path(f"/proc/self/fd/{folder}") / name
            if stat.S_ISDIR(full.lstat().st_mode):
                remove_tree(full)
            else:
                full.unlink()
            os.fsync(folder)

    @contextlib.contextmanager
    def _folder(self, path: str, *, make: bool = False) -> Iterator[tuple[int, str]]:
        """Open the folder of a path, step by step without following links; gives it and the last name."""
        *folders, name = path.split("/")
        fd = os.dup(self._fd)
        try:
            for folder in folders:
                if make:
                    with contextlib.suppress(FileExistsError):
                        os.mkdir(folder, 0o700, dir_fd=fd)
                        os.fsync(fd)
                below = os.open(folder, _DIR | os.O_NOFOLLOW, dir_fd=fd)
                os.close(fd)
                fd = below
            yield fd, name
        finally:
            os.close(fd)

    def _require_file(self, found: os.stat_result, path: str, limit: int) -> None:
        if not stat.S_ISREG(found.st_mode) or found.st_size > limit:
            raise Corrupt(
                "export-damaged",
                f"{self.directory / path} is not a file of at most {format_size(limit)}",
                hint="copy the export again, or make a new one",
            )

    def _require_room(self, needed: int) -> None:
        free = free_bytes(Path(f"/proc/self/fd/{self._fd}"))
        if free < needed:
            raise NoSpace(
                "no-space",
                f"the export needs {format_size(needed)} in {self.directory}, {format_size(free)} are free",
                hint="make room there, or mount a larger medium there with what was written; it goes on by itself",
            )


class _Missing(Exception):
    """A file or folder below the directory is not there."""


@contextlib.contextmanager
def place_errors(directory: Path, path: str = "", *, optional: bool = False) -> Iterator[None]:
    """Turn errors of the operating system into errors of the tree; _Missing for an optional path that is not there."""
    try:
        with no_space(directory):
            yield
    except FileNotFoundError as error:
        if optional:
            raise _Missing from error
        raise _gone(directory, error) from error
    except OSError as error:
        if error.errno in {errno.ELOOP, errno.ENOTDIR} and path:
            raise Corrupt(
                "export-damaged",
                f"{directory / path} leads over something that is no directory, or is a symlink",
                hint="copy the export again, without links, or make a new one",
            ) from error
        if error.errno in _FORBIDDEN:
            raise Unreachable(
                "export-not-writable" if error.errno == errno.EROFS else "export-forbidden",
                f"{directory / path} cannot be used: {error.strerror}",
                hint=f"mount the medium writable, and let root write in {directory}; it goes on by itself",
            ) from error
        raise _gone(directory, error) from error


def _gone(directory: Path, error: OSError) -> Unreachable:
    return Unreachable(
        "export-gone",
        f"{directory} cannot be used: {error.strerror}",
        hint="plug the medium in and mount it there again; what was done is kept",
    )
