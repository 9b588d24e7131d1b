"""libvirt's errors in our own words. Codes decide where libvirt has codes; texts only where it has none."""

import re
from collections.abc import Collection
from typing import Final

import libvirt

from vmreplica.model.errors import CheckpointBroken, Conflict, HypervisorError, NotFound, Unreachable, VmReplicaError

#: A name that another domain has comes as a plain "operation failed".
_NAME_TAKEN: Final = "already exists with uuid"


def is_connection_lost(error: libvirt.libvirtError, raw: libvirt.virConnect) -> bool:
    """Tell whether a call failed because the daemon went away, not because it said no."""
    if error.get_error_code() in {libvirt.VIR_ERR_NO_CONNECT, libvirt.VIR_ERR_INVALID_CONN}:
        return True
    if error.get_error_domain() == libvirt.VIR_FROM_RPC:
        return True
    try:
        return not raw.isAlive()
    except libvirt.libvirtError:
        return True


def libvirt_gone(uri: str, what: str, error: libvirt.libvirtError) -> Unreachable:
    """Build the error for a daemon that cannot be reached."""
    return Unreachable(
        "libvirt-gone",
        f"libvirt at {uri} does not answer: could not {what}: {said(error)}",
        hint="systemctl status libvirtd; the work goes on by itself when libvirt is back",
    )


def said(error: libvirt.libvirtError) -> str:
    """Give libvirt's message on one line."""
    return " ".join((error.get_error_message() or str(error)).split())


def named_disks(error: libvirt.libvirtError, targets: Collection[str]) -> frozenset[str]:
    """Tell which of these disks libvirt's message names, in whatever language it is."""
    return frozenset(re.findall(r"[\w.-]+", said(error))) & frozenset(targets)


def translate(error: libvirt.libvirtError, what: str) -> VmReplicaError:
    """Turn a refusal of libvirt into the error that says what to do."""
    code, message = error.get_error_code(), f"could not {what}: {said(error)}"
    if code == libvirt.VIR_ERR_NO_DOMAIN:
        return NotFound("vm-unknown", message, hint="virsh list --all names the VMs of this host")
    if code == libvirt.VIR_ERR_CHECKPOINT_INCONSISTENT:
        return CheckpointBroken("checkpoint-broken", message, hint="the next point compares the disks, by itself")
    if code == libvirt.VIR_ERR_OPERATION_TIMEOUT:
        return HypervisorError("vm-busy", message, hint="another libvirt job holds the VM; it is tried again")
    if code == libvirt.VIR_ERR_DOM_EXIST or _NAME_TAKEN in message:
        return Conflict("vm-exists", message, hint="undefine or rename the other VM first")
    return HypervisorError("libvirt-refused", message, hint="journalctl -u libvirtd tells more")
