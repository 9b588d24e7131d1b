"""What a VM's definition will lose or change on its way to this host, told before anything is done."""

from vmreplica.failover.machine import foresee_machine, remarks
from vmreplica.hypervisor import Hypervisor
from vmreplica.hypervisor.definition import build
from vmreplica.hypervisor.definition_copy import EveryNetwork
from vmreplica.hypervisor.definition_site import Site
from vmreplica.model.report import FailoverPlan
from vmreplica.repository import Replica


def with_notes(
    plan: FailoverPlan, replica: Replica, hypervisor: Hypervisor, network: str | None = None
) -> FailoverPlan:
    """Add to a plan what its execution will say about the definition; changes nothing.

    Args:
        plan: of an unplanned failover or of a test.
        replica: whose plan.
        hypervisor: this host's libvirt.
        network: of a test: where the copy is plugged in.

    Raises:
        BadRequest, Refused: this host cannot run it at all, see ``definition.build``.
    """
    manifest = replica.point(plan.point)
    site = Site(
        disks={disk.target: replica.run_dir / f"{disk.target}.qcow2" for disk in manifest.disks},
        network_map=EveryNetwork(network) if plan.kind in {"test", "boot-test"} else replica.record.network_map,
        **foresee_machine(replica, plan.point, plan.vm),
        **hypervisor.abilities(),
    )
    built = build(replica.definition(plan.point), site)
    return plan.model_copy(update={"notes": (*remarks(replica, plan.point), *built.told)})
