"""Adoption: the disks of a VM that ran here become, where they are, the base of its replica here."""

from typing import Annotated, Literal

from pydantic import AwareDatetime, Field, model_validator

from vmreplica.model.ids import CheckpointName, DiskTarget, HostId, ImagePath, PointId, VmId, VmName
from vmreplica.model.keep import Keep
from vmreplica.model.machine import MachineFiles, Remarks, require_acceptable
from vmreplica.model.point import MAX_DEFINITION, DiskSize
from vmreplica.model.policy import MAX_INTERVAL, MIN_INTERVAL
from vmreplica.model.shape import Shape


class AdoptedDisk(Shape):
    """One of the old disks. Its path and format come from this host's libvirt, never from a peer."""

    target: DiskTarget
    path: ImagePath
    format: Literal["qcow2", "raw"]
    #: Virtual size in bytes.
    size: DiskSize


class Adoption(Shape):
    """All that is needed to make a replica of a VM that ran here; written down before the first act."""

    vm: VmId
    name: VmName
    #: The new primary.
    owner: HostId
    interval: Annotated[int, Field(ge=MIN_INTERVAL, le=MAX_INTERVAL)]
    keep: Keep
    epoch: Annotated[int, Field(ge=0)]
    network_map: dict[str, str] = Field(default_factory=dict)
    #: Planned: the final point, which the disks are exactly. Unplanned: a new id; older than all that the new primary
    #: will send, so made of no later time than the request's.
    point: PointId
    kind: Literal["final", "adopted"]
    instant: AwareDatetime
    #: The new primary's checkpoint on its own VM since the point; None: it has to compare.
    checkpoint: CheckpointName | None
    definition: Annotated[str, Field(max_length=MAX_DEFINITION)]
    disks: Annotated[tuple[AdoptedDisk, ...], Field(min_length=1, max_length=64)]
    #: UEFI variables and TPM state, as ``MachineStore.read`` gives them: libvirt's own go with the VM's definition.
    machine: MachineFiles = ()
    machine_remarks: Remarks = ()

    @model_validator(mode="after")
    def _coherent(self) -> "Adoption":
        require_acceptable(self.machine)
        targets = [disk.target for disk in self.disks]
        if len(set(targets)) != len(targets) or len({disk.path for disk in self.disks}) != len(targets):
            raise ValueError("a disk is named twice")
        return self
