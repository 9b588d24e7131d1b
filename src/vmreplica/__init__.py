"""vmreplica: asynchronous replication and disaster recovery of running libvirt/QEMU/KVM virtual machines."""

__version__ = "0.1.0"
