"""A definition that asks for things of the replica's host: the copy that a real failover starts has none of them."""

import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from job_kit import Blank, NewBlank, enable, images, inside, points, qemu_img, refusal, relation, switch_off

from vmreplica.lab import Host, Lab

pytestmark = pytest.mark.failover

_DEVICES = """
<hostdev mode='subsystem' type='pci' managed='yes'>
  <source><address domain='0x0000' bus='0x00' slot='0x01' function='0x0'/></source></hostdev>
<filesystem type='mount' accessmode='passthrough'><source dir='/etc'/><target dir='etc'/></filesystem>
<serial type='file'><source path='/srv/serial-of-the-primary'/><target port='0'/></serial>
<channel type='unix'><source mode='bind' path='/run/channel-of-the-primary'/>
  <target type='virtio' name='org.example.0'/></channel>
<disk type='file' device='cdrom'><driver name='qemu' type='raw'/><source file='/etc/shadow'/>
  <target dev='hda' bus='ide'/><readonly/></disk>
<rng model='virtio'><backend model='random'>/dev/mem</backend></rng>
<interface type='ethernet'><mac address='52:54:00:00:00:09'/><script path='/srv/script-of-the-primary'/>
  <model type='virtio'/></interface>
"""
_KERNEL = "<kernel>/boot/kernel-of-the-primary</kernel><cmdline>init=/bin/sh</cmdline>"
_ARGUMENTS = """
<qemu:commandline><qemu:arg value='-fw_cfg'/><qemu:arg value='name=opt/x,file=/etc/passwd'/>
  <qemu:env name='LD_PRELOAD' value='/srv/library-of-the-primary'/></qemu:commandline>
"""
_FORBIDDEN = (
    "hostdev", "filesystem", "/etc", "of-the-primary", "qemu:", "LD_PRELOAD", "ethernet", "<kernel", "cmdline",
    "/dev/mem",
)  # fmt: skip


def test_nothing_of_the_primary_s_host_gets_into_the_vm_that_is_started(lab: Lab, new_blank: NewBlank) -> None:
    a, b = lab.host("a"), lab.host("b")
    vm = new_blank(a)
    vm.define(devices=_DEVICES, kernel=_KERNEL, more=_ARGUMENTS)
    sent = a.virsh("dumpxml", "--inactive", vm.name).stdout
    assert all(word in sent for word in _FORBIDDEN), "libvirt has taken it all"
    enable(a, vm.name, every="24h")
    vm.stop()

    notes = " ".join(b.ask("failover", vm.name, "--yes")["plan"]["notes"])
    for word in ("hostdev", "filesystem", "cdrom hda", "commandline", "kernel", "52:54:00:00:00:09"):
        assert word in notes, f"a person is told of {word}: {notes}"
    for xml in (b.virsh("dumpxml", vm.name).stdout, b.virsh("dumpxml", "--inactive", vm.name).stdout):
        inner = xml.replace(str(b.layout.dir), "").partition("<name>")[2]
        assert [word for word in _FORBIDDEN if word in inner] == []
        (drive,) = ET.fromstring(xml).findall("devices/disk[@device='cdrom']")  # noqa: S314 - what our libvirt says
        assert drive.find("source") is None, "the drive stays, empty"
    assert _arguments(b, vm).count("of-the-primary") == 0
    (layer,) = b.disk_paths(vm.name)
    assert layer == b.layout.store / vm.uuid / "run" / "vda.qcow2"


def _arguments(host: Host, vm: Blank) -> str:
    """Give the command line of the QEMU that runs a VM, as the kernel tells it."""
    number = inside(host, Path(f"/run/libvirt/qemu/{vm.name}.pid")).read_text().strip()
    shown = host.exec(["cat", f"/proc/{number}/cmdline"]).stdout
    assert vm.name in shown
    return shown


_HOSTILE = {
    "definition-entities": '<!DOCTYPE domain [<!ENTITY x SYSTEM "file:///etc/shadow">]><domain><name>&x;</name></domain>',
    "definition-not-xml": "<domain><name>",
    "definition-not-a-domain": "<network/>",
}


def test_a_definition_that_is_no_honest_one_is_refused_and_the_failover_undone(lab: Lab, new_blank: NewBlank) -> None:
    a, b = lab.host("a"), lab.host("b")
    vm = new_blank(a)
    enable(a, vm.name, every="24h")
    switch_off(vm)
    point = points(b, vm.name)[-1]["point"]
    definition = inside(b, b.layout.store / vm.uuid / "points" / point / "definition.xml")
    honest = definition.read_text()
    # As a primary that has been taken over would have sent it.
    for code, hostile in _HOSTILE.items():
        definition.write_text(hostile)
        exit_code, error = refusal(b, "failover", vm.name, "--yes")
        assert (exit_code, error["code"]) == (2, code)
        assert relation(b, vm.name)["state"] == "replicating"
        assert vm.name not in b.guest_names()
        assert [found["holds"] for found in points(b, vm.name)] == [[], []], "the first point and the last"

    definition.write_text(honest)
    assert b.ask("failover", vm.name, "--yes")["started"]
    (image,) = images(b, vm.uuid, point)
    qemu_img("check", "-q", "-U", str(image))
