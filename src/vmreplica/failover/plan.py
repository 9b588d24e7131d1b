"""What a failover will do and what it loses: a pure function of the replica's record and points."""

import datetime as dt
from collections.abc import Callable, Sequence
from typing import Final, Literal

from vmreplica.failover.sound import require_sound
from vmreplica.model.errors import Conflict, NotFound
from vmreplica.model.ids import LATEST, LATEST_APP, PointChoice, PointId
from vmreplica.model.point import PointSummary
from vmreplica.model.report import FailoverPlan, FailoverStep
from vmreplica.model.states import Event, State, transition
from vmreplica.repository import ReplicaRecord

#: Called with the name of each step before it is done; tests kill the agent there.
StepHook = Callable[[str], None]

#: What the primary says about the VM when asked just before; ``silent``: it does not answer.
PrimaryAnswer = Literal["runs", "stopped", "silent"]


#: States in which a copy may be tried beside what goes on.
_TESTABLE: Final = frozenset({State.REPLICATING, State.PAUSED, State.FAILED_OVER, State.COMMITTED})


def no_hook(_step: str) -> None:
    """Observe nothing."""


def plan_test(
    record: ReplicaRecord,
    points: Sequence[PointSummary],
    point: PointChoice | None,
    *,
    network: str | None,
    leads_out: bool,
    even_damaged: bool = False,
) -> FailoverPlan:
    """Plan to try a point beside the running VM: nothing is lost, nothing goes on differently.

    Args:
        record: the relationship on this side.
        points: its recovery points, newest first.
        point: the chosen one, or which; None: the newest.
        network: where the copy is plugged in; None: nowhere.
        leads_out: whether that network reaches other networks.
        even_damaged: a person wants the point though it is damaged.

    Raises:
        Corrupt: ``point-damaged``.
        Conflict: the state forbids it (``state-forbids``), or the first copy travels in an export (``base-awaited``).
        NotFound: there is no point (``no-points``), not this one (``point-unknown``), or none that is
            application-consistent (``no-application-point``).
    """
    point = resolve(record.name, points, point)
    _require_base(record.name, points, point)
    if State(record.state) not in _TESTABLE:
        raise Conflict(
            "state-forbids",
            f"{record.name} is {record.state}: it cannot be tested now",
            hint="`vmreplica status` shows what is going on",
        )
    chosen = _choose(record.name, points, point)
    damage = require_sound(record.name, points, chosen.point, even_damaged=even_damaged)
    return FailoverPlan(
        vm=record.vm,
        name=record.name,
        kind="test",
        point=chosen.point,
        instant=chosen.instant,
        loses_seconds=0.0,
        loses_bytes=0,
        newer_points=0,
        steps=_test_steps(record.name, chosen.point, network),
        warnings=(*_test_warnings(network, leads_out=leads_out), *damage),
        after=(
            f"here: a copy runs beside {record.name}, until `vmreplica failover {record.name} --test --cancel`",
            f"{record.name} itself: nothing changes, wherever it runs",
        ),
    )


def _test_warnings(network: str | None, *, leads_out: bool) -> tuple[str, ...]:
    if not leads_out:
        return ()
    return (f"network {network} leads out of this host: the copy has the addresses of the VM that runs",)


def _test_steps(name: str, point: PointId, network: str | None) -> tuple[FailoverStep, ...]:
    plug = f"plugged in to {network}" if network else "with all its network cables unplugged"
    return (
        FailoverStep(name="hold", text=f"hold point {point}; replication of {name} goes on"),
        FailoverStep(name="layer", text="make a throw-away layer over its disks; the point itself is not written"),
        FailoverStep(name="define", text=f"define a copy with a name and an id of its own, {plug}"),
        FailoverStep(name="start", text="start the copy"),
    )


