"""Store one: what was captured from the guest and is not yet at the replica.

Holds at most one pending point per VM, as segment files that appear by one rename and go when the replica has
acknowledged them; bounded by one cap for all VMs. Survives a killed process exactly, a power loss not at all (it is
then discarded: the replica and the checkpoints know where to go on). Knows the segment format and files. Knows
neither where segments come from nor where they go: no NBD, no libvirt, no peers.
"""

from vmreplica.spool.disk import SpoolDisk
from vmreplica.spool.point import SpoolPoint
from vmreplica.spool.room import cancelled
from vmreplica.spool.spool import Spool

__all__ = ["Spool", "SpoolDisk", "SpoolPoint", "cancelled"]
