"""A protected VM that others work on as well: backup tools, storage moves, lost and removed bitmaps, migration."""

import json
import os
import re
import shutil
import subprocess
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
    refusal,
    same_content,
    wait_cycles,
)

from vmreplica.lab import Host, Lab
from vmreplica.lab.waiting import until
from vmreplica.model.units import KiB, MiB

pytestmark = pytest.mark.seeding

#: Bytes on the wire of a cycle that carries a handful of blocks; a whole copy of a disk is over a hundred times it.
LITTLE = 64 * KiB


def protect(vm: Blank, every: str = "24h") -> None:
    """Fill the disks with 8 MiB each that do not compress, and protect the VM."""
    for target, image in vm.images.items():
        _write_random(vm, target, image)
    enable(vm.host, vm.name, every=every)


def touch(vm: Blank, *targets: str) -> None:
    """Change one block of each disk."""
    for target in targets:
        vm.write(target, str(2 * MiB + 8 * KiB), "4k", int.from_bytes(os.urandom(1)) | 1)


def sync(lab: Lab, vm: Blank) -> Document:
    """Run a cycle; its point must hold what the disks hold, and cost little."""
    return _checked(lab, vm, vm.host.ask("sync", vm.name, timeout=300)["result"])


def resume(lab: Lab, vm: Blank) -> Document:
    """Go on after a pause; gives the cycle that follows at once, checked as in ``sync``."""
    count = len(cycles(vm.host, vm.name))
    vm.host.ask("resume", vm.name)
    return _checked(lab, vm, wait_cycles(vm.host, vm.name, count + 1)[count])


def _checked(lab: Lab, vm: Blank, cycle: Document) -> Document:
    assert cycle["outcome"] == "published", cycle
    assert cycle["wire_bytes"] <= LITTLE, cycle
    copies = images(lab.host("b"), vm.uuid, cycle["point"])
    for copy, source in zip(copies, vm.images.values(), strict=True):
        assert same_content(copy, source), copy
    return cycle


def checkpoints(vm: Blank) -> list[str]:
    """Tell the checkpoints that anybody can see."""
    return sorted(vm.host.virsh("checkpoint-list", vm.name, "--name").stdout.split())


def bitmaps(image: Path) -> list[str]:
    """Tell the bitmaps in the image of a VM that is off."""
    data = json.loads(qemu_img("info", "--output=json", str(image)))["format-specific"]["data"]
    return [bitmap["name"] for bitmap in data.get("bitmaps", ())]


def redefine(vm: Blank, old: str, new: str) -> None:
    """Change the definition of the next start as a person with an editor does."""
    xml = vm.host.virsh("dumpxml", "--inactive", vm.name).stdout
    assert old in xml
    virsh = ["virsh", "-q", "-c", vm.host.layout.uri]
    vm.host.exec([*virsh, "define", "/dev/stdin"], stdin=xml.replace(old, new))


def _write_random(vm: Blank, target: str, beside: Path) -> None:
    source = beside.with_suffix(".bytes")
    source.write_bytes(os.urandom(8 * MiB))
    device = f"/machine/peripheral/virtio-disk{ord(target[-1]) - ord('a')}/virtio-backend"
    for act in (f"write -s {source} 0 8M", "flush"):
        said = vm.host.virsh("qemu-monitor-command", vm.name, "--hmp", f'qemu-io -d {device} "{act}"').stdout
        assert "rror" not in said, said
    source.unlink()


# --- a foreign backup tool -------------------------------------------------------------------------------------------


@pytest.mark.skipif(shutil.which("virtnbdbackup") is None, reason="virtnbdbackup is not installed")
def test_virtnbdbackup_and_replication_leave_each_other_alone(lab: Lab, new_blank: NewBlank) -> None:
    vm = new_blank(lab.host("a"), disks=("vda", "vdb"))
    protect(vm)
    kept = vm.host.layout.images / f"{vm.name}-backup"
    for level, theirs in (("full", ["virtnbdbackup.0"]), ("inc", ["virtnbdbackup.0", "virtnbdbackup.1"])):
        vm.host.exec(["virtnbdbackup", "-U", vm.host.layout.uri, "-d", vm.name, "-l", level, "-n", "-o", str(kept)])
        assert checkpoints(vm) == theirs
        touch(vm, "vda", "vdb")
        cycle = sync(lab, vm)
        assert (cycle["kind"], cycle["reason"], cycle["guest_bytes"]) == ("delta", "interval", 8 * KiB)
        assert checkpoints(vm) == theirs, "theirs are left to them, ours are seen by nobody"


