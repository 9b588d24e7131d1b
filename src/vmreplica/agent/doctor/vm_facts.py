"""What images and their file systems tell about a VM's disks. Only looks."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from vmreplica.hypervisor import DiskView
from vmreplica.model.errors import VmReplicaError
from vmreplica.model.ids import DiskTarget
from vmreplica.qcow2.tools import chain_info


@dataclass(frozen=True, slots=True)
class BitmapFacts:
    """A bitmap stored in an image."""

    name: str
    #: Marked so while QEMU has the image open; on a VM that is off it is broken.
    in_use: bool
    #: Guest bytes per bit.
    granularity: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFacts:
    """A disk's image with its backing files."""

    target: DiskTarget
    path: Path
    #: Why it cannot be read; the rest means nothing then.
    error: str | None = None
    bitmaps: tuple[BitmapFacts, ...] = ()
    depth: int = 1
    #: An image of the chain that does not say its backing file's format.
    formless: Path | None = None
    #: Of the file system, bytes; None for a block device.
    free: int | None = None


_BLOCK_DEVICES: Final = Path("/dev")


def image_facts(disk: DiskView) -> ImageFacts:
    """Look at a disk's image; it must have a path."""
    path = Path(disk.path or "")
    try:
        chain = chain_info(path, disk.format)
    except VmReplicaError as error:
        return ImageFacts(target=disk.target, path=path, error=error.message)
    return read_chain(disk.target, path, chain, _free(path))


def read_chain(target: DiskTarget, path: Path, chain: Sequence[Mapping[str, Any]], free: int | None) -> ImageFacts:
    """Read what qemu-img said."""
    formless = (one for one in chain if one.get("backing-filename") and not one.get("backing-filename-format"))
    culprit = next(formless, None)
    return ImageFacts(
        target=target,
        path=path,
        bitmaps=tuple(_bitmaps(chain[0])) if chain else (),
        depth=len(chain),
        formless=Path(str(culprit.get("filename", path))) if culprit else None,
        free=free,
    )


def _bitmaps(info: Mapping[str, Any]) -> list[BitmapFacts]:
    data = info.get("format-specific", {}).get("data", {})
    return [
        BitmapFacts(str(one["name"]), "in-use" in one.get("flags", ()), int(one["granularity"]))
        for one in data.get("bitmaps", ())
    ]


def _free(path: Path) -> int | None:
    if path.resolve().is_relative_to(_BLOCK_DEVICES):
        return None
    room = os.statvfs(path)
    return room.f_bavail * room.f_frsize
