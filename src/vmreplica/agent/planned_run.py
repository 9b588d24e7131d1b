"""One run of a planned failover on the primary, which has the VM's turn meanwhile: forward, back, or as far as it goes.

What is done next follows from facts (``failover.planned.decide``), and each stage stands in the VM's policy before
its first act: killed anywhere, the next run goes on, or back, from there.
"""

import contextlib
import datetime as dt
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, TypeVar

import structlog

from vmreplica.agent.clients import Clients
from vmreplica.agent.facts import Stages
from vmreplica.agent.fencing import Claim
from vmreplica.agent.guard import moving
from vmreplica.agent.may_start import YES
from vmreplica.agent.meter import Meter
from vmreplica.agent.outcome import Outcome
from vmreplica.agent.power_off import Manner, shut_down
from vmreplica.agent.relationship import Relationship
from vmreplica.agent.runner import Runner
from vmreplica.failover.plan import StepHook
from vmreplica.failover.planned import Act, Standing, Wish, decide, replica_says
from vmreplica.model.errors import Conflict, TimedOut, Unreachable, VmReplicaError
from vmreplica.model.ids import PointId, VmId
from vmreplica.model.point import Position
from vmreplica.model.policy import Planned, Policy
from vmreplica.model.report import StepTime
from vmreplica.peer.client import PeerClient
from vmreplica.peer.line import Halt, Line
from vmreplica.peer.planned import MAX_PATIENCE, PlannedWish, StartWish, Withdrawal

_T = TypeVar("_T")
_log: Final = structlog.get_logger(__name__)

#: A cycle that took longer than this, in seconds, is followed by another one while the guest runs.
_LONG_CYCLE: Final = 10.0
_LIVE_CYCLES: Final = 3
#: Last points taken at most: an image that changes all the time is somebody else's.
_LAST_CYCLES: Final = 3
#: Seconds between questions to a replica that is about to start the VM or to take that back.
_GLANCE: Final = 1.0
#: Seconds for that.
_BUSY_LIMIT: Final = 300.0
#: Seconds, beyond its patience, for which a guest that was asked to shut down is expected to do so late.
_SHUTS_LATE: Final = 20.0
#: Answers of the replica after which its start is no way forward: it runs there already, from something else.
_RUNS_OTHERWISE: Final = frozenset({"failed-over-from-another-point"})


