"""The primary side of the agent: the verbs on VMs that are protected from this host."""

import contextlib
import datetime as dt
from collections.abc import Iterator, Sequence
from typing import Any, Final

import structlog

from vmreplica.agent.bandwidth import Bandwidth
from vmreplica.agent.clients import Clients
from vmreplica.agent.exporting import check_change, is_same, prepare_seed
from vmreplica.agent.facts import Stages
from vmreplica.agent.keeper import give_up as give_up_point
from vmreplica.agent.protect import (
    Bases,
    already_protected,
    base_wishes,
    check_beginning,
    check_disks,
    check_not_begun,
    not_protected,
    paused,
    require_not_planned,
    require_not_reversing,
    seed_disks,
)
from vmreplica.agent.relationship import Relationship, describe
from vmreplica.agent.retaining import require_kept, wanted_keep
from vmreplica.agent.runner import Runner
from vmreplica.agent.sweeping import delete_checkpoints, forget_primary, sweep_checkpoints
from vmreplica.agent.tasks import Task, Tasks
from vmreplica.hypervisor import DiskView, DomainBrief
from vmreplica.hypervisor.autostart import Autostart
from vmreplica.model.errors import NotFound, Refused, Unreachable
from vmreplica.model.export import ExportSeed
from vmreplica.model.ids import DiskTarget, HostId, VmId, VmName
from vmreplica.model.keep import Keep
from vmreplica.model.point import Position
from vmreplica.model.policy import Policy, ReplicaOffer
from vmreplica.model.quiesce import NEVER, AppConsistent
from vmreplica.model.rates import NO_LIMIT, Limit
from vmreplica.model.report import PointsReport, RelationshipReport
from vmreplica.model.seed import SeedRequest
from vmreplica.peer.book import PeerBook
from vmreplica.peer.client import PeerClient

_log: Final = structlog.get_logger(__name__)


