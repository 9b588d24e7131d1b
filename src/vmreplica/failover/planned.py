"""A planned failover on paper: what it will do, and, from any point of it, whether it goes forward or back. Pure.

The VM's data are in one place at each moment: up to ``prepared`` on the primary, afterwards in the replica's last
point. The start on the replica is asked for only when ``prepared`` stands in the policy; the VM starts on the primary
again only when the replica has said that it did not start it and never will from that request.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from vmreplica.model.ids import HostName
from vmreplica.model.point import PointSummary
from vmreplica.model.policy import Planned
from vmreplica.model.report import FailoverPlan, FailoverStep
from vmreplica.model.states import RECEIVING, State
from vmreplica.model.units import format_duration

#: What the replica says: it takes points as ever; it does so under an epoch that we do not have yet, so it has agreed
#: to forget the start; it is at starting or stopping the VM; the VM is its own now; it does not answer.
ReplicaSays = Literal["receives", "forgot", "busy", "has-it", "silent"]
#: Where a person wants to go; ``self``: the agent was started and found it unfinished.
Wish = Literal["forward", "back", "self"]
#: What is done next. ``undo``: nothing is planned any more, the VM runs here again if it did. ``start``: the replica is
#: asked to start it. ``withdraw``: the replica is asked to forget about it. ``finish``: the replica has it, the rest
#: is the reversal. ``yield``: the replica has it, though not from us: nothing is planned any more, and nothing is done
#: here. ``wait``: ask again. ``stuck``: the replica has to be asked first and does not answer.
Act = Literal["undo", "start", "withdraw", "finish", "yield", "wait", "stuck"]

#: States of a replica on which the VM runs or has run on it.
_TAKEN: Final = frozenset({State.FAILED_OVER, State.COMMITTING, State.COMMITTED, State.REVERSING})


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """All that the next act depends on."""

    planned: Planned
    replica: ReplicaSays
    #: The VM runs here.
    running: bool
    wish: Wish


def replica_says(state: str, epoch: int, ours: int) -> ReplicaSays:
    """Read the replica's position.

    Args:
        state: its state.
        epoch: its epoch.
        ours: the epoch in the VM's policy.
    """
    if state in _TAKEN:
        return "has-it"
    if state in RECEIVING | {State.PAUSED}:
        return "forgot" if epoch > ours else "receives"
    return "busy"


def decide(standing: Standing) -> Act:
    """Choose the next act."""
    if standing.replica == "silent":
        # Not even a VM that we shut down is started unasked: a person may have started it there meanwhile.
        return _without_answer(standing)
    if standing.replica == "busy":
        return "wait"
    if standing.replica == "has-it":
        return "yield" if standing.running or standing.planned.stage == "preparing" else "finish"
    if standing.planned.stage == "preparing" or standing.replica == "forgot":
        return "undo"
    # What a guest that runs here writes is in no point: there is no way forward.
    back = standing.wish == "back" or standing.planned.stage == "withdrawing" or standing.running
    return "withdraw" if back else "start"


def _without_answer(standing: Standing) -> Act:
    harmless = standing.running or not standing.planned.was_running
    return "undo" if standing.planned.stage == "preparing" and harmless else "stuck"


@dataclass(frozen=True, slots=True, kw_only=True)
class Parties:
    """Whom a plan is about."""

    #: The VM's name.
    name: str
    #: The host where it runs.
    primary: HostName
    replica: HostName
    running: bool
    #: Seconds that its guest has for shutting down.
    patience: int
    #: Whether its plug is pulled after that.
    force: bool


def plan_planned(vm: str, parties: Parties, latest: PointSummary, warnings: Sequence[str]) -> FailoverPlan:
    """Plan to move a VM to its replica without losing anything.

    Args:
        vm: its id.
        parties: whom it is about.
        latest: the replica's newest point; the last one is made on the way.
        warnings: what both sides found.
    """
    return FailoverPlan(
        vm=vm,
        name=parties.name,
        kind="planned",
        point=latest.point,
        instant=latest.instant,
        loses_seconds=0.0,
        loses_bytes=0,
        newer_points=0,
        steps=(*(_while_it_runs(parties) if parties.running else ()), *_while_it_is_off(parties)),
        warnings=tuple(warnings),
        after=(
            f"{parties.replica}: {parties.name} runs here, and its changes are sent to {parties.primary}",
            f"{parties.primary}: {parties.name} is off and cannot be started; its disks are the copy's base now",
        ),
    )


def _while_it_runs(parties: Parties) -> tuple[FailoverStep, ...]:
    name, limit = parties.name, format_duration(parties.patience)
    late = "then its plug is pulled" if parties.force else "else everything is as before"
    return (
        FailoverStep(name="delta", text=f"send what changed while {name} runs, so that little is left"),
        FailoverStep(name="shutdown", text=f"shut {name} down on {parties.primary}, within {limit}, {late}"),
    )


def _while_it_is_off(parties: Parties) -> tuple[FailoverStep, ...]:
    name = parties.name
    return (
        FailoverStep(name="final", text="send the last changes from its stopped disks: nothing is lost"),
        FailoverStep(name="prepared", text=f"forbid the start of {name} on {parties.primary}"),
        FailoverStep(name="start", text=f"start {name} on {parties.replica} from exactly that point"),
        FailoverStep(
            name="reverse",
            text=f"{parties.replica} sends to {parties.primary}; the disks there stay where they are, as its base",
        ),
    )


def plan_return(vm: str, name: str, planned: Planned, latest: PointSummary) -> FailoverPlan:
    """Plan to take a planned failover back.

    Args:
        vm: its id.
        name: its name.
        planned: as far as it has come.
        latest: the replica's newest point.
    """
    asked = FailoverStep(name="withdraw", text=f"let the replica forget about it, unless it has started {name} already")
    allowed = FailoverStep(name="allow", text=f"allow the start of {name} here again")
    started = FailoverStep(name="start", text=f"start {name} here")
    return FailoverPlan(
        vm=vm,
        name=name,
        kind="cancel",
        point=planned.point or latest.point,
        instant=latest.instant,
        loses_seconds=0.0,
        loses_bytes=0,
        newer_points=0,
        steps=(
            *((asked,) if planned.stage != "preparing" else ()),
            allowed,
            *((started,) if planned.was_running else ()),
        ),
        after=(
            f"here: {name} {'runs' if planned.was_running else 'is off, and can be started'}; replication goes on",
            f"on the replica: {name} is a copy, as before",
        ),
    )
