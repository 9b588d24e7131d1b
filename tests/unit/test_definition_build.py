"""The definition built for the replica: what a peer's may bring along, and what it may not."""

import re
from pathlib import Path

import pytest
from definition_kit import DISK, IMAGE, UUID, built, domain, find, tree

from vmreplica.model.errors import BadRequest, Refused

pytestmark = pytest.mark.main_job


def test_identity_memory_and_processors_are_kept() -> None:
    definition = built(domain(more="<title>The web server</title><currentMemory unit='MiB'>512</currentMemory>"))
    assert (definition.vm, definition.name) == (UUID, "web01")
    assert find(definition, "memory").attrib == {"unit": "GiB"}
    assert find(definition, "currentMemory").text == "512"
    assert find(definition, "title").text == "The web server"
    assert definition.notes == ()


def test_a_disk_is_our_image_in_the_same_place_of_the_guest() -> None:
    disk = find(built(domain()), "devices/disk")
    assert [child.tag for child in disk] == ["driver", "source", "target", "serial", "boot", "address"]
    assert disk[0].attrib == {"name": "qemu", "type": "qcow2", "discard": "unmap"}
    assert disk[1].attrib == {"file": str(IMAGE)}
    assert disk[2].attrib == {"dev": "vda", "bus": "virtio"}
    assert disk[5].get("bus") == "0x04"


@pytest.mark.seeding
@pytest.mark.parametrize(
    ("kind", "driver", "source"),
    [
        (
            "block",
            "type='raw' cache='none' io='native' iothread='1' queues='2'",
            "<source dev='/dev/vg/web' index='1'/>",
        ),
        (
            "block",
            "type='qcow2' cache='directsync' io='io_uring'",
            "<source dev='/dev/b'/><backingStore type='block'/>",
        ),
        ("volume", "type='raw' cache='unsafe' error_policy='stop'", "<source pool='vg' volume='web' mode='host'/>"),
        ("network", "type='raw' io='native'", "<source protocol='rbd' name='p/web'><host name='mon'/></source>"),
    ],
)
def test_a_disk_on_other_storage_becomes_our_image_with_our_own_driver(kind: str, driver: str, source: str) -> None:
    body = f"<driver name='qemu' {driver}/>{source}<target dev='vda' bus='virtio'/>"
    definition = built(domain(f"<disk type='{kind}' device='disk'>{body}</disk>"))
    disk = find(definition, "devices/disk")
    assert disk.attrib == {"type": "file", "device": "disk"}
    assert [(child.tag, child.attrib) for child in disk] == [
        ("driver", {"name": "qemu", "type": "qcow2", "discard": "unmap"}),
        ("source", {"file": str(IMAGE)}),
        ("target", {"dev": "vda", "bus": "virtio"}),
    ]
    assert definition.notes == ()


HOSTILE = {
    "hostdev": "<hostdev mode='subsystem' type='pci'><source><address domain='0' bus='1'/></source></hostdev>",
    "filesystem": "<filesystem type='mount'><source dir='/evil'/><target dir='x'/></filesystem>",
    "redirdev": "<redirdev bus='usb' type='tcp'><source mode='connect' host='evil'/></redirdev>",
    "shmem": "<shmem name='evil'><server path='/evil'/></shmem>",
    "emulator": "<emulator>/evil</emulator>",
    "lease": "<lease><target path='/evil'/></lease>",
    "smartcard": "<smartcard mode='host'/>",
    "memory": "<memory model='nvdimm'><source><path>/evil</path></source></memory>",
    "vsock": "<vsock model='virtio'><cid auto='no' address='3'/></vsock>",
    "crypto": "<crypto model='virtio' type='qemu'><backend model='lkcf'/></crypto>",
    "sound": "<sound model='ich9'/>",
}


