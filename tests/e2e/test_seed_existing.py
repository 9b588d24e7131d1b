"""Seeding from an existing copy on the replica, through the command line: only what differs from it travels."""

import datetime as dt
import hashlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from device_kit import loop_device
from job_kit import (
    Blank,
    NewBlank,
    NewGuest,
    check_point,
    enable,
    images,
    points,
    qemu_img,
    reasons,
    refusal,
    same_content,
    wait_cycles,
    wait_healthy,
)

from vmreplica.lab import Guest, Host, Lab
from vmreplica.lab.records import last_record_finished_before
from vmreplica.lab.waiting import until
from vmreplica.model.units import KiB, MiB

pytestmark = pytest.mark.seeding

#: What a cycle may cost besides data: heads, records, frames' own headers.
OVERHEAD = 4 * KiB
#: A guest's clock has whole seconds and may be one off.
CLOCK_SLACK = 2.0
#: QEMU's name of each format by the ending that tells it.
KINDS = {"qcow2": "qcow2", "vhdx": "vhdx", "vmdk": "vmdk", "vdi": "vdi", "vhd": "vpc", "raw": "raw"}


def write_random(vm: Blank, target: str, offset: int, size: int) -> None:
    """Let the guest's device write bytes that do not compress."""
    source = vm.host.layout.images / f"{vm.name}.bytes"
    source.write_bytes(os.urandom(size))
    device = f"/machine/peripheral/virtio-disk{ord(target[-1]) - ord('a')}/virtio-backend"
    for act in (f"write -s {source} {offset} {size}", "flush"):
        said = vm.host.virsh("qemu-monitor-command", vm.name, "--hmp", f'qemu-io -d {device} "{act}"').stdout
        assert "rror" not in said, said
    source.unlink()


def backup(image: Path, replica: Host, ending: str, *options: str) -> Path:
    """Make a copy of a disk, as it is now, where the replica reads it."""
    copy = replica.layout.seeds / f"{image.stem}.{ending}"
    qemu_img("convert", "-U", "-O", KINDS[ending], *options, str(image), str(copy))
    return copy


def require_equal(lab: Lab, vm: Blank) -> None:
    """Require that the newest point reads as the VM's disks."""
    for image in images(lab.host("b"), vm.uuid, points(vm.host, vm.name)[-1]["point"]):
        qemu_img("check", "-q", str(image))
        assert same_content(image, vm.images[image.stem])


@pytest.fixture(autouse=True)
def clean_seeds(lab: Lab) -> Iterator[None]:
    yield
    for left in lab.host("b").layout.seeds.iterdir():
        left.unlink()


@pytest.mark.parametrize("ending", ["vhdx", *(pytest.param(e, marks=pytest.mark.slow) for e in KINDS if e != "vhdx")])
def test_only_what_differs_from_an_existing_copy_is_sent(lab: Lab, new_blank: NewBlank, ending: str) -> None:
    vm = new_blank(lab.host("a"))
    write_random(vm, "vda", 0, 8 * MiB)
    copy = backup(vm.images["vda"], lab.host("b"), ending)
    before = hashlib.sha256(copy.read_bytes()).digest(), copy.stat().st_mtime_ns
    write_random(vm, "vda", 3 * MiB + 8 * KiB, 12 * KiB)
    write_random(vm, "vda", 20 * MiB, 64 * KiB)
    result = enable(vm.host, vm.name, "--seed", f"existing:{copy}", every="24h")["result"]
    assert result["outcome"] == "published"
    assert result["reason"].startswith("vda: seeded from an existing copy")
    assert result["wire_bytes"] <= 1.15 * 76 * KiB + OVERHEAD
    require_equal(lab, vm)
    assert (hashlib.sha256(copy.read_bytes()).digest(), copy.stat().st_mtime_ns) == before
    assert until(lambda: [point["kind"] for point in points(vm.host, vm.name)] == ["resync"], 30), "seed still there"
    copy.unlink()
    write_random(vm, "vda", MiB, 4 * KiB)
    assert vm.host.ask("sync", vm.name, timeout=300)["result"]["kind"] == "delta"
    require_equal(lab, vm)


