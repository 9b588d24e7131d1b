"""What a test needs of the machine: a small file system to be filled, and a process to be killed."""

import contextlib
import ctypes
import mmap
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest


@contextlib.contextmanager
def small_file_system(directory: Path, mebibytes: int) -> Iterator[Path]:
    """A real file system that can be filled: tmpfs of so many MiB."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount a small file system")
    mounted = directory / "small"
    mounted.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={mebibytes}m", "vmreplica-test", str(mounted)]
    run = subprocess.run(mount, capture_output=True, text=True, check=False)
    if run.returncode != 0:
        pytest.skip(f"no small file system can be mounted here: {run.stderr.strip()}")
    try:
        yield mounted
    finally:
        subprocess.run(["umount", "-l", str(mounted)], check=True)


def leave_free(ballast: Path, free: int) -> None:
    """Fill the file system of a file until so many bytes are left, to a page."""
    with ballast.open("wb") as fh:
        for size in (1 << 20, 1 << 12):
            for _ in range((shutil.disk_usage(ballast.parent).free - free) // size):
                fh.write(bytes(size))
            fh.flush()


def child(script: str, *arguments: object) -> subprocess.Popen[str]:
    """Start Python code in a process that can import what this one can; what it prints is on ``stdout``."""
    command = [sys.executable, "-c", script, *(str(argument) for argument in arguments)]
    paths = os.pathsep.join(path for path in sys.path if path)
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": paths})


def in_page_cache(path: Path) -> int:
    """Tell how many bytes of a file, which is not empty, the kernel has in memory (mincore(2))."""
    with path.open("rb") as fh, mmap.mmap(fh.fileno(), 0, access=mmap.ACCESS_COPY) as mapped:
        pages = (ctypes.c_ubyte * -(-len(mapped) // mmap.PAGESIZE))()
        start = ctypes.c_ubyte.from_buffer(mapped)
        failed = ctypes.CDLL(None, use_errno=True).mincore(ctypes.byref(start), ctypes.c_size_t(len(mapped)), pages)
        del start
        if failed:
            raise OSError(ctypes.get_errno(), "mincore", str(path))
        return sum(page & 1 for page in pages) * mmap.PAGESIZE
