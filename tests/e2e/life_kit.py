"""What tests of a VM's life ask: a cycle now, its reason, and whether the newest point is what the VM has."""

import os
from collections.abc import Mapping
from pathlib import Path

from job_kit import Blank, Document, NewBlank, cycles, enable, images, points, qemu_img, same_content, wait_cycles

from vmreplica.lab import Lab


def protected(lab: Lab, new_blank: NewBlank, **how: object) -> Blank:
    """Give a protected VM with some data on its first disk."""
    vm: Blank = new_blank(lab.host("a"), **how)
    vm.write("vda", "0", "8M", 1)
    enable(vm.host, vm.name, every="24h")
    return vm


def sync(vm: Blank) -> Document:
    """Run a cycle now; gives its result."""
    result: Document = vm.host.ask("sync", vm.name, timeout=300)["result"]
    assert result["outcome"] == "published", result
    return result


def last_cycle(vm: Blank, count: int) -> Document:
    """Wait until so many cycles were published; gives the last one of these."""
    return wait_cycles(vm.host, vm.name, count)[count - 1]


def count(vm: Blank) -> int:
    """Tell how many cycles were published."""
    return len(cycles(vm.host, vm.name))


def newest(lab: Lab, vm: Blank) -> dict[str, Path]:
    """Give the images of the newest point by disk target, each checked as QEMU does."""
    found = images(lab.host("b"), vm.uuid, points(vm.host, vm.name)[-1]["point"])
    for image in found:
        qemu_img("check", "-q", str(image))
    return {image.stem: image for image in found}


def require_equal(lab: Lab, vm: Blank, sources: Mapping[str, Path] | None = None) -> None:
    """Require that the newest point reads as the disks of the VM do."""
    wanted = vm.images if sources is None else sources
    held = newest(lab, vm)
    assert set(held) == set(wanted)
    for target, source in wanted.items():
        assert same_content(held[target], source), f"{target} differs"


def write_noise(vm: Blank, target: str, offset: int, size: int) -> None:
    """Let the guest's device write bytes that do not compress."""
    source = vm.host.layout.images / f"{vm.name}.bytes"
    source.write_bytes(os.urandom(size))
    device = f"/machine/peripheral/virtio-disk{ord(target[-1]) - ord('a')}/virtio-backend"
    for act in (f"write -s {source} {offset} {size}", "flush"):
        said = vm.host.virsh("qemu-monitor-command", vm.name, "--hmp", f'qemu-io -d {device} "{act}"').stdout
        assert "rror" not in said, said
    source.unlink()
