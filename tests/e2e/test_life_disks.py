"""Disks come, go, grow, shrink, and are put back to an earlier state: each cycle goes on by the cheapest sound way."""

import os
import shutil

import pytest
from job_kit import Blank, NewBlank, disk_xml, points, qemu_img
from life_kit import last_cycle, newest, protected, require_equal, stop_and_rest, sync

from vmreplica.lab import Lab
from vmreplica.model.units import KiB, MiB

pytestmark = pytest.mark.seeding

#: What a cycle may cost besides data.
OVERHEAD = 8 * KiB


@pytest.mark.slow
def test_a_disk_that_was_plugged_in_is_followed_and_seeded_alone(lab: Lab, new_blank: NewBlank) -> None:
    vm = protected(lab, new_blank)
    vm.attach("vdb")
    vm.write("vdb", "1M", "2M", 3)
    vm.write("vda", "0", "64k", 4)
    cycle = sync(vm)
    assert (cycle["kind"], cycle["reason"]) == ("delta", "vdb: a new disk")
    assert cycle["guest_bytes"] <= 2 * MiB + 64 * KiB, "the other disk stays incremental"
    require_equal(lab, vm)
    assert sync(vm)["reason"] == "interval"


@pytest.mark.slow
def test_a_removed_disk_stays_in_older_points_only(lab: Lab, new_blank: NewBlank) -> None:
    vm = protected(lab, new_blank, disks=("vda", "vdb"))
    vm.stop()
    last_cycle(vm, 2)
    vm.host.virsh("detach-disk", vm.name, "vdb", "--config")
    vm.images.pop("vdb").unlink()
    vm.start()
    vm.write("vda", "1M", "64k", 2)
    cycle = sync(vm)
    assert (cycle["kind"], cycle["reason"]) == ("delta", "interval")
    assert cycle["guest_bytes"] <= 64 * KiB
    assert set(newest(lab, vm)) == {"vda"}
    assert [len(point["disks"]) for point in points(vm.host, vm.name)][:2] == [2, 2]
    require_equal(lab, vm)


@pytest.mark.slow
def test_a_disk_grown_live_is_followed_incrementally(lab: Lab, new_blank: NewBlank) -> None:
    vm = protected(lab, new_blank)
    vm.host.virsh("blockresize", vm.name, "vda", "96M")
    vm.write("vda", "80M", "64k", 5)
    cycle = sync(vm)
    assert (cycle["kind"], cycle["reason"]) == ("delta", "interval")
    assert cycle["wire_bytes"] <= OVERHEAD
    require_equal(lab, vm)
    assert points(vm.host, vm.name)[-1]["disks"][0]["size"] == 96 * MiB


def test_a_shrunk_disk_is_seeded_alone_and_brings_nothing_back_when_it_grows(lab: Lab, new_blank: NewBlank) -> None:
    vm = protected(lab, new_blank, disks=("vda", "vdb"))
    vm.write("vda", "40M", "1M", 6)
    vm.write("vdb", "0", "4M", 6)
    vm.stop()
    last_cycle(vm, 2)
    qemu_img("resize", "-q", "--shrink", str(vm.images["vda"]), "32M")
    vm.start()
    cycle = last_cycle(vm, 3)
    assert (cycle["kind"], cycle["reason"]) == ("resync", "vda: it became smaller")
    assert cycle["guest_bytes"] <= 9 * MiB, "vdb stays incremental"
    require_equal(lab, vm)
    vm.host.virsh("blockresize", vm.name, "vda", "64M")
    assert sync(vm)["kind"] == "delta"
    require_equal(lab, vm)
    assert len(points(vm.host, vm.name)) == 4, "points from before are kept"


def test_what_a_disk_lost_that_shrank_and_grew_between_two_points_is_gone_at_the_replica(
    lab: Lab, new_blank: NewBlank
) -> None:
    vm = protected(lab, new_blank)
    vm.write("vda", "40M", "1M", 6)
    vm.stop()
    last_cycle(vm, 2)
    for size in ("32M", "64M"):
        qemu_img("resize", "-q", "--shrink", str(vm.images["vda"]), size)
    vm.start()
    last_cycle(vm, 3)
    require_equal(lab, vm)


def test_an_older_copy_put_in_place_is_compared(lab: Lab, new_blank: NewBlank) -> None:
    vm = protected(lab, new_blank)
    vm.stop()
    last_cycle(vm, 2)
    image = vm.images["vda"]
    copy = image.with_suffix(".copy")
    shutil.copy(image, copy)
    vm.start()
    vm.write("vda", "2M", "64k", 7)
    sync(vm)
    done = stop_and_rest(vm)
    copy.replace(image)
    vm.start()
    cycle = last_cycle(vm, done + 1)
    assert cycle["kind"] == "resync"
    assert "vda" in cycle["reason"]
    assert cycle["wire_bytes"] <= OVERHEAD, "the fingerprint knows what differs"
    require_equal(lab, vm)


def start_without_agent(vm: Blank) -> None:
    """Start a protected VM while no agent runs: libvirt's hook lets it pass only on a person's word."""
    vm.host.vmreplica("start", vm.name, "--i-am-sure", "--config", str(vm.host.layout.agent_config))


@pytest.mark.slow
def test_a_copy_from_after_the_latest_point_goes_on_by_its_own_bitmap(lab: Lab, new_blank: NewBlank) -> None:
    vm = protected(lab, new_blank)
    vm.host.stop_agent()
    vm.write("vda", "1M", "64k", 7)
    vm.stop()
    image = vm.images["vda"]
    copy = image.with_suffix(".copy")
    shutil.copy(image, copy)
    start_without_agent(vm)
    vm.write("vda", "2M", "64k", 8)
    vm.stop()
    copy.replace(image)
    start_without_agent(vm)
    vm.host.start_agent()
    cycle = last_cycle(vm, 2)
    assert (cycle["kind"], cycle["reason"]) == ("delta", "interval")
    assert cycle["guest_bytes"] <= 64 * KiB
    require_equal(lab, vm)


@pytest.mark.slow
def test_another_image_put_in_place_of_a_resting_one_is_sent_while_the_vm_is_off(lab: Lab, new_blank: NewBlank) -> None:
    raw = lab.host("a").layout.images / "replaced.raw"
    qemu_img("create", "-q", "-f", "raw", str(raw), "16M")
    vm = protected(lab, new_blank, devices=disk_xml("vdb", raw, "raw"))
    vm.stop()
    last_cycle(vm, 2)
    raw.write_bytes(os.urandom(64 * KiB) + bytes(16 * MiB - 64 * KiB))
    vm.host.ask("sync", vm.name, timeout=300)
    require_equal(lab, vm, vm.images | {"vdb": raw})
    raw.unlink()
