"""The whole agent behind its API: two sides, peers, history. Everything is put together here and nowhere else."""

import datetime as dt
from collections.abc import Mapping
from typing import Final

import structlog

from vmreplica import __version__
from vmreplica.agent.bandwidth import Bandwidth
from vmreplica.agent.building import make_dir, make_stages, seed_tools
from vmreplica.agent.clients import Clients
from vmreplica.agent.config import Config
from vmreplica.agent.doctor.doctor import Doctor
from vmreplica.agent.doctor.host_exam import Parts
from vmreplica.agent.doctor.trial import Trials
from vmreplica.agent.facts import Stages
from vmreplica.agent.fence_side import FenceSide
from vmreplica.agent.fencing import Fencing
from vmreplica.agent.guard import Guard
from vmreplica.agent.hooks import fence_dir
from vmreplica.agent.journal import Journal
from vmreplica.agent.keeper import Keeper
from vmreplica.agent.peer_verbs import PeerVerbs
from vmreplica.agent.planned_service import Planned, make_planned
from vmreplica.agent.primary import PrimarySide
from vmreplica.agent.protect import Bases
from vmreplica.agent.replica import ReplicaSide
from vmreplica.agent.runner import Runner
from vmreplica.agent.schedule import long_slots
from vmreplica.agent.tasks import Tasks
from vmreplica.fsio import free_bytes
from vmreplica.hypervisor import Hypervisor
from vmreplica.hypervisor.autostart import Autostart
from vmreplica.hypervisor.fence import Fence
from vmreplica.model.errors import NotFound
from vmreplica.model.ids import HostId, VmId
from vmreplica.model.rates import Limit
from vmreplica.model.report import (
    CancelReport,
    CycleReport,
    DoctorReport,
    FailoverPlan,
    FailoverReport,
    PointsReport,
    RelationshipReport,
    StartedTest,
    StatusReport,
    TaskReport,
)
from vmreplica.model.seed import SeedRequest
from vmreplica.parcel import Secret
from vmreplica.peer.book import PeerBook
from vmreplica.peer.identity import Identity
from vmreplica.peer.invitations import Invitations
from vmreplica.peer.planned import PlannedWish
from vmreplica.peer.wire import Hello, RunsHere
from vmreplica.receive import Receiver
from vmreplica.repository import Repository

_log: Final = structlog.get_logger(__name__)


