"""Names in a replica's directory, and small files in it."""

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path
from typing import Final, TypeVar

from pydantic import ValidationError

from vmreplica.fsio import no_space, publish_bytes, remove_tree
from vmreplica.model.errors import Corrupt, Internal, Kind
from vmreplica.model.ids import DiskTarget, PointId
from vmreplica.model.shape import Shape

#: QEMU runs as another user: it must be able to pass through, and libvirt gives it the images it needs.
DIR_MODE: Final = 0o711
FILE_MODE: Final = 0o600

AnyShape = TypeVar("AnyShape", bound=Shape)


class Layout:
    """Where things stand under ``<store>/<vm>``. Point ids and targets were validated before they come here."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.record = root / "replica.json"
        self.points = root / "points"
        self.incoming = root / "incoming"
        #: Like ``incoming``, for a base that is imported; there only while one is.
        self.importing = root / "importing"
        self.awaited = root / "awaited.json"
        self.holds = root / "holds"
        self.run = root / "run"
        self.fold = root / "fold.json"
        self.merge = root / "merge.json"
        #: The VM's old disks that were in the store when they became its base.
        self.base = root / "base"
        #: The VM's definition as it was here before its host became the replica.
        self.original = root / "original.xml"
        self.landing = root / "landing.json"
        #: When each point was read and checked.
        self.scrub = root / "scrub.json"
        #: Of works that change points' files in steps.
        self.journals = (self.fold, self.merge, self.landing)

    def point(self, point: PointId) -> Path:
        """The directory of a published point."""
        return self.points / point

    def manifest(self, point: PointId) -> Path:
        """What makes a directory a point."""
        return self.points / point / "manifest.json"

    def image(self, point: PointId, target: DiskTarget) -> Path:
        """A published disk image."""
        return self.points / point / f"{target}.qcow2"

    def index(self, point: PointId, target: DiskTarget) -> Path:
        """The index of a published disk image."""
        return self.points / point / f"{target}.index"

    def sums(self, point: PointId, target: DiskTarget) -> Path:
        """The sums of the patches of a published disk image; none beside one without patches."""
        return self.points / point / f"{target}.sums"

    def merging(self, point: PointId) -> Path:
        """Where new images of a point are written while others are merged into them."""
        return self.points / point / "merging"

    def table_sums(self, point: PointId, target: DiskTarget) -> Path:
        """The sums of the tables of a folded disk image."""
        return self.points / point / f"{target}.tsums"

    def dead(self, point: PointId, target: DiskTarget) -> Path:
        """What a fold supersedes in the base's image of a disk."""
        return self.points / point / f"{target}.dead"

    def make(self) -> None:
        """Make the directories that always exist."""
        for path in (self.root, self.points, self.incoming, self.holds):
            make_dir(path)


def make_dir(path: Path) -> None:
    """Make a directory that QEMU may pass through, whatever the umask."""
    path.mkdir(mode=DIR_MODE, exist_ok=True)
    path.chmod(DIR_MODE)


def remove_leftovers(root: Path) -> None:
    """Remove what a crash left half written or half removed."""
    for leftover in (*root.glob("**/.*.tmp"), *root.glob("**/.*.gone")):
        if leftover.is_dir():
            remove_tree(leftover)
        else:
            leftover.unlink(missing_ok=True)


def write_shape(path: Path, shape: Shape) -> None:
    """Publish a record as JSON.

    Raises:
        NoSpace: the file system is full; the old one stays.
    """
    with store_errors(path):
        publish_bytes(path, shape.model_dump_json(indent=1).encode() + b"\n", mode=FILE_MODE)


def read_shape(path: Path, kind: type[AnyShape]) -> AnyShape:
    """Read a record.

    Raises:
        Corrupt: ``record-damaged``: it is missing, or not what it should be.
    """
    try:
        return kind.model_validate_json(path.read_bytes())
    except FileNotFoundError as error:
        raise Corrupt("record-damaged", f"{path} is missing") from error
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "the whole file"
        raise Corrupt("record-damaged", f"{path} is damaged: {place}: {first['msg']}") from error


@contextlib.contextmanager
def store_errors(path: Path) -> Iterator[None]:
    """Turn errors of the operating system on a path into errors of the tree.

    Raises:
        NoSpace: the file system is full.
        Internal: ``store-failed``: anything else, such as a failing disk.
    """
    try:
        with no_space(path):
            yield
    except OSError as error:
        kind: Kind = "operator" if error.errno in {errno.EIO, errno.EROFS, errno.EACCES} else "permanent"
        raise Internal(
            "store-failed",
            f"the store cannot be used at {path}: {error.strerror}",
            hint="look at the host's file system and its kernel log",
            kind=kind,
        ) from error


def allocated_bytes(path: Path) -> int:
    """Tell the space a file takes."""
    return path.stat().st_blocks * 512
