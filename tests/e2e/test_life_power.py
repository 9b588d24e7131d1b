"""A VM that is switched off, on and over again: its last point is complete, and nothing is sent twice."""

import pytest
from job_kit import NewBlank, disk_xml, enable, qemu_img, refusal, wait_reason
from life_kit import count, last_cycle, protected, require_equal, sync

from vmreplica.lab import Lab
from vmreplica.model.units import KiB

pytestmark = pytest.mark.seeding

#: What a cycle may cost besides data.
OVERHEAD = 8 * KiB


def test_a_vm_that_goes_off_sends_its_last_point_at_once_and_then_rests(lab: Lab, new_blank: NewBlank) -> None:
    vm = protected(lab, new_blank, disks=("vda", "vdb"))
    vm.write("vda", "1M", "64k", 7)
    vm.write("vdb", "0", "64k", 8)
    vm.stop()
    cycle = last_cycle(vm, 2)
    assert (cycle["kind"], cycle["reason"]) == ("delta", "the VM is off: its last point")
    assert cycle["guest_bytes"] <= 2 * 64 * KiB, "the bitmaps tell what to read"
    require_equal(lab, vm)
    assert "nothing is lost" in wait_reason(vm.host, vm.name, "vm-off")["text"]
    code, error = refusal(vm.host, "sync", vm.name)
    assert (code, error["code"]) == (5, "vm-not-running")
    assert "complete" in error["message"]
    assert count(vm) == 2, "one last point is enough"


def test_a_vm_that_starts_again_goes_on_by_what_changed_since_its_last_point(lab: Lab, new_blank: NewBlank) -> None:
    vm = protected(lab, new_blank)
    vm.stop()
    last_cycle(vm, 2)
    vm.start()
    vm.write("vda", "2M", "64k", 9)
    cycle = sync(vm)
    assert (cycle["kind"], cycle["reason"]) == ("delta", "interval")
    assert cycle["guest_bytes"] <= 64 * KiB, "its bitmap began with the last point"
    require_equal(lab, vm)


def test_a_vm_that_is_off_is_protected_from_its_stopped_disks(lab: Lab, new_blank: NewBlank) -> None:
    vm = new_blank(lab.host("a"))
    vm.write("vda", "3M", "1M", 4)
    vm.stop()
    assert enable(vm.host, vm.name, every="24h")["result"]["kind"] == "initial"
    require_equal(lab, vm)
    vm.start()
    vm.write("vda", "9M", "64k", 5)
    cycle = sync(vm)
    assert (cycle["kind"], cycle["reason"]) == ("delta", "interval")
    require_equal(lab, vm)


def test_a_killed_vm_has_its_last_point_compared(lab: Lab, new_blank: NewBlank) -> None:
    vm = protected(lab, new_blank)
    vm.stop()
    last_cycle(vm, 2)
    vm.start()
    last_cycle(vm, 3)
    vm.write("vda", "2M", "64k", 9)
    vm.host.exec(["pkill", "-KILL", "-f", f"guest={vm.name},"])
    cycle = last_cycle(vm, 4)
    assert cycle["kind"] == "resync"
    assert "QEMU was killed" in cycle["reason"]
    assert cycle["wire_bytes"] <= 64 * KiB + OVERHEAD
    require_equal(lab, vm)
    vm.start()
    assert sync(vm)["kind"] == "delta", "the last point put sound bitmaps in its images"


def test_a_raw_disk_of_a_vm_that_is_off_is_compared(lab: Lab, new_blank: NewBlank) -> None:
    raw = lab.host("a").layout.images / "stopped.raw"
    qemu_img("create", "-q", "-f", "raw", str(raw), "64M")
    vm = protected(lab, new_blank, devices=disk_xml("vdb", raw, "raw"))
    vm.write("vdb", "1M", "64k", 3)
    vm.stop()
    cycle = last_cycle(vm, 2)
    assert cycle["kind"] == "delta"
    assert cycle["wire_bytes"] <= 64 * KiB + OVERHEAD
    require_equal(lab, vm, vm.images | {"vdb": raw})
    raw.unlink()
