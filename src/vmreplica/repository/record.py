"""What the repository writes down besides points: the relationship, holds, and a fold in progress."""

from typing import Annotated, Literal

from pydantic import AwareDatetime, Field, StringConstraints

from vmreplica.model.addresses import AddressingRecord, AddressPlan, InterfaceKey
from vmreplica.model.adoption import Adoption
from vmreplica.model.boot import BootRecord
from vmreplica.model.errors import Problem
from vmreplica.model.export import AwaitedBase, ExportId
from vmreplica.model.ids import DiskTarget, HostId, PointId, VmId, VmName
from vmreplica.model.keep import Keep
from vmreplica.model.point import AdoptedBase, BaseDevice, Seeding
from vmreplica.model.policy import MAX_INTERVAL, MIN_INTERVAL
from vmreplica.model.quiesce import NEVER, AppConsistent
from vmreplica.model.seed import SeedDisk
from vmreplica.model.shape import Shape
from vmreplica.model.states import State

HoldKind = Literal["open", "pin"]
HoldId = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{16}$")]


class FailoverRecord(Shape):
    """A failover in progress or in effect, as much as is needed to go on or back after a crash."""

    point: PointId
    hold: HoldId
    #: Persisted before the guest's first instruction: from here on a crash is finished, never undone by itself.
    started: bool
    #: When it was asked for; None: an older version did not write it down.
    since: AwareDatetime | None = None


class FailoverTestRecord(Shape):
    """A test failover, as much as is needed to remove it after a crash."""

    id: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{8}$")]
    #: The copy's own identity in libvirt.
    vm: VmId
    name: VmName
    point: PointId
    #: Where its interfaces are plugged in; None: nowhere.
    network: str | None
    since: AwareDatetime
    #: When it is removed by itself.
    until: AwareDatetime | None
    started: bool
    #: A boot test's copy: nobody looks at it, and after a crash it is removed in any case.
    boot: bool = False


class SeedRecord(Shape):
    """Existing copies that the first point is made from: kept for good, so that a repeated offer is known again.

    ``reading``: begun, or to be begun again after a crash. ``failed``: a person has to decide. ``done``: published.
    """

    point: PointId
    disks: Annotated[tuple[SeedDisk, ...], Field(min_length=1, max_length=64)]
    stage: Literal["reading", "failed", "done"] = "reading"
    problem: Problem | None = None


class AdoptionRecord(Shape):
    """An adoption under way, and what was found out about the old disks before anything was done."""

    adoption: Adoption
    bases: dict[DiskTarget, AdoptedBase]


class ReplicaRecord(Shape):
    """``replica.json``: the relationship as this side knows it."""

    vm: VmId
    name: VmName
    #: The primary: the only host that may send points.
    owner: HostId
    interval: Annotated[int, Field(ge=MIN_INTERVAL, le=MAX_INTERVAL)]
    keep: Keep
    state: State
    epoch: Annotated[int, Field(ge=0)]
    #: How often the primary quiesces the guest for a point; nothing is done by it here.
    app_consistent: AppConsistent = NEVER
    #: Which network of this host stands for which one of the primary.
    network_map: dict[str, str] = Field(default_factory=dict)
    #: What addresses interfaces get after a failover, and how far that is.
    addresses: dict[InterfaceKey, AddressPlan] = Field(default_factory=dict)
    addressing: AddressingRecord | None = None
    failover: FailoverRecord | None = None
    #: The VM that was started here shall be protected from here: its failover is not taken back any more.
    swapped: bool = False
    #: The export that the first copy came in.
    imported: ExportId | None = None
    tests: tuple[FailoverTestRecord, ...] = ()
    #: The boot tests: when they run, and what came of the last one.
    boot: BootRecord = BootRecord()
    #: Where the bases of these disks shall stand.
    base_devices: dict[DiskTarget, BaseDevice] = Field(default_factory=dict)
    seed: SeedRecord | None = None
    #: The image that each disk of the VM here is, or is being, folded into; relative to the replica's directory. Where
    #: this is set there are no points.
    live: dict[DiskTarget, str] = Field(default_factory=dict)
    #: The VM's old disks become the base here: not done before this is gone.
    adoption: AdoptionRecord | None = None


