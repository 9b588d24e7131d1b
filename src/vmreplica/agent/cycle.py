"""One replication cycle of one VM: ask the facts, decide, act, until a new point is published or nothing can be done.

Killed anywhere, the next run finds the same facts and goes on from there: the spool and the backup job survive the
agent, and what has been replicated is asked from the replica.
"""

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Final, Protocol

import structlog

from vmreplica.agent.decide import (
    Adopt,
    Capture,
    Continue,
    Fenced,
    Fetch,
    SeedFailed,
    Ship,
    Step,
    Tidy,
    Wait,
    decide,
)
from vmreplica.agent.exporting import PATIENCE as EXPORT_PATIENCE
from vmreplica.agent.exporting import reserve_in
from vmreplica.agent.facts import FactFinder, Stages
from vmreplica.agent.holdings import Holdings
from vmreplica.agent.keeper import abandon, give_up
from vmreplica.agent.meter import Meter
from vmreplica.agent.opening import new_opening
from vmreplica.agent.outcome import Earlier, Outcome
from vmreplica.agent.protect import seed_failed
from vmreplica.agent.quiescing import Attempt
from vmreplica.agent.transfer import PATIENCE, FrozenView, Transfer
from vmreplica.fsio import require_free
from vmreplica.hypervisor import BackupJob, CheckpointBroken
from vmreplica.model.errors import Conflict, Internal, VmReplicaError
from vmreplica.model.ids import CheckpointName, DiskTarget, VmId, is_our_checkpoint
from vmreplica.model.point import PointKind, PointOpening, PointSummary, Position
from vmreplica.model.policy import Amend, Policy
from vmreplica.peer.client import PeerClient
from vmreplica.peer.line import Halt, Line, Pace
from vmreplica.ship import DirectoryWire, Wire
from vmreplica.spool import SpoolPoint

_log: Final = structlog.get_logger(__name__)

#: Why a cycle waits that reads whole disks: as many as may are under way.
RESYNC_QUEUED: Final = "resync-queued"
#: Kinds of points for which whole disks are read.
_LONG: Final = frozenset({"initial", "resync"})
_COMPARING: Final = "comparing with the existing copy"
_PHASES: Final = {"initial": "initial replication", "resync": "resynchronizing"}
#: A cycle is a handful of steps; more means that two facts contradict each other for ever.
_MAX_STEPS: Final = 12
#: Seconds from when a VM was found off until its images are touched; restarted by a script, it is back by then.
_GRACE: Final = 2.0


class Slot(Protocol):
    """Leave to read whole disks: only so many cycles have it at once."""

    def __call__(self, *, must: bool) -> bool:
        """Ask for it, kept until the cycle ends; told no only when it is not a must."""
        ...


