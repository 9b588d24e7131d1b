"""Opening files that somebody else named, below a directory and nowhere else."""

import os
from pathlib import Path, PurePosixPath


def open_beneath(root: Path, relative: PurePosixPath) -> int:
    """Open a file for reading; below ``root`` no symbolic link is followed, at whatever moment it is put there.

    Args:
        root: a directory of the administrator's choice; links on the way to it are followed.
        relative: at least one name, none of them ``..``.

    Returns:
        A file descriptor, which may be of anything but a link: a FIFO does not make this wait.

    Raises:
        OSError: ELOOP or ENOTDIR where a link or a file stands in the way, ENOENT and others as usual.
        ValueError: ``relative`` leads away, or nowhere.
    """
    if relative.is_absolute() or not relative.parts or ".." in relative.parts:
        raise ValueError(f"{relative} does not lead below a directory")
    directory = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for name in relative.parts[:-1]:
            below = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
            os.close(directory)
            directory = below
        return os.open(relative.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
    finally:
        os.close(directory)
