"""Domains, their disks, their policies and their lives, on a real libvirt."""

import queue
import subprocess
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest
from libvirt_kit import Guest, PrivateLibvirtd, disk_xml, make_image

from vmreplica.hypervisor import Hypervisor
from vmreplica.hypervisor.disks import parse_disks
from vmreplica.hypervisor.probe import usable_domain_type
from vmreplica.model.errors import Conflict, Corrupt, NotFound
from vmreplica.model.policy import Policy

pytestmark = pytest.mark.main_job

NewGuest = Callable[..., Guest]
POLICY = Policy(replica="0123456789abcdef" * 2, interval=30, excluded=("vdb",))
NAMESPACE = "urn:vmreplica:policy:1"


def test_a_vm_is_found_by_name_and_by_uuid_and_close_names_are_offered(
    hypervisor: Hypervisor, new_guest: NewGuest
) -> None:
    guest = new_guest(start=False)
    assert hypervisor.find(guest.name) == hypervisor.find(guest.vm)
    assert not hypervisor.find(guest.name).active
    with pytest.raises(NotFound) as caught:
        hypervisor.find(guest.name + "x")
    assert caught.value.code == "vm-unknown"
    assert guest.name in caught.value.hint


def test_an_unknown_uuid_is_vm_unknown_everywhere(hypervisor: Hypervisor) -> None:
    nobody = str(uuid.uuid4())
    for act in (hypervisor.inspect, hypervisor.policy, hypervisor.checkpoints, hypervisor.start, hypervisor.end_backup):
        with pytest.raises(NotFound) as caught:
            act(nobody)
        assert caught.value.code == "vm-unknown"
    assert not hypervisor.exists(nobody)
    assert not hypervisor.running(nobody)


def _disk(kind: str, body: str, device: str = "disk") -> str:
    return f"<disk type='{kind}' device='{device}'>{body}</disk>"


def _network_disk(target: str, protocol: str) -> str:
    source = f"<source protocol='{protocol}' name='pool/image'><host name='h' port='1'/></source>"
    return _disk("network", f"<driver name='qemu' type='raw'/>{source}<target dev='{target}' bus='virtio'/>")


def _odd_disks(home: Path) -> str:
    raw, image = home / "raw.img", make_image(home / "shared.qcow2", "1M")
    raw.write_bytes(bytes(1 << 20))
    luks = (
        "<encryption format='luks'><secret type='passphrase' uuid='0a81f5b2-8403-7b23-c8d6-21ccc2f80d6f'/></encryption>"
    )
    pci = "<source type='pci' namespace='1'><address domain='0' bus='1' slot='0' function='0'/></source>"
    return (
        _network_disk("vdb", "rbd")
        + _network_disk("vdc", "nbd")
        + _disk("file", f"<source file='{raw}'/><target dev='hda' bus='ide'/><readonly/>", "cdrom")
        + _disk("file", f"<source file='{raw}'/><target dev='vdd' bus='virtio'/><shareable/>")
        + disk_xml("vde", image, "<readonly/>")
        + disk_xml("vdf", image, "<transient/>")
        + disk_xml("vdg", image).replace("shared.qcow2'/>", f"shared.qcow2'>{luks}</source>")
        + disk_xml("vdh", Path("/dev/null"), form="raw")
        + disk_xml("vdi", home / "gone.img", form="raw")
        + disk_xml("sda", Path("/dev/sg0"), form="raw").replace("'disk'", "'lun'").replace("virtio", "scsi")
        + disk_xml("vdj", raw, form="bochs")
        + _disk(
            "dir", f"<driver name='qemu' type='fat'/><source dir='{home}'/><target dev='vdk' bus='virtio'/><readonly/>"
        )
        + _disk("nvme", f"{pci}<target dev='vdl' bus='virtio'/>")
        + _disk("volume", "<source pool='off' volume='v'/><target dev='vdm' bus='virtio'/>")
        + _disk("volume", "<source pool='off' volume='v' mode='direct'/><target dev='vdn' bus='virtio'/>")
    )


