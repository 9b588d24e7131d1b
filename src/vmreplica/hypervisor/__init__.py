"""libvirt, and nothing else knows libvirt: domains, policies in their metadata, checkpoints, backup jobs, events.

``definition`` builds what a replica may define from what a peer sent; it is pure and trusts nothing it is given.
This package may not know points, peers, spools or repositories: it is told names of checkpoints and disks.
"""

from vmreplica.hypervisor.backup import BackupJob, Export
from vmreplica.hypervisor.hypervisor import Hypervisor
from vmreplica.hypervisor.stopped import StoppedView
from vmreplica.hypervisor.views import DiskView, DomainBrief, DomainView
from vmreplica.model.errors import CheckpointBroken

__all__ = [
    "BackupJob",
    "CheckpointBroken",
    "DiskView",
    "DomainBrief",
    "DomainView",
    "Export",
    "Hypervisor",
    "StoppedView",
]
