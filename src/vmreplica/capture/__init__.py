"""Reading a frozen view of a VM's disks over NBD into the spool: what changed, or what is allocated, compressed once.

Knows NBD exports (a socket, a name, a size, perhaps a dirty bitmap), fingerprints, the segment format and the spool.
Knows neither libvirt nor who made the view, and nothing of peers.
"""

from vmreplica.capture.capture import capture_point
from vmreplica.capture.connection import Export
from vmreplica.capture.plan import DiskPlan, Mode

__all__ = ["DiskPlan", "Export", "Mode", "capture_point"]