def test_every_disk_that_cannot_be_replicated_has_its_reason(
    hypervisor: Hypervisor, new_guest: NewGuest, home: Path
) -> None:
    guest = new_guest(start=False, devices=_odd_disks(home))
    view = hypervisor.inspect(guest.vm)
    reasons = {disk.target: disk.reason_ineligible for disk in view.disks}
    words = {
        "vdb": "network disk (rbd) is not supported yet: let the host map it (rbd map", "vdc": "nbd-client",
        "hda": "cdrom", "vdd": "shareable",
        "vde": "read-only", "vdf": "transient", "vdg": "encrypted", "vdh": "is /dev/null there?",
        "vdi": "gone.img there?", "sda": "lun", "vdj": "format bochs", "vdk": "read-only", "vdl": "type nvme",
        "vdm": "storage pool is off", "vdn": "network disk (iscsi) is not supported yet: let the host log in",
    }  # fmt: skip
    assert reasons.pop("vda") is None
    assert set(reasons) == set(words)
    for target, word in words.items():
        assert word in (reasons[target] or ""), target
    assert [disk.target for disk in view.disks if disk.tracked] == ["vda"]


def test_inspect_tells_path_size_and_the_definition(hypervisor: Hypervisor, guest: Guest) -> None:
    view = hypervisor.inspect(guest.vm)
    disk = view.disks[0]
    assert (view.name, view.active, view.autostart) == (guest.name, True, False)
    assert (disk.target, disk.format, disk.size) == ("vda", "qcow2", 64 << 20)
    assert disk.path == str(guest.disks["vda"])
    assert "id=" not in view.definition.splitlines()[0]


def test_a_disk_resized_under_the_running_guest_shows_its_new_size(hypervisor: Hypervisor, guest: Guest) -> None:
    guest.virsh("blockresize", guest.name, "vda", "80M")
    assert hypervisor.inspect(guest.vm).disks[0].size == 80 << 20


def test_a_policy_lives_in_the_metadata_through_a_power_cycle(hypervisor: Hypervisor, guest: Guest) -> None:
    assert hypervisor.policy(guest.vm) is None
    hypervisor.set_policy(guest.vm, POLICY)
    assert hypervisor.policy(guest.vm) == POLICY
    assert "vmreplica:policy" in guest.virsh("dumpxml", guest.name)
    guest.virsh("destroy", guest.name)
    assert hypervisor.policies()[guest.vm] == POLICY
    hypervisor.set_policy(guest.vm, POLICY.model_copy(update={"paused": True}))
    changed = hypervisor.policy(guest.vm)
    assert changed is not None
    assert changed.paused
    hypervisor.set_policy(guest.vm, None)
    hypervisor.set_policy(guest.vm, None)
    assert hypervisor.policy(guest.vm) is None
    assert guest.vm not in hypervisor.policies()


@pytest.mark.parametrize("broken", ["{}", "nonsense", '{"replica": "../../etc"}', ""])
def test_a_broken_policy_names_its_vm_and_hides_no_other(
    hypervisor: Hypervisor, new_guest: NewGuest, broken: str
) -> None:
    good, bad = new_guest(start=False), new_guest(start=False)
    hypervisor.set_policy(good.vm, POLICY)
    element = f"<policy>{broken}</policy>"
    bad.virsh("metadata", bad.name, "--uri", NAMESPACE, "--key", "vmreplica", "--set", element, "--config")
    with pytest.raises(Corrupt, match=bad.name) as caught:
        hypervisor.policy(bad.vm)
    assert caught.value.code == "policy-unreadable"
    found, unreadable = hypervisor.policy_survey()
    assert found == hypervisor.policies() == {good.vm: POLICY}
    assert list(unreadable) == [bad.vm]


def test_a_vm_is_defined_started_stopped_and_forgotten(
    hypervisor: Hypervisor, libvirtd: PrivateLibvirtd, home: Path
) -> None:
    guest = Guest(libvirtd, "made", {"vda": make_image(home / "made.qcow2")})
    assert hypervisor.define(guest.xml).vm == guest.vm
    try:
        hypervisor.start(guest.vm)
        hypervisor.start(guest.vm)
        assert hypervisor.running(guest.vm)
        checkpoint = "vmreplica-0123abcd-20260101T000000Z-00000001"
        hypervisor.begin_backup(guest.vm, checkpoint=checkpoint, targets=["vda"]).end()
        hypervisor.stop(guest.vm)
        hypervisor.stop(guest.vm)
        assert not hypervisor.running(guest.vm)
        assert hypervisor.exists(guest.vm)
    finally:
        hypervisor.stop(guest.vm)
        hypervisor.undefine(guest.vm)
    assert not hypervisor.exists(guest.vm)
    assert list((home / "state").rglob("*.xml")) == []