class Cycle:
    """One run for one VM; used once.

    Args:
        stages: libvirt, spool and limits of this host.
        client: the replica.
        vm: whose cycle.
        policy: its policy at this moment.
        halt: set from outside to stop at once (pause, shutdown).
        pace: how fast may be sent.
        slot: asked for leave to read whole disks.
        meter: fed with progress.
        amend: changes the policy where it is written.
        seen: called with each position the replica tells.
        began: called with the kind of a point when reading and sending it begins.
    """

    def __init__(
        self,
        *,
        stages: Stages,
        client: PeerClient,
        vm: VmId,
        policy: Policy,
        halt: Halt,
        pace: Pace,
        slot: Slot,
        meter: Meter,
        amend: Amend,
        seen: Callable[[Position], None],
        began: Callable[[PointKind], None],
    ) -> None:
        self._stages = stages
        self._hypervisor = stages.hypervisor
        client = client.on(Line(halt))
        self._client = client
        self._vm = vm
        self._policy = policy
        self._halt = halt
        self._pace = pace
        self._slot = slot
        self._meter = meter
        self._amend, self._began = amend, began
        self._facts = FactFinder(stages=stages, client=client, vm=vm, policy=policy, seen=seen)
        self._holdings = Holdings(stages.fingerprints, client, vm)
        self._capture: Capture | None = None
        self._published: PointSummary | None = None
        self._earlier: list[Earlier] = []
        self._guest_bytes = 0
        self._attempt: Attempt | None = None
        #: A VM that is off was given its moment to come back.
        self._patient = policy.planned is not None
        #: It is off, and the point published last is all that it has.
        self._at_rest = False

    def run(self) -> Outcome:
        """Do steps until a point taken in this run is published, or until something outside has to change.

        An error is part of the outcome, never raised: the next run goes on from the facts.
        """
        waits: str | None = None
        error: VmReplicaError | None = None
        try:
            waits = self._steps()
        except VmReplicaError as caught:
            error = caught
        except Exception as caught:  # noqa: BLE001 - the one place where a defect must not end the scheduler
            _log.exception("cycle failed unexpectedly", vm=self._vm)
            what = f"{self._facts.name}: {type(caught).__name__}: {caught}"
            error = Internal("internal", what, hint="see the agent's log")
        self._put_away()
        return Outcome(
            published=self._published,
            step=self._capture,
            guest_bytes=self._guest_bytes,
            waits=waits,
            error=error,
            quiescence=self._attempt.result if self._attempt else None,
            earlier=tuple(self._earlier),
        )

    def _steps(self) -> str | None:
        for _ in range(_MAX_STEPS):
            step = decide(self._facts.ask())
            if self._wait_for_start(step):
                continue
            _log.debug("cycle step", vm=self._vm, step=type(step).__name__)
            waits = self._act(step)
            if waits is not None:
                return waits
            if self._published is not None:
                return "vm-off" if self._at_rest else None
        raise Internal("cycle-does-not-settle", f"{self._facts.name}: a cycle did not come to an end")

    def _wait_for_start(self, step: Step) -> bool:
        """Give a VM that went off a moment to come back before its images are touched: a locked image cannot start."""
        touches = isinstance(step, Capture) or (isinstance(step, Tidy) and bool(step.checkpoints))
        if self._facts.view.active or self._patient or not touches:
            return False
        self._patient = True
        if self._halt.wait(_GRACE):
            raise Conflict("cycle-stopped", "the cycle was stopped", kind="transient")
        return True

    def _put_away(self) -> None:
        """Leave the VM as if we were not there: other tools refuse to work beside foreign checkpoints."""
        try:
            self._hypervisor.hide_checkpoints(self._vm)
        except VmReplicaError as error:
            _log.info("checkpoints stay visible until the next cycle", vm=self._vm, why=error.message)

    # ---- acts

    def _act(self, step: Step) -> str | None:
        match step:
            case Fenced() | SeedFailed():
                raise self._refusal(step)
            case Adopt():
                self._adopt(step.epoch)
            case Wait():
                return step.reason
            case Tidy():
                self._tidy(step)
            case Ship():
                self._ship_spooled()
            case Continue():
                self._continue()
            case Fetch():
                self._fetch(step)
            case Capture():
                if step.kind in _LONG and not self._slot(must=False):
                    self._meter.phase("waiting for its turn to resynchronize")
                    return RESYNC_QUEUED
                self._begin(step)
        return None

    def _refusal(self, step: Fenced | SeedFailed) -> VmReplicaError:
        if isinstance(step, SeedFailed):
            return seed_failed(self._facts.name, step.problem)
        self._hypervisor.end_backup(self._vm)
        return Conflict(
            "failed-over-elsewhere",
            f"{self._facts.name} was failed over to its replica (epoch {step.epoch}, here {self._policy.epoch})",
            hint="decide which side survives; this one is stale and ships nothing",
        )

    def _adopt(self, epoch: int) -> None:
        _log.info("a failover was taken back", vm=self._vm, epoch=epoch)
        self._policy = self._facts.policy = self._amend(lambda policy: policy.model_copy(update={"epoch": epoch}))

    def _tidy(self, step: Tidy) -> None:
        _log.info("tidying", vm=self._vm, why=step.why, checkpoints=step.checkpoints, spool=step.discard_spool)
        point = self._stages.spool.point(self._vm) if step.discard_spool else None
        # Without a point in the spool to go on with, a job of ours was left by whoever was killed in it.
        self._hypervisor.end_backup(self._vm)
        if point is not None and step.acknowledged:
            self._holdings.learn(point)
            if self._facts.latest is not None:
                self._earlier.append(Earlier(self._facts.latest, 0))
        for name in step.checkpoints:
            self._hypervisor.delete_checkpoint(self._vm, name)
        if point is not None:
            point.discard()

    def _fetch(self, step: Fetch) -> None:
        self._meter.phase("asking the replica what it holds")
        sizes = {disk.target: disk.size for disk in self._facts.latest.disks} if self._facts.latest else {}
        for target in step.targets:
            try:
                self._holdings.fetch(target, sizes[target], step.point, self._halt)
            except VmReplicaError as error:
                if error.kind == "transient":
                    raise
                _log.warning("the replica cannot tell a fingerprint", vm=self._vm, disk=target, why=error.message)
                self._facts.unfetchable.add(target)

    def _ship_spooled(self) -> None:
        point = self._spooled()
        # All was read: a job that was left nevertheless only costs the guest.
        self._hypervisor.end_backup(self._vm)
        self._meter.phase("sending what waits in the spool")
        summary = self._transfer(point).ship_only()
        self._acknowledged(point, summary)
        self._earlier.append(Earlier(summary, self._meter.wire_bytes()))

    def _continue(self) -> None:
        point = self._spooled()
        job = self._facts.job
        if job is None:
            raise Internal("job-vanished", f"{self._facts.name}: the backup job was there and is gone")
        if point.opening.kind in _LONG:
            # Its job runs and costs the guest: it is not kept waiting, only counted.
            self._slot(must=True)
        self._published = self._read_and_ship(point, job)

    def _begin(self, step: Capture) -> None:
        self._capture = step
        require_free(self._stages.limits.scratch_dir, self._stages.limits.min_free, "a backup job's scratch space")
        require_free(self._stages.spool_dir, self._stages.limits.min_free, "the spool")
        if not step.modes:
            raise Conflict(
                "no-eligible-disks",
                f"{self._facts.name} has no disk left that can be replicated",
                hint=f"`vmreplica status {self._facts.name}` names the reasons",
            )
        self._quiesce()
        point = self._stages.spool.create(new_opening(self._vm, self._policy, step, self._facts))
        try:
            job = self._freeze(point.opening, step.base)
            self._note_quiescence(point)
        except CheckpointBroken as error:
            point.discard()
            if step.base is None:
                raise
            self._lose_track(step, error)
            return
        except BaseException:
            if self._attempt is not None and self._attempt.disturbed:
                self._stages.quiescer.tried(self._vm, self._attempt)
            abandon(self._stages, point)
            raise
        self._published = self._read_and_ship(point, job)

    def _quiesce(self) -> None:
        """Ask the guest whether it can be quiesced, if that is due; done before anything else is begun."""
        self._attempt = None
        if self._facts.view.active:
            self._attempt = self._stages.quiescer.attempt(self._vm, self._facts.name, self._policy)

    def _note_quiescence(self, point: SpoolPoint) -> None:
        if self._attempt is not None:
            self._stages.quiescer.mark(point, self._attempt)

    def _lose_track(self, step: Capture, error: CheckpointBroken) -> None:
        """Let the disks whose bitmaps are broken be compared; the others stay incremental."""
        followed = {target for target, mode in step.modes.items() if mode == "delta"}
        _log.warning("change tracking lost", vm=self._vm, disks=sorted(error.disks), why=error.message)
        self._facts.trouble.update(dict.fromkeys(error.disks & followed or followed, error.message))

    def _freeze(self, opening: PointOpening, base: CheckpointName | None) -> FrozenView:
        bases = {target: base if mode == "delta" else None for target, mode in opening.modes.items()}
        if opening.checkpoint is None:
            raise Internal("checkpoint-missing", f"{self._facts.name}: a captured point needs a checkpoint")
        if self._facts.view.active:
            return self._begin_job(opening.checkpoint, bases)
        view = self._hypervisor.open_stopped(self._vm, checkpoint=opening.checkpoint, bases=bases)
        try:
            self._facts.lay_to_rest(opening.point, view.identities)
        except BaseException:
            view.end()
            raise
        return view

    def _begin_job(self, checkpoint: CheckpointName, bases: dict[DiskTarget, CheckpointName | None]) -> BackupJob:
        around = self._attempt.instant if self._attempt else nullcontext
        try:
            return self._hypervisor.begin_backup(self._vm, checkpoint=checkpoint, bases=bases, around=around)
        except Conflict as error:
            # A job of ours that no spool knows is left from a crash and is ended; a foreign one is met again.
            if error.code != "backup-job-running":
                raise
            self._hypervisor.end_backup(self._vm)
            return self._hypervisor.begin_backup(self._vm, checkpoint=checkpoint, bases=bases, around=around)

    def _read_and_ship(self, point: SpoolPoint, job: FrozenView) -> PointSummary:
        latest = self._facts.latest
        seeded = latest is not None and not latest.bootable
        self._meter.phase(_COMPARING if seeded else _PHASES.get(point.opening.kind, "replicating"))
        self._began(point.opening.kind)
        summary = self._transfer(point).capture_and_ship(job)
        self._acknowledged(point, summary)
        self._guest_bytes += summary.guest_bytes
        return summary

    def _transfer(self, point: SpoolPoint) -> Transfer:
        return Transfer(
            point=point,
            wire=self._wire(point.opening),
            pace=self._pace,
            patience=EXPORT_PATIENCE if self._exports(point.opening) else PATIENCE,
            limits=self._stages.limits,
            halt=self._halt,
            meter=self._meter,
            holdings=self._holdings,
            repairs=self._facts.repairs,
            give_up=lambda: give_up(self._stages, point),
        )

    def _exports(self, opening: PointOpening) -> bool:
        return self._policy.seed is not None and opening.kind == "initial"

    def _wire(self, opening: PointOpening) -> Callable[[Line], Wire]:
        seed, client = self._policy.seed, self._client
        if seed is None or not self._exports(opening):
            return client.on
        self._meter.phase(f"exporting to {seed.directory}")
        least = reserve_in(Path(seed.directory), self._stages.spool_dir, self._stages.limits.min_free)
        return lambda line: DirectoryWire(seed, client.on(line).await_base, sent=self._meter.sent, reserve=least)

    def _acknowledged(self, point: SpoolPoint, summary: PointSummary) -> None:
        """Only now the old base may go: the replica holds its successor durably."""
        self._holdings.learn(point)
        self._stages.quiescer.published(point.opening)
        point.discard()
        self._at_rest = self._facts.at_rest(summary.point)
        for name in self._hypervisor.checkpoints(self._vm):
            if name != summary.checkpoint and is_our_checkpoint(name, self._policy.replica):
                self._hypervisor.delete_checkpoint(self._vm, name)
        if self._at_rest:
            self._facts.lay_to_rest(summary.point)

    # ---- small helpers

    def _spooled(self) -> SpoolPoint:
        point = self._stages.spool.point(self._vm)
        if point is None:
            raise Internal("spool-vanished", f"{self._facts.name}: the spooled point was there and is gone")
        return point
