"""Files of the machine in a point: ``nvram.zst``, ``tpm2/NAME.zst``; the manifest has their sizes and digests."""

from pathlib import Path
from typing import Final

from vmreplica.fsio import fsync_dir, publish_bytes
from vmreplica.fsio.packed import packed_bytes, unpack
from vmreplica.model.errors import Corrupt
from vmreplica.model.machine import MachineFile
from vmreplica.model.point import Manifest
from vmreplica.repository.layout import FILE_MODE, Layout, make_dir, store_errors

_SUFFIX: Final = ".zst"


def store_machine(directory: Path, files: tuple[MachineFile, ...]) -> None:
    """Write the files into a point's directory, as they came; durable when it returns.

    Raises:
        Corrupt: ``machine-file-damaged``: one does not unpack to what it says.
        NoSpace: the store is full.
    """
    for file in files:
        packed = packed_bytes(file)
        path = directory / f"{file.name}{_SUFFIX}"
        if path.parent != directory:
            make_dir(path.parent)
            fsync_dir(directory)
        publish_bytes(path, packed, mode=FILE_MODE)


def machine_files(root: Path, manifest: Manifest) -> dict[str, bytes]:
    """Read what the machine kept outside its disks at a point, by name.

    Args:
        root: of the replica, ``Replica.dir``.
        manifest: of the point.

    Raises:
        Corrupt: ``machine-file-damaged``.
    """
    directory, found = Layout(root).point(manifest.point), {}
    with store_errors(directory):
        for file in manifest.machine:
            path = directory / f"{file.name}{_SUFFIX}"
            try:
                packed = path.read_bytes()
            except FileNotFoundError as error:
                raise Corrupt("machine-file-damaged", f"{path} is missing", hint="use another point") from error
            found[file.name] = unpack(file, packed)
    return found
