"""A relationship's policy: what is replicated where, how often, and how much is kept."""

from collections.abc import Callable
from typing import Annotated, Literal, TypeAlias

from pydantic import AwareDatetime, Field

from vmreplica.model.export import SeedExport
from vmreplica.model.ids import CheckpointName, DevicePath, DiskTarget, HostId, NetworkName, PointId
from vmreplica.model.keep import DEFAULT_KEEP, Keep
from vmreplica.model.point import DiskSize
from vmreplica.model.quiesce import NEVER, AppConsistent
from vmreplica.model.rates import NO_LIMIT, Limit
from vmreplica.model.seed import SeedDisk
from vmreplica.model.shape import Shape

MIN_INTERVAL = 5
MAX_INTERVAL = 86400
DEFAULT_INTERVAL = 300


class ReverseWish(Shape):
    """The host that a VM was failed over from shall become its replica, with its old disks; it has not agreed yet."""

    #: What the VM here was started from; None: nobody knows any more.
    point: PointId | None
    #: The checkpoint that was made before its first instruction, if that worked.
    checkpoint: CheckpointName | None
    #: The old primary was shut down for it and sent its last write.
    planned: bool = False
    #: The old primary may have been asked: from then on it may have agreed, whether or not its answer came here.
    asked: bool = False
    #: Which network of the old primary stands for which one of this host.
    network_map: Annotated[dict[NetworkName, NetworkName], Field(max_length=64)] = Field(default_factory=dict)
    since: AwareDatetime


class Planned(Shape):
    """A planned failover under way: what an agent needs that was killed in it, to go on or back.

    ``preparing``: the replica was not asked to start the VM. ``prepared``: it has the last point, and may have been
    asked. ``withdrawing``: it is asked to forget about it; only when it has agreed may the VM start here again.
    """

    stage: Literal["preparing", "prepared", "withdrawing"]
    #: Whether the VM ran when it began: it is started again when the failover is taken back.
    was_running: bool
    #: The last point, once the replica has it.
    point: PointId | None = None
    #: The guest was asked to shut down and is not off yet: until then it may still do so.
    asked_until: AwareDatetime | None = None


class Policy(Shape):
    """Written into the libvirt domain's own metadata, so it moves with the VM and shows in ``virsh dumpxml``."""

    replica: HostId
    #: Seconds between cycles: the promise about the age of the newest point (RPO).
    interval: Annotated[int, Field(ge=MIN_INTERVAL, le=MAX_INTERVAL)] = DEFAULT_INTERVAL
    #: Which points are kept; the others are merged into those or into the base.
    keep: Keep = DEFAULT_KEEP
    excluded: tuple[DiskTarget, ...] = ()
    paused: bool = False
    #: Where the first copy is written for a person to carry; None: it goes over the network, or is there.
    seed: SeedExport | None = None
    #: Raised by a failover; a primary with a lower epoch than its replica's may not ship.
    epoch: Annotated[int, Field(ge=0)] = 0
    #: How fast its points may be sent.
    limit: Limit = NO_LIMIT
    #: Initial replication does not begin before.
    begin_at: AwareDatetime | None = None
    #: The agent starts the VM with its host, once its replica agrees; libvirt, which asks nobody, does not.
    autostart: bool = False
    #: Set from when a person wants the roles swapped until the old primary has agreed.
    reverse: ReverseWish | None = None
    #: A planned failover under way.
    planned: Planned | None = None
    #: How often the guest is quiesced for a point.
    app_consistent: AppConsistent = NEVER


#: Changes a policy where it is written, one change after the other, and tells what it is then.
Amend: TypeAlias = Callable[[Callable[[Policy], Policy]], Policy]


class BaseWish(Shape):
    """A block device of the replica that shall hold the base of a disk, and the disk's virtual size in bytes."""

    device: DevicePath
    size: DiskSize


class ReplicaOffer(Shape):
    """What a primary asks a replica to accept when protection is enabled or its policy changes."""

    name: str
    interval: Annotated[int, Field(ge=MIN_INTERVAL, le=MAX_INTERVAL)]
    keep: Keep
    epoch: Annotated[int, Field(ge=0)]
    #: Virtual bytes of all replicated disks: the replica checks its room first.
    disk_bytes: Annotated[int, Field(ge=0)]
    #: Devices for bases; a disk that is not named keeps the one it has.
    base_devices: Annotated[dict[DiskTarget, BaseWish], Field(max_length=64)] = Field(default_factory=dict)
    #: Whether a person agreed that the content of new devices is lost.
    erase: bool = False
    paused: bool = False
    #: Copies that the replica has already and shall begin with; empty: none (any more); None: as it was.
    seed: Annotated[tuple[SeedDisk, ...], Field(max_length=64)] | None = None
