"""Whatever a peer writes into a definition: no path, host or program of its choice comes through."""

import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmreplica.hypervisor.definition import BuiltDefinition, build
from vmreplica.hypervisor.definition_rules import DEVICES, TOP
from vmreplica.hypervisor.definition_site import Site
from vmreplica.model.errors import BadRequest, Refused

pytestmark = pytest.mark.main_job

UUID = "3034b243-3966-4808-bb0c-ab2a15908ce1"
IMAGE = "/store/run/vda.qcow2"
#: Where our own output may hold a path, and which.
OURS = {IMAGE, "/dev/urandom"}
#: Elements whose text only a person or the guest reads.
JUST_TEXT = {"title", "description", "serial", "entry"}

BUILT = ("disk", "interface", "serial", "console", "channel", "graphics", "video", "rng", "tpm", "hostdev", "os", "cpu")
PARTS = (
    "source",
    "target",
    "backend",
    "model",
    "address",
    "driver",
    "log",
    "listen",
    "boot",
    "entry",
    "loader",
    "path",
)
NAMES = ("type", "file", "dev", "path", "dir", "name", "bus", "model", "socket", "host", "device", "mode", "state")
EVIL = ("/evil", "/etc/passwd", "../evil", "evil.example.org:1", "unix", "file", "disk", "vda", "vdb", "yes", "tcp")

tags = st.sampled_from((*sorted(TOP), *sorted(DEVICES), *BUILT, *PARTS))
attributes = st.dictionaries(st.sampled_from(NAMES), st.sampled_from(EVIL), max_size=4)


def element(tag: str, attrib: dict[str, str], text: str | None, children: list[ET.Element]) -> ET.Element:
    made = ET.Element(tag, attrib)
    made.text = text
    made.extend(children)
    return made


elements = st.recursive(
    st.builds(element, tags, attributes, st.sampled_from((None, "/evil", "hvm", "1")), st.just([])),
    lambda inner: st.builds(element, tags, attributes, st.sampled_from((None, "/evil")), st.lists(inner, max_size=4)),
    max_leaves=6,
)


def document(top: list[ET.Element], devices: list[ET.Element]) -> str:
    root = ET.Element("domain", type="kvm")
    for tag, text in (("name", "web01"), ("uuid", UUID), ("memory", "1048576"), ("vcpu", "1")):
        ET.SubElement(root, tag).text = text
    ET.SubElement(ET.SubElement(root, "os"), "type", machine="pc").text = "hvm"
    all_devices = ET.SubElement(root, "devices")
    ET.SubElement(ET.SubElement(all_devices, "disk"), "target", dev="vda", bus="virtio")
    all_devices.extend(devices)
    root.extend(top)
    return ET.tostring(root, encoding="unicode")


def attempt(xml: str) -> BuiltDefinition | None:
    try:
        return build(xml, Site(disks={"vda": Path(IMAGE)}, network_map={}, networks={"default"}, domain_type="qemu"))
    except (BadRequest, Refused):
        return None


@settings(max_examples=100, deadline=None)
@given(st.lists(elements, max_size=3), st.lists(elements, max_size=4))
def test_no_path_of_the_peer_comes_through(top: list[ET.Element], devices: list[ET.Element]) -> None:
    definition = attempt(document(top, devices))
    if definition is None:
        return
    root = ET.fromstring(definition.xml)  # noqa: S314 - our own output
    for made in root.iter():
        texts = () if made.tag in JUST_TEXT else (made.text or "",)
        for value in (*made.attrib.values(), *texts):
            assert "/" not in value or value in OURS, definition.xml
            assert "evil" not in value, definition.xml
    assert [source.get("file") for source in root.findall("devices/disk/source")] == [IMAGE]


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=200))
def test_any_text_is_built_or_refused_and_never_more_than_that(text: str) -> None:
    assert attempt(text) is None
    assert attempt(f"<domain>{text}</domain>") is None


@settings(max_examples=40, deadline=None)
@given(st.lists(elements, max_size=3), st.lists(elements, max_size=4))
def test_what_was_built_once_is_built_again_unchanged(top: list[ET.Element], devices: list[ET.Element]) -> None:
    first = attempt(document(top, devices))
    if first is None or "genid" in first.xml:
        return
    second = attempt(first.xml)
    assert second is not None
    assert second.xml == first.xml