class StartBan(Protocol):
    """What keeps a VM from being started here."""

    def forbid(self, vm: VmId, reason: str) -> None:
        """Refuse every start from now on."""

    def allow(self, vm: VmId) -> None:
        """Forbid it no longer."""

    def permitted(self, vm: VmId) -> AbstractContextManager[None]:
        """Let one start through that happens in the block."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Tools:
    """What every run works with."""

    stages: Stages
    runner: Runner
    clients: Clients
    ban: StartBan
    #: Marks a VM as one that may be starting here.
    claim: Callable[[VmId], Claim]
    #: Observer of steps; tests kill the agent there.
    before: StepHook


@dataclass(slots=True)
class Account:
    """How a run went: what was done when, in seconds."""

    steps: list[StepTime] = field(default_factory=list)
    manner: Manner | None = None
    off_at: float | None = None
    started_at: float | None = None
    #: The replica was asked and has it.
    there: bool = False
    #: The last point.
    point: PointId | None = None
    #: It was taken back while the guest, which was asked to shut down, runs: it may still do so.
    may_go_off: bool = False

    @property
    def downtime(self) -> float | None:
        """Tell the seconds from when its guest was off until its machine ran on the replica."""
        return None if self.off_at is None or self.started_at is None else self.started_at - self.off_at


class Run:
    """Used once, by whoever has the VM's turn.

    Args:
        tools: of this agent.
        rel: the VM's relationship.
        meter: told what is going on.
        halt: ends what waits; nothing is taken back for that.
        wish: how the failover is wanted.
    """

    def __init__(self, tools: Tools, rel: Relationship, meter: Meter, halt: Halt, wish: PlannedWish) -> None:
        self._tools = tools
        self._hypervisor = tools.stages.hypervisor
        self._rel = rel
        self._vm = rel.vm
        self._meter = meter
        self._halt = halt
        self._wish = wish
        self.account = Account()

    @property
    def _policy(self) -> Policy:
        return self._rel.policy

    @property
    def _client(self) -> PeerClient:
        return self._tools.clients.to(self._policy.replica).on(Line(self._halt))

    def prepare(self) -> None:
        """Bring everything to the replica and forbid the start here.

        Raises:
            VmReplicaError: a step failed; ``settle("back")`` takes back what was done.
        """
        running = self._hypervisor.running(self._vm)
        self._tools.before("preparing")
        self._persist(Planned(stage="preparing", was_running=running))
        if running:
            self._timed("delta", self._send_while_it_runs)
            self._timed("shutdown", self._shut_down)
        point = self._timed("final", self._send_the_last)
        self._timed("prepared", lambda: self._prepared(point, running=running))

    def settle(self, wish: Wish) -> None:
        """Go to the end of one of both ways, whichever the facts allow.

        Raises:
            Unreachable: ``planned-stuck``: the replica has to be asked first.
            VmReplicaError: a step failed; it can be tried again.
        """
        planned = self._policy.planned
        if wish == "back" and planned is not None and planned.stage == "prepared":
            # Remembered, also when the replica cannot be asked now.
            self._persist(planned.model_copy(update={"stage": "withdrawing"}))
        if wish != "forward":
            self._await_asked()
        until = time.monotonic() + _BUSY_LIMIT
        while time.monotonic() < until:
            self._tools.before("settle")
            position = self._position()
            act = decide(self._standing(position, wish))
            _log.info("planned failover", vm=self._vm, act=act, wish=wish)
            if self._do(act, position):
                return
        raise self._stuck("is busy with it and does not come to an end")

    def remind(self) -> None:
        """Ask the replica once more for what it has done already, so that it swaps the roles."""
        planned = self._policy.planned
        if planned is not None and planned.point is not None:
            self._client.start_planned(self._vm, StartWish(point=planned.point, epoch=self._policy.epoch))

    # ---- acts

    def _do(self, act: Act, position: Position | None) -> bool:
        """Do one act; tells whether it was the last one."""
        if act == "stuck":
            raise self._stuck("does not answer")
        if act == "wait":
            self._pause(_GLANCE)
        elif act == "withdraw":
            self._withdraw()
        elif act in {"start", "finish"}:
            self._timed("start", self._start)
            return True
        elif act == "yield":
            self._give_up()
            return True
        elif act == "undo":
            return self._undo(position)
        return False

    def _send_while_it_runs(self) -> None:
        for _ in range(_LIVE_CYCLES):
            began = time.monotonic()
            # While the guest runs these are points like all others.
            self._cycle(self._policy.model_copy(update={"planned": None}))
            if time.monotonic() - began < _LONG_CYCLE:
                return

    def _await_asked(self) -> None:
        """Wait while a guest that was asked to shut down may still do so: what is off by then is started again."""
        planned = self._policy.planned
        if planned is None or planned.asked_until is None or not planned.was_running:
            return
        self._meter.phase("waiting whether its guest still shuts down")
        # A clock that was set back does not make it wait for ever.
        most = time.monotonic() + MAX_PATIENCE + _SHUTS_LATE
        while self._hypervisor.running(self._vm):
            if dt.datetime.now(dt.UTC) >= planned.asked_until or time.monotonic() > most:
                self.account.may_go_off = True
                return
            self._pause(_GLANCE)

    def _say_asked(self) -> None:
        """Write down, before the guest is asked, how long it may take: killed afterwards, that is waited for."""
        until = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=self._wish.patience + _SHUTS_LATE)
        self._note_asked(until)

    def _note_asked(self, until: dt.datetime | None) -> None:
        planned = self._policy.planned
        if planned is not None:
            self._persist(planned.model_copy(update={"asked_until": until}))

    def _shut_down(self) -> None:
        self._say_asked()
        self.account.manner = shut_down(
            self._hypervisor,
            self._vm,
            self._rel.name,
            patience=self._wish.patience,
            force=self._wish.force,
            halt=self._halt,
            say=self._meter.phase,
        )
        self.account.off_at = time.monotonic()
        self._note_asked(None)

    def _send_the_last(self) -> PointId:
        for _ in range(_LAST_CYCLES):
            outcome = self._cycle(self._policy)
            if outcome.waits == "vm-off":
                latest = self._client.position(self._vm).latest
                if latest is not None:
                    return latest.point
        raise Conflict(
            "vm-does-not-rest",
            f"the disks of {self._rel.name} change though it was shut down: no point is its last one",
            hint="lsof on its images names the program; then try again",
        )

    def _cycle(self, policy: Policy) -> Outcome:
        outcome = self._tools.runner.cycle(self._rel, self._meter, policy, self._halt).run()
        if outcome.error is not None:
            raise outcome.error
        if outcome.waits not in {None, "vm-off"}:
            raise Conflict(
                "planned-not-ready",
                f"{self._rel.name} cannot be brought up to date now: {outcome.waits}",
                hint=f"vmreplica status {self._rel.name}; try again when that is over",
            )
        return outcome

    def _prepared(self, point: PointId, *, running: bool) -> None:
        self._persist(Planned(stage="prepared", was_running=running, point=point))
        self._forbid()

    def _forbid(self) -> None:
        self._tools.ban.forbid(self._vm, moving(self._rel.name))

    def _give_up(self) -> None:
        """Plan nothing any more: the replica has the VM, though not from us, and its word counts at each start."""
        self._persist(None)
        self._tools.before("given-up")
        self._tools.ban.allow(self._vm)
        with contextlib.suppress(VmReplicaError):  # told again by the watch over the fences
            self._tools.runner.saw(self._rel, self._client.position(self._vm))

    def _start(self) -> None:
        planned = self._policy.planned
        if planned is None or planned.point is None:
            raise Conflict("planned-not-ready", f"{self._rel.name} has no last point", hint="vmreplica status")
        self._meter.phase("starting it on the replica")
        self._forbid()
        self._tools.before("start")
        try:
            self._client.start_planned(self._vm, StartWish(point=planned.point, epoch=self._policy.epoch))
        except VmReplicaError as error:
            if error.code in _RUNS_OTHERWISE:
                self._give_up()
            raise
        self.account.started_at = time.monotonic()
        self.account.there, self.account.point = True, planned.point
        self._tools.before("started")

    def _withdraw(self) -> None:
        self._meter.phase("taking it back")
        planned, epoch = self._policy.planned, self._policy.epoch
        if planned is not None and planned.stage != "withdrawing":  # it runs here, though nobody wished that
            self._persist(planned.model_copy(update={"stage": "withdrawing"}))
        self._tools.before("withdraw")
        try:
            self._client.withdraw(self._vm, Withdrawal(epoch=epoch + 1))
        except Conflict as error:
            if error.code != "already-started":
                raise
            _log.info("too late to take it back", vm=self._vm, why=error.message)

    def _undo(self, position: Position | None) -> bool:
        """Let all be as it was before; tells whether it is: False when the facts have changed meanwhile."""
        planned = self._policy.planned
        self._meter.phase("taking it back")
        self._tools.before("undo")
        # Claimed before the replica is asked again: a failover that begins there now hears of it, or we hear of that.
        with self._tools.claim(self._vm) as claim:
            starts = planned is not None and planned.was_running and not self._hypervisor.running(self._vm)
            if starts and not self._still_receives(position):
                return False
            self._tools.ban.allow(self._vm)
            if starts:
                with self._tools.ban.permitted(self._vm):
                    self._hypervisor.start(self._vm)
                claim.settle(YES)
        # Only now: killed before, the next run starts it.
        self._tools.before("undone")
        self._persist(None, epoch=position.epoch if position is not None else self._policy.epoch)
        return True

    def _still_receives(self, position: Position | None) -> bool:
        """Tell whether the replica takes points under the epoch at which it was found to."""
        now = self._position()
        if position is None or now is None or now.epoch != position.epoch:
            return False
        return replica_says(now.state, now.epoch, self._policy.epoch) in {"receives", "forgot"}

    # ---- helpers

    def _standing(self, position: Position | None, wish: Wish) -> Standing:
        planned = self._policy.planned
        if planned is None:
            raise Conflict("nothing-planned", f"{self._rel.name}: no failover is planned any more",
                           hint=f"vmreplica status {self._rel.name}")  # fmt: skip
        says = "silent" if position is None else replica_says(position.state, position.epoch, self._policy.epoch)
        return Standing(planned=planned, replica=says, running=self._hypervisor.running(self._vm), wish=wish)

    def _position(self) -> Position | None:
        try:
            return self._client.position(self._vm)
        except (Unreachable, TimedOut) as error:
            _log.info("the replica does not answer", vm=self._vm, why=error.message)
            return None

    def _persist(self, planned: Planned | None, *, epoch: int | None = None) -> None:
        changes: dict[str, Any] = {"planned": planned} | ({} if epoch is None else {"epoch": epoch})
        self._tools.runner.amend(self._rel, lambda policy: policy.model_copy(update=changes))

    def _timed(self, name: str, act: Callable[[], _T]) -> _T:
        self._tools.before(name)
        began = time.monotonic()
        try:
            return act()
        finally:
            self.account.steps.append(StepTime(name=name, seconds=time.monotonic() - began))

    def _pause(self, seconds: float) -> None:
        if self._halt.wait(seconds):
            raise Conflict("cycle-stopped", "the planned failover was stopped", kind="transient")

    def _stuck(self, how: str) -> Unreachable:
        name = self._rel.name
        return Unreachable(
            "planned-stuck",
            f"{name} is off, and its replica {how}: whether it runs there is not known",
            hint=f"it goes on by itself when the replica answers; vmreplica failover {name} --planned or --cancel",
        )