def plan_unplanned(
    record: ReplicaRecord,
    points: Sequence[PointSummary],
    point: PointChoice | None,
    *,
    now: dt.datetime,
    primary: PrimaryAnswer,
    even_damaged: bool = False,
) -> FailoverPlan:
    """Plan to start the VM here from its newest point, or from an older one.

    Args:
        record: the relationship on this side.
        points: its recovery points, newest first.
        point: the chosen one, or which; None: the newest.
        now: aware time; what the guest did between the point and now is lost.
        primary: what the primary says about the VM.
        even_damaged: a person wants the point though it is damaged.

    Raises:
        Corrupt: ``point-damaged``.
        Conflict: the state forbids it (``state-forbids``), the VM still runs there (``primary-still-runs``), or the
            point is no recovery point (``point-is-seed``), or the first copy travels in an export (``base-awaited``).
        NotFound: there is no point (``no-points``), not this one (``point-unknown``), or none that is
            application-consistent (``no-application-point``).
    """
    point = resolve(record.name, points, point)
    _require_base(record.name, points, point)
    transition(record.name, State(record.state), Event.FAIL_OVER)
    if primary == "runs":
        raise Conflict(
            "primary-still-runs",
            f"{record.name} runs on its primary: two running copies would drift apart",
            hint="shut the VM down on the primary first; to try the replica beside it, use a test failover",
        )
    chosen = _choose(record.name, points, point)
    damage = require_sound(record.name, points, chosen.point, even_damaged=even_damaged)
    passed_over = [other for other in points if other.bootable and other.point > chosen.point]
    return FailoverPlan(
        vm=record.vm,
        name=record.name,
        kind="unplanned",
        point=chosen.point,
        instant=chosen.instant,
        loses_seconds=max(0.0, (now - chosen.instant).total_seconds()),
        # What the guest wrote after the newest point, only its dead primary knows.
        loses_bytes=sum(other.guest_bytes for other in passed_over) if passed_over else None,
        newer_points=len(passed_over),
        steps=_steps(record.name, chosen),
        warnings=(*_warnings(primary, len(passed_over), record.epoch), *damage),
        after=(
            f"here: {record.name} runs on a writable layer over the point; all points are kept, no more are taken",
            f"on the primary: nothing is touched; its {record.name} is stale and must not be started again",
        ),
    )


def resolve(name: str, points: Sequence[PointSummary], choice: PointChoice | None) -> PointId | None:
    """Find the point that was chosen by what it is: ``latest``, ``latest-app``.

    Args:
        name: of the VM.
        points: newest first.
        choice: a point's id, or one of these; None is the same as ``latest``.

    Raises:
        NotFound: no point is application-consistent (``no-application-point``).
    """
    if choice == LATEST_APP:
        fitting = [point for point in points if point.bootable and point.consistency == "application"]
        # A damaged one only when there is no other: then it is refused, or meant.
        for point in sorted(fitting, key=lambda point: bool(point.damaged)):
            return point.point
        raise NotFound(
            "no-application-point",
            f"{name} has no application-consistent recovery point here",
            hint=f"`vmreplica points {name}` lists those that there are; `latest` is the newest of all",
        )
    return None if choice == LATEST else choice


def _require_base(name: str, points: Sequence[PointSummary], point: PointId | None) -> None:
    """Refuse a point that waits for an export: the state forbids it too, but there is more to say than that."""
    wanted = (known for known in points if known.bootable and point in {None, known.point})
    chosen = next(wanted, None)
    if chosen is not None and chosen.waits_for is not None:
        raise Conflict(
            "base-awaited",
            f"{name} cannot be started here yet: its first copy, point {chosen.waits_for}, travels in an export",
            hint="vmreplica import DIR takes it in, DIR being where the export arrived",
        )


def _choose(name: str, points: Sequence[PointSummary], point: PointId | None) -> PointSummary:
    bootable = [candidate for candidate in points if candidate.bootable]
    if point in {candidate.point for candidate in points if not candidate.bootable}:
        raise Conflict(
            "point-is-seed",
            f"{point} of {name} is a seed, read from an existing copy: no state that the VM ever had",
            hint=f"`vmreplica points {name}` lists the others",
        )
    if not bootable:
        raise NotFound(
            "no-points",
            f"{name} has no recovery point here yet",
            hint="wait for the initial replication; `vmreplica status` shows it",
        )
    if point is None:
        return bootable[0]
    for candidate in bootable:
        if candidate.point == point:
            return candidate
    raise NotFound(
        "point-unknown",
        f"{name} has no recovery point {point} here",
        hint=f"`vmreplica points {name}` lists them",
    )


def _steps(name: str, point: PointSummary) -> tuple[FailoverStep, ...]:
    disks = ", ".join(disk.target for disk in point.disks)
    return (
        FailoverStep(name="fence", text=f"hold point {point.point} and take no more points of {name}"),
        FailoverStep(name="layer", text=f"make a fresh writable layer over {disks}; the point itself is not written"),
        FailoverStep(name="define", text=f"define {name} here from the replicated definition"),
        FailoverStep(name="start", text=f"start {name}, tracking what it writes from its first instruction on"),
    )


def _warnings(primary: PrimaryAnswer, newer: int, epoch: int) -> tuple[str, ...]:
    warnings = [f"the old primary becomes stale (epoch {epoch} gives way to {epoch + 1}) and may ship no more"]
    if primary == "silent":
        warnings.append("the primary does not answer: make sure that the VM does not run there")
    if newer:
        warnings.append(f"{newer} newer point{'s are' if newer > 1 else ' is'} passed over, but kept")
    return tuple(warnings)
