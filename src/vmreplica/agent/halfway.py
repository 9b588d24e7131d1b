"""What a crash or a failure left halfway on the replica's side, brought to its end later, step by step."""

import threading
from collections.abc import Callable
from typing import Final

import structlog

from vmreplica.failover.execute import recover
from vmreplica.hypervisor import Hypervisor
from vmreplica.model.errors import VmReplicaError
from vmreplica.model.states import State
from vmreplica.repository import Replica

_log: Final = structlog.get_logger(__name__)

_HALFWAY: Final = frozenset({State.FAILING_OVER, State.CANCELLING})


class Halfway:
    """Failovers, and those that are being taken back, at which nobody is any more. Thread-safe.

    Args:
        hypervisor: this host's libvirt.
        acting: held by whoever fails over or takes a failover back.
    """

    def __init__(self, hypervisor: Hypervisor, acting: threading.Lock) -> None:
        self._hypervisor = hypervisor
        self._acting = acting

    def settle(self, replica: Replica) -> None:
        """Finish or undo the failover of a replica that was left halfway, unless an act is under way.

        Raises:
            VmReplicaError: it cannot be done yet; the state says still what has to be done.
        """
        if State(replica.record.state) not in _HALFWAY or not self._acting.acquire(blocking=False):
            return
        try:
            recover(replica, self._hypervisor)
        finally:
            self._acting.release()


def attempt(complaint: str, replica: Replica, step: Callable[[Replica], object]) -> None:
    """Take a step for one replica; where it fails that is logged, and neither other steps nor other replicas suffer.

    Args:
        complaint: what is logged then.
        replica: whose step.
        step: may raise anything.
    """
    try:
        step(replica)
    except VmReplicaError as error:
        _log.warning(complaint, vm=replica.record.vm, code=error.code, why=error.message)
    except Exception:  # noqa: BLE001 - what is wrong with one replica must not end the upkeep of the others
        _log.exception(complaint, vm=replica.record.vm)
