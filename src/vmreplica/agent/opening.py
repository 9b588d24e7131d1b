"""The opening of a new point: its instant, its name, and what of the VM goes with it besides its disks."""

import datetime as dt
import secrets

from vmreplica.agent.decide import Capture
from vmreplica.agent.facts import FactFinder
from vmreplica.model.ids import PointId, VmId, checkpoint_name, new_point_id, point_instant
from vmreplica.model.point import DiskSpec, PointOpening, PointSummary
from vmreplica.model.policy import Policy


def new_opening(vm: VmId, policy: Policy, step: Capture, facts: FactFinder) -> PointOpening:
    """Open a point on the one that the replica has; the disks are frozen right after it.

    Args:
        vm: whose point.
        policy: its policy at this moment.
        step: what was decided.
        facts: what was found.
    """
    instant = _instant(facts.latest)
    view, disks, machine = facts.view, facts.disks(), facts.machine()
    point: PointId = new_point_id(instant, secrets.token_hex(4))
    return PointOpening(
        vm=vm,
        name=view.name,
        point=point,
        parent=step.parent,
        kind=step.kind,
        instant=instant,
        epoch=policy.epoch,
        checkpoint=checkpoint_name(policy.replica, point),
        disks=tuple(DiskSpec(target=target, size=disks[target].size) for target in sorted(step.modes)),
        modes=dict(step.modes),
        definition=view.definition,
        machine=machine.files,
        machine_remarks=machine.remarks,
        interval=policy.interval,
        keep=policy.keep,
        app_consistent=policy.app_consistent,
    )


def _instant(latest: PointSummary | None) -> dt.datetime:
    """Tell the time, but never a second that the replica's latest point has: names sort by time."""
    now = dt.datetime.now(dt.UTC)
    if latest is None:
        return now
    return max(now, point_instant(latest.point) + dt.timedelta(seconds=1))
