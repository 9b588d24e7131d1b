"""Reading and writing what makes a directory a point: ``manifest.json``, which carries its own digest, and its spare.

Everything else of a point is found and checked by its manifest, and all younger points stand on it: one flipped bit in
it must not cost them. So the same bytes stand beside it in ``manifest.spare.json``, which counts for nothing without
``manifest.json`` and is read when that is damaged.
"""

import contextlib
from pathlib import Path
from typing import Final

import xxhash

from vmreplica.fsio import publish_bytes
from vmreplica.model.errors import Corrupt, VmReplicaError
from vmreplica.model.point import Manifest
from vmreplica.repository.layout import FILE_MODE, read_shape, store_errors

_SPARE: Final = "manifest.spare.json"
_EMPTY: Final = b'"digest": ""'


def write_manifest(path: Path, manifest: Manifest) -> Manifest:
    """Publish a manifest with its digest, its spare first.

    Args:
        path: of ``manifest.json``; its directory exists.
        manifest: what it shall say.

    Returns:
        The manifest as it is now.

    Raises:
        NoSpace: the file system is full; the old one stays.
    """
    raw = manifest.model_copy(update={"digest": ""}).model_dump_json(indent=1).encode() + b"\n"
    digest = xxhash.xxh3_128_hexdigest(raw)
    head, _empty, tail = raw.rpartition(_EMPTY)
    body = b"".join([head, _EMPTY[:-1], digest.encode(), _EMPTY[-1:], tail])
    with store_errors(path):
        publish_bytes(spare_of(path), body, mode=FILE_MODE)
        publish_bytes(path, body, mode=FILE_MODE)
    return manifest.model_copy(update={"digest": digest})


def read_manifest(path: Path) -> Manifest:
    """Read a manifest; its spare when it is damaged.

    Raises:
        Corrupt: ``record-damaged``: it is missing, or both are not as they were written.
    """
    try:
        return check_manifest(path)
    except Corrupt:
        if path.exists():
            with contextlib.suppress(VmReplicaError):
                return check_manifest(spare_of(path))
        raise


def check_manifest(path: Path) -> Manifest:
    """Read a manifest, and this very file only.

    Raises:
        Corrupt: ``record-damaged``.
    """
    manifest = read_shape(path, Manifest)
    if manifest.digest:
        with store_errors(path):
            plain = path.read_bytes().replace(_EMPTY[:-1] + manifest.digest.encode(), _EMPTY[:-1])
        if xxhash.xxh3_128_hexdigest(plain) != manifest.digest:
            raise Corrupt("record-damaged", f"{path} is damaged: it does not have its digest")
    return manifest


def spare_of(path: Path) -> Path:
    """Tell where the spare of a manifest stands."""
    return path.with_name(_SPARE)
