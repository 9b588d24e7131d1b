"""Seeding from an existing copy on the replica, through the command line: only what differs from it travels."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from job_kit import Blank, NewBlank, enable, images, points, qemu_img, same_content

from vmreplica.lab import Host, Lab
from vmreplica.lab.waiting import until
from vmreplica.model.units import KiB, MiB

pytestmark = pytest.mark.seeding

#: What a cycle may cost besides data: heads, records, frames' own headers.
OVERHEAD = 4 * KiB
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
