"""The whole agent behind its API: two sides, peers, history. Everything is put together here and nowhere else."""

import datetime as dt
from collections.abc import Mapping
from functools import partial
from typing import Final

import structlog

from vmreplica import __version__
from vmreplica.agent.acts import Acts, note_import
from vmreplica.agent.adopting import Adopting
from vmreplica.agent.bandwidth import Bandwidth
from vmreplica.agent.building import make_dir, make_repository, make_stages, seed_tools
from vmreplica.agent.clients import Clients
from vmreplica.agent.config import Config
from vmreplica.agent.doctor.doctor import Doctor
from vmreplica.agent.doctor.host_exam import Parts
from vmreplica.agent.doctor.trial import Trials
from vmreplica.agent.facts import Stages
from vmreplica.agent.fence_side import FenceParts, FenceSide
from vmreplica.agent.guard import Guard
from vmreplica.agent.health_watch import HealthWatch
from vmreplica.agent.hosts import Hosts
from vmreplica.agent.journal import Journal
from vmreplica.agent.keeper import Keeper
from vmreplica.agent.planned_service import Planned, make_planned
from vmreplica.agent.point_verbs import PointVerbs
from vmreplica.agent.primary import PrimarySide
from vmreplica.agent.proof_verbs import ProofVerbs
from vmreplica.agent.protect import Bases
from vmreplica.agent.receipts import Receipts
from vmreplica.agent.records import Records
from vmreplica.agent.relations import Relations
from vmreplica.agent.replica import ReplicaSide
from vmreplica.agent.replica_report import told_reasons
from vmreplica.agent.reversing import Reversing, one_each
from vmreplica.agent.runner import Runner
from vmreplica.agent.schedule import long_slots
from vmreplica.agent.space import SpaceWatch
from vmreplica.agent.swap import Swap
from vmreplica.agent.tasks import Tasks
from vmreplica.agent.telling import Telling
from vmreplica.agent.verbs import FailoverVerbs
from vmreplica.agent.verifying import Verifying
from vmreplica.hypervisor import Hypervisor
from vmreplica.hypervisor.autostart import Autostart
from vmreplica.model.ids import VmId
from vmreplica.model.keep import Keep
from vmreplica.model.point import PointSummary
from vmreplica.model.quiesce import AppConsistent
from vmreplica.model.rates import Limit
from vmreplica.model.report import (
    DoctorReport,
    RelationshipReport,
    StatusReport,
    TaskReport,
)
from vmreplica.model.seed import SeedRequest
from vmreplica.parcel import Secret
from vmreplica.peer.book import PeerBook
from vmreplica.peer.identity import Identity
from vmreplica.peer.invitations import Invitations
from vmreplica.receive import Proving, Receiver
from vmreplica.repository import Repository

_log: Final = structlog.get_logger(__name__)


