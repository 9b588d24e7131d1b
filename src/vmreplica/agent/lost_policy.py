"""A policy that went with its VM's definition: whoever makes a definition anew does not mean to end the protection."""

from collections.abc import Callable
from typing import Final

import structlog

from vmreplica.agent.relationship import Relationship
from vmreplica.hypervisor import Hypervisor
from vmreplica.model.errors import VmReplicaError

_log: Final = structlog.get_logger(__name__)


def put_policy_back(hypervisor: Hypervisor, rel: Relationship, still_wanted: Callable[[], bool]) -> bool:
    """Write the policy of a VM of this host into its metadata again; ``disable`` is the way to be rid of it.

    Args:
        hypervisor: where the VM is defined.
        rel: what is remembered of it.
        still_wanted: asked just before it is written, as the relationship may be ending.

    Returns:
        whether the VM has a policy now.
    """
    try:
        if hypervisor.policy(rel.vm) is not None:
            return True
        if not still_wanted():
            return False
        hypervisor.set_policy(rel.vm, rel.policy)
    except VmReplicaError as error:
        _log.warning("a VM is no longer protected: its policy is gone", vm=rel.vm, why=error.message)
        return False
    _log.warning("a policy was lost with the VM's definition and is put back", vm=rel.vm, name=rel.name)
    return True
