"""Definitions built for this host are really accepted and started by its libvirt."""

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from libvirt_kit import Guest, PrivateLibvirtd, disk_xml, loop_device, make_image

from vmreplica.hypervisor import Hypervisor
from vmreplica.hypervisor.definition import build
from vmreplica.hypervisor.definition_site import Site
from vmreplica.hypervisor.probe import usable_domain_type
from vmreplica.model.errors import Refused
from vmreplica.model.ids import VmId
from vmreplica.model.units import MiB

pytestmark = pytest.mark.main_job

#: What virt-manager makes of a Linux server, plus what only the primary has.
PRIMARY = """
<domain type='kvm' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>{name}</name><uuid>{vm}</uuid><genid>{vm}</genid>
  <metadata><libosinfo:libosinfo xmlns:libosinfo="http://libosinfo.org/xmlns/libvirt/domain/1.0"/></metadata>
  <memory unit='KiB'>65536</memory><currentMemory unit='KiB'>65536</currentMemory>
  <vcpu placement='static' cpuset='0-1'>2</vcpu><iothreads>1</iothreads>
  <os><type arch='x86_64' machine='{machine}'>hvm</type><bootmenu enable='no'/><smbios mode='sysinfo'/></os>
  <sysinfo type='smbios'><system><entry name='serial'>X-1</entry></system></sysinfo>
  <features><acpi/><apic/><vmport state='off'/><hyperv mode='custom'><relaxed state='on'/></hyperv></features>
  <cpu mode='host-passthrough' check='none' migratable='on'><topology sockets='1' dies='1' cores='2' threads='1'/></cpu>
  <clock offset='utc'><timer name='rtc' tickpolicy='catchup'/><timer name='pit' tickpolicy='delay'/>
    <timer name='hpet' present='no'/><timer name='kvmclock' present='yes'/></clock>
  <on_poweroff>destroy</on_poweroff><on_reboot>restart</on_reboot><on_crash>coredump-destroy</on_crash>
  <pm><suspend-to-mem enabled='no'/><suspend-to-disk enabled='no'/></pm>
  <devices>
    <emulator>/opt/elsewhere/qemu</emulator>
    <disk type='file' device='disk'><driver name='qemu' type='qcow2' discard='unmap' iothread='1'/>
      <source file='/primary/vda.qcow2'/><target dev='vda' bus='virtio'/><boot order='1'/></disk>
    <disk type='file' device='disk'><source file='/primary/sda.qcow2'/><target dev='sda' bus='scsi'/></disk>
    <disk type='file' device='cdrom'><source file='/primary/x.iso'/><target dev='sdb' bus='sata'/><readonly/></disk>
    <controller type='scsi' index='0' model='virtio-scsi'><driver queues='2' iothread='1'/></controller>
    <controller type='usb' index='0' model='qemu-xhci' ports='15'/>
    <controller type='virtio-serial' index='0'/>
    <interface type='network'><mac address='52:54:00:00:00:01'/><source network='lan'/><model type='virtio'/>
      <boot order='2'/></interface>
    <interface type='bridge'><mac address='52:54:00:00:00:02'/><source bridge='br-far'/>
      <model type='e1000'/></interface>
    <serial type='unix'><source mode='bind' path='/primary/s'/><target type='isa-serial' port='0'/></serial>
    <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>
    <input type='tablet' bus='usb'/><input type='keyboard' bus='ps2'/>
    <graphics type='spice' port='5901' listen='0.0.0.0'/><video><model type='qxl' vram='65536'/></video>
    <sound model='ich9'/><redirdev bus='usb' type='spicevmc'/>
    <hostdev mode='subsystem' type='usb'><source><vendor id='0x1'/><product id='0x2'/></source></hostdev>
    <watchdog model='i6300esb' action='reset'/><memballoon model='virtio'/>
    <rng model='virtio'><backend model='random'>/dev/random</backend></rng>
    <tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm><panic model='pvpanic'/>
  </devices>
  <qemu:commandline><qemu:arg value='-name'/></qemu:commandline>
</domain>
"""


@pytest.fixture
def vm(hypervisor: Hypervisor) -> Iterator[VmId]:
    made = str(uuid.uuid4())
    yield made
    if hypervisor.exists(made):
        hypervisor.stop(made)
        hypervisor.undefine(made)


@pytest.fixture
def images(home: Path) -> dict[str, Path]:
    return {target: make_image(home / f"{target}.qcow2") for target in ("vda", "sda")}


