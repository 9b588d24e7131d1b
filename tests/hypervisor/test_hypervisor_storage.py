"""Disks on any storage in one backup job, and which of them lost their change tracking."""

import contextlib
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from libvirt_kit import Guest, PrivateLibvirtd, bitmaps, disk_xml, loop_device, make_image
from nbd_kit import content, dirty

from vmreplica.hypervisor import CheckpointBroken, Hypervisor
from vmreplica.model.units import CLUSTER, MiB

pytestmark = pytest.mark.seeding

NewGuest = Callable[..., Guest]
#: No whole number of sectors.
ODD = 5 * MiB + 1000


def name(number: int) -> str:
    return f"vmreplica-0123abcd-20260101T000000Z-{number:08x}"


def files_below(place: Path) -> list[Path]:
    return [path for path in place.rglob("*") if not path.is_dir()]


@pytest.fixture
def devices(home: Path) -> Iterator[tuple[Path, Path]]:
    """Two block devices: 4 MiB raw, and 8 MiB with a qcow2 image of 5 MiB."""
    with contextlib.ExitStack() as stack:
        raw = stack.enter_context(loop_device(home / "loop-raw", 4 * MiB))
        formatted = stack.enter_context(loop_device(home / "loop-qcow2", 8 * MiB))
        yield raw, make_image(formatted, "5M")


@pytest.fixture
def mixed(new_guest: NewGuest, home: Path, devices: tuple[Path, Path]) -> Guest:
    """A guest with disks on every kind of storage, off: vda and vde can hold bitmaps."""
    odd, old = home / "odd.img", make_image(home / "old.qcow2", "3M", "-o", "compat=0.10")
    odd.write_bytes(bytes(ODD))
    raw, formatted = devices
    for form in ("vdi", "vmdk"):
        subprocess.run(["qemu-img", "create", "-q", "-f", form, str(home / form), "2M"], check=True, timeout=30)
    return new_guest(
        start=False,
        devices=disk_xml("vdb", odd, form="raw")
        + disk_xml("vdc", old)
        + disk_xml("vdd", raw, form="raw", driver="cache='none' io='native'")
        + disk_xml("vde", formatted)
        + disk_xml("vdf", home / "vdi", form="vdi")
        + disk_xml("vdg", home / "vmdk", form="vmdk"),
    )


