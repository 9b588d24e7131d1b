"""Store two: what a replica holds of each VM, in plain files (docs/design/format.md, "Repository").

Knows files, points, chains, holds and retention. Knows nothing of peers and who may ask, of libvirt, or of capture;
``receive`` decides who may write, ``failover`` what runs. The files are the truth: everything here can be read back
after a crash, and a point that is listed is readable.
"""

from vmreplica.model.adoption import AdoptedDisk, Adoption
from vmreplica.repository.record import FailoverRecord, FailoverTestRecord, Hold, ReplicaRecord, SeedRecord
from vmreplica.repository.replica import Replica
from vmreplica.repository.retention import Done
from vmreplica.repository.store import Repository

__all__ = [
    "AdoptedDisk",
    "Adoption",
    "Done",
    "FailoverRecord",
    "FailoverTestRecord",
    "Hold",
    "Replica",
    "ReplicaRecord",
    "Repository",
    "SeedRecord",
]