def test_a_vm_that_started_with_the_host_no_longer_does_once_we_define_it(
    hypervisor: Hypervisor, new_guest: NewGuest
) -> None:
    guest = new_guest(start=False)
    guest.virsh("autostart", guest.name)
    assert hypervisor.inspect(guest.vm).autostart
    hypervisor.define(guest.xml)
    assert not hypervisor.inspect(guest.vm).autostart


def test_a_name_that_another_vm_has_is_a_conflict(hypervisor: Hypervisor, new_guest: NewGuest) -> None:
    guest = new_guest(start=False)
    with pytest.raises(Conflict) as caught:
        hypervisor.define(guest.xml.replace(guest.vm, str(uuid.uuid4())))
    assert caught.value.code == "vm-exists"
    assert guest.name in caught.value.message


def test_watchers_hear_of_starts_and_stops_until_they_stop_listening(hypervisor: Hypervisor, guest: Guest) -> None:
    heard: queue.Queue[tuple[str, str]] = queue.Queue()
    end = hypervisor.watch(lambda vm, event: heard.put((vm, event)))
    guest.virsh("resume", guest.name)
    assert heard.get(timeout=10) == (guest.vm, "resumed")
    guest.virsh("destroy", guest.name)
    while heard.get(timeout=10) != (guest.vm, "stopped"):
        pass
    end()
    guest.start()
    with pytest.raises(queue.Empty):
        heard.get(timeout=0.5)


def test_a_failing_watcher_does_not_silence_the_others(hypervisor: Hypervisor, guest: Guest) -> None:
    heard: queue.Queue[str] = queue.Queue()

    def fail(_vm: str, _event: str) -> None:
        raise ValueError("a watcher's defect")

    hypervisor.watch(fail)
    hypervisor.watch(lambda _vm, event: heard.put(event))
    guest.virsh("resume", guest.name)
    assert heard.get(timeout=10) == "resumed"


def test_a_vm_on_a_storage_pool_shows_the_path_of_its_volume(
    hypervisor: Hypervisor, new_guest: NewGuest, libvirtd: PrivateLibvirtd, home: Path
) -> None:
    pool = home / "pool"
    pool.mkdir()
    make_image(pool / "v.qcow2", "1M")
    libvirtd.virsh("pool-create-as", home.name, "dir", "--target", str(pool))
    volume = (
        f"<disk type='volume' device='disk'><driver name='qemu' type='qcow2'/><source pool='{home.name}' "
        "volume='v.qcow2'/><target dev='vdb' bus='virtio'/></disk>"
    )
    guest = new_guest(devices=volume)
    disk = hypervisor.inspect(guest.vm).disks[1]
    assert (disk.path, disk.size, disk.reason_ineligible) == (str(pool / "v.qcow2"), 1 << 20, None)
    name = "vmreplica-0123abcd-20260101T000000Z-00000001"
    with hypervisor.begin_backup(guest.vm, checkpoint=name, targets=["vda", "vdb"]) as job:
        assert job.exports["vdb"].size == 1 << 20
    libvirtd.virsh("pool-destroy", home.name)


def test_the_domain_type_is_one_under_which_firmware_really_runs() -> None:
    kind = usable_domain_type()
    accelerator = {"kvm": "kvm", "qemu": "tcg"}[kind]
    with pytest.raises(subprocess.TimeoutExpired) as caught:
        subprocess.run(
            ["qemu-system-x86_64", "-accel", accelerator, "-display", "none", "-nodefaults", "-m", "16",
             "-chardev", "stdio,id=d", "-device", "isa-debugcon,iobase=0x402,chardev=d"],
            capture_output=True, timeout=3, check=False, stdin=subprocess.DEVNULL,
        )  # fmt: skip
    assert b"SeaBIOS" in (caught.value.stdout or b"")


def test_a_disk_plugged_into_the_running_vm_only_is_in_the_definition(
    hypervisor: Hypervisor, guest: Guest, home: Path
) -> None:
    make_image(home / "plugged.qcow2")
    xml = home / "plugged.xml"
    xml.write_text(
        f"<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='{home}/plugged.qcow2'/>"
        "<target dev='sdb' bus='usb'/></disk>"
    )
    guest.virsh("attach-device", guest.name, str(xml), "--live")
    view = hypervisor.inspect(guest.vm)
    assert view.disks[-1].target == "sdb"
    disks = {disk.target: disk for disk in parse_disks(view.definition)}
    assert disks["sdb"].path == str(home / "plugged.qcow2")
    assert "sdb" not in guest.virsh("dumpxml", "--inactive", guest.name)