def seeding_of(record: ReplicaRecord, progress: Seeding) -> Seeding | None:
    """Tell how reading existing copies gets on; None when nothing is being read and nothing failed."""
    seed = record.seed
    if seed is None or seed.stage == "done":
        return None
    if seed.stage == "failed":
        return Seeding(phase="reading the existing copy failed", failed=seed.problem)
    return progress


class AwaitedRecord(Shape):
    """``awaited.json``: the base travels in an export; points that come meanwhile stand on what is not here yet."""

    base: AwaitedBase
    since: AwareDatetime
    #: The export is lost: what stands on it is being removed.
    given_up: bool = False


class Hold(Shape):
    """``holds/<id>.json``: a point that must stay.

    ``open``: somebody reads its files, so nobody changes them or those of any point it stands on. ``pin``: it stays and
    reads the same, its files and those below it may be merged with others.
    """

    id: HoldId
    point: PointId
    owner: str
    reason: str
    since: AwareDatetime
    kind: HoldKind = "open"


class FoldDisk(Shape):
    """One disk of a fold."""

    target: DiskTarget
    #: Size in bytes of the base's file before: what it is cut back to when the fold is undone.
    base_bytes: int
    #: The header that switches over, hex; None: the base's file stays as it is, nothing of this disk changed.
    header: str | None = None
    #: Digest of the new header; where nothing changed, that of the base's tables.
    digest: str = ""
    #: The device that the base stands on; its file is left as it is then.
    device: BaseDevice | None = None
    #: The old disk that is the base; likewise.
    adopted: AdoptedBase | None = None
    #: Size of the base's disk in bytes: what the device has behind it is not of this disk.
    disk_bytes: int = 0

    @property
    def outside(self) -> bool:
        """Whether the base is not in its file but below it."""
        return self.device is not None or self.adopted is not None


class FoldRecord(Shape):
    """``fold.json``: the oldest point is being folded into the next.

    ``prepare``: nothing is valid yet, it is undone after a crash. ``commit``: all is written and synced, it is
    rolled forward.
    """

    base: PointId
    point: PointId
    stage: Literal["prepare", "commit"]
    disks: tuple[FoldDisk, ...]


class MergeDisk(Shape):
    """One disk of a merge: what its image is afterwards."""

    target: DiskTarget
    file_bytes: Annotated[int, Field(ge=0)]
    #: Digest of its tables and header.
    digest: str
    #: As in ``DiskManifest``; of an image that stays as it is otherwise, what it was counts.
    summed: bool = False
    segments: Annotated[int, Field(ge=0)] = 0
    #: Whether there is a new file of sums.
    sums: bool = False
    #: The new header, hex, of an image that stays as it is otherwise; None: there is a new image.
    header: str | None = None


class MergeRecord(Shape):
    """``merge.json``: images of points are being merged into that of one, or it is given another parent.

    ``prepare``: nothing is valid yet, it is undone after a crash. ``commit``: all is written and synced, it is
    rolled forward.
    """

    point: PointId
    #: What it stands on afterwards.
    onto: PointId
    stage: Literal["prepare", "commit"]
    #: Whose images change; those that stand alone stay.
    disks: tuple[MergeDisk, ...] = ()
    #: Disks whose images stand alone afterwards.
    alone: tuple[DiskTarget, ...] = ()


class LandingRecord(Shape):
    """``landing.json``: the base of a disk is being moved from its image file to its device.

    ``copy``: the file is what counts, the device holds what comes before a table. ``switch``: the device holds all and
    is synced, the file gives way to an empty overlay over it.
    """

    point: PointId
    target: DiskTarget
    device: BaseDevice
    stage: Literal["copy", "switch"]
    #: The L2 table of the file that is copied next; each describes 512 MiB of the disk.
    table: Annotated[int, Field(ge=0)] = 0
