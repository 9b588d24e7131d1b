"""The fingerprint at work, through the command line: small deltas, raw disks, and comparison after lost tracking."""

import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from job_kit import Blank, Document, cycles, disk_xml, enable, images, points, qemu_img, same_content

from vmreplica.lab import Lab
from vmreplica.lab.waiting import until
from vmreplica.model.units import KiB, MiB

pytestmark = pytest.mark.seeding

NewBlank = Callable[..., Blank]

#: What a cycle may cost besides data: heads, records, frames' own headers.
OVERHEAD = 4 * KiB


def write_random(vm: Blank, target: str, offset: int, data: bytes) -> None:
    """Let the guest's device write bytes that do not compress."""
    source = vm.host.layout.images / f"{vm.name}.bytes"
    source.write_bytes(data)
    device = f"/machine/peripheral/virtio-disk{ord(target[-1]) - ord('a')}/virtio-backend"
    for act in (f"write -s {source} {offset} {len(data)}", "flush"):
        said = vm.host.virsh("qemu-monitor-command", vm.name, "--hmp", f'qemu-io -d {device} "{act}"').stdout
        assert "rror" not in said, said


def sync(vm: Blank) -> Document:
    """Run a cycle now; gives its result."""
    result: Document = vm.host.ask("sync", vm.name, timeout=300)["result"]
    assert result["outcome"] == "published", result
    return result


def newest(lab: Lab, vm: Blank) -> tuple[Path, ...]:
    """Give the images of the newest point, each checked as QEMU does."""
    found = images(lab.host("b"), vm.uuid, points(vm.host, vm.name)[-1]["point"])
    for image in found:
        qemu_img("check", "-q", str(image))
    return found


def test_scattered_small_writes_cost_about_their_own_size(lab: Lab, new_blank: NewBlank) -> None:
    vm = new_blank(lab.host("a"))
    write_random(vm, "vda", 0, os.urandom(16 * MiB))
    enable(vm.host, vm.name, every="24h")
    clusters = random.Random(4).sample(range(256), 40)
    for cluster in clusters:
        write_random(vm, "vda", cluster * 64 * KiB + 20 * KiB, os.urandom(4 * KiB))
    assert sync(vm)["wire_bytes"] <= 1.15 * len(clusters) * 4 * KiB + OVERHEAD
    (image,) = newest(lab, vm)
    assert same_content(image, vm.images["vda"])


def test_the_same_bytes_written_again_are_not_sent(lab: Lab, new_blank: NewBlank) -> None:
    vm = new_blank(lab.host("a"))
    data = os.urandom(4 * MiB)
    write_random(vm, "vda", MiB, data)
    enable(vm.host, vm.name, every="24h")
    write_random(vm, "vda", MiB, data)
    assert sync(vm)["wire_bytes"] <= OVERHEAD
    (image,) = newest(lab, vm)
    assert same_content(image, vm.images["vda"])


def test_a_raw_disk_is_replicated_beside_a_tracked_one_by_comparison(lab: Lab, new_blank: NewBlank) -> None:
    raw = lab.host("a").layout.images / "beside.raw"
    qemu_img("create", "-q", "-f", "raw", str(raw), "64M")
    vm = new_blank(lab.host("a"), devices=disk_xml("vdb", raw, "raw"))
    write_random(vm, "vda", 0, os.urandom(2 * MiB))
    write_random(vm, "vdb", 0, os.urandom(8 * MiB))
    enable(vm.host, vm.name, every="24h")
    write_random(vm, "vda", MiB, os.urandom(64 * KiB))
    write_random(vm, "vdb", 3 * MiB + 4 * KiB, os.urandom(8 * KiB))
    vm.write("vdb", "5M", "1M", 0)
    cycle = sync(vm)
    assert (cycle["kind"], cycle["reason"]) == ("delta", "interval")
    assert cycle["wire_bytes"] <= 1.15 * 72 * KiB + OVERHEAD
    tracked, compared = newest(lab, vm)
    assert same_content(tracked, vm.images["vda"])
    assert same_content(compared, raw)
    raw.unlink()


def test_a_killed_guest_is_compared_and_only_differences_travel(lab: Lab, new_blank: NewBlank) -> None:
    vm = new_blank(lab.host("a"), disks=("vda", "vdb"))
    for target in ("vda", "vdb"):
        write_random(vm, target, 0, os.urandom(8 * MiB))
    enable(vm.host, vm.name, every="24h")
    write_random(vm, "vda", 2 * MiB, os.urandom(32 * KiB))
    # With the host's power gone QEMU never writes its bitmaps down.
    vm.host.exec(["pkill", "-KILL", "-f", f"guest={vm.name},"])
    assert until(lambda: "shut off" in vm.host.virsh("domstate", vm.name).stdout, 30), "libvirt has noticed"
    vm.start()
    sync(vm)
    # Taken from the stopped images, when the agent was faster than the start, else from the running VM.
    (cycle,) = [cycle for cycle in cycles(vm.host, vm.name) if cycle["kind"] == "resync"]
    assert "vda" in cycle["reason"]
    assert cycle["wire_bytes"] <= 1.15 * 32 * KiB + OVERHEAD
    for image, source in zip(newest(lab, vm), vm.images.values(), strict=True):
        assert same_content(image, source)
    assert len(points(vm.host, vm.name)) == len(cycles(vm.host, vm.name)), "all points are kept"
    assert sync(vm)["kind"] == "delta"


def test_a_lost_fingerprint_is_fetched_from_the_replica(lab: Lab, new_blank: NewBlank) -> None:
    vm = new_blank(lab.host("a"))
    write_random(vm, "vda", 0, os.urandom(8 * MiB))
    enable(vm.host, vm.name, every="24h")
    fingerprint = vm.host.layout.state_dir / "fingerprints" / vm.uuid / "vda.fp"
    fingerprint.unlink()
    write_random(vm, "vda", MiB + 8 * KiB, os.urandom(4 * KiB))
    cycle = sync(vm)
    assert cycle["kind"] == "delta"
    assert cycle["wire_bytes"] <= 1.15 * 4 * KiB + OVERHEAD
    (image,) = newest(lab, vm)
    assert same_content(image, vm.images["vda"])
    assert fingerprint.stat().st_size <= 0.0025 * 64 * MiB
