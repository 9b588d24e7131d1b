"""What a protected VM leaves on its primary, and how it is cleared away; each may be repeated."""

from vmreplica.agent.facts import Stages
from vmreplica.model.ids import HostId, VmId, is_our_checkpoint


def sweep_checkpoints(stages: Stages, vm: VmId, replica: HostId) -> None:
    """End our backup job on a VM, and take out of its images what tracked changes; the spooled point goes too."""
    stages.hypervisor.end_backup(vm)
    delete_checkpoints(stages, vm, replica)
    point = stages.spool.point(vm)
    if point is not None:
        point.discard()


def delete_checkpoints(stages: Stages, vm: VmId, replica: HostId) -> None:
    """Delete all checkpoints of a relationship."""
    for name in stages.hypervisor.checkpoints(vm):
        if is_our_checkpoint(name, replica):
            stages.hypervisor.delete_checkpoint(vm, name)


def forget_primary(stages: Stages, vm: VmId) -> None:
    """Forget what the replica of a VM was known to hold."""
    stages.fingerprints.remove(vm)
    stages.rest.forget(vm)
    stages.quiescer.forget(vm)