@pytest.mark.parametrize("tag", HOSTILE)
def test_devices_of_the_primary_host_are_left_out(tag: str) -> None:
    definition = built(domain(DISK + HOSTILE[tag]))
    assert tree(definition).find(f"devices/{tag}") is None
    assert "evil" not in definition.xml
    if tag != "emulator":
        assert any(tag in note for note in definition.notes)


HOSTILE_TOP = {
    "commandline": "<q:commandline xmlns:q='http://libvirt.org/schemas/domain/qemu/1.0'><q:arg value='evil'/>"
    "</q:commandline>",
    "metadata": "<metadata><x xmlns='urn:evil'/></metadata>",
    "seclabel": "<seclabel type='none' model='evil'/>",
    "memoryBacking": "<memoryBacking><source type='file'/><hugepages/></memoryBacking>",
    "launchSecurity": "<launchSecurity type='sev'><session>evil</session></launchSecurity>",
    "keywrap": "<keywrap><cipher name='aes' state='evil'/></keywrap>",
    "sysinfo": "<sysinfo type='fwcfg'><entry name='opt/x' file='/evil'/></sysinfo>",
    "cputune": "<cputune><vcpupin vcpu='0' cpuset='1'/></cputune>",
}


@pytest.mark.parametrize("tag", HOSTILE_TOP)
def test_elements_that_reach_into_the_host_are_left_out(tag: str) -> None:
    definition = built(domain(more=HOSTILE_TOP[tag]))
    assert "evil" not in definition.xml
    assert tag == "sysinfo" or tag not in definition.xml
    assert tag == "seclabel" or definition.notes


def test_no_kernel_firmware_or_nvram_file_of_the_peer_is_used() -> None:
    definition = built(
        domain(
            os="<loader readonly='yes' secure='yes' type='pflash'>/evil</loader><nvram template='/evil'>/evil</nvram>"
            "<kernel>/evil</kernel><initrd>/evil</initrd><cmdline>evil</cmdline><dtb>/evil</dtb>"
        )
    )
    assert "evil" not in definition.xml
    os = find(definition, "os")
    assert os.get("firmware") == "efi"
    assert find(definition, "os/firmware/feature").attrib == {"enabled": "yes", "name": "secure-boot"}
    assert {"kernel", "initrd", "cmdline", "dtb"} <= {
        match[1] for note in definition.notes if (match := re.match(r"left out: os/(\w+)", note))
    }


def test_a_uefi_guest_is_refused_where_its_firmware_is_missing() -> None:
    with pytest.raises(Refused) as caught:
        built(domain(attributes="firmware='efi'"), efi=False)
    assert caught.value.code == "definition-needs-efi"
    assert "ovmf" in caught.value.hint


def test_an_unknown_version_of_a_machine_becomes_this_hosts_newest() -> None:
    definition = built(domain(machine="pc-q35-99.0"))
    assert find(definition, "os/type").get("machine") == "q35"
    assert "pc-q35-99.0" in definition.notes[0]
    assert find(built(domain(machine="pc-q35-7.2")), "os/type").get("machine") == "pc-q35-7.2"


@pytest.mark.parametrize("machine", ["virt-8.0", "microvm", "../evil", "pc q35"])
def test_a_machine_of_another_kind_is_refused(machine: str) -> None:
    with pytest.raises(Refused) as caught:
        built(domain(machine=machine))
    assert caught.value.code == "definition-machine-unknown"


def test_boot_devices_are_kept_unless_disks_have_their_own_order() -> None:
    boot = "<boot dev='cdrom'/><boot dev='hd'/><boot dev='network'/>"
    plain = DISK.replace("<boot order='1'/>", "")
    assert [b.get("dev") for b in tree(built(domain(plain, os=boot))).findall("os/boot")] == ["hd", "network"]
    assert tree(built(domain(os=boot))).findall("os/boot") == []


