"""Taking points out of the store: export to an image file, and read-only network block devices. Shapes only."""

from typing import Annotated, Literal

from pydantic import AwareDatetime, Field, StringConstraints

from vmreplica.model.ids import DiskTarget, ImagePath, PointId, VmId
from vmreplica.model.shape import Shape

ExportFormat = Literal["qcow2", "raw", "vhdx", "vmdk"]

#: Seconds that a point may stay mounted.
MIN_MOUNT = 60
MAX_MOUNT = 30 * 86400
DEFAULT_MOUNT = 8 * 3600

PinReason = Annotated[str, StringConstraints(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]+$")]


class PointExportWish(Shape):
    """What shall be exported, where to and how."""

    #: A file of this host; a directory when it is one already, and must be one when there are several disks.
    to: ImagePath
    format: ExportFormat = "qcow2"
    #: Only this disk; None: all.
    disk: DiskTarget | None = None
    #: Files that are in the way are replaced.
    force: bool = False
    #: What was written is compared with the point.
    check: bool = False
    #: A damaged point is exported as it is.
    even_damaged: bool = False


class ExportedDisk(Shape):
    """One file that an export wrote, or will write."""

    target: DiskTarget
    path: str
    #: Size of the disk in bytes.
    size: Annotated[int, Field(ge=0)]
    #: Bytes that the file takes; of a plan: about.
    file_bytes: Annotated[int, Field(ge=0)]


class PointExportReport(Shape):
    """An export, done or planned."""

    vm: VmId
    name: str
    point: PointId
    format: ExportFormat
    disks: tuple[ExportedDisk, ...]
    #: Whether the files were compared with the point and are the same.
    checked: bool = False
    #: What is wrong with the point, when it was exported all the same.
    warnings: tuple[str, ...] = ()


class MountedDisk(Shape):
    """One disk of a mounted point."""

    target: DiskTarget
    size: Annotated[int, Field(ge=0)]
    #: What NBD clients take: ``nbd+unix:///vda?socket=...``.
    uri: str
    socket: str


class PointMount(Shape):
    """A point whose disks can be read over NBD on its replica's host."""

    vm: VmId
    name: str
    point: PointId
    disks: tuple[MountedDisk, ...]
    since: AwareDatetime
    #: When it ends by itself.
    until: AwareDatetime
    warnings: tuple[str, ...] = ()


class UnmountReport(Shape):
    """Which points are mounted no longer."""

    #: As it was asked for.
    vm: str
    points: tuple[PointId, ...]
