"""Disk content as on ordinary servers: an ext4 file system filled with a fair sample of this machine's own /usr."""

import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

MiB = 1 << 20
#: Disks, and the lab that uses them, on a file system that keeps what is written (``/tmp`` may be memory).
WORKING = Path("build/bench").absolute()


def _files(top: Path) -> Iterator[tuple[str, Path, int]]:
    for folder, _, names in os.walk(top):
        for name in names:
            path = Path(folder, name)
            info = path.lstat()
            if path.is_file() and not path.is_symlink() and info.st_size:
                yield hashlib.sha256(str(path).encode()).hexdigest(), path, info.st_size


def sample(top: Path, budget: int) -> Iterator[Path]:
    """Choose files up to a number of bytes, in an order that favours no folder and is the same each time."""
    for _, path, size in sorted(_files(top)):
        if size <= budget:
            budget -= size
            yield path


def _stage(top: Path, budget: int, folder: Path) -> None:
    for path in sample(top, budget):
        target = folder / path.relative_to(top)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(path, target)  # costs nothing where the file system is the same
        except OSError:
            shutil.copyfile(path, target)


def make_system_disk(image: Path, *, size: int, used: int, top: Path = Path("/usr")) -> None:
    """Make a qcow2 disk of ``size`` bytes whose ext4 holds about ``used`` bytes of system files.

    Raises:
        subprocess.CalledProcessError: mke2fs or qemu-img failed; their message is on standard error.
    """
    staging, raw = image.with_suffix(".files"), image.with_suffix(".raw")
    shutil.rmtree(staging, ignore_errors=True)
    try:
        _stage(top, used, staging)
        with raw.open("wb") as file:
            file.truncate(size)
        options = ["-q", "-F", "-m", "0", "-E", "lazy_itable_init=1,lazy_journal_init=1"]
        subprocess.run(["mke2fs", "-t", "ext4", *options, "-d", staging, raw], check=True)
        subprocess.run(["qemu-img", "convert", "-O", "qcow2", "-f", "raw", raw, image], check=True)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        raw.unlink(missing_ok=True)


def system_disk(*, size: int, used: int) -> Path:
    """Give such a disk from the working directory, made at the first use."""
    image = WORKING / f"system-{size // MiB}-{used // MiB}.qcow2"
    if not image.exists():
        WORKING.mkdir(parents=True, exist_ok=True)
        unfinished = image.with_suffix(".new")
        make_system_disk(unfinished, size=size, used=used)
        unfinished.rename(image)
    return image