def test_while_a_foreign_backup_job_runs_the_cycle_waits_and_soon_goes_on(lab: Lab, new_blank: NewBlank) -> None:
    a = lab.host("a")
    vm = new_blank(a)
    protect(vm)
    job = a.layout.images / f"{vm.name}.xml"
    job.write_text(
        f"<domainbackup mode='pull'><server transport='unix' socket='{job}.sock'/><disks><disk name='vda' backup='yes'"
        f" type='file'><scratch file='{job}.scratch'/></disk></disks></domainbackup>"
    )
    a.virsh("backup-begin", vm.name, str(job))
    touch(vm, "vda")
    code, error = refusal(a, "sync", vm.name)
    assert (code, error["code"], error["kind"]) == (5, "backup-job-running", "transient")
    assert f"{job}.sock" in a.virsh("backup-dumpxml", vm.name).stdout, "the foreign job goes on"
    a.virsh("domjobabort", vm.name)
    later = wait_cycles(a, vm.name, 2, limit=60)[1]
    assert (later["kind"], later["guest_bytes"]) == ("delta", 4 * KiB), "tried again long before the interval of a day"


# --- storage that moves ----------------------------------------------------------------------------------------------


def test_a_disk_moved_by_a_live_block_copy_goes_on_by_deltas(lab: Lab, new_blank: NewBlank) -> None:
    a = lab.host("a")
    vm = new_blank(a, disks=("vda", "vdb"))
    protect(vm)
    moved = a.layout.images / f"{vm.name}-moved.qcow2"
    a.virsh("blockcopy", vm.name, "vda", "--dest", str(moved), "--format", "qcow2", "--transient-job", "--wait")
    touch(vm, "vda")
    error = refusal(a, "sync", vm.name)[1]
    assert (error["code"], error["kind"]) == ("vm-busy", "transient")
    assert "a copy job works on its disk vda" in error["message"]
    a.virsh("blockjob", vm.name, "vda", "--pivot")
    old, vm.images["vda"] = vm.images["vda"], moved
    old.unlink()
    touch(vm, "vda", "vdb")
    assert sync(lab, vm)["kind"] == "delta"


def test_a_disk_moved_while_the_vm_is_off_is_compared_alone_and_the_history_says_why(
    lab: Lab, new_blank: NewBlank
) -> None:
    a = lab.host("a")
    vm = new_blank(a, disks=("vda", "vdb"))
    protect(vm)

    _move(vm, "kept.qcow2", "qcow2", "--bitmaps")
    assert (cycle := resume(lab, vm))["kind"] == "delta", cycle

    _move(vm, "plain.qcow2", "qcow2")
    cycle = resume(lab, vm)
    assert cycle["kind"] == "resync"
    assert cycle["reason"].startswith("vda: ")
    assert "vdb" not in cycle["reason"]

    _move(vm, "disk.raw", "raw")
    cycle = resume(lab, vm)
    assert cycle["kind"] == "resync"
    assert cycle["reason"].startswith("vda: format raw has no place for bitmaps")
    assert (cycle := sync(lab, vm))["reason"] == "interval", cycle

    _move(vm, "back.qcow2", "qcow2")
    assert resume(lab, vm)["reason"].startswith("vda: ")
    assert len(points(a, vm.name)) == 6, "all points are kept"


