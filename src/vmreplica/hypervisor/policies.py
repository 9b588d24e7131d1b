"""A relationship's policy in the domain's own metadata, where it moves with the VM and virsh dumpxml shows it."""

import xml.etree.ElementTree as ET
from typing import Final

import libvirt
from defusedxml.common import DefusedXmlException
from defusedxml.ElementTree import fromstring
from pydantic import ValidationError

from vmreplica.model.errors import Corrupt
from vmreplica.model.ids import VmId
from vmreplica.model.policy import Policy

NAMESPACE: Final = "urn:vmreplica:policy:1"
_KEY: Final = "vmreplica"


def read_policy(domain: libvirt.virDomain) -> Policy | None:
    """Read a domain's policy; None when it has none.

    Raises:
        Corrupt: the element is there and makes no sense (``policy-unreadable``).
    """
    where = libvirt.VIR_DOMAIN_AFFECT_CONFIG if domain.isPersistent() else libvirt.VIR_DOMAIN_AFFECT_LIVE
    try:
        element = domain.metadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, NAMESPACE, where)
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN_METADATA:
            return None
        raise
    return parse_policy(domain.name(), element)


def write_policy(domain: libvirt.virDomain, policy: Policy | None) -> None:
    """Set or, with None, remove a domain's policy, now and for its next start."""
    where = libvirt.VIR_DOMAIN_AFFECT_CONFIG if domain.isPersistent() else 0
    where |= libvirt.VIR_DOMAIN_AFFECT_LIVE if domain.isActive() else 0
    element = None if policy is None else render_policy(policy)
    try:
        domain.setMetadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, element, _KEY, NAMESPACE, where)
    except libvirt.libvirtError as error:
        if policy is not None or error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN_METADATA:
            raise


def render_policy(policy: Policy) -> str:
    """Write a policy as the metadata element."""
    element = ET.Element("policy")
    element.text = policy.model_dump_json()
    return ET.tostring(element, encoding="unicode")


def parse_policy(name: str, element: str) -> Policy:
    """Read a policy from its metadata element.

    Args:
        name: the VM, for the message.
        element: XML as libvirt returns it.

    Raises:
        Corrupt: it is no policy (``policy-unreadable``).
    """
    try:
        return Policy.model_validate_json(fromstring(element, forbid_dtd=True).text or "")
    except (ET.ParseError, DefusedXmlException, ValidationError) as error:
        raise Corrupt(
            "policy-unreadable",
            f"the vmreplica metadata of {name} cannot be read: {' '.join(str(error).split())[:300]}",
            hint=f"virsh metadata {name} --uri {NAMESPACE} shows it; enable {name} again to replace it",
        ) from error


def survey(raw: libvirt.virConnect) -> tuple[dict[VmId, Policy], dict[VmId, Corrupt]]:
    """Read the policies of all domains: those that can be read, and the errors of those that cannot."""
    found: dict[VmId, Policy] = {}
    broken: dict[VmId, Corrupt] = {}
    for domain in raw.listAllDomains():
        vm = domain.UUIDString()
        try:
            policy = read_policy(domain)
        except Corrupt as error:
            broken[vm] = error
        except libvirt.libvirtError as error:
            if error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN:
                raise
        else:
            if policy is not None:
                found[vm] = policy
    return found, broken
