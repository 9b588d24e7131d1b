"""Bodies that the command line sends to the agent."""

from typing import Annotated, Final, Self

from pydantic import AwareDatetime, Field, StringConstraints, model_validator

from vmreplica.model.boot import MAX_EVERY, MIN_EVERY, BootWish
from vmreplica.model.export import Directory, Passphrase
from vmreplica.model.ids import DevicePath, DiskTarget, HostName, NetworkName, PointChoice, PointId
from vmreplica.model.keep import Keep
from vmreplica.model.policy import DEFAULT_INTERVAL, MAX_INTERVAL, MIN_INTERVAL
from vmreplica.model.quiesce import AppConsistent
from vmreplica.model.rates import Limit
from vmreplica.model.seed import SeedRequest
from vmreplica.model.shape import Shape
from vmreplica.model.taking import DEFAULT_MOUNT, MAX_MOUNT, MIN_MOUNT, PinReason

_DAY: Final = 86400


class EnableRequest(Shape):
    """Protect a VM."""

    to: HostName
    #: Seconds between cycles.
    every: Annotated[int, Field(ge=MIN_INTERVAL, le=MAX_INTERVAL)] = DEFAULT_INTERVAL
    excluded: Annotated[tuple[DiskTarget, ...], Field(max_length=64)] = ()
    #: Which points are kept; None: as before, or the default.
    keep: Keep | None = None
    #: Devices of the replica that shall hold bases, by disk.
    base_devices: Annotated[dict[DiskTarget, DevicePath], Field(max_length=64)] = Field(default_factory=dict)
    #: Whether a person agreed that their content is lost.
    erase: bool = False
    #: How the first copy gets there; None: as before, or over the network.
    seed: SeedRequest | None = None
    #: An export that the replica waits for is lost.
    give_up: bool = False
    #: The rules may take recovery points away that the present ones keep.
    drop_points: bool = False
    #: How fast points may be sent; None: as before.
    limit: Limit | None = None
    #: When initial replication begins; None: now.
    at: AwareDatetime | None = None
    #: How often a point is application-consistent; None: as before.
    app_consistent: AppConsistent | None = None


class ImportRequest(Shape):
    """Take in the first copy of a VM that travelled in a directory."""

    directory: Directory
    passphrase: Passphrase | None = Field(default=None, repr=False)
    #: The text of an age identity file.
    identity: Annotated[str, StringConstraints(max_length=65536)] | None = Field(default=None, repr=False)


class PinRequest(Shape):
    """Keep a point whatever the rules say."""

    reason: PinReason


class MountRequest(Shape):
    """Make a point's disks readable over NBD."""

    #: Until it ends by itself.
    seconds: Annotated[int, Field(ge=MIN_MOUNT, le=MAX_MOUNT)] = DEFAULT_MOUNT
    #: A damaged point is mounted as it is.
    even_damaged: bool = False


class LimitRequest(Shape):
    """Change how fast a VM's points may be sent."""

    limit: Limit


class DisableRequest(Shape):
    """Stop protecting a VM."""

    delete_copy: bool = False


class DoctorRequest(Shape):
    """Look for trouble."""

    #: Whether to begin and end a real backup job on the VM.
    trial: bool = True


class FailoverRequest(Shape):
    """Start a VM on its replica; without a point from the newest one."""

    point: PointChoice | None = None
    #: Though the point is known to be damaged.
    even_damaged: bool = False


class ScrubRequest(Shape):
    """Read and check the points of a VM, or one of them."""

    point: PointId | None = None


class PlannedRequest(Shape):
    """Move a VM to its replica, with its guest shut down in an orderly way."""

    #: Seconds that the guest has for that.
    patience: Annotated[int, Field(ge=5, le=86400)] = 300
    #: Pull its plug after that.
    force: bool = False


class FailoverTestRequest(Shape):
    """Start a copy beside the VM; without a point from the newest one, without a network unplugged."""

    point: PointChoice | None = None
    #: Though the point is known to be damaged.
    even_damaged: bool = False
    network: NetworkName | None = None
    #: Seconds until it is removed by itself; None: never.
    seconds: Annotated[int, Field(ge=60, le=30 * 86400)] | None = None


class BootTestRequest(Shape):
    """Boot a copy, isolated, until it shows a sign of life; without a point from the newest one."""

    point: PointChoice | None = None
    wish: BootWish = BootWish()


class VerifyRequest(Shape):
    """Compare a point with what the primary knows; without a point the newest one."""

    point: PointId | None = None
    repair: bool = False
    #: Guest bytes that the replica shall read per second; None: as fast as it can.
    rate: Annotated[int, Field(ge=1 << 16)] | None = None


class BootScheduleRequest(Shape):
    """Set when that is done by itself."""

    #: Seconds; None: no longer.
    every: Annotated[int, Field(ge=MIN_EVERY, le=MAX_EVERY)] | None = None
    #: ``HH:MM`` of the replica's host.
    at: Annotated[str, StringConstraints(pattern=r"^([01][0-9]|2[0-3]):[0-5][0-9]$")] | None = None
    wish: BootWish = BootWish()

    @model_validator(mode="after")
    def _whole_days(self) -> Self:
        if self.at is not None and (self.every or 0) < _DAY:
            raise ValueError("--at goes with an interval of a day or more: --every 1d --at 03:00")
        return self


class CancelRequest(Shape):
    """Take a failover back, or only the test failovers."""

    tests_only: bool = False


class HandOverRequest(Shape):
    """Take a VM's points from another paired host."""

    to: HostName


class InviteRequest(Shape):
    """Make a pairing token, good for any host or for the one named."""

    for_name: HostName | None = None


class JoinRequest(Shape):
    """Redeem a pairing token."""

    token: Annotated[str, StringConstraints(min_length=1, max_length=16384, strip_whitespace=True)]
