"""Exports: a whole first copy as files in a directory that may be carried or shared to the replica.

Knows the directory's format, checksums and encryption. Knows nothing of spool, repository, peers or libvirt: ``ship``
writes into a Parcel what the spool holds, ``receive`` reads an Arrival into the repository. A directory is untrusted:
it may have been changed, half copied or made by somebody else.
"""

from vmreplica.parcel.arrival import Arrival
from vmreplica.parcel.parcel import Parcel
from vmreplica.parcel.prepare import prepare_export
from vmreplica.parcel.seal import Secret

__all__ = ["Arrival", "Parcel", "Secret", "prepare_export"]