class Agent(PeerVerbs):
    """This host. Its public methods are the facade that the API serves.

    Args:
        config: validated configuration.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        paths, limits = config.agent, config.limits
        for directory in (paths.state_dir, paths.store, paths.runtime_dir):
            make_dir(directory)
        self.identity = Identity.load_or_create(paths.state_dir / "pki", paths.name)
        self.book = PeerBook(paths.state_dir / "peers.json")
        self.invitations = Invitations(paths.state_dir / "invitations.json")
        self._clients = Clients(self.identity, self.book)
        self._tasks = Tasks()
        self._journal = Journal(paths.state_dir / "journal.db")
        self._hypervisor = Hypervisor(paths.libvirt_uri, paths.runtime_dir, paths.state_dir)
        repository = Repository(paths.store, min_free=limits.min_free, base_devices=config.replica.base_devices)
        self._replicas = self._replica_side(repository)
        autostart = Autostart(paths.libvirt_uri)
        self._guard = Guard(Fence(fence_dir(config)), self.book)
        stages = make_stages(config, self._hypervisor)
        bandwidth = Bandwidth(limits.bandwidth)
        self._runner = self._make_runner(stages, bandwidth)
        self._primaries = PrimarySide(
            stages=stages,
            runner=self._runner,
            clients=self._clients,
            book=self.book,
            tasks=self._tasks,
            bandwidth=bandwidth,
            autostart=autostart,
        )
        self._fences = self._make_fences(autostart)
        self._doctor = self._make_doctor(repository)
        #: Planned failovers: what peers ask of this host, and the verbs.
        self.planned = self._make_planned(repository, stages)
        self.receiver = Receiver(
            repository,
            hello=self.hello,
            runs_here=self.runs_here,
            on_published=self._replicas.published,
            seeds=self._replicas.seeder,
        )

    def _make_runner(self, stages: Stages, bandwidth: Bandwidth) -> Runner:
        limits = self.config.limits
        return Runner(
            stages=stages,
            clients=self._clients,
            journal=self._journal,
            bandwidth=bandwidth,
            keeper=Keeper(stages, limits.pause_hold),
            guard=self._guard,
            concurrent=limits.concurrent_cycles,
            slots=long_slots(limits.concurrent_resyncs, limits.concurrent_cycles),
        )

    def _make_planned(self, repository: Repository, stages: Stages) -> Planned:
        return make_planned(
            self.config,
            stages=stages,
            runner=self._runner,
            clients=self._clients,
            book=self.book,
            tasks=self._tasks,
            repository=repository,
            primaries=self._primaries,
            replicas=self._replicas,
        )

    def _make_doctor(self, repository: Repository) -> Doctor:
        parts = Parts(
            config=self.config,
            identity=self.identity,
            book=self.book,
            hypervisor=self._hypervisor,
            runner=self._runner,
            journal=self._journal,
            repository=repository,
            trials=Trials(self.config.agent.state_dir / "trials", self._hypervisor),
        )
        return Doctor(parts)

    def _make_fences(self, autostart: Autostart) -> FenceSide:
        return FenceSide(
            self.config,
            guard=self._guard,
            clients=self._clients,
            hypervisor=self._hypervisor,
            autostart=autostart,
            runner=self._runner,
        )

    def _replica_side(self, repository: Repository) -> ReplicaSide:
        return ReplicaSide(
            repository=repository,
            hypervisor=self._hypervisor,
            clients=self._clients,
            book=self.book,
            seed_tools=seed_tools(self.config),
        )

    def start(self) -> None:
        """Finish what a crash interrupted, then begin to work."""
        self._replicas.start()
        self._doctor.start()
        self._runner.start()
        self._fences.start()
        self.planned.start_work()

    def stop(self) -> None:
        """End all work in an orderly way."""
        self._doctor.stop()
        self._fences.stop()
        self.planned.stop_work()
        self._runner.stop()
        self._replicas.stop()
        self._clients.close()
        self._journal.close()
        self._hypervisor.close()

    # ---- what peers ask

    def hello(self) -> Hello:
        """Tell who this host is."""
        return Hello(
            name=self.identity.name,
            host_id=self.identity.host_id,
            version=__version__,
            now=dt.datetime.now(dt.UTC),
            free_bytes=free_bytes(self.config.agent.store),
        )

    def runs_here(self, peer: HostId, vm: VmId) -> RunsHere:
        """Tell the replica of one of our VMs whether the VM runs here."""
        rel = self._primaries.find(vm)
        if rel is None or rel.policy.replica != peer:
            raise NotFound("vm-unknown", f"no VM {vm} of this host is replicated to the asking one")
        runs = self._fences.starts.starting(rel.vm) or self._hypervisor.running(rel.vm)
        return RunsHere(vm=rel.vm, runs=runs, epoch=rel.policy.epoch)

    # ---- the facade: VMs

    def status(self, vm: str | None) -> StatusReport:
        """Report the host, with all its relationships or one VM's."""
        rows = self.relationships()
        if vm is not None:
            rows = [row for row in rows if vm in {row.vm, row.name}]
            if not rows:
                self._explain_missing(vm)
        return StatusReport(
            host=self.identity.name,
            host_id=self.identity.host_id,
            version=__version__,
            now=dt.datetime.now(dt.UTC),
            relationships=tuple(sorted(rows, key=lambda row: (row.name, row.role))),
        )

    def doctor(self, vm: str | None, *, trial: bool) -> DoctorReport:
        """Look for trouble, on this host or with one VM."""
        return self._doctor.host() if vm is None else self._doctor.vm(vm, self._replicas.find(vm), trial=trial)

    def points(self, vm: str) -> PointsReport:
        """List recovery points, held here or on the VM's replica."""
        replica = self._replicas.find(vm)
        if replica is not None:
            return self._replicas.points(replica)
        rel = self._primaries.find(vm)
        if rel is None:
            self._explain_missing(vm)
            raise NotFound("not-protected", f"{vm} is not protected on this host", hint=f"vmreplica enable {vm}")
        return self._clients.to(rel.policy.replica).points(rel.vm)

    def enable(
        self,
        vm: str,
        *,
        to: str,
        every: int,
        excluded: tuple[str, ...],
        keep: int,
        base_devices: Mapping[str, str],
        erase: bool,
        seed: SeedRequest | None = None,
        give_up: bool = False,
        limit: Limit | None = None,
        at: dt.datetime | None = None,
    ) -> TaskReport:
        """Protect a VM; the task is its initial replication."""
        host = self.book.by_name(to).host_id
        task = self._primaries.enable(
            vm,
            host,
            interval=every,
            keep=keep,
            excluded=excluded,
            bases=Bases(base_devices, erase=erase),
            seed=seed,
            give_up=give_up,
            limit=limit,
            begin_at=at,
        )
        return task.report()

    def import_export(self, directory: str, *, passphrase: str | None, identity: str | None) -> TaskReport:
        """Take in the first copy of a VM that travelled in a directory."""
        task = self._tasks.start(f"import of {directory}")
        self._replicas.imports.begin(directory, Secret(passphrase=passphrase, identity=identity), task)
        return task.report()

    def limit(self, vm: str, limit: Limit) -> RelationshipReport:
        """Change how fast a VM's points may be sent."""
        return self._primaries.limit(vm, limit)

    @property
    def starts(self) -> Fencing:
        """Starts of protected VMs."""
        return self._fences.starts

    def disable(self, vm: str, *, delete_copy: bool) -> None:
        """Dissolve a relationship, from either side."""
        replica = self._replicas.find(vm)
        if replica is not None and self._primaries.find(vm) is None:
            self._replicas.forget(replica, delete_copy=delete_copy)
        else:
            self._primaries.disable(vm, delete_copy=delete_copy)

    def release(self, vm: str) -> None:
        """Pause, and take our bitmaps out of the VM's images."""
        self._primaries.release(vm)

    def pause(self, vm: str) -> None:
        """Begin no cycle until resumed."""
        self._require_primary(vm)
        self._primaries.pause(vm)

    def resume(self, vm: str) -> None:
        """Go on after a pause."""
        self._require_primary(vm)
        self._primaries.resume(vm)

    def sync(self, vm: str) -> TaskReport:
        """Run a cycle now."""
        self._require_primary(vm)
        return self._primaries.sync(vm).report()

    def task(self, task_id: str, /) -> TaskReport:
        """Tell how a long act is doing."""
        return self._tasks.get(task_id).report()

    def history(self, vm: str, limit: int) -> tuple[CycleReport, ...]:
        """List the last cycles of a VM, newest first."""
        self._require_primary(vm)
        return self._journal.history(self._hypervisor.find(vm).vm, limit)

    def plan_failover(self, vm: str, point: str | None) -> FailoverPlan:
        """Tell what a failover would do and lose; changes nothing."""
        return self._replicas.plan(vm, point)

    def failover(self, vm: str, point: str | None) -> FailoverReport:
        """Start the VM on this host."""
        return self._replicas.failover(vm, point)

    def plan_planned(self, vm: str, *, patience: int, force: bool) -> FailoverPlan:
        """Tell what a planned failover would do, asked on either side; changes nothing."""
        return self.planned.plan_verb(vm, PlannedWish(patience=patience, force=force))

    def planned_failover(self, vm: str, *, patience: int, force: bool) -> TaskReport:
        """Move a VM to its replica, or go on with that, asked on either side."""
        return self.planned.begin_verb(vm, PlannedWish(patience=patience, force=force))

    def plan_test(self, vm: str, point: str | None, network: str | None) -> FailoverPlan:
        """Tell what a test failover would do; changes nothing."""
        return self._replicas.plan_test(vm, point, network)

    def test_failover(self, vm: str, *, point: str | None, network: str | None, seconds: int | None) -> StartedTest:
        """Start a copy of the VM on this host, beside the VM."""
        return self._replicas.test(vm, point=point, network=network, seconds=seconds)

    def plan_cancel(self, vm: str, *, tests_only: bool) -> FailoverPlan:
        """Plan what ``cancel_failover`` does."""
        of_planned = None if tests_only else self.planned.plan_cancel_verb(vm)
        return of_planned or self._replicas.plan_cancel(vm, tests_only=tests_only)

    def cancel_failover(self, vm: str, *, tests_only: bool) -> CancelReport:
        """Take back the failover, or the test failovers, with every trace."""
        taken_back = None if tests_only else self.planned.cancel_verb(vm)
        return taken_back or self._replicas.cancel(vm, tests_only=tests_only)

    def map_networks(self, vm: str, mapping: dict[str, str]) -> RelationshipReport:
        """Set which network of this host stands for which one of the primary."""
        return self._replicas.map_networks(vm, mapping)

    def hand_over(self, vm: str, to: str) -> RelationshipReport:
        """Take the points of a VM, held here, from another paired host."""
        return self._replicas.hand_over(vm, self.book.by_name(to).host_id)

    def relationships(self) -> list[RelationshipReport]:
        """Report all relationships, from either side."""
        return [*self._primaries.reports(), *self._replicas.reports()]

    def _require_primary(self, vm: str) -> None:
        """Refuse what only the primary of a VM can do, when this is its replica.

        Raises:
            NotFound: ``not-protected``.
        """
        replica = self._replicas.find(vm)
        if replica is not None and self._primaries.find(vm) is None:
            raise self._replicas.copy_only(replica)

    def _explain_missing(self, vm: str) -> None:
        """Raise the most telling error for a VM that has no relationship here.

        Raises:
            NotFound: ``vm-unknown``, or ``not-protected`` when the VM exists.
        """
        brief = self._hypervisor.find(vm)
        raise NotFound(
            "not-protected",
            f"{brief.name} is not protected on this host",
            hint=f"vmreplica enable {brief.name} --to PEER",
        )