def test_any_storage_can_be_replicated_and_only_qcow2_with_room_for_bitmaps_is_tracked(
    hypervisor: Hypervisor, mixed: Guest
) -> None:
    off = hypervisor.inspect(mixed.vm)
    mixed.start()
    on = hypervisor.inspect(mixed.vm)
    assert off.disks == on.disks
    assert [disk.reason_ineligible for disk in on.disks] == [None] * 7
    assert {disk.target for disk in on.disks if disk.tracked} == {"vda", "vde"}
    reasons = {disk.target: disk.reason_untracked or "" for disk in on.disks}
    assert "format raw" in reasons["vdb"]
    assert "qemu-img amend" in reasons["vdc"]
    sectors = -(-ODD // 512) * 512
    sizes = {disk.target: disk.size for disk in on.disks}
    assert sizes == {
        "vda": 64 * MiB, "vdb": sectors, "vdc": 3 * MiB, "vdd": 4 * MiB, "vde": 5 * MiB, "vdf": 2 * MiB, "vdg": 2 * MiB,
    }  # fmt: skip


def test_disks_without_bitmaps_are_frozen_at_the_same_instant_and_stay_out_of_the_checkpoint(
    hypervisor: Hypervisor, mixed: Guest
) -> None:
    mixed.start()
    disks = {disk.target: disk for disk in hypervisor.inspect(mixed.vm).disks}
    for target in disks:
        mixed.write(target, "0", "64k", 1)
    with hypervisor.begin_backup(mixed.vm, checkpoint=name(1), targets=list(disks)) as job:
        for target in disks:
            mixed.write(target, "0", "64k", 2)
        for target, disk in disks.items():
            export = job.exports[target]
            assert (export.size, export.bitmap) == (disk.size, None)
            assert content(export, 0, 2 * CLUSTER) == b"\x01" * CLUSTER + bytes(CLUSTER), target
            assert content(export, disk.size - 512, 512) == bytes(512), target
    for target, disk in disks.items():
        assert (hypervisor.checkpoint_usable(mixed.vm, name(1), [target]) is None) == disk.tracked, target
    bases = {target: name(1) if disk.tracked else None for target, disk in disks.items()}
    with hypervisor.begin_backup(mixed.vm, checkpoint=name(2), bases=bases) as job:
        assert {target for target, export in job.exports.items() if export.bitmap} == {"vda", "vde"}
        assert dirty(job.exports["vda"]) == dirty(job.exports["vde"]) == [(0, CLUSTER)]
        assert content(job.exports["vdb"], 0, CLUSTER) == b"\x02" * CLUSTER


def test_bitmaps_on_a_block_device_outlive_the_vm(hypervisor: Hypervisor, mixed: Guest) -> None:
    mixed.start()
    hypervisor.begin_backup(mixed.vm, checkpoint=name(1), targets=["vda", "vde"]).end()
    mixed.virsh("destroy", mixed.name)
    mixed.start()
    mixed.write("vde", "1M", "64k", 3)
    with hypervisor.begin_backup(mixed.vm, checkpoint=name(2), base=name(1), targets=["vda", "vde"]) as job:
        assert dirty(job.exports["vde"]) == [(1 * MiB, CLUSTER)]
        assert dirty(job.exports["vda"]) == []


def test_a_job_of_untracked_disks_alone_makes_no_checkpoint_and_lives_like_any_other(
    libvirtd: PrivateLibvirtd, hypervisor: Hypervisor, mixed: Guest, home: Path
) -> None:
    mixed.start()
    begun = hypervisor.begin_backup(mixed.vm, checkpoint=name(1), targets=["vdb", "vdd"])
    mixed.write("vdd", "0", "64k", 5)
    assert begun.scratch_bytes() >= CLUSTER
    later = Hypervisor(libvirtd.uri, home / "run", home / "state")
    found = later.attach_backup(mixed.vm, name(1))
    assert found is not None
    assert found.exports == begun.exports
    assert content(found.exports["vdd"], 0, CLUSTER) == bytes(CLUSTER)
    found.end()
    later.close()
    assert not begun.alive()
    assert files_below(home / "run") == files_below(home / "state") == []
    assert hypervisor.checkpoints(mixed.vm) == []
    hypervisor.delete_checkpoint(mixed.vm, name(1))


def test_a_base_of_a_disk_that_cannot_hold_a_bitmap_is_broken_on_just_that_disk(
    hypervisor: Hypervisor, mixed: Guest
) -> None:
    mixed.start()
    hypervisor.begin_backup(mixed.vm, checkpoint=name(1), targets=["vda", "vdc"]).end()
    with pytest.raises(CheckpointBroken, match="vdc cannot hold") as caught:
        hypervisor.begin_backup(mixed.vm, checkpoint=name(2), base=name(1), targets=["vda", "vdc"])
    assert caught.value.disks == {"vdc"}


@pytest.fixture
def three(new_guest: NewGuest, hypervisor: Hypervisor) -> Guest:
    """A guest with vda, vdb and vdc, a checkpoint 1, and after that a write to each."""
    guest = new_guest("vda", "vdb", "vdc")
    hypervisor.begin_backup(guest.vm, checkpoint=name(1), targets=list(guest.disks)).end()
    for target in guest.disks:
        guest.write(target, "1M", "64k", 7)
    return guest


def broken_disks(hypervisor: Hypervisor, guest: Guest) -> frozenset[str]:
    """Ask for all changes since checkpoint 1, which fails."""
    with pytest.raises(CheckpointBroken) as caught:
        hypervisor.begin_backup(guest.vm, checkpoint=name(2), base=name(1), targets=list(guest.disks))
    assert caught.value.code == "checkpoint-broken"
    return caught.value.disks


def assert_others_go_on(hypervisor: Hypervisor, guest: Guest, broken: set[str]) -> None:
    """Without a base for the broken disks the job begins, and the others are incremental; then all is cleaned up."""
    bases = {target: None if target in broken else name(1) for target in guest.disks}
    with hypervisor.begin_backup(guest.vm, checkpoint=name(2), bases=bases) as job:
        for target, export in job.exports.items():
            assert (export.bitmap is None) == (target in broken)
            assert export.bitmap is None or dirty(export) == [(1 * MiB, CLUSTER)]
    assert hypervisor.checkpoint_usable(guest.vm, name(2), list(guest.disks)) is None
    hypervisor.delete_checkpoint(guest.vm, name(1))
    assert hypervisor.checkpoints(guest.vm) == [name(2)]
    guest.virsh("destroy", guest.name)
    assert [bitmaps(image) for image in guest.disks.values()] == [[name(2)]] * len(guest.disks)


@pytest.mark.parametrize("broken", [{"vdc"}, {"vda", "vdb"}])
def test_every_disk_whose_bitmap_vanished_is_named_and_no_other(
    hypervisor: Hypervisor, three: Guest, home: Path, broken: set[str]
) -> None:
    for target in broken:
        three.remove_bitmap(target, name(1))
    assert broken_disks(hypervisor, three) == broken
    assert hypervisor.checkpoints(three.vm) == [name(1)]
    assert files_below(home / "run") == []
    assert_others_go_on(hypervisor, three, broken)


def test_a_kill_of_qemu_breaks_the_bitmaps_of_all_disks(hypervisor: Hypervisor, three: Guest) -> None:
    three.virsh("destroy", three.name)
    three.start()
    three.crash()
    three.start()
    assert broken_disks(hypervisor, three) == set(three.disks)
    assert_others_go_on(hypervisor, three, set(three.disks))


def test_an_image_replaced_by_a_copy_loses_its_bitmap_and_the_others_keep_theirs(
    hypervisor: Hypervisor, three: Guest, home: Path
) -> None:
    three.virsh("destroy", three.name)
    copy = home / "copy.qcow2"
    subprocess.run(["qemu-img", "convert", "-O", "qcow2", str(three.disks["vdb"]), str(copy)], check=True, timeout=60)
    copy.replace(three.disks["vdb"])
    three.start()
    assert broken_disks(hypervisor, three) == {"vdb"}
    assert_others_go_on(hypervisor, three, {"vdb"})


def test_a_checkpoint_that_libvirt_forgot_is_used_for_the_disks_that_still_have_their_bitmaps(
    hypervisor: Hypervisor, three: Guest
) -> None:
    three.virsh("checkpoint-delete", three.name, name(1), "--metadata")
    three.remove_bitmap("vda", name(1))
    three.remove_bitmap("vdc", name(1))
    assert broken_disks(hypervisor, three) == {"vda", "vdc"}
    assert_others_go_on(hypervisor, three, {"vda", "vdc"})


def test_a_checkpoint_that_libvirt_forgot_with_all_its_bitmaps_gone_is_broken_on_all_disks(
    hypervisor: Hypervisor, three: Guest
) -> None:
    three.virsh("checkpoint-delete", three.name, name(1))
    assert broken_disks(hypervisor, three) == set(three.disks)
    assert_others_go_on(hypervisor, three, set(three.disks))


def test_a_checkpoint_that_libvirt_forgot_is_used_although_one_of_its_disks_was_taken_away(
    hypervisor: Hypervisor, three: Guest
) -> None:
    three.virsh("checkpoint-delete", three.name, name(1), "--metadata")
    three.virsh("destroy", three.name)
    three.virsh("detach-disk", three.name, "vdc", "--config")
    taken = three.disks.pop("vdc")
    three.start()
    assert_others_go_on(hypervisor, three, set())
    assert taken.exists()


def test_a_checkpoint_of_a_vm_that_is_off_is_deleted_from_the_volumes_of_a_pool(
    hypervisor: Hypervisor, new_guest: NewGuest, libvirtd: PrivateLibvirtd, home: Path
) -> None:
    pool = home / "pool"
    pool.mkdir()
    image = make_image(pool / "v.qcow2", "1M")
    libvirtd.virsh("pool-create-as", home.name, "dir", "--target", str(pool))
    guest = new_guest(
        devices="<disk type='volume' device='disk'><driver name='qemu' type='qcow2'/>"
        f"<source pool='{home.name}' volume='v.qcow2'/><target dev='vdb' bus='virtio'/></disk>"
    )
    hypervisor.begin_backup(guest.vm, checkpoint=name(1), targets=["vda", "vdb"]).end()
    guest.virsh("destroy", guest.name)
    assert bitmaps(image) == [name(1)]
    hypervisor.delete_checkpoint(guest.vm, name(1))
    assert bitmaps(image) == []
    libvirtd.virsh("pool-destroy", home.name)
