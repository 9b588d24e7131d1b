"""Old disks of a VM that are its base in place: what they are, and that they still are what they were.

Nothing about them comes from a peer. A disk outside the store is named absolutely and never removed; one that was in
the store stands in ``base/`` of its replica and is ours.
"""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import xxhash

from vmreplica.fsio.blockdev import look, seal
from vmreplica.model.adoption import AdoptedDisk
from vmreplica.model.errors import Conflict, Corrupt, NoSpace, NotFound, VmReplicaError
from vmreplica.model.ids import VmName
from vmreplica.model.point import AdoptedBase, DiskManifest, Manifest
from vmreplica.model.units import format_size
from vmreplica.qcow2.shim import STORE_BASES, shim_digest
from vmreplica.qcow2.tools import chain_info
from vmreplica.repository.layout import Layout, store_errors

_SECTOR: Final = 512
_BASE: Final = "base/"


def describe(layout: Layout, name: VmName, disk: AdoptedDisk) -> AdoptedBase:
    """Look at an old disk and tell how it will be known as a base; nothing is changed.

    Raises:
        Conflict: ``disk-not-adoptable``, ``commit-first``.
        HypervisorError, TimedOut: see ``chain_info``.
    """
    chain = chain_info(Path(disk.path), disk.format)
    size = -(-int(chain[0]["virtual-size"]) // _SECTOR) * _SECTOR
    if size != disk.size:
        raise _unfit(name, disk, f"it has {size} bytes, the point {disk.size}")
    below = [path for info in chain for path in _files(info)][1:]
    strange = [path for path in below if not path.startswith("/") or not path.isprintable()]
    if strange:
        raise _unfit(name, disk, f"it reads from {strange[0]}, which is no file or device of this host")
    if any(_inside(layout, path) for path in below):
        raise Conflict(
            "commit-first",
            f"disk {disk.target} of {name} still stands on recovery points",
            hint=f"vmreplica commit {name}; then try again",
        )
    path = disk.path
    if _inside(layout, path):
        if disk.format != "qcow2":
            raise _unfit(name, disk, "it is in the store and not qcow2")
        path = f"{_BASE}{disk.target}.qcow2"
    identity = look(disk.path).identity if Path(disk.path).is_block_device() else ""
    return AdoptedBase(path=path, format=disk.format, identity=identity, below=tuple(below))


def path_of(layout: Layout, base: AdoptedBase) -> Path:
    """Tell where an old disk stands."""
    return layout.root / base.path


def backing_name(base: AdoptedBase) -> str:
    """Tell how an image in a point's directory names an old disk."""
    return STORE_BASES + base.path.removeprefix(_BASE) if base.path.startswith(_BASE) else base.path


def verify(layout: Layout, base: AdoptedBase, size: int) -> None:
    """Make sure that an old disk is there, and has room or can be given room for a disk of so many bytes.

    Raises:
        NotFound: ``adopted-base-missing``.
        Corrupt: ``adopted-base-changed``: the device is another one.
        NoSpace: ``base-device-small``.
    """
    path = path_of(layout, base)
    for file in (path, *map(Path, base.below)):
        if not file.exists():
            raise NotFound(
                "adopted-base-missing",
                f"{file}, which the replica's base stands on, is not there",
                hint="bring it back under this name (mount it, activate it); no point can be read without it",
            )
    if not path.is_block_device():
        return
    found = look(str(path))
    if found.identity != base.identity:
        raise _changed(path, f"is another device now: it was {base.identity}, it is {found.identity}")
    if base.format == "raw" and found.size < size:
        raise NoSpace(
            "base-device-small",
            f"the disk of {format_size(size)} does not fit on {path}, which has {format_size(found.size)}: "
            "recovery points are not folded any more",
            hint=f"make it bigger, for example: lvextend -L {-(-size // 1024)}K {path}",
            kind="operator",
        )


def verify_content(layout: Layout, disk: DiskManifest, base: AdoptedBase, *, samples: bool = True) -> None:
    """Make sure that an old disk is what it was when it was last written by us.

    Args:
        layout: of the replica.
        disk: in the point that stands on it.
        base: the old disk.
        samples: read some of what is on devices, too.

    Raises:
        Corrupt: ``adopted-base-changed``.
        VmReplicaError: see ``verify``.
    """
    verify(layout, base, disk.size)
    path = path_of(layout, base)
    with store_errors(path):
        known, found = disk.seal.split("-"), seal_of(layout, base, disk.size, samples=samples).split("-")
    if known[0] != found[0] or (samples and known[1] != found[1]):
        raise _changed(path, "was written by somebody else")


def seal_of(layout: Layout, base: AdoptedBase, size: int, *, samples: bool = True) -> str:
    """Digest what changes when anybody writes to an old disk, or to a file that it reads from.

    Returns:
        A digest of times and sizes of files, a dash, and one of samples of devices.

    Raises:
        OSError: one of them cannot be read.
    """
    files, devices = xxhash.xxh3_128(), xxhash.xxh3_128()
    for number, path in enumerate((path_of(layout, base), *map(Path, base.below))):
        info = path.stat()
        if not path.is_block_device():
            # The store may be moved by tools that keep whole seconds only.
            time = info.st_mtime_ns if path.is_absolute() and not base.path.startswith(_BASE) else int(info.st_mtime)
            files.update(f"{number} {info.st_size} {time}\n".encode())
        elif samples:
            with path.open("rb", buffering=0) as fh:
                raw = number == 0 and base.format == "raw"
                devices.update(seal(fh.fileno(), size if raw else look(str(path)).size).encode())
    return f"{files.hexdigest()}-{devices.hexdigest() if samples else ''}"


def described(layout: Layout, disk: DiskManifest, image: Path, base: AdoptedBase) -> DiskManifest:
    """Describe a disk whose image is the shim over an old disk that was written before, or is as it was.

    Raises:
        OSError: the image or the old disk cannot be read.
    """
    _sync(path_of(layout, base))
    return disk.model_copy(
        update={
            "file_bytes": image.stat().st_size,
            "tables_digest": shim_digest(image),
            "adopted": base,
            "seal": seal_of(layout, base, disk.size),
        }
    )


def complaints(layout: Layout, manifests: Iterable[Manifest]) -> list[str]:
    """Tell what is wrong with old disks that are bases, for people."""
    found: list[str] = []
    for manifest in manifests:
        for disk in manifest.disks:
            if disk.adopted is None:
                continue
            try:
                verify_content(layout, disk, disk.adopted, samples=False)
            except VmReplicaError as error:
                found.append(f"base of disk {disk.target}: {error.message} ({error.hint})")
    return found


def _sync(path: Path) -> None:
    """Make content and times durable: the seal is of both."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _files(info: dict[str, Any]) -> list[str]:
    """List the files of one image of a chain, the image first."""
    data = info.get("format-specific", {}).get("data", {}).get("data-file")
    return [info["filename"], *([data] if data else [])]


def _inside(layout: Layout, path: str) -> bool:
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(layout.root))


def _unfit(name: VmName, disk: AdoptedDisk, why: str) -> Conflict:
    return Conflict(
        "disk-not-adoptable",
        f"disk {disk.target} of {name}, {disk.path}, cannot become the base of its replica here: {why}",
        hint=f"look at it with `qemu-img info --backing-chain {disk.path}`",
    )


def _changed(path: Path, how: str) -> Corrupt:
    return Corrupt(
        "adopted-base-changed",
        f"{path}, which the replica's base stands on, {how}",
        hint="on the primary: vmreplica disable VM --delete-copy, then protect it again: its recovery points cannot be "
        "trusted",
        kind="operator",
    )
