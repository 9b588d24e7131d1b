"""Points compared with their primary through the command line: wrong bytes that QEMU cannot see, found and repaired."""

import json
import os
from pathlib import Path

import pytest
from job_kit import (
    Blank,
    Document,
    NewBlank,
    cycles,
    enable,
    images,
    points,
    qemu_img,
    reasons,
    refusal,
    relation,
    same_content,
    switch_off,
)

from vmreplica.lab import Host, Lab
from vmreplica.lab.waiting import until
from vmreplica.model.units import CLUSTER, KiB, MiB
from vmreplica.qcow2.frames import encode

pytestmark = pytest.mark.points

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


def test_wrong_blocks_that_qemu_cannot_see_are_found_quarantined_and_brought_again(
    lab: Lab, new_blank: NewBlank
) -> None:
    replica = lab.host("b")
    vm, data, patch = protected(lab, new_blank)
    (disk,) = verify(vm.host, vm.name)["verified"]["disks"]
    assert (disk["verdict"], disk["how"], disk["read_bytes"]) == ("equal", "blocks", FIRST)
    assert points(vm.host, vm.name)[-1]["verified"]["verdict"] == "equal"

    rot_frame(image_of(lab, vm, 0), data[FRAME * CLUSTER : (FRAME + 1) * CLUSTER])
    rot(image_of(lab, vm, -1), patch, os.urandom(4 * KiB))
    qemu_img("check", "-q", str(image_of(lab, vm, -1)))
    wrong = verify(vm.host, vm.name, right=False)["verified"]
    (disk,) = wrong["disks"]
    places = [(place["offset"], place["length"]) for place in disk["wrong"]]
    assert places == [(FRAME * CLUSTER, CLUSTER), (PATCH, 4 * KiB)]
    assert reasons(vm.host, vm.name)["verify-differs"]["level"] == "critical"
    newest = points(vm.host, vm.name)[-1]
    assert newest["point"] == wrong["point"]
    assert newest["damaged"]
    assert points(replica, vm.name)[-1]["verified"]["verdict"] == "wrong"

    report = verify(vm.host, vm.name, "--repair")
    assert report["repaired"]["verdict"] == "repaired"
    assert report["repair_wire_bytes"] <= 2 * CLUSTER + OVERHEAD
    assert same_content(image_of(lab, vm, -1), vm.images["vda"])
    assert cycles(vm.host, vm.name)[-1]["reason"] == "vda: 2 damaged clusters brought again"
    (disk,) = verify(vm.host, vm.name)["verified"]["disks"]
    assert (disk["verdict"], disk["how"]) == ("equal", "blocks")
    assert "verify-differs" not in reasons(vm.host, vm.name)
    listed = points(vm.host, vm.name)
    assert [bool(point["damaged"]) for point in listed] == [False, True, False]

    # The oldest one is known by its sum only, and there is nothing to bring again for it.
    oldest = verify(vm.host, vm.name, "--point", listed[0]["point"], right=False)["verified"]
    assert [(d["verdict"], d["how"]) for d in oldest["disks"]] == [("wrong", "sum")]
    assert points(vm.host, vm.name)[0]["damaged"]
    assert refusal(vm.host, "verify", vm.name, "--point", listed[0]["point"], "--repair")[1]["code"] == (
        "repair-not-possible"
    )


@pytest.mark.slow
def test_an_older_point_is_proven_by_its_sum_also_after_newer_ones_came(lab: Lab, new_blank: NewBlank) -> None:
    vm, _data, _patch = protected(lab, new_blank)
    for point in points(vm.host, vm.name)[:-1]:
        (disk,) = verify(vm.host, vm.name, "--point", point["point"])["verified"]["disks"]
        assert (disk["verdict"], disk["how"], disk["read_bytes"]) == ("equal", "sum", FIRST)


@pytest.mark.slow
def test_a_vm_that_is_off_is_verified_and_repaired_from_its_images(lab: Lab, new_blank: NewBlank) -> None:
    vm, _data, patch = protected(lab, new_blank)
    switch_off(vm)
    place = next(number for number in (-1, -2, -3) if patch in image_of(lab, vm, number).read_bytes())
    rot(image_of(lab, vm, place), patch, os.urandom(4 * KiB))
    report = verify(vm.host, vm.name, "--repair")
    assert (report["verified"]["verdict"], report["repaired"]["verdict"]) == ("wrong", "repaired")
    assert same_content(image_of(lab, vm, -1), vm.images["vda"])
    assert until(lambda: relation(vm.host, vm.name)["waits"] == "vm-off", 60)
    count = len(points(vm.host, vm.name))
    assert refusal(vm.host, "sync", vm.name)[1]["code"] == "vm-not-running", "nothing is asked for any more"
    assert len(points(vm.host, vm.name)) == count


@pytest.mark.slow
def test_what_the_replica_told_itself_proves_nothing_until_the_disks_are_compared(
    lab: Lab, new_blank: NewBlank
) -> None:
    vm, data, _patch = protected(lab, new_blank)
    # Wrong already when the fingerprint is lost: the replica is asked, and tells what it holds.
    rot_frame(image_of(lab, vm, 0), data[FRAME * CLUSTER : (FRAME + 1) * CLUSTER])
    (vm.host.layout.state_dir / "fingerprints" / vm.uuid / "vda.fp").unlink()
    vm.host.ask("sync", vm.name, timeout=300)
    (disk,) = verify(vm.host, vm.name, right=False)["verified"]["disks"]
    assert disk["verdict"] == "unproven"
    assert "--repair" in disk["why"]
    report = verify(vm.host, vm.name, "--repair")
    assert report["repaired"]["verdict"] == "equal"
    assert report["repair_wire_bytes"] <= CLUSTER + OVERHEAD
    assert same_content(image_of(lab, vm, -1), vm.images["vda"])


def test_what_cannot_be_verified_is_refused_with_a_remedy(lab: Lab, new_blank: NewBlank) -> None:
    vm, _data, _patch = protected(lab, new_blank)
    assert refusal(vm.host, "verify", vm.name, "--point", "20200101T000000Z-00000000")[1]["code"] == "point-unknown"
    assert refusal(lab.host("b"), "verify", vm.name)[1]["code"] == "not-protected"
    assert refusal(vm.host, "verify", vm.name, "--cancel")[1]["code"] == "verify-not-running"
    vm.host.vmreplica("pause", vm.name)
    assert verify(vm.host, vm.name)["verified"]["verdict"] == "equal"
    assert refusal(vm.host, "verify", vm.name, "--repair")[1]["code"] == "paused"