def _move(vm: Blank, name: str, form: str, *how: str) -> None:
    """Convert the first disk, start the VM on it, and let it write; while replication rests."""
    vm.host.ask("pause", vm.name)
    vm.stop()
    old, new = vm.images["vda"], vm.host.layout.images / f"{vm.name}-{name}"
    was = "raw" if old.suffix == ".raw" else "qcow2"
    qemu_img("convert", "-f", was, "-O", form, *how, str(old), str(new))
    redefine(vm, f"<source file='{old}'/>", f"<source file='{new}'/>")
    if form != was:
        # The first disk's driver stands before the second one's.
        xml = vm.host.virsh("dumpxml", "--inactive", vm.name).stdout
        head, found, tail = xml.partition(f"type='{was}'/>")
        assert found
        virsh = ["virsh", "-q", "-c", vm.host.layout.uri]
        vm.host.exec([*virsh, "define", "/dev/stdin"], stdin=f"{head}type='{form}'/>{tail}")
    old.unlink()
    vm.images["vda"] = new
    vm.start()
    touch(vm, "vda", "vdb")


# --- what libvirt, QEMU or a person forgets ---------------------------------------------------------------------------


def test_what_libvirt_or_the_agent_forgot_costs_nothing_while_the_bitmaps_live(lab: Lab, new_blank: NewBlank) -> None:
    a = lab.host("a")
    vm = new_blank(a, disks=("vda", "vdb"))
    protect(vm)
    assert checkpoints(vm) == []

    # libvirt forgets with the definition, the agent with its state, and both after a move to another host.
    xml = a.virsh("dumpxml", "--inactive", vm.name).stdout
    a.virsh("undefine", vm.name)
    a.exec(["virsh", "-q", "-c", a.layout.uri, "define", "/dev/stdin"], stdin=xml)
    touch(vm, "vda")
    assert (cycle := sync(lab, vm))["kind"] == "delta", cycle

    shutil.rmtree(a.layout.state_dir / "checkpoints" / vm.uuid)
    a.stop_libvirtd()
    shutil.rmtree(a.layout.dir / "libvirt" / "lib" / "qemu" / "checkpoint", ignore_errors=True)
    a.start_libvirtd()
    touch(vm, "vda", "vdb")
    cycle = sync(lab, vm)
    assert (cycle["kind"], cycle["reason"], cycle["guest_bytes"]) == ("delta", "interval", 8 * KiB)


def test_a_vm_defined_anew_without_its_policy_stays_protected(lab: Lab, new_blank: NewBlank) -> None:
    a = lab.host("a")
    vm = new_blank(a)
    protect(vm)
    vm.stop()
    vm.define(more="<title>made by a tool that knows nothing of us</title>")
    assert until(lambda: {"<title>", "<vmreplica:policy"} <= set(_tags(vm)), 60)
    assert until(lambda: vm.name in a.vmreplica("status").stdout, 60)
    vm.start()
    touch(vm, "vda")
    assert (cycle := sync(lab, vm))["kind"] == "delta", cycle


def _tags(vm: Blank) -> list[str]:
    return re.findall(r"<[\w:]+>?", vm.host.virsh("dumpxml", "--inactive", vm.name).stdout)


def test_a_bitmap_lost_on_one_disk_is_made_good_on_that_disk_alone(lab: Lab, new_blank: NewBlank) -> None:
    vm = new_blank(lab.host("a"), disks=("vda", "vdb"))
    protect(vm)
    (checkpoint,) = {point["checkpoint"] for point in points(vm.host, vm.name)}
    vm.host.ask("pause", vm.name)
    vm.stop()
    assert bitmaps(vm.images["vda"]) == bitmaps(vm.images["vdb"]) == [checkpoint]
    qemu_img("bitmap", "--remove", str(vm.images["vdb"]), checkpoint)
    # Somebody else's of the same name, which knows nothing of what was written since.
    qemu_img("bitmap", "--add", "--disable", str(vm.images["vdb"]), checkpoint)
    vm.start()
    touch(vm, "vda", "vdb")
    cycle = resume(lab, vm)
    assert cycle["kind"] == "resync"
    assert cycle["reason"].startswith("vdb: ")
    assert "vda" not in cycle["reason"]
    touch(vm, "vdb")
    assert (cycle := sync(lab, vm))["kind"] == "delta", cycle
    vm.host.ask("pause", vm.name)
    vm.stop()
    newest = points(vm.host, vm.name)[-1]["checkpoint"]
    assert bitmaps(vm.images["vda"]) == bitmaps(vm.images["vdb"]) == [newest], "nothing broken is left in the images"


