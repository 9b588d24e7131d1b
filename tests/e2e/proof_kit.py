"""A VM whose replica rots in ways that QEMU cannot see, and what the verify command says of it."""

import json
import os
from pathlib import Path

from job_kit import Blank, Document, NewBlank, enable, images, points

from vmreplica.lab import Host, Lab
from vmreplica.model.units import CLUSTER, KiB, MiB
from vmreplica.qcow2.frames import encode

#: What a cycle may cost besides data: heads, records, frames' own headers.
OVERHEAD = 4 * KiB
#: What the guest wrote: 2 MiB at first, then a block in between.
FIRST, PATCH = 2 * MiB, MiB + 8 * KiB
FRAME = 5


def write(vm: Blank, target: str, offset: int, data: bytes) -> None:
    """Let the guest's device write bytes that do not compress."""
    source = vm.host.layout.images / f"{vm.name}.bytes"
    source.write_bytes(data)
    device = f"/machine/peripheral/virtio-disk{ord(target[-1]) - ord('a')}/virtio-backend"
    for act in (f"write -s {source} {offset} {len(data)}", "flush"):
        said = vm.host.virsh("qemu-monitor-command", vm.name, "--hmp", f'qemu-io -d {device} "{act}"').stdout
        assert "rror" not in said, said


def protected(lab: Lab, new_blank: NewBlank) -> tuple[Blank, bytes, bytes]:
    """A VM with two points: whole clusters, then one block; and what was written."""
    vm = new_blank(lab.host("a"))
    data, patch = os.urandom(FIRST), os.urandom(4 * KiB)
    write(vm, "vda", 0, data)
    enable(vm.host, vm.name, every="24h")
    write(vm, "vda", PATCH, patch)
    vm.host.ask("sync", vm.name, timeout=300)
    return vm, data, patch


def rot(image: Path, old: bytes, new: bytes) -> None:
    """Put other bytes in the place of some in an image; no length changes."""
    raw = image.read_bytes()
    assert raw.count(old) == 1
    assert len(old) == len(new)
    with image.open("r+b") as fh:
        fh.seek(raw.index(old))
        fh.write(new)


def rot_frame(image: Path, cluster: bytes) -> None:
    """Put a sound frame with other content in the place of a cluster's: no checksum of QEMU tells."""
    (old,), (new,) = (encode(memoryview(content), 1) for content in (cluster, os.urandom(CLUSTER)))
    assert old is not None
    assert new is not None
    rot(image, old, new)


def image_of(lab: Lab, vm: Blank, place: int) -> Path:
    """Tell the image of a point, counted from the oldest."""
    (image,) = images(lab.host("b"), vm.uuid, points(vm.host, vm.name)[place]["point"])
    return image


def verify(host: Host, vm: str, *options: str, right: bool = True) -> Document:
    """Verify, and give the report; the exit code says whether the point is right."""
    done = host.vmreplica("verify", vm, *options, "--json", check=False, timeout=300)
    assert done.returncode == (0 if right else 11), done.stdout + done.stderr
    found: Document = json.loads(done.stdout)["verified"]
    return found
