"""The lab: two or more real hosts on one machine, to try and to test the product without touching the machine's VMs.

Each host is a set of namespaces (processes, network, mounts, host name) with a private libvirtd and an agent in
them; guests are real Linux systems that write numbered records. Nothing is added to the machine's own network,
libvirt or file systems beyond the lab's directory and a cache of the guest's boot disk.

Knows the product only from outside: through its command line, as a person does. May not import libvirt.
"""

from vmreplica.lab.guest import Guest, GuestSpec, domain_xml, fill_with_system_files
from vmreplica.lab.host import Host
from vmreplica.lab.lab import HostStatus, Lab, LabStatus
from vmreplica.lab.records import DiskRecords, RecordsReport, check_records

__all__ = [
    "DiskRecords",
    "Guest",
    "GuestSpec",
    "Host",
    "HostStatus",
    "Lab",
    "LabStatus",
    "RecordsReport",
    "check_records",
    "domain_xml",
    "fill_with_system_files",
]
