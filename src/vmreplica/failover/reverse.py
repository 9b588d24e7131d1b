"""What a swap of the roles does, and when it may be: pure."""

import datetime as dt
from collections.abc import Mapping, Sequence
from typing import Final

from vmreplica.failover.plan import PrimaryAnswer
from vmreplica.model.errors import Conflict
from vmreplica.model.ids import HostName, checkpoint_name, new_point_id
from vmreplica.model.point import PointSummary
from vmreplica.model.policy import Policy, ReverseWish
from vmreplica.model.report import FailoverPlan, FailoverStep
from vmreplica.model.states import State
from vmreplica.repository import ReplicaRecord

#: What a network map says for "plugged in nowhere", and before the name of a bridge.
_NOWHERE: Final = "none"
_BRIDGE: Final = "bridge:"
#: The VM runs here, or is about to for good.
_OURS: Final = frozenset({State.FAILED_OVER, State.COMMITTING, State.COMMITTED})


def require_reversible(record: ReplicaRecord) -> None:
    """Refuse to swap roles while this host has only the copy.

    Raises:
        Conflict: ``not-failed-over``.
    """
    if State(record.state) not in _OURS:
        raise Conflict(
            "not-failed-over",
            f"{record.name} is {record.state} here: it was not failed over to this host",
            hint=f"vmreplica failover {record.name} starts its copy here; then its roles can be swapped",
        )


def reversed_policy(record: ReplicaRecord, now: dt.datetime, *, planned: bool) -> Policy:
    """Give the policy of a VM that is protected to where it came from."""
    point = record.failover.point if record.failover is not None else None
    wish = ReverseWish(
        point=point,
        checkpoint=None if point is None else checkpoint_name(record.owner, point),
        planned=planned,
        network_map=inverse_networks(record.network_map),
        since=now,
    )
    return Policy(
        replica=record.owner,
        interval=record.interval,
        keep=record.keep,
        epoch=record.epoch,
        reverse=wish,
        app_consistent=record.app_consistent,
    )


def inverse_networks(mapping: Mapping[str, str]) -> dict[str, str]:
    """Turn a network map round; what two networks were mapped to, or none, leads nowhere back.

    A map names a bridge of the primary plainly and one of the replica with a prefix. Which kind a plain name was, it
    does not tell: it is the same as what it was mapped to.
    """
    found: dict[str, list[str]] = {}
    for theirs, ours in mapping.items():
        if ours != _NOWHERE:
            kind = _BRIDGE if ours.startswith(_BRIDGE) else ""
            found.setdefault(ours.removeprefix(_BRIDGE), []).append(kind + theirs)
    return {ours: theirs[0] for ours, theirs in found.items() if len(theirs) == 1}


def plan_reverse(
    record: ReplicaRecord,
    points: Sequence[PointSummary],
    *,
    old: HostName | None,
    answer: PrimaryAnswer,
    now: dt.datetime,
) -> FailoverPlan:
    """Plan to swap the roles of this host and of the one that a VM was failed over from.

    Args:
        record: the relationship on this side.
        points: its recovery points, newest first.
        old: name of the old primary; None: it is no longer paired.
        answer: what the old primary says about its copy of the VM.
        now: aware time.

    Raises:
        Conflict: ``not-failed-over``.
    """
    require_reversible(record)
    there, name = old or "the old primary", record.name
    # Nothing is started, so the point only tells where the VM came from; a committed one may not know that any more.
    point = record.failover.point if record.failover is not None else new_point_id(now, "0" * 8)
    instant = next((known.instant for known in points if known.point == point), now)
    return FailoverPlan(
        vm=record.vm,
        name=name,
        kind="reverse",
        point=point,
        instant=instant,
        loses_seconds=0.0,
        loses_bytes=0,
        newer_points=0,
        steps=(
            FailoverStep(name="protect", text=f"protect {name} from here to {there}, with the old interval and points"),
            FailoverStep(name="adopt", text=f"{there} makes its old disks the base of its replica; nothing is copied"),
            FailoverStep(name="undefine", text=f"{there} removes its stale {name}; a copy of its definition is kept"),
            FailoverStep(name="send", text="send what differs"),
        ),
        warnings=_warnings(name, there, answer),
        after=(
            f"here: {name} is the VM, and is replicated to {there}; its failover cannot be taken back any more",
            f"on {there}: a replica of {name}, with what that host never sent as the oldest recovery point",
        ),
    )


def _warnings(name: str, there: str, answer: PrimaryAnswer) -> tuple[str, ...]:
    if answer == "silent":
        return (f"{there} does not answer: it is asked until it does, and until then {name} is not protected",)
    if answer == "runs":
        return (f"{name} runs on {there}, too: {there} refuses until that stale copy is shut off",)
    return ()