@pytest.mark.parametrize(
    ("cpu", "domain_type", "mode"),
    [
        ("<cpu mode='host-passthrough'/>", "kvm", "host-passthrough"),
        ("<cpu mode='host-model'/>", "kvm", "host-model"),
        ("<cpu mode='host-passthrough'/>", "qemu", "maximum"),
        ("<cpu mode='custom'><model>Skylake-Client</model></cpu>", "kvm", "custom"),
        ("<cpu mode='custom'><model>EPYC-Milan</model></cpu>", "kvm", "host-model"),
        ("<cpu mode='custom'><model>EPYC-Milan</model></cpu>", "qemu", "maximum"),
        ("<cpu mode='evil'/>", "kvm", None),
        ("", "kvm", None),
    ],
)
def test_the_processor_is_the_nearest_that_runs_here(cpu: str, domain_type: str, mode: str | None) -> None:
    definition = built(domain(more=cpu), domain_type=domain_type, cpu_models={"Skylake-Client"})
    assert find(definition, "cpu").get("mode") == mode


def test_a_missing_processor_feature_never_keeps_the_vm_from_starting() -> None:
    cpu = (
        "<cpu mode='custom'><model>Skylake-Client</model><topology sockets='1' cores='2' threads='1'/>"
        "<feature policy='require' name='avx512f'/><feature policy='disable' name='hle'/><feature name='; evil'/></cpu>"
    )
    definition = built(domain(more=cpu))
    assert [f.attrib for f in tree(definition).findall("cpu/feature")] == [
        {"policy": "optional", "name": "avx512f"},
        {"policy": "disable", "name": "hle"},
    ]
    assert find(definition, "cpu/topology").attrib == {"sockets": "1", "cores": "2", "threads": "1"}


def test_parts_that_need_kvm_are_left_out_of_an_emulated_guest() -> None:
    more = (
        "<features><acpi/><hyperv><relaxed state='on'/></hyperv><kvm><hidden state='on'/></kvm></features>"
        "<clock offset='utc'><timer name='kvmclock' present='yes'/><timer name='rtc' tickpolicy='catchup'/></clock>"
    )
    emulated, fast = built(domain(more=more), domain_type="qemu"), built(domain(more=more))
    assert [child.tag for child in find(emulated, "features")] == ["acpi"]
    assert [timer.get("name") for timer in find(emulated, "clock")] == ["rtc"]
    assert tree(emulated).get("type") == "qemu"
    assert find(fast, "features/hyperv/relaxed").get("state") == "on"
    assert len(find(fast, "clock")) == 2


NIC = "<interface type='{}'><mac address='52:54:00:11:22:33'/><source {}/><model type='virtio'/></interface>"


@pytest.mark.parametrize(
    ("kind", "source", "mapping", "expected"),
    [
        ("network", "network='default'", {}, ("network", {"network": "default"})),
        ("network", "network='lan'", {"lan": "default"}, ("network", {"network": "default"})),
        ("network", "network='lan'", {"lan": "bridge:br0"}, ("bridge", {"bridge": "br0"})),
        ("bridge", "bridge='br0'", {}, ("bridge", {"bridge": "br0"})),
        ("bridge", "bridge='br7'", {"br7": "default"}, ("network", {"network": "default"})),
        ("direct", "dev='eth0' mode='bridge'", {"eth0": "default"}, ("network", {"network": "default"})),
    ],
)
def test_an_interface_is_attached_by_the_map_or_to_its_namesake(
    kind: str, source: str, mapping: dict[str, str], expected: tuple[str, dict[str, str]]
) -> None:
    definition = built(domain(DISK + NIC.format(kind, source)), network_map=mapping, bridges={"br0"})
    nic = find(definition, "devices/interface")
    assert (nic.get("type"), nic.find("source").attrib) == expected  # type: ignore[union-attr]
    assert nic.find("link") is None


