"""An image without data of its own over a raw block device: what stands in a point's directory for a base there.

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


def write_shim(path: Path, device: str, size: int) -> None:
    """Put a shim in the place of whatever image has this name, atomically and durably but for the directory.

    Args:
        path: of the image.
        device: that it shows the start of, raw.
        size: of the disk in bytes.

    Raises:
        OSError: also when the file system is full; the old image stays.
    """
    building = path.with_name(f".{path.name}.shim.tmp")
    fd = os.open(building, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, _MODE)
    try:
        write_tables(fd, size=size, data_end=CLUSTER, records=(), backing=device, raw_backing=True)
    finally:
        os.close(fd)
    building.replace(path)


def is_shim(path: Path) -> bool:
    """Tell whether an image of ours is a shim.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as image:
        return Header.is_raw_backed(image.read(CLUSTER))


def shim_digest(path: Path) -> str:
    """Tell the digest of a shim's tables and header, as ``write_tables`` tells that of other images."""
    raw = path.read_bytes()
    hasher = xxhash.xxh3_128(raw[CLUSTER:])
    hasher.update(Header.unpack(raw[:CLUSTER], str(path)).pack())
    return hasher.hexdigest()
