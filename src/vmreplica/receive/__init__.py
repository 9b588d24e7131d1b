"""What a replica answers to its primaries: who may do what, and when; the repository does it.

Knows the repository and the protocol's shapes. Knows nothing of HTTP, certificates (the caller says which host asks),
libvirt or schedules.
"""

from vmreplica.receive.importing import import_export
from vmreplica.receive.proving import Proving
from vmreplica.receive.receiver import Receiver
from vmreplica.receive.seeds import Seeds

__all__ = ["Proving", "Receiver", "Seeds", "import_export"]
