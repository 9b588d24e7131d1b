"""A small agent behind a real API on a real unix socket: it keeps its relationships in a dictionary."""

import asyncio
import datetime as dt
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from boot_kit import SmallBoots
from commit_kit import KeepsFailovers
from point_kit import VM as VM_ID
from point_kit import make_summary
from record_kit import SmallRecords
from scrub_kit import SmallScrubs, anyway
from start_kit import SmallStarts
from taking_kit import CancelsTasks, SmallSingle
from verify_kit import VerifiesPoints

from vmreplica.agent.retaining import require_kept
from vmreplica.api.server import ApiServer, start_api
from vmreplica.model.errors import Conflict, NotFound, VmReplicaError
from vmreplica.model.findings import Finding, arranged, fine, worst
from vmreplica.model.health import Health, Level, Reason
from vmreplica.model.keep import DEFAULT_KEEP, Keep
from vmreplica.model.keeping import Verdict
from vmreplica.model.merging import MergePlan
from vmreplica.model.networks import InterfaceReport, NetworksChange, NetworksReport
from vmreplica.model.point import PointSummary
from vmreplica.model.quiesce import AppConsistent
from vmreplica.model.rates import Limit
from vmreplica.model.report import (
    CancelReport,
    CycleReport,
    DoctorReport,
    FailoverPlan,
    FailoverReport,
    FailoverStep,
    FailoverTest,
    Invitation,
    PeerReport,
    PeerTest,
    PointsReport,
    Progress,
    RelationshipReport,
    StartedTest,
    StatusReport,
    TaskReport,
)
from vmreplica.model.seed import SeedRequest
from vmreplica.model.states import State

NOW = dt.datetime(2026, 11, 22, 10, 30, tzinfo=dt.UTC)
HOST, PEER = "a" * 32, "b" * 32
OLD, NEW = "20261122T102000Z-00000001", "20261122T102500Z-00000002"


def cycle(outcome: str = "published") -> CycleReport:
    """One cycle of 5 MiB of which 2 MiB were sent."""
    report = {"kind": "delta", "point": NEW, "reason": "interval", "started": NOW, "seconds": 1.5, "outcome": outcome}
    return CycleReport.model_validate({**report, "guest_bytes": 5 << 20, "wire_bytes": 2 << 20})


def summary(point: str) -> PointSummary:
    """A point of one disk."""
    sizes = {"guest_bytes": 1 << 30, "wire_bytes": 1 << 28, "stored_bytes": 1 << 28}
    return make_summary(point, {"vda": 1 << 30}, instant=NOW - dt.timedelta(minutes=5), published=NOW, **sizes)


def relation(name: str, **changes: object) -> RelationshipReport:
    """A healthy relationship seen from its primary."""
    fields: dict[str, object] = {
        "vm": VM_ID,
        "name": name,
        "role": "primary",
        "peer": "backup1",
        "peer_id": PEER,
        "state": State.REPLICATING,
        "health": Health(level=Level.NORMAL),
        "interval": 300,
        "keep": 24,
        "epoch": 0,
        "latest": summary(NEW),
        "point_age": 75.0,
        "points": 2,
        "next_due": NOW + dt.timedelta(seconds=90),
        "last_cycle": cycle(),
        **changes,
    }
    return RelationshipReport.model_validate(fields)


