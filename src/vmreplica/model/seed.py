"""Ways of bringing the first copy to the replica: what is asked for, and what is offered to the replica."""

import re
from typing import Annotated, Final, Literal

from pydantic import Field, StringConstraints, ValidationError

from vmreplica.model.errors import BadRequest
from vmreplica.model.export import ExportSeed
from vmreplica.model.ids import DiskTarget
from vmreplica.model.point import DiskSize
from vmreplica.model.shape import Shape

#: What an existing copy may be. ``vhd`` is the older of Microsoft's formats, which QEMU calls vpc.
SeedFormat = Literal["raw", "qcow2", "vhdx", "vmdk", "vdi", "vhd"]
#: A path on the replica's host, as a person wrote it; the replica judges where it leads.
SeedPath = Annotated[str, StringConstraints(pattern=r"^/[^\x00-\x1f\x7f]*$", max_length=4096)]

_ITEM: Final = re.compile(
    r"(?:(?P<target>[a-z]{2,4}[a-z0-9]{0,4})=)?(?:(?P<format>raw|qcow2|vhdx|vmdk|vdi|vhd):)?(?P<path>/[^\x00-\x1f\x7f]*)"
)
#: A comma divides only where a disk with an absolute path follows: paths may hold commas.
_COMMA: Final = re.compile(r",(?=[a-z]{2,4}[a-z0-9]{0,4}=(?:[a-z0-9]+:)?/)")
_EXISTING: Final = "existing:"
_EXPORT: Final = "export:"


class ExistingDisk(Shape):
    """An image on the replica that is like a disk of the VM."""

    #: None: the VM's only disk.
    target: DiskTarget | None = None
    path: SeedPath
    #: None: told by the name's ending.
    format: SeedFormat | None = None


class ExistingSeed(Shape):
    """Compare with copies that the replica has already; disks without one are sent whole."""

    kind: Literal["existing"] = "existing"
    disks: Annotated[tuple[ExistingDisk, ...], Field(min_length=1, max_length=64)]


class NetworkSeed(Shape):
    """Send everything over the network, and give up another way that was begun."""

    kind: Literal["network"] = "network"


SeedRequest = Annotated[ExistingSeed | ExportSeed | NetworkSeed, Field(discriminator="kind")]


class SeedDisk(Shape):
    """A disk that shall be seeded: in the offer to the replica, and in its record."""

    target: DiskTarget
    #: Of the VM's disk: no more than that is read.
    size: DiskSize
    path: SeedPath
    format: SeedFormat | None = None


def parse_seed(text: str) -> ExistingSeed | ExportSeed | NetworkSeed:
    """Read ``network``, ``export:DIR``, ``existing:[FORMAT:]PATH`` or ``existing:vda=[FORMAT:]PATH,vdb=...``.

    Raises:
        BadRequest: ``seed-invalid``.
    """
    if text == "network":
        return NetworkSeed()
    if text.startswith(_EXPORT):
        return _export(text)
    if not text.startswith(_EXISTING):
        raise _invalid(f"{text!r} is no way of seeding")
    items = [_ITEM.fullmatch(item) for item in _COMMA.split(text.removeprefix(_EXISTING))]
    found = [item for item in items if item is not None]
    targets = [item["target"] for item in found]
    if len(found) < len(items) or len(set(targets)) < len(targets) or (None in targets and len(targets) > 1):
        raise _invalid(f"{text!r} does not name absolute paths on the replica, each for a disk of its own")
    try:
        return ExistingSeed.model_validate({"disks": tuple(item.groupdict() for item in found)})
    except ValidationError:
        # The pattern knows neither how long a path nor how many disks there may be.
        raise _invalid("too many disks, or too long a path") from None


def _export(text: str) -> ExportSeed:
    try:
        return ExportSeed(directory=text.removeprefix(_EXPORT))
    except ValidationError:
        raise _invalid(f"{text!r} does not name an absolute path") from None


def _invalid(what: str) -> BadRequest:
    return BadRequest(
        "seed-invalid",
        f"--seed: {what}",
        hint="--seed existing:/srv/seeds/web.qcow2, existing:vda=/srv/a.vhdx,vdb=raw:/srv/b, export:/mnt/a, or network",
    )