class PrimarySide:
    """Thread-safe.

    Args:
        stages: libvirt, spool and limits.
        runner: the scheduler, which knows the protected VMs.
        clients: connections to replicas.
        book: paired hosts.
        tasks: where acts that take long are registered.
        bandwidth: how fast is sent.
        autostart: which VMs libvirt starts with the host.
    """

    def __init__(
        self,
        *,
        stages: Stages,
        runner: Runner,
        clients: Clients,
        book: PeerBook,
        tasks: Tasks,
        bandwidth: Bandwidth,
        autostart: Autostart,
    ) -> None:
        self._stages = stages
        self._hypervisor = stages.hypervisor
        self._runner = runner
        self._clients = clients
        self._book = book
        self._tasks = tasks
        self._bandwidth = bandwidth
        self._autostart = autostart

    def enable(
        self,
        vm: str,
        to: HostId,
        *,
        interval: int,
        keep: Keep | None = None,
        excluded: tuple[DiskTarget, ...],
        bases: Bases,
        seed: SeedRequest | None = None,
        give_up: bool = False,
        drop_points: bool = False,
        limit: Limit | None = None,
        begin_at: dt.datetime | None = None,
        app_consistent: AppConsistent | None = None,
    ) -> Task:
        """Protect a VM, or change the policy of one that is protected to the same host.

        Args:
            vm: name or UUID.
            to: the replica.
            interval: seconds between cycles.
            keep: which points; None: as before, or the default.
            excluded: disks that are not replicated.
            bases: devices of the replica for bases.
            seed: how the first copy gets there; None: over the network, or as it was.
            give_up: an export that the replica waits for is lost.
            drop_points: the rules may take recovery points away that the present ones keep.
            limit: how fast may be sent; None: as before.
            begin_at: when initial replication begins; None: now.
            app_consistent: how often the guest is quiesced for a point; None: as before.

        Raises:
            BadRequest: the moment is past or too far ahead, or there is no initial replication to come.
            Conflict: ``export-awaited``: the export has to be given up, and nobody said so; ``points-would-go``:
                recovery points would go, likewise; ``reversing``.
            VmReplicaError: unknown VM, no eligible disk, or the replica refuses or does not answer.
        """
        brief = self._hypervisor.find(vm)
        disks = check_disks(self._hypervisor.inspect(brief.vm), excluded)
        check_beginning(brief.name, begin_at, dt.datetime.now(dt.UTC))
        old = self._hypervisor.policy(brief.vm)
        if old is not None:
            self._check_change(brief.name, old, to)
        kept = self._agreed_keep(brief.vm, to, old, keep, interval, drop_points=drop_points)
        policy = Policy(
            replica=to,
            interval=interval,
            keep=kept,
            excluded=excluded,
            limit=(old.limit if old else NO_LIMIT) if limit is None else limit,
            begin_at=begin_at,
            app_consistent=(old.app_consistent if old else NEVER) if app_consistent is None else app_consistent,
            **_lasting(old),
        )
        with self._other_way(brief, seed, old, give_up=give_up):
            position = self._clients.to(to).offer(brief.vm, _offer(brief.name, policy, disks, bases, seed))
            check_not_begun(brief.name, begin_at, position)
            policy = self._with_seed(brief, policy, seed, old, position)
            policy = self._write(brief.vm, policy)
        return self._begin(brief, policy)

    def _agreed_keep(
        self, vm: VmId, to: HostId, old: Policy | None, asked: Keep | None, interval: int, *, drop_points: bool
    ) -> Keep:
        """Tell which rules are in force from now on; a copy that was kept when the VM was given up has rules too."""
        known = old.keep if old is not None else None
        if known is not None and asked in {None, known}:
            return wanted_keep(None, known, interval)
        held = self._held_points(vm, to)
        keep = wanted_keep(asked, known or (held.keep if held is not None else None), interval)
        if not drop_points:
            require_kept(held, keep, dt.datetime.now(dt.UTC))
        return keep

    def _held_points(self, vm: VmId, to: HostId) -> PointsReport | None:
        """Ask a host what it holds of a VM for this one; None: nothing, or nothing that is ours."""
        try:
            return self._clients.to(to).points(vm)
        except (NotFound, Refused):
            return None

    def _begin(self, brief: DomainBrief, policy: Policy) -> Task:
        """Let a policy that was agreed on take effect."""
        rel = self._runner.find(brief.vm)
        if rel is not None and policy.begin_at is not None:
            self._runner.halt(rel)  # what has begun already rests until then
        task = self._tasks.start(f"initial replication of {brief.name}")
        self._runner.protect(brief, policy, task)
        return task

    def disable(self, vm: str, *, delete_copy: bool) -> None:
        """Dissolve the relationship; nothing of ours stays on the domain.

        Raises:
            NotFound: the VM is not protected here.
            Unreachable: the VM is no longer protected, but the replica could not be told.
        """
        rel = self._find(vm, moving_too=True)
        if rel.running:
            require_not_planned(rel.name, rel.policy)
        self._runner.retire(rel)
        sweep_checkpoints(self._stages, rel.vm, rel.policy.replica)
        forget_primary(self._stages, rel.vm)
        returned = rel.policy.autostart and not rel.fenced
        # Both before, as a crash may follow, and after, as it may have been taken over again in between.
        self._give_back_autostart(rel, wanted=returned)
        self._hypervisor.set_policy(rel.vm, None)
        self._give_back_autostart(rel, wanted=returned)
        _log.info("protection ended", vm=rel.vm, name=rel.name)
        try:
            self._clients.to(rel.policy.replica).remove(rel.vm, delete_copy=delete_copy)
        except (Unreachable, NotFound) as error:
            raise Unreachable(
                "replica-not-told",
                f"{rel.name} is no longer protected, but its replica was not told: {error.message}",
                hint=f"on the replica: vmreplica disable {rel.name}",
                kind="operator",
            ) from error

    def pause(self, vm: str) -> None:
        """Begin no cycle until resumed; the bitmap goes on tracking."""
        rel = self._set_paused(vm, paused=True)
        self._runner.halt(rel)

    def release(self, vm: str) -> None:
        """Pause, and leave no bitmap of ours in the images: QEMU reverts no snapshot below one.

        The cycle after the pause compares. Killed in between, the rest is done by asking again, or by that cycle.
        """
        self.pause(vm)
        rel = self._find(vm)
        self._hypervisor.end_backup(rel.vm)
        delete_checkpoints(self._stages, rel.vm, rel.policy.replica)

    def resume(self, vm: str) -> None:
        """Go on after a pause, at once."""
        self._set_paused(vm, paused=False)

    def sync(self, vm: str) -> Task:
        """Run a cycle now.

        Raises:
            Conflict: replication is paused.
        """
        rel = self._find(vm)
        if rel.policy.paused:
            raise paused(rel.name)
        if rel.policy.begin_at is not None:
            self._runner.amend(rel, lambda policy: policy.model_copy(update={"begin_at": None}))
        task = self._tasks.start(f"cycle of {rel.name}")
        self._runner.ask_cycle(rel, task)
        return task

    def limit(self, vm: str, limit: Limit) -> RelationshipReport:
        """Change how fast a VM's points may be sent, at once, also of one on its way."""
        rel = self._find(vm)
        self._runner.amend(rel, lambda policy: policy.model_copy(update={"limit": limit}))
        return next(report for report in self.reports() if report.vm == rel.vm)

    def reports(self) -> list[RelationshipReport]:
        """Report every protected VM; an agent that has just started first looks which ones there are."""
        self._runner.await_look()
        now = dt.datetime.now(dt.UTC)
        return self._runner.each(lambda rel, clock: self._describe(rel, now, clock))

    def find(self, vm: str) -> Relationship | None:
        """Find a protected VM by name or UUID."""
        return self._runner.find(vm)

    def protected(self, vm: str) -> Relationship | None:
        """Find a protected VM by name or UUID, also when the scheduler has not looked for it yet."""
        try:
            return self._find(vm, moving_too=True)
        except NotFound:
            return None

    def _describe(self, rel: Relationship, now: dt.datetime, clock: float) -> RelationshipReport:
        return describe(
            rel,
            peer=self._peer_name(rel.policy.replica),
            points=rel.position.points if rel.position else 0,
            rate=self._bandwidth.in_force(rel.policy.limit),
            quiesce=self._stages.quiescer.facts(rel.vm, rel.policy),
            now=now,
            clock=clock,
        )

    @contextlib.contextmanager
    def _other_way(
        self, brief: DomainBrief, wish: SeedRequest | None, old: Policy | None, *, give_up: bool
    ) -> Iterator[None]:
        """End a first copy that is on its way in another manner; nothing of it begins again inside the block."""
        if old is None or is_same(wish, old):
            yield
            return
        client = self._clients.to(old.replica)
        position = _known_position(client, brief.vm)
        if position is not None:
            check_change(brief.name, wish, position, sure=give_up)
        rel = self._runner.find(brief.vm)
        if rel is not None:
            self._runner.retire(rel)
        try:
            pending = self._stages.spool.point(brief.vm)
            if pending is not None:
                give_up_point(self._stages, pending)
            if position is not None and position.awaited is not None:
                client.give_up_base(brief.vm)
            yield
        except BaseException:
            self._runner.adopt(brief, old)
            raise

    def _check_change(self, name: VmName, old: Policy, to: HostId) -> None:
        require_not_planned(name, old)
        if old.replica != to:
            raise already_protected(name, self._peer_name(old.replica))
        require_not_reversing(name, old)

    def _with_seed(
        self, brief: DomainBrief, policy: Policy, wish: SeedRequest | None, old: Policy | None, position: Position
    ) -> Policy:
        """Put the way of the first copy into a policy; an export's directory is made ready."""
        if is_same(wish, old):
            return policy.model_copy(update={"seed": old.seed if old else None})
        if not isinstance(wish, ExportSeed):
            return policy
        check_change(brief.name, wish, position, sure=True)
        prepared = prepare_seed(wish, brief, self._clients.here, policy.replica, old)
        return policy.model_copy(update={"seed": prepared})

    def _set_paused(self, vm: str, *, paused: bool) -> Relationship:
        rel = self._find(vm)
        policy = self._runner.amend(rel, lambda policy: policy.model_copy(update={"paused": paused}))
        self._runner.change(rel, policy)
        return rel

    def _write(self, vm: VmId, policy: Policy) -> Policy:
        """Put a policy into force where it is written; what outlives its change may have changed meanwhile."""
        rel = self._runner.find(vm)
        if rel is not None:
            return self._runner.amend(rel, lambda now: policy.model_copy(update=_lasting(now)))
        self._hypervisor.set_policy(vm, policy)
        return policy

    def _give_back_autostart(self, rel: Relationship, *, wanted: bool) -> None:
        """Let libvirt start a VM with the host again, as it did before it was protected."""
        if wanted:
            self._autostart.set(rel.vm, on=True)

    def _find(self, vm: str, *, moving_too: bool = False) -> Relationship:
        rel = self._runner.find(vm)
        if rel is not None:
            if not moving_too:
                require_not_planned(rel.name, rel.policy)
            return rel
        brief = self._hypervisor.find(vm)
        policy = self._hypervisor.policy(brief.vm)
        if policy is None:
            raise not_protected(brief.name)
        return self._runner.adopt(brief, policy)

    def _peer_name(self, host: HostId) -> str | None:
        try:
            return self._book.by_id(host).name
        except NotFound:
            return None


def _offer(
    name: VmName, policy: Policy, disks: Sequence[DiskView], bases: Bases, seed: SeedRequest | None
) -> ReplicaOffer:
    """Say to the replica what it is asked to accept.

    Raises:
        BadRequest: a base or a copy is for a disk that is not replicated, or it is not clear for which.
    """
    return ReplicaOffer(
        name=name,
        interval=policy.interval,
        keep=policy.keep,
        epoch=policy.epoch,
        disk_bytes=sum(disk.size for disk in disks),
        base_devices=base_wishes(name, disks, bases.devices),
        erase=bases.erase,
        seed=seed_disks(name, seed, {disk.target: disk.size for disk in disks}),
    )


def _lasting(old: Policy | None) -> dict[str, Any]:
    """Tell what of a policy outlives its change."""
    return {} if old is None else {"epoch": old.epoch, "autostart": old.autostart, "reverse": old.reverse}


def _known_position(client: PeerClient, vm: VmId) -> Position | None:
    """Ask for the replica's position; None when it knows nothing of the VM (any more)."""
    try:
        return client.position(vm)
    except (NotFound, Refused):
        return None