@pytest.mark.parametrize(
    ("kind", "source", "mapping"),
    [
        ("network", "network='lan'", {}),
        ("network", "network='lan'", {"lan": "gone"}),
        ("network", "network='default'", {"default": "none"}),
        ("bridge", "bridge='evil'", {}),
        ("direct", "dev='eth0' mode='bridge'", {}),
        ("hostdev", "x='evil'", {}),
        ("vhostuser", "type='unix' path='/evil' mode='server'", {}),
        ("ethernet", "x='y'", {}),
    ],
)
def test_an_interface_with_nowhere_to_go_keeps_its_place_with_the_plug_pulled(
    kind: str, source: str, mapping: dict[str, str]
) -> None:
    definition = built(domain(DISK + NIC.format(kind, source)), network_map=mapping)
    nic = find(definition, "devices/interface")
    assert nic.get("type") == "user"
    assert nic.find("source") is None
    assert nic.find("link").attrib == {"state": "down"}  # type: ignore[union-attr]
    assert nic.find("mac").get("address") == "52:54:00:11:22:33"  # type: ignore[union-attr]
    assert "evil" not in definition.xml
    assert any("52:54:00:11:22:33" in note for note in definition.notes)


def test_other_disks_and_media_are_left_out_with_a_note() -> None:
    other = "<disk type='file' device='disk'><source file='/evil'/><target dev='vdb' bus='virtio'/></disk>"
    cdrom = "<disk type='file' device='cdrom'><source file='/evil'/><target dev='sda' bus='sata'/></disk>"
    definition = built(domain(DISK + other + cdrom))
    assert len(tree(definition).findall("devices/disk[@device='disk']")) == 1
    assert "evil" not in definition.xml
    assert definition.notes[0] == "left out: disk vdb: it is not replicated"
    assert definition.notes[1].startswith("cdrom sda: it is empty here")


@pytest.mark.parametrize("devices", ["", DISK + DISK, DISK.replace("device='disk'", "device='lun'")])
def test_a_definition_without_just_our_disks_is_refused(devices: str) -> None:
    with pytest.raises(BadRequest) as caught:
        built(domain(devices))
    assert caught.value.code == "definition-disk-missing"


def test_serial_ports_become_pseudo_terminals_and_the_first_may_be_logged() -> None:
    ports = (
        "<serial type='file'><source path='/evil'/><log file='/evil'/><target type='isa-serial' port='0'/></serial>"
        "<serial type='tcp'><source mode='bind' host='evil' service='1'/><target type='isa-serial' port='1'/></serial>"
        "<console type='unix'><source mode='bind' path='/evil'/><target type='serial' port='0'/></console>"
        "<console type='file'><source path='/evil'/><target type='virtio' port='1'/></console>"
    )
    definition = built(domain(DISK + ports), console_log=Path("/logs/web01.log"))
    root = tree(definition)
    assert [port.get("type") for port in root.findall("devices/serial")] == ["pty", "pty"]
    assert [port.find("target").get("type") for port in root.findall("devices/console")] == ["virtio"]  # type: ignore[union-attr]
    assert [log.get("file") for log in root.iter("log")] == ["/logs/web01.log"]
    assert "evil" not in definition.xml


def test_a_console_log_makes_a_serial_port_where_there_is_none() -> None:
    definition = built(domain(), console_log=Path("/logs/web01.log"))
    assert find(definition, "devices/serial/log").get("file") == "/logs/web01.log"


def test_displays_are_for_this_host_only() -> None:
    graphics = (
        "<graphics type='vnc' port='5900' listen='0.0.0.0' passwd='evil' keymap='de'>"
        "<listen type='socket' socket='/evil'/></graphics><graphics type='sdl' xauth='/evil'/>"
    )
    definition = built(domain(DISK + graphics))
    assert len(tree(definition).findall("devices/graphics")) == 1
    display = find(definition, "devices/graphics")
    assert display.attrib == {"type": "vnc", "autoport": "yes", "listen": "127.0.0.1", "keymap": "de"}
    assert display[0].attrib == {"type": "address", "address": "127.0.0.1"}