def test_a_guest_seeded_from_a_restored_backup_fails_over_with_all_its_records(lab: Lab, new_guest: NewGuest) -> None:
    a, b = lab.host("a"), lab.host("b")
    guest = new_guest(a, disks=2)
    vm = guest.uuid
    guest.wait_record(3)
    copies = _back_up_running(guest, b)
    guest.wait_record(guest.wait_record(1) + 20)
    seeds = ",".join(f"{target}={copy}" for target, copy in copies.items())
    first = enable(a, guest.name, "--seed", f"existing:{seeds}")["result"]
    assert first["kind"] == "resync"
    images_of_first = images(b, vm, first["point"])
    changed = sum(_changed_blocks(copies[image.stem], image) for image in images_of_first)
    assert 0 < first["wire_bytes"] <= 1.2 * changed * 4 * KiB + 2 * OVERHEAD
    assert changed * 4 * KiB < 64 * MiB, "a backup that is like the disk"
    wait_cycles(a, guest.name, 3)
    assert "seed" not in {point["kind"] for point in points(a, guest.name)}

    lab.crash("a")
    report = b.ask("failover", guest.name, "--yes")
    assert report["started"]
    alive = b.wait_domain_alive(guest.name)
    last = check_point(b, vm, report["plan"]["point"]).last
    instant = dt.datetime.fromisoformat(report["plan"]["instant"]).timestamp()
    assert 0 < last_record_finished_before(guest.images[0], instant - CLOCK_SLACK) <= last < alive


def _back_up_running(guest: Guest, replica: Host) -> dict[str, Path]:
    """Copy a guest's disks as another product restored them: stopped for a moment, in that product's format."""
    guest.host.virsh("suspend", guest.name)
    try:
        for target in range(len(guest.images)):
            device = f"/machine/peripheral/virtio-disk{target}/virtio-backend"
            guest.host.virsh("qemu-monitor-command", guest.name, "--hmp", f'qemu-io -d {device} "flush"')
        return {
            f"vd{'ab'[number]}": backup(image, replica, ending)
            for number, (image, ending) in enumerate(zip(guest.images, ("vmdk", "vdi"), strict=True))
        }
    finally:
        guest.host.virsh("resume", guest.name)


