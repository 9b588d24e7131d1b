"""Plans of failovers, made of what is held here at this moment."""

import datetime as dt

from vmreplica.failover.plan import PrimaryAnswer, plan_test, plan_unplanned
from vmreplica.hypervisor import Hypervisor
from vmreplica.model.ids import PointChoice
from vmreplica.model.report import FailoverPlan
from vmreplica.repository import Replica


def plan_start(
    replica: Replica, point: PointChoice | None, answer: PrimaryAnswer, *, even_damaged: bool
) -> FailoverPlan:
    """Plan to start a VM here; see ``plan_unplanned``."""
    now, points = dt.datetime.now(dt.UTC), replica.points()
    return plan_unplanned(replica.record, points, point, now=now, primary=answer, even_damaged=even_damaged)


def plan_copy(
    replica: Replica, hypervisor: Hypervisor, point: PointChoice | None, network: str | None, *, even_damaged: bool
) -> FailoverPlan:
    """Plan to start a copy of a VM here; see ``plan_test``.

    Raises:
        NotFound: also ``network-unknown``.
    """
    leads_out = network is not None and hypervisor.network_leads_out(network)
    points = replica.points()
    return plan_test(replica.record, points, point, network=network, leads_out=leads_out, even_damaged=even_damaged)
