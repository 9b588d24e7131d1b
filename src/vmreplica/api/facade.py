"""What the API needs of an agent. Every method is synchronous, may block, and is called from several threads."""

import datetime as dt
from collections import Counter
from collections.abc import Mapping
from typing import Protocol

from vmreplica.model.boot import BootState, BootWish
from vmreplica.model.events import EventsReport, RecordsQuery
from vmreplica.model.ids import PointId, VmId
from vmreplica.model.keep import Keep
from vmreplica.model.networks import NetworksChange, NetworksReport
from vmreplica.model.point import PointSummary
from vmreplica.model.quiesce import AppConsistent
from vmreplica.model.rates import Limit
from vmreplica.model.report import (
    CancelReport,
    DoctorReport,
    FailoverPlan,
    FailoverReport,
    HistoryReport,
    Invitation,
    PeerReport,
    PeerTest,
    PointsReport,
    RelationshipReport,
    StartedTest,
    StatusReport,
    TaskReport,
)
from vmreplica.model.seed import SeedRequest
from vmreplica.model.start import AutostartReport, StartAnswer, StartQuestion, StartReport
from vmreplica.model.taking import PointExportReport, PointExportWish, PointMount
from vmreplica.model.telling import HealthTestReport
from vmreplica.model.totals import VmTotals


class StartsFacade(Protocol):
    """Starts of protected VMs."""

    def may_start(self, vm: VmId, question: StartQuestion) -> StartAnswer:
        """Tell libvirt's hook whether a protected VM may start; must not call libvirt, which waits for the answer."""

    def start(self, vm: str, *, sure: bool, dry_run: bool) -> StartReport:
        """Start a VM if its replica agrees; ``sure``: a person says that it runs nowhere else."""

    def set_autostart(self, vm: str, *, on: bool) -> AutostartReport:
        """Say whether a protected VM is started with its host."""


class TotalsFacade(Protocol):
    """Sums, for metrics."""

    def of(self, vm: VmId, side: str) -> VmTotals:
        """Tell the sums of a VM's runs on one side: ``sent`` or ``received``."""

    def events(self) -> Counter[tuple[str, str]]:
        """Tell how many events there were, by kind and severity."""


class RecordsFacade(Protocol):
    """What happened, and who is told of it."""

    def history(self, vm: str, query: RecordsQuery) -> HistoryReport:
        """List a VM's runs and what else happened to it, each newest first."""

    def events(self, vm: str | None, query: RecordsQuery, after: int | None) -> EventsReport:
        """List events, oldest first: the newest or, with ``after``, those that follow."""

    @property
    def totals(self) -> TotalsFacade:
        """What all runs and events since the agent's start add up to."""

    def health_test(self) -> HealthTestReport:
        """Tell whoever is told of changes of health, as a test."""


class BootTestsFacade(Protocol):
    """Boot tests, on the replica."""

    def plan(self, vm: str, point: str | None, wish: BootWish) -> FailoverPlan:
        """Tell what a boot test would do; changes nothing."""

    def begin(self, vm: str, point: str | None, wish: BootWish) -> TaskReport:
        """Boot a copy from a point (default: the newest) until it shows a sign of life."""

    def schedule(self, vm: str, *, every: int | None, at: str | None, wish: BootWish) -> BootState | None:
        """Set when that is done by itself; ``every`` None: no longer."""

    def picture(self, vm: str, point: str | None) -> bytes:
        """Give the screenshot of a point's last boot test, a PNG; default: of the last one of all."""


class SinglePointsFacade(Protocol):
    """Pins, exports and mounts; ``point`` is an id, ``latest`` or ``latest-app``."""

    def pin(self, vm: str, point: str, reason: str) -> PointSummary:
        """Keep a point whatever the rules say."""

    def unpin(self, vm: str, point: str) -> PointSummary:
        """Leave a point to the rules again."""

    def plan_export(self, vm: str, point: str, wish: PointExportWish) -> PointExportReport:
        """Tell what an export would write."""

    def export(self, vm: str, point: str, wish: PointExportWish) -> TaskReport:
        """Write a point's disks into files; the task is the writing."""

    def mount(self, vm: str, point: str, *, seconds: int, even_damaged: bool) -> PointMount:
        """Make a point's disks readable over NBD."""

    def unmount(self, vm: str, point: str | None) -> tuple[PointId, ...]:
        """End the mount of a point, or all mounts of a VM."""
        ...


class ScrubsFacade(Protocol):
    """Reading recovery points and checking them, on the replica."""

    def begin(self, vm: str, point: str | None) -> TaskReport:
        """Check all points of a VM, or one, now; the task is the work."""


