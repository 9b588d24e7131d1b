"""Builds a domain definition for this host from one that a peer sent and that is not trusted. Pure.

Nothing is taken over but what the allow-list names: the document is built anew, with our own disks, our own networks
and this host's own machine, processor and firmware. What was left out or changed is told in notes, for a person.
The aim is a VM that starts on the worst day: what this host lacks is replaced by what comes nearest.
"""

import uuid
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from typing import Final

from defusedxml.common import DefusedXmlException
from defusedxml.ElementTree import fromstring
from pydantic import TypeAdapter, ValidationError

from vmreplica.hypervisor.definition_devices import build_devices
from vmreplica.hypervisor.definition_machine import build_cpu, build_os, require_smm, without_kvm_parts
from vmreplica.hypervisor.definition_rules import QUIET, TOP, copy_into
from vmreplica.hypervisor.definition_site import Site
from vmreplica.model.errors import BadRequest
from vmreplica.model.ids import VmId, VmName
from vmreplica.model.point import MAX_DEFINITION

_MAX_DEPTH: Final = 32
_BUILT_ELSEWHERE: Final = frozenset({"name", "uuid", "os", "cpu", "devices", "genid"})
#: Without one of these the document describes no VM.
_NEEDED: Final = ("memory", "vcpu")

_OURS: Final = "left out: metadata"

_VM_ID: Final[TypeAdapter[str]] = TypeAdapter(VmId)
_VM_NAME: Final[TypeAdapter[str]] = TypeAdapter(VmName)


@dataclass(frozen=True, slots=True)
class BuiltDefinition:
    """A definition that may be given to libvirt, and what a person should know about it."""

    vm: VmId
    name: str
    xml: str
    notes: tuple[str, ...]

    @property
    def told(self) -> tuple[str, ...]:
        """The notes without the one that every protected VM has: our own policy is in the metadata."""
        return tuple(note for note in self.notes if note != _OURS)


def build(untrusted: str, site: Site) -> BuiltDefinition:
    """Build a definition from the domain XML that a peer sent, for this host.

    Raises:
        BadRequest: the document is no domain, too large, too deep, has a DTD or entities, lacks a needed part
            (``definition-...``).
        Refused: this host cannot run it (``definition-machine-unknown``, ``definition-needs-efi``).
    """
    source = parse_untrusted(untrusted)
    root = ET.Element("domain", type=site.domain_type)
    name = _identity(root, source, "name", _VM_NAME)
    vm = _identity(root, source, "uuid", _VM_ID)
    if source.find("genid") is not None:
        ET.SubElement(root, "genid").text = str(uuid.uuid4())
        site.note("genid: a new one, so that the guest notices that it was rolled back")
    _copy_top(root, source, site)
    per_device_boot = source.find("devices/*/boot") is not None
    root.append(build_os(_only(source, "os"), site, per_device_boot=per_device_boot))
    require_smm(root)
    root.append(build_cpu(source.find("cpu"), site))
    root.append(build_devices(_only(source, "devices"), site))
    return BuiltDefinition(vm, name, ET.tostring(root, encoding="unicode"), site.notes())


def parse_untrusted(untrusted: str) -> ET.Element:
    """Read a document that a peer sent.

    Raises:
        BadRequest: it is no domain, too large, too deep, or has a DTD or entities (``definition-...``).
    """
    if len(untrusted) > MAX_DEFINITION:
        raise _bad("too-large", f"has {len(untrusted)} characters, {MAX_DEFINITION} are allowed")
    try:
        root = fromstring(untrusted, forbid_dtd=True)
    except DefusedXmlException:
        raise _bad("entities", "contains a DTD or entities") from None
    except (ET.ParseError, ValueError) as error:
        raise _bad("not-xml", f"is not well-formed: {error}") from error
    if root.tag != "domain":
        raise _bad("not-a-domain", "is XML, but not of a domain")
    _require_shallow(root)
    return root


def _require_shallow(root: ET.Element) -> None:
    level = [root]
    for _ in range(_MAX_DEPTH):
        level = [child for element in level for child in element]
        if not level:
            return
    raise _bad("too-deep", f"is nested deeper than {_MAX_DEPTH} levels")


def _identity(root: ET.Element, source: ET.Element, tag: str, shape: TypeAdapter[str]) -> str:
    try:
        value = shape.validate_python(_only(source, tag).text or "")
    except ValidationError:
        raise _bad(f"bad-{tag}", f"has no acceptable {tag}") from None
    ET.SubElement(root, tag).text = value
    return value


def _only(source: ET.Element, tag: str) -> ET.Element:
    found = source.findall(tag)
    if len(found) != 1:
        raise _bad("incomplete", f"has {len(found)} <{tag}> elements, one is needed")
    return found[0]


def _copy_top(root: ET.Element, source: ET.Element, site: Site) -> None:
    for child in source:
        if child.tag in TOP:
            if root.find(child.tag) is not None:
                raise _bad("incomplete", f"has more than one <{child.tag}>")
            copy_into(root, child, TOP[child.tag], site.drop)
        elif child.tag not in _BUILT_ELSEWHERE | QUIET:
            site.drop(child.tag)
    for tag in _NEEDED:
        if not root.findtext(tag):
            raise _bad("incomplete", f"has no acceptable <{tag}>")
    if site.domain_type != "kvm":
        without_kvm_parts(root, site)


def _bad(code: str, what: str) -> BadRequest:
    return BadRequest(
        f"definition-{code}",
        f"the VM's definition from the primary {what}",
        hint="virsh dumpxml --inactive on the primary shows it; correct it there and run a cycle",
    )