def test_no_bitmap_is_begun_in_an_image_on_a_file_system_that_is_nearly_full(lab: Lab, new_blank: NewBlank) -> None:
    a = lab.host("a")
    vm = new_blank(a, start=False)
    place = a.layout.images / "small"
    place.mkdir()
    a.exec(["mount", "-t", "tmpfs", "-o", "size=96m", "small", str(place)])
    try:
        a.exec(["mv", str(vm.images["vda"]), str(place)])
        vm.images["vda"] = place / vm.images["vda"].name
        vm.define()
        vm.start()
        vm.write("vda", "0", "2M", 1)
        enable(a, vm.name, every="24h")
        a.exec(["sh", "-c", f"head -c {70 * MiB} /dev/zero > '{place}/filler'"])
        vm.write("vda", "1M", "64k", 2)
        code, error = refusal(a, "sync", vm.name)
        assert (code, error["code"]) == (7, "no-space"), error
        assert f"a bitmap in disk vda of {vm.name}" in error["message"]
        assert str(place) in error["hint"]
        a.exec(["rm", str(place / "filler")])
        cycle = wait_cycles(a, vm.name, 2)[1]
        assert (cycle["kind"], cycle["guest_bytes"]) == ("delta", 64 * KiB)
    finally:
        vm.stop()
        a.exec(["umount", "--lazy", str(place)])


# --- migration -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_migrated_vm_is_replicated_from_its_new_host_once_its_replica_is_handed_over(lab_dir: Path) -> None:
    lab = Lab.up(lab_dir, hosts=3)
    a, b, c = lab.hosts
    lab.pair("a", "b")
    lab.pair("c", "b")
    vm = _on_shared_storage(Blank(a, "mover"), lab_dir / "shared")
    vm.start()
    protect(vm, every="5s")
    code, error = refusal(b, "hand-over", vm.name, "--to", "c", "--yes")
    assert (code, error["code"]) == (5, "vm-runs-there")

    # A job of ours in its way is over within seconds, and libvirt lets the migration wait that long.
    _migrate(vm, a, c)
    vm.host = c
    # A paused VM is not given its disks on the new host before it runs.
    c.virsh("resume", vm.name)
    touch(vm, "vda")
    assert vm.name not in a.vmreplica("status").stdout
    error = refusal(c, "sync", vm.name)[1]
    assert error["code"] == "not-your-replica"
    assert "vmreplica hand-over VM --to PEER" in error["hint"]

    before = [point["point"] for point in points(b, vm.name)]
    b.ask("hand-over", vm.name, "--to", "c", "--yes")
    sync(lab, vm)
    found = cycles(c, vm.name)
    assert {(cycle["kind"], cycle["reason"]) for cycle in found} == {("delta", "interval")}, found
    assert sum(cycle["guest_bytes"] for cycle in found) == 4 * KiB, "by the bitmap that travelled with the disk"
    assert [point["point"] for point in points(b, vm.name)][: len(before)] == before
    assert refusal(a, "status", vm.name)[1]["code"] == "vm-unknown"


def _migrate(vm: Blank, here: Host, there: Host) -> None:
    """Migrate as virt-manager does: a client that is connected to both hosts leads it."""
    how = ["--live", "--persistent", "--undefinesource", "--unsafe", "--migrateuri", f"tcp://{there.address}:49200"]
    subprocess.run(
        ["virsh", "-q", "-c", here.layout.uri, "migrate", *how, vm.name, there.layout.uri], check=True, timeout=120
    )


def _on_shared_storage(vm: Blank, shared: Path) -> Blank:
    """Put the images where all hosts see them under the same path."""
    shared.mkdir()
    for target, image in vm.images.items():
        vm.images[target] = shared / image.name
        image.rename(shared / image.name)
    vm.define()
    return vm