class AgentFacade(Protocol):
    """The agent as seen by its local API; ``vm`` is a domain's name or UUID. Errors are VmReplicaError."""

    def status(self, vm: str | None) -> StatusReport:
        """Report the host, with all its relationships or one VM's."""

    def doctor(self, vm: str | None, *, trial: bool) -> DoctorReport:
        """Look for trouble: on this host, or with one VM, then with a real backup job unless ``trial`` is false."""

    def points(self, vm: str, *, plan: bool = False) -> PointsReport:
        """List recovery points, here or on the VM's replica; ``plan``: with what merging will do, if held here."""

    def enable(
        self,
        vm: str,
        *,
        to: str,
        every: int,
        excluded: tuple[str, ...],
        keep: Keep | None,
        base_devices: Mapping[str, str],
        erase: bool,
        seed: SeedRequest | None = None,
        give_up: bool = False,
        drop_points: bool = False,
        limit: Limit | None = None,
        at: dt.datetime | None = None,
        app_consistent: AppConsistent | None = None,
    ) -> TaskReport:
        """Protect a VM; the task is its initial replication.

        ``base_devices`` are the replica's, by disk; ``erase`` agrees that their content is lost, ``drop_points``
        that rules take points away.
        """

    def import_export(self, directory: str, *, passphrase: str | None, identity: str | None) -> TaskReport:
        """Take in the first copy of a VM that travelled in a directory."""

    def limit(self, vm: str, limit: Limit) -> RelationshipReport:
        """Change how fast a VM's points may be sent."""

    @property
    def starts(self) -> StartsFacade:
        """Starts of protected VMs."""

    @property
    def single(self) -> SinglePointsFacade:
        """Single points: pins, exports, mounts."""

    @property
    def boots(self) -> BootTestsFacade:
        """Boot tests."""

    @property
    def scrubs(self) -> ScrubsFacade:
        """Scrub."""

    def disable(self, vm: str, *, delete_copy: bool) -> None:
        """Dissolve the relationship, keeping or deleting the copy on the replica."""

    def release(self, vm: str) -> None:
        """Pause, and take what we track changes with out of the VM's images."""
        ...

    def pause(self, vm: str) -> None:
        """Begin no cycle until resumed."""

    def resume(self, vm: str) -> None:
        """Go on after a pause."""

    def sync(self, vm: str) -> TaskReport:
        """Run a cycle now."""

    def task(self, task_id: str, /) -> TaskReport:
        """Tell how a long act is doing."""

    def cancel_task(self, task_id: str, /) -> TaskReport:
        """Stop a long act that can be stopped."""

    def verify(self, vm: str, *, point: str | None, repair: bool, rate: int | None) -> TaskReport:
        """Compare a point (default: the newest) at the replica with what its primary, this host, knows of it."""

    def cancel_verify(self, vm: str) -> None:
        """End a verification."""

    def plan_failover(self, vm: str, point: str | None, *, even_damaged: bool = False) -> FailoverPlan:
        """Tell what a failover to a point (default: the newest) would do and lose; changes nothing."""

    def failover(self, vm: str, point: str | None, *, even_damaged: bool = False) -> FailoverReport:
        """Start the VM on this host from a point (default: the newest)."""

    def plan_commit(self, vm: str) -> FailoverPlan:
        """Tell what keeping a failover for good would do; changes nothing."""

    def commit(self, vm: str) -> TaskReport:
        """Keep a failover for good; the task is the folding of its images."""

    def plan_planned(self, vm: str, *, patience: int, force: bool) -> FailoverPlan:
        """Tell what a planned failover would do, asked on either side; changes nothing."""

    def planned_failover(self, vm: str, *, patience: int, force: bool) -> TaskReport:
        """Move a VM to its replica, or go on with that, asked on either side."""

    def plan_test(self, vm: str, point: str | None, network: str | None, *, even_damaged: bool = False) -> FailoverPlan:
        """Tell what a test failover would do; changes nothing."""

    def test_failover(
        self, vm: str, *, point: str | None, network: str | None, seconds: int | None, even_damaged: bool = False
    ) -> StartedTest:
        """Start a copy of the VM on this host, beside the VM, isolated unless a network is named."""

    def plan_cancel(self, vm: str, *, tests_only: bool) -> FailoverPlan:
        """Tell what taking a failover, or the test failovers, back would do and lose; changes nothing."""

    def cancel_failover(self, vm: str, *, tests_only: bool) -> CancelReport:
        """Take back the failover, or the test failovers, with every trace."""

    def networks(self, vm: str) -> NetworksReport:
        """Tell which network of this host stands for which one of the primary."""

    def change_networks(self, vm: str, change: NetworksChange) -> NetworksReport:
        """Change which network of this host stands for which one of the primary."""

    def plan_reverse(self, vm: str) -> FailoverPlan:
        """Tell what a swap of the roles would do; changes nothing."""

    def reverse(self, vm: str) -> TaskReport:
        """Protect a VM that was failed over to this host from here, with its old primary as the replica."""

    def hand_over(self, vm: str, to: str) -> RelationshipReport:
        """Take the points of a VM, held here, from another paired host."""

    def peers(self) -> tuple[PeerReport, ...]:
        """List paired hosts."""

    def invite(self, for_name: str | None) -> Invitation:
        """Make a pairing token."""

    def join(self, token: str) -> PeerReport:
        """Pair with the host that made the token."""

    def remove_peer(self, name: str) -> None:
        """Forget a paired host."""

    def test_peer(self, name: str) -> PeerTest:
        """Measure the connection to a paired host."""

    @property
    def records(self) -> RecordsFacade:
        """What happened, and who is told of it."""