def test_spice_becomes_vnc_where_qemu_lacks_it_and_its_channel_goes() -> None:
    devices = (
        "<graphics type='spice' autoport='yes'/><video><model type='qxl' ram='65536'/></video>"
        "<channel type='spicevmc'><target type='virtio' name='com.redhat.spice.0'/></channel>"
        "<channel type='unix'><source path='/evil'/><target type='virtio' name='org.qemu.guest_agent.0'/></channel>"
        "<channel type='unix'><source path='/evil'/><target type='virtio' name='evil'/></channel>"
    )
    without = built(domain(DISK + devices), graphics={"vnc"}, videos={"vga"})
    assert find(without, "devices/graphics").get("type") == "vnc"
    assert find(without, "devices/video/model").attrib == {"type": "vga"}
    names = [target.get("name") for target in tree(without).findall("devices/channel/target")]
    assert names == ["org.qemu.guest_agent.0"]
    with_spice = built(domain(DISK + devices))
    assert find(with_spice, "devices/graphics").get("type") == "spice"
    assert len(tree(with_spice).findall("devices/channel")) == 2
    assert "evil" not in without.xml + with_spice.xml


def test_random_numbers_and_tpm_come_from_this_host() -> None:
    devices = (
        "<rng model='virtio'><rate bytes='1024' period='1000'/><backend model='egd' type='unix'>"
        "<source mode='connect' path='/evil'/></backend></rng>"
        "<tpm model='tpm-crb'><backend type='passthrough'><device path='/evil'/></backend></tpm>"
    )
    definition = built(domain(DISK + devices))
    assert find(definition, "devices/rng/backend").text == "/dev/urandom"
    assert find(definition, "devices/tpm/backend").attrib == {"type": "emulator", "version": "2.0"}
    assert "evil" not in definition.xml
    assert tree(built(domain(DISK + devices), tpm_backends=set())).find("devices/tpm") is None


def test_the_generation_id_is_new_each_time() -> None:
    xml = domain(more=f"<genid>{UUID}</genid>")
    ids = {find(built(xml), "genid").text for _ in range(3)}
    assert len(ids) == 3
    assert UUID not in ids


@pytest.mark.parametrize(
    ("xml", "code"),
    [
        ("", "not-xml"),
        ("<domain>", "not-xml"),
        ("\ud800", "not-xml"),
        ("<network/>", "not-a-domain"),
        ("<domain/>", "incomplete"),
        ("<!DOCTYPE d [<!ENTITY x SYSTEM 'file:///etc/passwd'>]><domain>&x;</domain>", "entities"),
        ("<!DOCTYPE domain><domain/>", "entities"),
        ("<domain>" + " " * (1 << 20) + "</domain>", "too-large"),
        ("<domain>" + "<a>" * 100_000 + "</a>" * 100_000 + "</domain>", "too-deep"),
        (domain().replace("web01", "../web01"), "bad-name"),
        (domain().replace("web01", "--version"), "bad-name"),
        (domain().replace(UUID, "1234"), "bad-uuid"),
        (domain().replace("<name>web01</name>", "<name>a</name><name>b</name>"), "incomplete"),
        (domain().replace("<memory unit='GiB'>4", "<memory unit='GiB'>-4"), "incomplete"),
        (domain().replace("<vcpu>2</vcpu>", ""), "incomplete"),
        (domain(more="<memory>1</memory>"), "incomplete"),
        (domain().replace(">hvm<", ">exe<"), "not-hvm"),
    ],
)
def test_what_is_no_domain_is_refused_with_its_reason(xml: str, code: str) -> None:
    with pytest.raises(BadRequest) as caught:
        built(xml)
    assert caught.value.code == f"definition-{code}"


def test_hostile_text_cannot_flood_the_notes() -> None:
    many = "".join(f"<x{number} xmlns='urn:{'y' * 500}'/>" for number in range(500))
    notes = built(domain(DISK + many)).notes
    assert len(notes) <= 100
    assert all(len(note) <= 300 for note in notes)