def _changed_blocks(one: Path, other: Path) -> int:
    """Count the blocks of 4 KiB in which two images differ."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as directory:
        flat = [Path(directory) / "one", Path(directory) / "other"]
        for image, raw in zip((one, other), flat, strict=True):
            qemu_img("convert", "-U", "-O", "raw", str(image), str(raw))
        blocks = [np.fromfile(raw, np.uint64).reshape(-1, 512) for raw in flat]
        return int((blocks[0] != blocks[1]).any(axis=1).sum())


def test_what_cannot_be_a_seed_is_refused_and_leaves_nothing_behind(lab: Lab, new_blank: NewBlank) -> None:
    a, b = lab.host("a"), lab.host("b")
    vm = new_blank(a, disks=("vda", "vdb"))
    good = backup(vm.images["vda"], b, "qcow2")
    (b.layout.seeds / "link.qcow2").symlink_to(good)
    for seed, code, error in (
        (f"existing:{good}", 2, "seed-disk-unclear"),
        (f"existing:vdz={good}", 2, "disk-unknown"),
        (f"existing:vda={vm.images['vda']}", 4, "seed-path-forbidden"),
        (f"existing:vda={b.layout.seeds}/../agent.toml", 4, "seed-path-forbidden"),
        (f"existing:vda={b.layout.seeds}/link.qcow2", 4, "seed-path-forbidden"),
        (f"existing:vda={b.layout.seeds}/none.qcow2", 3, "seed-path-missing"),
        ("existing:web.qcow2", 2, "seed-invalid"),
    ):
        told = refusal(a, "enable", vm.name, "--to", "b", "--seed", seed)
        assert (told[0], told[1]["code"]) == (code, error)
    for host in (a, b):
        assert vm.uuid not in {known["vm"] for known in host.ask("status")["relationships"]}


def test_a_disk_without_a_copy_is_sent_whole_beside_one_with_a_copy_of_another_vm(
    lab: Lab, new_blank: NewBlank
) -> None:
    a, b = lab.host("a"), lab.host("b")
    vm, other = new_blank(a, disks=("vda", "vdb")), new_blank(a)
    for target in ("vda", "vdb"):
        write_random(vm, target, 0, 2 * MiB)
    write_random(other, "vda", MiB, 4 * MiB)
    copy = backup(other.images["vda"], b, "qcow2")
    result = enable(a, vm.name, "--seed", f"existing:vda={copy}", every="24h")["result"]
    assert "vda: seeded from an existing copy; vdb: a new disk (" in result["reason"]
    assert result["reason"].endswith(" of 128.0 MiB differed)"), result["reason"]
    assert result["wire_bytes"] >= 4 * MiB
    require_equal(lab, vm)
    again = backup(vm.images["vda"], b, "vdi")
    told = refusal(a, "enable", vm.name, "--to", "b", "--seed", f"existing:vda={again}")
    assert (told[0], told[1]["code"]) == (5, "replica-has-points")
    told = refusal(b, "failover", vm.name, "--yes")
    assert told[1]["code"] == "primary-still-runs", "the copy can be started like any other"


def test_a_copy_that_turns_out_damaged_is_told_and_given_up_for_the_network(lab: Lab, new_blank: NewBlank) -> None:
    a, b = lab.host("a"), lab.host("b")
    vm = new_blank(a)
    write_random(vm, "vda", 0, 8 * MiB)
    copy = backup(vm.images["vda"], b, "qcow2")
    os.truncate(copy, copy.stat().st_size // 2)
    code, error = refusal(a, "enable", vm.name, "--to", "b", "--every", "5s", "--seed", f"existing:{copy}")
    assert (code, error["code"]) == (6, "seed-damaged")
    assert str(copy) in error["message"]
    assert "--seed network" in error["hint"]
    assert "seed-damaged" in reasons(a, vm.name)
    assert "cannot begin with the existing copy" in reasons(b, vm.name)["replica-complains"]["text"]
    assert not points(a, vm.name)
    assert refusal(b, "failover", vm.name, "--yes")[1]["code"] == "state-forbids"
    result = enable(a, vm.name, "--seed", "network")["result"]
    assert result["kind"] == "initial"
    wait_healthy(a, vm.name)
    wait_healthy(b, vm.name)
    require_equal(lab, vm)


@pytest.mark.slow
def test_a_copy_on_a_block_device_seeds_a_base_on_another_one(lab: Lab, new_blank: NewBlank, lab_dir: Path) -> None:
    a = lab.host("a")
    vm = new_blank(a)
    write_random(vm, "vda", 0, 8 * MiB)
    with loop_device(lab_dir / "restored", 64 * MiB) as copy, loop_device(lab_dir / "base", 64 * MiB) as base:
        qemu_img("convert", "-U", "-n", "-O", "raw", str(vm.images["vda"]), str(copy))
        write_random(vm, "vda", 5 * MiB, 64 * KiB)
        wish = ("--seed", f"existing:{copy}", "--base-device", f"vda={base}", "--keep", "1", "--yes")
        result = enable(a, vm.name, *wish, every="24h")["result"]
        assert result["wire_bytes"] <= 1.15 * 64 * KiB + OVERHEAD
        require_equal(lab, vm)
        for offset in (6 * MiB, 7 * MiB):
            write_random(vm, "vda", offset, 4 * KiB)
            a.ask("sync", vm.name, timeout=300)
        assert until(lambda: len(points(a, vm.name)) == 1, 60), points(a, vm.name)
        assert until(lambda: same_content(base, vm.images["vda"]), 60), "all is folded into the device"
        a.ask("disable", vm.name, "--delete-copy", "--yes")


@pytest.mark.slow
def test_a_vm_that_is_off_is_seeded_too(lab: Lab, new_blank: NewBlank) -> None:
    a, b = lab.host("a"), lab.host("b")
    vm = new_blank(a)
    write_random(vm, "vda", 0, 8 * MiB)
    copy = backup(vm.images["vda"], b, "vhd")
    write_random(vm, "vda", 2 * MiB, 16 * KiB)
    vm.stop()
    result = enable(a, vm.name, "--seed", f"existing:{copy}", every="24h")["result"]
    assert result["reason"].startswith("vda: seeded from an existing copy")
    assert result["wire_bytes"] <= 1.15 * 16 * KiB + OVERHEAD
    require_equal(lab, vm)
