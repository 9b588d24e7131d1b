"""The roles of two hosts swapped, as the new primary asks for it: before its first cycle, until the old one has agreed.

The wish stands in the policy, so it survives everything that the VM survives. The old primary answers the same request
the same way however often it comes: killed anywhere, the next cycle asks again.
"""

from typing import Final

import structlog

from vmreplica.agent.clients import Clients
from vmreplica.agent.outcome import Outcome
from vmreplica.agent.relationship import Relationship
from vmreplica.agent.replica import ReplicaSide
from vmreplica.hypervisor import Hypervisor
from vmreplica.model.errors import TimedOut, Unreachable, VmReplicaError
from vmreplica.model.ids import HostId, VmId, VmName
from vmreplica.model.point import Position
from vmreplica.model.policy import Amend, Policy, ReverseWish
from vmreplica.peer.line import Line
from vmreplica.peer.wire import ReverseRequest

_log: Final = structlog.get_logger(__name__)

#: Why a cycle waits: the old primary does not answer.
OLD_PRIMARY_AWAY: Final = "old-primary-away"
#: What a cycle came to that could not begin for it.
NOT_SWAPPED: Final = Outcome(published=None, step=None, guest_bytes=0, waits=OLD_PRIMARY_AWAY, error=None)
#: Seconds between two questions to an old primary that is away.
ASK_AGAIN: Final = 10.0


class Swap:
    """Asks old primaries to become replicas. Thread-safe; only one thread may work on a VM at a time.

    Args:
        hypervisor: where the policies are.
        clients: connections to the old primaries.
        replicas: what the VMs were started from.
    """

    def __init__(self, hypervisor: Hypervisor, clients: Clients, replicas: ReplicaSide) -> None:
        self._hypervisor = hypervisor
        self._clients = clients
        self._replicas = replicas

    def ask(self, rel: Relationship, amend: Amend) -> bool:
        """Ask the old primary of a VM whose policy has a wish, and take it out once that has agreed.

        Args:
            rel: the VM.
            amend: changes its policy where it is written.

        Returns:
            Whether roles are swapped; no: the old primary is away.

        Raises:
            VmReplicaError: it is there and cannot, or libvirt does not answer.
        """
        policy = self._hypervisor.policy(rel.vm) or rel.policy
        if policy.reverse is not None:
            try:
                position = self._request(rel, policy, policy.reverse, amend)
            except (Unreachable, TimedOut) as error:
                _log.info("the old primary is away", vm=rel.vm, why=error.message)
                return False
            _log.info("roles swapped", vm=rel.vm, name=rel.name, latest=position.latest and position.latest.point)
        amend(lambda now: now.model_copy(update={"reverse": None}))
        return True

    def settle(self, vm: VmId) -> None:
        """After a planned failover, begin to fold the images that a VM was started from: it came to stay.

        What keeps that from being begun is in nobody's way: the status tells that it is to be done.
        """
        replica = self._replicas.find(vm)
        if replica is None:
            return
        try:
            with self._replicas.no_failover():
                self._replicas.commits.begin(replica, None)
        except VmReplicaError as error:
            _log.info("the failover is not committed yet", vm=vm, code=error.code, why=error.message)

    def _request(self, rel: Relationship, policy: Policy, wish: ReverseWish, amend: Amend) -> Position:
        if not wish.asked:
            self._will_ask(policy.replica, amend)
        request = ReverseRequest(
            vm=rel.vm,
            name=rel.name,
            epoch=policy.epoch,
            interval=policy.interval,
            keep=policy.keep,
            point=wish.point,
            checkpoint=wish.checkpoint,
            planned=wish.planned,
            network_map=wish.network_map,
        )
        return self._clients.to(policy.replica).on(Line(rel.halt)).reverse(request)

    def _will_ask(self, old_primary: HostId, amend: Amend) -> None:
        """Write down that the old primary is asked, once it is there.

        Whoever lets the VM start asks the old primary first from then on. While it was away all the time the VM needs
        nobody's leave: its old primary may be gone for good.
        """
        with self._clients.quick(old_primary) as client:
            client.hello()
        amend(_asked)


def _asked(policy: Policy) -> Policy:
    wish = policy.reverse and policy.reverse.model_copy(update={"asked": True})
    return policy.model_copy(update={"reverse": wish})


def old_primary_away(name: VmName) -> Unreachable:
    """Say to whoever waits for a point why there is none."""
    return Unreachable(
        "old-primary-away",
        f"{name} has no replica yet: its old primary does not answer",
        hint=f"it is asked again by itself until it does; vmreplica status {name}",
    )