@pytest.mark.parametrize("machine", ["pc-q35-99.0", "pc-i440fx-jammy", "q35"])
def test_a_server_full_of_things_this_host_lacks_starts_all_the_same(
    hypervisor: Hypervisor, vm: VmId, images: dict[str, Path], home: Path, machine: str
) -> None:
    untrusted = PRIMARY.format(name=f"server-{home.name}", vm=vm, machine=machine)
    log = home / "console.log"
    definition = build(untrusted, Site(disks=images, network_map={}, console_log=log, **hypervisor.abilities()))
    assert hypervisor.define(definition.xml).vm == vm
    hypervisor.start(vm)
    assert hypervisor.running(vm)
    view = hypervisor.inspect(vm)
    # The CD-ROM drive stays, empty.
    assert {disk.target: disk.path for disk in view.disks} == {**{t: str(p) for t, p in images.items()}, "sdb": None}
    assert [disk.reason_ineligible for disk in view.disks if disk.path] == [None, None]
    assert "/primary/" not in view.definition
    assert log.exists()


@pytest.mark.seeding
def test_a_vm_on_block_devices_and_raw_files_starts_from_our_images(
    hypervisor: Hypervisor, new_guest: Callable[..., Guest], home: Path
) -> None:
    raw = home / "raw.img"
    raw.write_bytes(bytes(MiB))
    with loop_device(home / "loop", MiB) as device:
        guest = new_guest(
            devices=disk_xml("vdb", device, form="raw", driver="cache='none' io='native' discard='ignore'")
            + disk_xml("vdc", raw, form="raw", driver="cache='directsync' io='native'")
        )
        untrusted = hypervisor.inspect(guest.vm).definition
        guest.remove()
    images = {target: make_image(home / f"copy-{target}.qcow2", "1M") for target in ("vda", "vdb", "vdc")}
    definition = build(untrusted, Site(disks=images, network_map={}, **hypervisor.abilities()))
    assert str(device) not in definition.xml
    hypervisor.define(definition.xml)
    hypervisor.start(guest.vm)
    disks = hypervisor.inspect(guest.vm).disks
    assert [(disk.path, disk.tracked) for disk in disks] == [(str(image), True) for image in images.values()]


def test_an_interface_reaches_the_network_the_map_names(
    hypervisor: Hypervisor, libvirtd: PrivateLibvirtd, vm: VmId, images: dict[str, Path], home: Path
) -> None:
    network = home / "net.xml"
    network.write_text(f"<network><name>{home.name}</name></network>")
    libvirtd.virsh("net-define", str(network))
    try:
        assert home.name not in hypervisor.abilities()["networks"]
    finally:
        libvirtd.virsh("net-undefine", home.name)
    untrusted = PRIMARY.format(name=f"server-{home.name}", vm=vm, machine="q35")
    abilities = hypervisor.abilities()
    abilities["networks"] = {home.name}
    mapping = {"lan": home.name, "br-far": "none"}
    definition = build(untrusted, Site(disks=images, network_map=mapping, **abilities))
    assert f'<source network="{home.name}"' in definition.xml
    hypervisor.define(definition.xml)
    assert f"<source network='{home.name}'/>" in hypervisor.inspect(vm).definition


def test_a_uefi_server_is_refused_before_libvirt_sees_it_where_firmware_is_missing(
    hypervisor: Hypervisor, images: dict[str, Path], vm: VmId
) -> None:
    untrusted = PRIMARY.format(name="uefi", vm=vm, machine="q35").replace("<os>", "<os firmware='efi'>")
    abilities = hypervisor.abilities()
    if abilities["efi"]:
        definition = build(untrusted, Site(disks=images, network_map={}, **abilities))
        hypervisor.define(definition.xml)
        assert "<os firmware='efi'>" in hypervisor.inspect(vm).definition
    abilities["efi"] = False
    with pytest.raises(Refused) as caught:
        build(untrusted, Site(disks=images, network_map={}, **abilities))
    assert caught.value.code == "definition-needs-efi"


def test_the_host_tells_its_machines_and_the_cpu_models_that_run(hypervisor: Hypervisor) -> None:
    abilities = hypervisor.abilities()
    assert {"pc", "q35"} <= set(abilities["machines"])
    assert "qemu64" in abilities["cpu_models"] or abilities["domain_type"] == "kvm"
    assert "vnc" in abilities["graphics"]
    assert abilities["domain_type"] == usable_domain_type()
