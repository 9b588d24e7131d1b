"""Report shapes: what the API answers, the command line prints and ``--json`` shows. No logic."""

from typing import Literal

from pydantic import AwareDatetime, Field

from vmreplica.model.boot import BootResult, BootState
from vmreplica.model.errors import Problem
from vmreplica.model.events import JournalEvent
from vmreplica.model.export import ImportReport
from vmreplica.model.findings import Finding, Severity
from vmreplica.model.health import Health
from vmreplica.model.ids import DiskTarget, HostId, HostName, PointId, VmId
from vmreplica.model.keep import Keep
from vmreplica.model.keeping import Verdict
from vmreplica.model.merging import MergePlan
from vmreplica.model.point import PointKind, PointSummary
from vmreplica.model.quiesce import NEVER, AppConsistent, Quiescence
from vmreplica.model.rates import NO_LIMIT, Limit
from vmreplica.model.scrubbing import ScrubReport, ScrubState
from vmreplica.model.shape import Shape
from vmreplica.model.states import State
from vmreplica.model.taking import PointExportReport, PointMount
from vmreplica.model.verified import Verified, VerifyReport


class Progress(Shape):
    """A running transfer. Bytes are guest bytes, except where they are called wire; rates are per second."""

    phase: str
    done_bytes: int
    total_bytes: int
    wire_bytes: int
    rate: float
    wire_rate: float = 0.0
    seconds_left: float | None


class Waiting(Shape):
    """Seconds of a run, or before it, in which nothing could be done."""

    #: For its turn, while others had theirs.
    queue: float = 0.0
    #: For the rate limit, within the run.
    limit: float = 0.0
    #: For what the replica begins with: an existing copy, or its old disks.
    base: float = 0.0


class CycleReport(Shape):
    """One run of a cycle, as kept in the journal."""

    kind: PointKind
    point: PointId | None
    #: Why this kind: ``interval``, ``asked``, ``bitmap-lost``...
    reason: str
    started: AwareDatetime
    seconds: float
    outcome: Literal["published", "failed", "cancelled"]
    guest_bytes: int = 0
    wire_bytes: int = 0
    #: Whether this host sent the point or received it.
    side: Literal["sent", "received"] = "sent"
    #: Wire bytes per second over the whole run.
    rate: float = 0.0
    waiting: Waiting = Waiting()
    error_code: str | None = None
    error: str | None = None
    hint: str = ""
    #: How the guest was quiesced for an application-consistent point; None: that was not due.
    quiescence: Quiescence | None = None


class FailoverTest(Shape):
    """A test failover: a copy that runs beside the VM."""

    #: The copy's own id and name in libvirt.
    vm: VmId
    name: str
    point: PointId
    #: Where its interfaces are plugged in; None: nowhere.
    network: str | None
    since: AwareDatetime
    #: When it is removed by itself.
    until: AwareDatetime | None
    #: None: libvirt does not tell.
    running: bool | None
    #: A boot test's copy: it is removed as soon as it shows a sign of life.
    boot: bool = False


class RelationshipReport(Shape):
    """One relationship as seen from one side."""

    vm: VmId
    name: str
    role: Literal["primary", "replica"]
    peer: HostName | None
    peer_id: HostId
    state: State
    health: Health
    interval: int
    keep: Keep
    epoch: int
    latest: PointSummary | None
    #: Seconds since the instant of the newest published point.
    point_age: float | None
    points: int
    next_due: AwareDatetime | None = None
    progress: Progress | None = None
    last_cycle: CycleReport | None = None
    excluded: tuple[DiskTarget, ...] = ()
    #: When initial replication begins, if that is to come.
    begins_at: AwareDatetime | None = None
    #: What the next cycle waits for: ``vm-off``, ``resync-queued``...
    waits: str | None = None
    #: How fast points may be sent; bytes per second, None: no limit.
    limit: Limit = NO_LIMIT
    #: The rate in force, the host's common one included, and until when.
    rate: int | None = None
    rate_until: AwareDatetime | None = None
    #: Whether the agent of the primary starts it with its host.
    autostart: bool = False
    #: Points that can be read over NBD, on the replica.
    mounts: tuple[PointMount, ...] = ()
    #: Test failovers, on the replica.
    tests: tuple[FailoverTest, ...] = ()
    #: Figures behind the health, for metrics: seconds, bytes, counts.
    measures: dict[str, float] = Field(default_factory=dict)
    #: Boot tests, on the replica; None: none was asked for yet.
    boot: BootState | None = None
    #: What verifying came to last, of the newest point that was verified.
    verified: Verified | None = None
    #: How many recovery points of before its failover the disks of a VM here still stand on.
    stands_on: int = 0
    #: How often a point is application-consistent.
    app_consistent: AppConsistent = NEVER
    #: Scrub of its points, on the replica.
    scrub: ScrubState | None = None


class StatusReport(Shape):
    """The whole host."""

    host: HostName
    host_id: HostId
    version: str
    now: AwareDatetime
    relationships: tuple[RelationshipReport, ...]


class PointsReport(Shape):
    """All recovery points of a VM on this host or, asked from the primary, on its replica. Newest first."""

    vm: VmId
    name: str
    points: tuple[PointSummary, ...]
    #: The rules in force, and what they say of each point.
    keep: Keep | None = None
    verdicts: dict[PointId, Verdict] = Field(default_factory=dict)
    #: What merging will do; of a plan that was asked for on the replica.
    merges: MergePlan | None = None


