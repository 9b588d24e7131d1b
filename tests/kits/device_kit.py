"""Block devices of a test: loop devices over files, which all hosts of a lab see like the machine's own."""

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def loop_device(backing: Path, size: int, *, sector: int = 512, fill: bytes = b"") -> Iterator[Path]:
    """Make a block device over a new file; both are removed afterwards.

    Args:
        backing: the file.
        size: bytes.
        sector: bytes of a logical sector.
        fill: a byte that the device is full of; none: a sparse file.
    """
    with backing.open("wb") as fh:
        fh.write(fill * size)
        fh.truncate(size)
    device = attach(backing, sector)
    try:
        yield device
    finally:
        detach(device, check=False)
        backing.unlink()


def attach(backing: Path, sector: int = 512) -> Path:
    """Make a block device over a file."""
    command = ["losetup", "--find", "--show", "--sector-size", str(sector), str(backing)]
    return Path(subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout.strip())


def detach(device: Path, *, check: bool = True) -> None:
    """Take a block device away."""
    subprocess.run(["losetup", "--detach", str(device)], check=check, capture_output=True, timeout=30)