class Agent(Relations, FailoverVerbs, ProofVerbs, Hosts):
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
        self._tasks, self._journal = Tasks(), Journal(paths.state_dir / "journal.db")
        self._acts = Acts(self._journal)
        self._hypervisor = Hypervisor(paths.libvirt_uri, paths.runtime_dir, paths.state_dir)
        self._space = SpaceWatch(paths.store, limits.min_free, self._journal)
        repository = make_repository(config)
        self._replicas = self._replica_side(repository)
        fences = FenceParts(config, self.book, self._journal)
        stages = make_stages(config, self._hypervisor, self._journal)
        self._quiescer = stages.quiescer
        bandwidth = Bandwidth(limits.bandwidth)
        self._runner = self._make_runner(stages, bandwidth, fences.guard)
        self._adopting = Adopting(
            repository, stages, self._runner, fences.fence, self.identity.host_id, journal=self._journal
        )
        self._reversing = self._make_reversing()
        self._primaries = self._make_primaries(stages, bandwidth, fences.autostart)
        self._fences = FenceSide(fences, self._clients, self._hypervisor, self._runner)
        self.starts = self._fences.starts
        self._doctor = self._make_doctor(repository)
        #: Planned failovers: what peers ask of this host, and the verbs.
        self.planned = self._make_planned(repository, stages)
        self.receiver = self._make_receiver(repository)
        telling = Telling(config.health, self._journal)
        self._health = HealthWatch(partial(self.status, None), self._journal, telling, self._space)
        self.records = Records(self._journal, self._resolve, self._health.test)
        #: What peers ask for the proof of the points held here.
        self.proving = Proving(repository, self.receiver.fingerprint, self._replicas.look_after)
        self._verifying = self._make_verifying(stages)
        #: Single points: pins, exports, mounts.
        self.single = self._make_single()

    def _make_single(self) -> PointVerbs:
        return PointVerbs(
            find=self.held_or_elsewhere,
            tidy=self._replicas.look_after,
            tasks=self._tasks,
            acts=self._acts,
            runtime_dir=self.config.agent.runtime_dir,
            state_dir=self.config.agent.state_dir,
        )

    def _make_receiver(self, repository: Repository) -> Receiver:
        receipts = Receipts(self._journal)

        def published(vm: VmId, point: PointSummary) -> None:
            receipts.published(vm, point)
            self._replicas.published(vm, point)

        return Receiver(
            repository,
            hello=self.hello,
            runs_here=self.runs_here,
            on_opened=receipts.opened,
            on_published=published,
            reasons=partial(told_reasons, self._replicas.beside),
            seeds=self._replicas.seeder,
            reverse=self._adopting.accept,
        )

    def _make_verifying(self, stages: Stages) -> Verifying:
        return Verifying(
            stages=stages, runner=self._runner, clients=self._clients, tasks=self._tasks, journal=self._journal
        )

    def _make_reversing(self) -> Reversing:
        return Reversing(
            replicas=self._replicas,
            hypervisor=self._hypervisor,
            runner=self._runner,
            book=self.book,
            tasks=self._tasks,
        )

    def _make_primaries(self, stages: Stages, bandwidth: Bandwidth, autostart: Autostart) -> PrimarySide:
        return PrimarySide(
            stages=stages,
            runner=self._runner,
            clients=self._clients,
            book=self.book,
            tasks=self._tasks,
            bandwidth=bandwidth,
            autostart=autostart,
        )

    def _make_runner(self, stages: Stages, bandwidth: Bandwidth, guard: Guard) -> Runner:
        limits = self.config.limits
        return Runner(
            stages=stages,
            clients=self._clients,
            journal=self._journal,
            bandwidth=bandwidth,
            keeper=Keeper(stages, limits.pause_hold),
            guard=guard,
            swap=Swap(self._hypervisor, self._clients, self._replicas),
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
            reverse=partial(self._reversing.begin, planned=True),
            claim=self.starts.claim,
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
            quiescer=self._quiescer,
        )
        return Doctor(parts)

    def _replica_side(self, repository: Repository) -> ReplicaSide:
        return ReplicaSide(
            repository=repository,
            hypervisor=self._hypervisor,
            clients=self._clients,
            book=self.book,
            seed_tools=seed_tools(self.config),
            tasks=self._tasks,
            journal=self._journal,
            space=self._space,
            config=self.config.replica,
        )

    def start(self) -> None:
        """Finish what a crash interrupted, then begin to work."""
        # A guest that stands still comes before everything.
        self._quiescer.start()
        self.single.recover()
        self._replicas.start()
        self._adopting.recover()
        self._doctor.start()
        self._runner.start()
        self._fences.start()
        self.planned.start_work()
        self._health.start()

    def stop(self) -> None:
        """End all work in an orderly way."""
        self._health.stop()
        self._doctor.stop()
        self._fences.stop()
        self.single.stop()
        self.planned.stop_work()
        self._verifying.stop()
        self._runner.stop()
        self._quiescer.stop()
        self._replicas.stop()
        self._clients.close()
        self._journal.close()
        self._hypervisor.close()

    # ---- the facade: VMs

    def status(self, vm: str | None) -> StatusReport:
        """Report the host, with all its relationships or one VM's."""
        rows = one_each(self._primaries.reports(), self._replicas.reports())
        if vm is not None:
            rows = [row for row in rows if vm in {row.vm, row.name}]
            if not rows:
                self._explain_missing(vm)
        return StatusReport(
            host=self.identity.name,
            host_id=self.identity.host_id,
            version=__version__,
            now=dt.datetime.now(dt.UTC),
            relationships=tuple(self.single.noted(row) for row in sorted(rows, key=lambda row: (row.name, row.role))),
        )

    def doctor(self, vm: str | None, *, trial: bool) -> DoctorReport:
        """Look for trouble, on this host or with one VM."""
        return self._doctor.host() if vm is None else self._doctor.vm(vm, self._held(vm), trial=trial)

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
        """Protect a VM; the task is its initial replication."""
        host = self.book.by_name(to).host_id
        with self._acts.act("enable", vm, "the protection") as act:
            task = self._primaries.enable(
                vm,
                host,
                interval=every,
                keep=keep,
                excluded=excluded,
                bases=Bases(base_devices, erase=erase),
                seed=seed,
                give_up=give_up,
                drop_points=drop_points,
                limit=limit,
                begin_at=at,
                app_consistent=app_consistent,
            )
            act.done("enabled", f"protected, with {to} as its replica's host", replica=to, interval=every)
        return task.report()

    def import_export(self, directory: str, *, passphrase: str | None, identity: str | None) -> TaskReport:
        """Take in the first copy of a VM that travelled in a directory."""
        task = self._tasks.start(f"import of {directory}")
        self._replicas.imports.begin(directory, Secret(passphrase=passphrase, identity=identity), task)
        task.then(partial(note_import, self._journal, directory, task))
        return task.report()

    def limit(self, vm: str, limit: Limit) -> RelationshipReport:
        """Change how fast a VM's points may be sent."""
        return self._primaries.limit(vm, limit)

    def disable(self, vm: str, *, delete_copy: bool) -> None:
        """Dissolve a relationship, from either side."""
        with self._acts.act("disable", vm, "the end of its protection") as act:
            replica = self._held(vm)
            if replica is not None:
                self._replicas.forget(replica, delete_copy=delete_copy)
            else:
                self._primaries.disable(vm, delete_copy=delete_copy)
            copy = "deleted" if delete_copy else "kept"
            act.done("disabled", f"no longer protected; the copy is {copy}", copy=copy)

    def release(self, vm: str) -> None:
        """Pause, and take our bitmaps out of the VM's images."""
        with self._acts.act("pause", vm, "the release") as act:
            self._primaries.release(vm)
            act.done("released", "replication is paused, and nothing of ours is in the VM's images")

    def pause(self, vm: str) -> None:
        """Begin no cycle until resumed."""
        self._require_primary(vm)
        with self._acts.act("pause", vm, "the pause") as act:
            self._primaries.pause(vm)
            act.done("paused", "replication is paused")

    def resume(self, vm: str) -> None:
        """Go on after a pause."""
        self._require_primary(vm)
        with self._acts.act("resume", vm, "the resumption") as act:
            self._primaries.resume(vm)
            act.done("resumed", "replication goes on")

    def sync(self, vm: str) -> TaskReport:
        """Run a cycle now."""
        self._require_primary(vm)
        return self._primaries.sync(vm).report()
