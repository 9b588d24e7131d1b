"""Block devices of a test: loop devices over files, which all hosts of a lab see like the machine's own."""

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def loop_device(backing: Path, size: int, *, sector: int = 512) -> Iterator[Path]:
    """Make a block device over a new file of so many bytes; both are removed afterwards."""
    with backing.open("wb") as fh:
        fh.truncate(size)
    command = ["losetup", "--find", "--show", "--sector-size", str(sector), str(backing)]
    device = Path(subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout.strip())
    try:
        yield device
    finally:
        subprocess.run(["losetup", "--detach", str(device)], check=True, timeout=30)
        backing.unlink()