class HistoryReport(Shape):
    """The last runs of a VM and what else happened to it, each newest first."""

    vm: str
    #: Runs that sent points from this host.
    cycles: tuple[CycleReport, ...]
    #: Runs that received points on this host.
    received: tuple[CycleReport, ...] = ()
    #: All but runs.
    events: tuple[JournalEvent, ...] = ()


class PeerReport(Shape):
    """A paired host."""

    name: HostName
    host_id: HostId
    addresses: tuple[str, ...]
    paired: AwareDatetime


class PeersReport(Shape):
    """All paired hosts."""

    peers: tuple[PeerReport, ...]


class Invitation(Shape):
    """A pairing token, good once."""

    token: str
    expires: AwareDatetime


class PeerTest(Shape):
    """What a connection test found."""

    name: HostName
    host_id: HostId
    address: str
    version: str
    certificate_expires: AwareDatetime
    clock_difference_seconds: float
    round_trip_ms: float
    send_bytes_per_second: float
    store_free_bytes: int
    findings: tuple[str, ...] = ()


class FailoverStep(Shape):
    """One step of a failover's plan."""

    name: str
    text: str


#: What a verb of failover does; ``plan`` shapes carry it.
PlanKind = Literal["unplanned", "test", "boot-test", "planned", "cancel", "commit", "reverse"]


class FailoverPlan(Shape):
    """What a verb of failover will do and what it loses; shown, confirmed, then executed once."""

    vm: VmId
    name: str
    kind: PlanKind
    point: PointId
    instant: AwareDatetime
    #: Seconds of the guest's life that are lost: after the point or, of a failover taken back, since it.
    loses_seconds: float
    #: Bytes that are lost, as far as known: those of newer points passed over, those in a layer thrown away. None:
    #: nobody can tell.
    loses_bytes: int | None = None
    newer_points: int
    steps: tuple[FailoverStep, ...]
    warnings: tuple[str, ...] = ()
    #: What of the machine is other on this host, or is left out: processor, devices, networks, firmware.
    notes: tuple[str, ...] = ()
    #: What each side looks like afterwards, a sentence each.
    after: tuple[str, ...] = ()


class FailoverReport(Shape):
    """What a failover did."""

    plan: FailoverPlan
    state: State
    started: bool
    seconds: float


class StepTime(Shape):
    """How long a step took."""

    name: str
    seconds: float


class PlannedReport(Shape):
    """What a planned failover did."""

    plan: FailoverPlan
    #: The host that it runs on now.
    runs_on: HostName
    #: How its guest was shut down: by its agent, the power button, its plug; None: it was off.
    shutdown: Literal["agent", "button", "plug"] | None
    #: Replication goes the other way already; else it will, by itself.
    reversed: bool
    steps: tuple[StepTime, ...]
    #: Seconds for which no guest ran, less its own shutting down and booting; None: it was off before.
    downtime: float | None
    seconds: float


class StartedTest(Shape):
    """What a test failover did."""

    plan: FailoverPlan
    test: FailoverTest
    seconds: float


class CancelReport(Shape):
    """What was taken back: a failover, or test failovers."""

    vm: VmId
    name: str
    kind: Literal["unplanned", "test", "planned"]
    #: Names of the VMs that were removed here; of a planned failover none.
    removed: tuple[str, ...]
    state: State


class CommitReport(Shape):
    """What keeping a failover for good came to."""

    vm: VmId
    name: str
    state: State
    #: The image of each disk that the VM runs on now.
    images: tuple[str, ...]
    #: Bytes that were given back to the file system.
    freed_bytes: int
    #: Whether the VM is replicated from here already.
    protected: bool = False


class BootReport(Shape):
    """What a boot test came to."""

    vm: VmId
    name: str
    result: BootResult
    #: What of the machine is other on this host, or is left out.
    notes: tuple[str, ...] = ()


class BootScheduleReport(Shape):
    """When boot tests of a VM run, and what the last one came to."""

    vm: str
    boot: BootState | None


class TaskReport(Shape):
    """A long-running act, for progress display: poll it until ``done``."""

    id: str
    what: str
    done: bool
    progress: Progress | None = None
    result: CycleReport | None = None
    #: Of an import, in place of ``result``.
    imported: ImportReport | None = None
    #: Of an export of a point, likewise.
    exported: PointExportReport | None = None
    #: Of a commit, likewise.
    committed: CommitReport | None = None
    #: Of a planned failover, likewise.
    planned: PlannedReport | None = None
    #: Of a boot test, likewise.
    booted: BootReport | None = None
    #: Of a verification, likewise.
    verified: VerifyReport | None = None
    #: Of a scrub, likewise.
    scrubbed: ScrubReport | None = None
    error: str | None = None
    error_code: str | None = None
    hint: str = ""
    #: The whole error, so that whoever waits can end with the exit code of its family.
    problem: Problem | None = None


class DoctorReport(Shape):
    """What was looked at on a host or of one VM, and what was found."""

    #: None when no agent answers and the configuration cannot be read.
    host: HostName | None
    #: The VM's name; None: the host was looked at.
    vm: str | None
    version: str
    now: AwareDatetime
    seconds: float
    #: Whether the agent looked, or the command line without it.
    agent: bool
    #: The worst severity of all findings.
    worst: Severity
    findings: tuple[Finding, ...]