class SmallAgent(KeepsFailovers, CancelsTasks, VerifiesPoints):
    """Implements the facade over what its fields say; remembers what it was asked."""

    def __init__(self) -> None:
        self.relations = {"web": relation("web")}
        self.paired = {"backup1": PeerReport(name="backup1", host_id=PEER, addresses=("192.0.2.7:7432",), paired=NOW)}
        self.asked: list[tuple[object, ...]] = []
        self.error: Exception | None = None
        self.findings: list[Finding] = [fine("peers", "backup1", "it answers")]
        #: What the polls of a task answer, one after the other; the last one for ever.
        self.progress = [
            TaskReport(id="t1", what="initial replication of web", done=False, progress=_half()),
            TaskReport(id="t1", what="initial replication of web", done=True, result=cycle()),
        ]
        self.records = SmallRecords(self._asked, lambda vm: self._known(vm).vm, (cycle(), cycle("failed")))
        self.starts, self.boots = SmallStarts(self._asked), SmallBoots(self, self._asked)
        self.listed: tuple[PointSummary, ...] = (summary(NEW), summary(OLD))
        self.single, self.verdicts = SmallSingle(self, self._asked), dict[str, Verdict]()
        self.merges: MergePlan | None = None
        self.entered, self.go_on = threading.Event(), threading.Event()
        self.scrubs = SmallScrubs(self._asked)
        self.go_on.set()

    def status(self, vm: str | None) -> StatusReport:
        """Report all relationships, or one."""
        self._asked("status", vm)
        known = tuple(self.relations.values()) if vm is None else (self._known(vm),)
        return StatusReport(host="main", host_id=HOST, version="0.1.0", now=NOW, relationships=known)

    def doctor(self, vm: str | None, trial: bool) -> DoctorReport:
        """Find what ``findings`` says."""
        self._asked("doctor", vm, trial)
        name = None if vm is None else self._known(vm).name
        found = arranged(self.findings)
        return DoctorReport(
            host="main",
            vm=name,
            version="0.1.0",
            now=NOW,
            seconds=0.5,
            agent=True,
            worst=worst(found),
            findings=found,
        )

    def points(self, vm: str, *, plan: bool = False) -> PointsReport:
        """List two points."""
        self._asked("points", vm)
        listed = self._listed(vm)
        return listed.model_copy(update={"merges": self.merges}) if plan else listed

    def _listed(self, vm: str) -> PointsReport:
        name, verdicts = self._known(vm).name, self.verdicts
        return PointsReport(vm=VM_ID, name=name, points=self.listed, keep=DEFAULT_KEEP, verdicts=verdicts)

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
        """Begin a relationship."""
        if base_devices and not erase:
            what = f"all that is on the replica's {', '.join(base_devices.values())} would be lost"
            raise Conflict("base-device-unconfirmed", what, hint="--yes agrees")
        if keep is not None and vm in self.relations and not drop_points:
            require_kept(self._listed(vm), keep, NOW)
        told = (("limit", limit), ("at", at), ("app_consistent", app_consistent))
        more = {name: value for name, value in told if value is not None}
        seeded = filter(None, [seed, seed and give_up])
        self._asked("enable", vm, to, every, excluded, keep, *seeded, *more.items())
        self._peer(to)
        self.relations[vm] = relation(vm, interval=every, keep=keep or DEFAULT_KEEP, excluded=excluded)
        return self.progress[0]

    def import_export(self, directory: str, passphrase: str | None, identity: str | None) -> TaskReport:
        """Begin an import."""
        self._asked("import", directory, passphrase, identity)
        return self.progress[0]

    def limit(self, vm: str, limit: Limit) -> RelationshipReport:
        """Change rates."""
        self._asked("limit", vm, limit)
        self.relations[vm] = relation(self._known(vm).name, limit=limit, rate=limit.rate)
        return self.relations[vm]

    def disable(self, vm: str, delete_copy: bool) -> None:
        """End a relationship."""
        self._asked("disable", vm, delete_copy)
        del self.relations[self._known(vm).name]

    def release(self, vm: str) -> None:
        """Pause and release."""
        self._asked("release", vm)
        self.relations[vm] = relation(self._known(vm).name, state=State.PAUSED)

    def pause(self, vm: str) -> None:
        """Pause."""
        self._asked("pause", vm)
        self.relations[vm] = relation(self._known(vm).name, state=State.PAUSED)

    def resume(self, vm: str) -> None:
        """Resume."""
        self._asked("resume", vm)
        if self._known(vm).state is not State.PAUSED:
            raise Conflict("state-forbids", f"{vm} is not paused", hint="vmreplica status")
        self.relations[vm] = relation(vm)

    def sync(self, vm: str) -> TaskReport:
        """Begin a cycle."""
        self._asked("sync", vm)
        self._known(vm)
        return self.progress[0]

    def task(self, task_id: str) -> TaskReport:
        """Answer the next of the prepared reports."""
        self._asked("task", task_id)
        return self.progress.pop(0) if len(self.progress) > 1 else self.progress[0]

    def plan_failover(self, vm: str, point: str | None, *, even_damaged: bool = False) -> FailoverPlan:
        """Plan."""
        self._asked("plan_failover", vm, point, *anyway(even_damaged=even_damaged))
        return self._plan(vm, point)

    def _plan(self, vm: str, point: str | None) -> FailoverPlan:
        return FailoverPlan(
            vm=VM_ID,
            name=self._known(vm).name,
            kind="unplanned",
            point=point or NEW,
            instant=NOW - dt.timedelta(minutes=5),
            loses_seconds=300.0,
            newer_points=1 if point == OLD else 0,
            steps=(FailoverStep(name="define", text="define web with 1 disk"),),
            warnings=("the primary still answers",),
            after=("here: web runs",),
        )

    def failover(self, vm: str, point: str | None, *, even_damaged: bool = False) -> FailoverReport:
        """Do as planned."""
        plan = self.plan_failover(vm, point, even_damaged=even_damaged)
        self._asked("failover", vm, point, *anyway(even_damaged=even_damaged))
        return FailoverReport(plan=plan, state=State.FAILED_OVER, started=True, seconds=1.25)

    def plan_test(self, vm: str, point: str | None, network: str | None, *, even_damaged: bool = False) -> FailoverPlan:
        """Plan a test failover."""
        self._asked("plan_test", vm, point, network, *anyway(even_damaged=even_damaged))
        return self._plan(vm, point).model_copy(update={"kind": "test", "warnings": ()})

    def test_failover(
        self, vm: str, *, point: str | None, network: str | None, seconds: int | None, even_damaged: bool = False
    ) -> StartedTest:
        """Start a test failover."""
        self._asked("test_failover", vm, point, network, seconds, *anyway(even_damaged=even_damaged))
        until = NOW + dt.timedelta(seconds=seconds) if seconds else None
        test = FailoverTest(
            vm=VM_ID, name=f"{vm}-test", point=point or NEW, network=network, since=NOW, until=until, running=True
        )
        return StartedTest(plan=self._plan(vm, point), test=test, seconds=1.25)

    def plan_cancel(self, vm: str, *, tests_only: bool) -> FailoverPlan:
        """Plan to take back."""
        self._asked("plan_cancel", vm, tests_only)
        lost = {} if tests_only else {"loses_seconds": 90.0, "loses_bytes": 5 << 20}
        harmless = {"kind": "cancel", "loses_seconds": 0.0, "loses_bytes": 0, "warnings": ()}
        return self._plan(vm, None).model_copy(update=harmless | lost)

    def cancel_failover(self, vm: str, *, tests_only: bool) -> CancelReport:
        """Take it back."""
        self._asked("cancel_failover", vm, tests_only)
        kind = "test" if tests_only else "unplanned"
        return CancelReport(vm=VM_ID, name=self._known(vm).name, kind=kind, removed=(vm,), state=State.REPLICATING)

    def plan_reverse(self, vm: str) -> FailoverPlan:
        """Plan to swap the roles."""
        self._asked("plan_reverse", vm)
        return self._plan(vm, None).model_copy(update={"kind": "reverse"})

    def reverse(self, vm: str) -> TaskReport:
        """Begin to swap the roles."""
        self._asked("reverse", vm)
        self._known(vm)
        return self.progress[0]

    def hand_over(self, vm: str, to: str) -> RelationshipReport:
        """Take points from elsewhere."""
        self._asked("hand_over", vm, to)
        return self._known(vm)

    def networks(self, vm: str) -> NetworksReport:
        """Tell a map."""
        self._asked("networks", vm)
        return self._networks(vm, {"lan": "br0"})

    def change_networks(self, vm: str, change: NetworksChange) -> NetworksReport:
        """Remember a change of a map."""
        self._asked("change_networks", vm, change)
        return self._networks(vm, change.networks)

    def _networks(self, vm: str, networks: dict[str, str]) -> NetworksReport:
        nic = InterfaceReport(number=0, mac="52:54:00:00:00:01", source="lan", place="none")
        name = self._known(vm).name
        return NetworksReport(vm=VM_ID, name=name, networks=networks, interfaces=(nic,), notes=("no br0 here",))

    def peers(self) -> tuple[PeerReport, ...]:
        """List hosts."""
        self._asked("peers")
        return tuple(self.paired.values())

    def invite(self, for_name: str | None) -> Invitation:
        """Invite."""
        self._asked("invite", for_name)
        return Invitation(token="eyJ0b2tlbiI", expires=NOW)  # noqa: S106 - opens nothing

    def join(self, token: str) -> PeerReport:
        """Pair."""
        self._asked("join", token)
        return self.paired["backup1"]

    def remove_peer(self, name: str) -> None:
        """Forget a host."""
        self._asked("remove_peer", name)
        del self.paired[self._peer(name).name]

    def test_peer(self, name: str) -> PeerTest:
        """Measure nothing."""
        self._asked("test_peer", name)
        peer = self._peer(name)
        return PeerTest(
            name=peer.name,
            host_id=peer.host_id,
            address=peer.addresses[0],
            version="0.1.0",
            certificate_expires=NOW,
            clock_difference_seconds=-0.25,
            round_trip_ms=1.5,
            send_bytes_per_second=110e6,
            store_free_bytes=1 << 40,
            findings=("its clock is 0.25 s behind",),
        )

    def _asked(self, *what: object) -> None:
        self.asked.append(what)
        self.entered.set()
        self.go_on.wait(10)
        if self.error is not None:
            raise self.error

    def _known(self, vm: str) -> RelationshipReport:
        try:
            return self.relations[vm]
        except KeyError:
            raise NotFound("vm-unknown", f"no VM {vm!r} on main", hint="did you mean web?") from None

    def _peer(self, name: str) -> PeerReport:
        try:
            return self.paired[name]
        except KeyError:
            raise NotFound("peer-unknown", f"no host {name!r} is paired", hint="vmreplica peer list") from None


def ailing() -> RelationshipReport:
    """A relationship whose newest point is too old, under a name with an escape sequence in it."""
    reason = Reason(code="rpo-exceeded", level=Level.CRITICAL, text="the newest point is 1h old", hint="see the log")
    health = Health(level=Level.CRITICAL, reasons=(reason,))
    return relation("db\x1b[31m [bold]", health=health, point_age=3600.0, peer=None, progress=_half())


def failed_task(error: VmReplicaError) -> TaskReport:
    """A task that ended with an error."""
    return TaskReport(id="t1", what="sync", done=True, error=error.message, problem=error.problem())


@contextmanager
def serving(agent: SmallAgent, socket: Path) -> Iterator[None]:
    """Serve an agent in a thread with an event loop of its own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="api-loop")
    thread.start()
    try:
        server: ApiServer = asyncio.run_coroutine_threadsafe(start_api(agent, socket), loop).result(10)
        try:
            yield
        finally:
            asyncio.run_coroutine_threadsafe(server.stop(), loop).result(20)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


def _half() -> Progress:
    return Progress(
        phase="copying", done_bytes=1 << 29, total_bytes=1 << 30, wire_bytes=1 << 27, rate=1e8, seconds_left=5.4
    )
