"""What taking a failover back does, and what that loses: a pure function of the replica's record and points."""

import datetime as dt
from collections.abc import Sequence
from typing import Final, Literal

from vmreplica.model.errors import Conflict, VmReplicaError
from vmreplica.model.point import PointSummary
from vmreplica.model.report import FailoverPlan, FailoverStep
from vmreplica.model.states import State
from vmreplica.repository import FailoverRecord, ReplicaRecord

#: What a failure can leave halfway.
_HALFWAY: Final = frozenset({State.FAILING_OVER, State.CANCELLING})


def what_to_cancel(record: ReplicaRecord, *, tests_only: bool, acting: bool = False) -> Literal["unplanned", "test"]:
    """Tell whether a cancellation is about the failover in effect, or about the test failovers.

    Args:
        record: the relationship on this side.
        tests_only: leave a failover alone.
        acting: whether a failover, or the taking back of one, is under way on this host.

    Raises:
        Conflict: ``nothing-to-cancel``, ``roles-swapped``, ``failover-under-way``.
    """
    state = State(record.state)
    if not tests_only and state in _HALFWAY | {State.FAILED_OVER}:
        if state in _HALFWAY and acting:
            raise Conflict(
                "failover-under-way",
                f"{record.name} is {record.state}: that act is under way",
                hint=f"wait until `vmreplica status {record.name}` shows another state, then ask again",
                kind="transient",
            )
        _require_not_swapped(record)
        return "unplanned"
    if record.tests:
        return "test"
    raise Conflict(
        "nothing-to-cancel",
        f"{record.name} is {record.state}: there is no {'' if tests_only else 'failover and no '}test failover",
        hint="`vmreplica status` shows what runs here",
    )


def _require_not_swapped(record: ReplicaRecord) -> None:
    """Refuse to take back a failover whose old primary is, or is becoming, the replica.

    Raises:
        Conflict: ``roles-swapped``.
    """
    if record.swapped:
        raise Conflict(
            "roles-swapped",
            f"the failover of {record.name} cannot be taken back: its old primary is its replica, or is asked to be",
            hint=f"vmreplica status {record.name}; to move the VM back, fail it over on that host",
        )


def plan_cancel(
    record: ReplicaRecord,
    points: Sequence[PointSummary],
    *,
    tests_only: bool,
    now: dt.datetime,
    written: int | None,
    acting: bool = False,
) -> FailoverPlan:
    """Plan to take back the failover in effect or, when there is none or it is asked for, the test failovers.

    Args:
        record: the relationship on this side.
        points: its recovery points, newest first.
        tests_only: leave a failover alone.
        now: aware time; what the VM did here since its failover is lost.
        written: bytes in the VM's writable layers here; None: nobody can tell.
        acting: whether a failover, or the taking back of one, is under way on this host.

    Raises:
        Conflict: ``nothing-to-cancel``, ``roles-swapped``, ``failover-under-way``.
    """
    if what_to_cancel(record, tests_only=tests_only, acting=acting) == "test":
        return _of_tests(record, points)
    if record.failover is None:
        raise VmReplicaError("failover-record-missing", f"{record.name} has no failover record")
    return _of_failover(record, record.failover, points, now, written)


def _of_failover(
    record: ReplicaRecord,
    failover: FailoverRecord,
    points: Sequence[PointSummary],
    now: dt.datetime,
    written: int | None,
) -> FailoverPlan:
    name, instant = record.name, _instant(points, failover.point, now)
    # Before it was decided to let the guest run, it has executed nothing.
    lived = max(0.0, (now - (failover.since or instant)).total_seconds()) if failover.started else 0.0
    return FailoverPlan(
        vm=record.vm,
        name=name,
        kind="cancel",
        point=failover.point,
        instant=instant,
        loses_seconds=lived,
        loses_bytes=written if failover.started else 0,
        newer_points=sum(1 for point in points if point.bootable and point.point > failover.point),
        steps=(
            FailoverStep(name="stop", text=f"pull the plug of {name} here and remove its definition"),
            FailoverStep(name="layer", text="throw its writable layer away; the recovery points are not touched"),
            FailoverStep(name="receive", text=f"release point {failover.point} and take points of {name} again"),
        ),
        after=(
            f"here: {name} is a copy again; another point of it can be started",
            f"on the primary: {name} may run again; replication goes on from there",
        ),
    )


def _of_tests(record: ReplicaRecord, points: Sequence[PointSummary]) -> FailoverPlan:
    oldest = record.tests[0]
    names = ", ".join(test.name for test in record.tests)
    return FailoverPlan(
        vm=record.vm,
        name=record.name,
        kind="cancel",
        point=oldest.point,
        instant=_instant(points, oldest.point, oldest.since),
        loses_seconds=0.0,
        loses_bytes=0,
        newer_points=0,
        steps=(
            FailoverStep(name="stop", text=f"pull the plug of {names} and remove what defines it"),
            FailoverStep(name="layer", text="throw its layers away and release the points they stand on"),
        ),
        after=(f"here: no trace of {names}; {record.name} itself goes on as before",),
    )


def _instant(points: Sequence[PointSummary], wanted: str, otherwise: dt.datetime) -> dt.datetime:
    return next((point.instant for point in points if point.point == wanted), otherwise)
