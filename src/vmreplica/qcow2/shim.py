"""An image without data of its own over a block device or an old disk: what stands in a point's directory for a base.

So every image of a chain is named and read alike, wherever the base's bytes are.
"""

import os
from pathlib import Path
from typing import Final

import xxhash

from vmreplica.model.units import CLUSTER
from vmreplica.qcow2.layout import Header
from vmreplica.qcow2.tables import write_tables

_MODE: Final = 0o600
#: How the bases in a replica's directory are named from the directory of a point.
STORE_BASES: Final = "../../base/"


def write_shim(path: Path, backing: str, size: int, *, raw: bool = True) -> None:
    """Put a shim in the place of whatever image has this name, atomically and durably but for the directory.

    Args:
        path: of the image.
        backing: that it shows the start of: an absolute name, or that of a base in the store.
        size: of the disk in bytes.
        raw: whether that is raw, not qcow2.

    Raises:
        OSError: also when the file system is full; the old image stays.
    """
    building = path.with_name(f".{path.name}.shim.tmp")
    fd = os.open(building, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, _MODE)
    try:
        write_tables(fd, size=size, data_end=CLUSTER, records=(), backing=backing, raw_backing=raw)
    finally:
        os.close(fd)
    building.replace(path)


def is_shim(path: Path) -> bool:
    """Tell whether an image of ours is a shim: it stands on something else than a point.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as image:
        backing = Header.backing_of(image.read(CLUSTER))
    return backing is not None and backing.startswith(("/", STORE_BASES))


def shim_digest(path: Path) -> str:
    """Tell the digest of a shim's tables and header, as ``write_tables`` tells that of other images."""
    raw = path.read_bytes()
    hasher = xxhash.xxh3_128(raw[CLUSTER:])
    hasher.update(Header.unpack(raw[:CLUSTER], str(path)).pack())
    return hasher.hexdigest()
