"""Names that cross borders: each is a constrained string, so a hostile one cannot become a path or an option."""

import datetime as dt
import re
from typing import Annotated, Final

from pydantic import AfterValidator, StringConstraints

_MAX_BACKING: Final = 1023


def _fits(path: str) -> str:
    if len(path.encode()) > _MAX_BACKING:
        raise ValueError(f"the path has more than {_MAX_BACKING} bytes")
    return path


#: A libvirt domain's UUID in lower-case canonical form.
VmId = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$")]
#: A recovery point: UTC second of its instant and eight random hex digits; sorts by time, unique for ever.
PointId = Annotated[str, StringConstraints(pattern=r"^[0-9]{8}T[0-9]{6}Z-[0-9a-f]{8}$")]
#: A point by its id, or by what it is: the newest, or the newest that is application-consistent.
PointChoice = Annotated[
    str, StringConstraints(pattern=r"^([0-9]{8}T[0-9]{6}Z-[0-9a-f]{8}|latest|latest-app)$", max_length=25)
]
LATEST: Final = "latest"
LATEST_APP: Final = "latest-app"
#: A host: the first 32 hex digits of the SHA-256 of its CA certificate (DER).
HostId = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$")]
#: What a person calls a host.
HostName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]
#: A disk as the domain XML names it (``<target dev=...>``): vda, sdb, hda.
DiskTarget = Annotated[str, StringConstraints(pattern=r"^[a-z]{2,4}[a-z0-9]{0,4}$")]
#: A libvirt checkpoint made by us.
CheckpointName = Annotated[str, StringConstraints(pattern=r"^vmreplica-[0-9a-f]{8}-[0-9]{8}T[0-9]{6}Z-[0-9a-f]{8}$")]
#: A domain's name. libvirt allows nearly everything; we refuse slashes, control characters and leading dashes.
VmName = Annotated[str, StringConstraints(pattern=r"^[^\x00-\x1f\x7f/\-][^\x00-\x1f\x7f/]{0,254}$")]

#: A network or bridge as the domain XML or a network map names it.
NetworkName = Annotated[str, StringConstraints(pattern=r"^[^\x00-\x1f\x7f/]{1,255}$")]

#: A block device by its name below /dev: no part is empty or begins with a dot, so none leads elsewhere.
DevicePath = Annotated[
    str, StringConstraints(pattern=r"^/dev(/[A-Za-z0-9_+@=][A-Za-z0-9._:+@=-]*){1,8}$", max_length=255)
]

#: An image file or device of this host by its absolute name. QEMU's limit for a backing file's name is 1023 bytes.
ImagePath = Annotated[
    str, StringConstraints(pattern=r"^/[^\x00-\x1f\x7f]*[^\x00-\x1f\x7f/]$", max_length=1000), AfterValidator(_fits)
]

CHECKPOINT_PREFIX: Final = "vmreplica-"
_CHECKPOINT = re.compile(r"vmreplica-([0-9a-f]{8})-([0-9]{8}T[0-9]{6}Z-[0-9a-f]{8})")
_POINT_TIME: Final = "%Y%m%dT%H%M%SZ"


def new_point_id(instant: dt.datetime, random_hex: str) -> PointId:
    """Name a point after its instant (any aware time) and eight random hex digits."""
    return f"{instant.astimezone(dt.UTC).strftime(_POINT_TIME)}-{random_hex}"


def point_instant(point: PointId) -> dt.datetime:
    """Tell the UTC second that a point's name carries."""
    return dt.datetime.strptime(point[:16], _POINT_TIME).replace(tzinfo=dt.UTC)


def checkpoint_name(replica: HostId, point: PointId) -> CheckpointName:
    """Name the checkpoint that goes with a point sent to a replica; never reused (libvirt keeps broken names)."""
    return f"{CHECKPOINT_PREFIX}{replica[:8]}-{point}"


def is_our_checkpoint(name: str, replica: HostId) -> bool:
    """Tell whether a checkpoint belongs to the relationship with this replica; all others are foreign."""
    match = _CHECKPOINT.fullmatch(name)
    return match is not None and match[1] == replica[:8]
