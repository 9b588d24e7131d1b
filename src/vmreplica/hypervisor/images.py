"""Image files of a VM that is off: what they are made of, whose bitmaps are in them, and whether anybody touches them.

A stopped image changes only when somebody changes it: the same files with the same sizes and times hold the same bytes.
A block device tells no time; there the kernel's count of sectors written since boot takes its place.
"""

import fcntl
import json
import os
import stat
import struct
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from vmreplica.model.errors import HypervisorError, TimedOut

_LIMIT: Final = 60
#: The byte that every QEMU locks which may write to an image: 100 plus the number of the permission.
_WRITER: Final = 101
_FLOCK: Final = struct.Struct("hhqqi4x")
#: Where ``/sys/dev/block/*/stat`` has the sectors written.
_SECTORS_WRITTEN: Final = 6


@dataclass(frozen=True, slots=True)
class Image:
    """One image of a chain; ``bitmaps`` are flags by name, as qemu-img tells them; ``data_file`` holds its data."""

    path: str
    bitmaps: Mapping[str, frozenset[str]]
    data_file: str | None = None


def read_chain(path: str, form: str) -> tuple[Image, ...]:
    """List an image and those below it, top first; takes no lock.

    Args:
        path: absolute.
        form: as the domain says.

    Raises:
        HypervisorError: ``stopped-image-unreadable``.
        TimedOut: ``image-timeout``.
    """
    done = qemu_img("info", "-U", "--backing-chain", "--output=json", "-f", form, path)
    if done.returncode:
        raise HypervisorError(
            "stopped-image-unreadable",
            f"the image {path} cannot be read: {done.stderr.strip()}",
            hint=f"qemu-img info --backing-chain {path}",
        )
    return parse_chain(json.loads(done.stdout))


def parse_chain(told: Sequence[Mapping[str, Any]]) -> tuple[Image, ...]:
    """Read what ``qemu-img info --backing-chain --output=json`` tells."""
    images = []
    for image in told:
        data = image.get("format-specific", {}).get("data", {})
        bitmaps = {bitmap["name"]: frozenset(bitmap["flags"]) for bitmap in data.get("bitmaps", [])}
        images.append(Image(image["filename"], bitmaps, data.get("data-file")))
    return tuple(images)


def bitmap_trouble(chain: Sequence[Image], name: str) -> str | None:
    """Say why a bitmap in a chain does not tell all changes since it began; None: it does."""
    holders = [number for number, image in enumerate(chain) if name in image.bitmaps]
    if not holders:
        return "its image lacks the bitmap of the latest point: QEMU was killed, or the image was replaced or restored"
    if holders != [0]:
        return "its bitmap lies in several images: a snapshot was taken"
    flags = chain[0].bitmaps[name]
    if "in-use" in flags:
        return "its bitmap was not put away: QEMU or the host crashed"
    return None if "auto" in flags else "its bitmap was not recording"


def identity(chain: Sequence[Image]) -> str:
    """Tell a text that is the same as long as nobody changes the images of a chain.

    Raises:
        HypervisorError: ``stopped-image-unreadable``.
    """
    paths = [path for image in chain for path in (image.path, image.data_file) if path and path.startswith("/")]
    try:
        return " ".join(_identity(path) for path in paths)
    except OSError as error:
        hint = "virsh domblklist names the images of a VM"
        raise HypervisorError("stopped-image-unreadable", f"an image went away: {error}", hint=hint) from error


def has_writer(path: str) -> bool:
    """Tell whether a QEMU, or one of its tools, has an image open to write; asks for its locks and takes none."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, _WRITER, 1, 0)
        found, *_ = _FLOCK.unpack(fcntl.fcntl(fd, fcntl.F_OFD_GETLK, asked))
    finally:
        os.close(fd)
    return bool(found != fcntl.F_UNLCK)


def qemu_img(*words: str) -> subprocess.CompletedProcess[str]:
    """Run qemu-img.

    Raises:
        TimedOut: ``image-timeout``.
    """
    try:
        return subprocess.run(["qemu-img", *words], check=False, capture_output=True, text=True, timeout=_LIMIT)
    except subprocess.TimeoutExpired as error:
        raise TimedOut("image-timeout", f"qemu-img {words[0]} {words[-1]} took longer than {_LIMIT} s") from error


def _identity(path: str) -> str:
    found = Path(path).stat()
    if stat.S_ISBLK(found.st_mode):
        number = f"{os.major(found.st_rdev)}:{os.minor(found.st_rdev)}"
        counts = Path(f"/sys/dev/block/{number}/stat").read_text().split()
        return f"block:{number}:{counts[_SECTORS_WRITTEN]}"
    return f"{found.st_dev}:{found.st_ino}:{found.st_size}:{found.st_mtime_ns}:{found.st_ctime_ns}"
