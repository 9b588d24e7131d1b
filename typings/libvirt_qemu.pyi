# What we use of libvirt-python's module for QEMU's own monitor.

from libvirt import virDomain

VIR_DOMAIN_QEMU_MONITOR_COMMAND_HMP: int

def qemuMonitorCommand(domain: virDomain, cmd: str, flags: int) -> str: ...  # noqa: N802 - libvirt's name
def qemuAgentCommand(domain: virDomain, cmd: str, timeout: int, flags: int) -> str: ...  # noqa: N802 - libvirt's name
