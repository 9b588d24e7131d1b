"""Snapshots taken, merged, reverted and deleted: replication goes on by itself, and the newest point is the VM."""

import pytest
from job_kit import NewBlank, wait_cycles
from life_kit import count, last_cycle, protected, require_equal, sync

from vmreplica.lab import Lab
from vmreplica.model.units import KiB

pytestmark = pytest.mark.seeding

OVERHEAD = 8 * KiB


@pytest.mark.slow
def test_an_external_snapshot_and_its_merge_are_followed(lab: Lab, new_blank: NewBlank) -> None:
    vm = protected(lab, new_blank)
    base = vm.images["vda"]
    overlay = base.with_suffix(".overlay")
    vm.write("vda", "1M", "64k", 2)
    vm.host.virsh("snapshot-create-as", vm.name, "one", "--disk-only", "--diskspec", f"vda,file={overlay}")
    vm.write("vda", "2M", "64k", 3)
    vm.images["vda"] = overlay
    cycle = sync(vm)
    assert cycle["wire_bytes"] <= OVERHEAD
    assert cycle["reason"] == "interval" or "vda" in cycle["reason"]
    require_equal(lab, vm)
    vm.write("vda", "3M", "64k", 4)
    vm.host.virsh("blockcommit", vm.name, "vda", "--active", "--pivot", "--wait")
    vm.images["vda"] = base
    vm.write("vda", "4M", "64k", 5)
    cycle = sync(vm)
    assert cycle["wire_bytes"] <= OVERHEAD
    require_equal(lab, vm)
    assert sync(vm)["reason"] == "interval"
    vm.host.virsh("snapshot-delete", vm.name, "one", "--metadata")
    overlay.unlink()


def test_an_internal_snapshot_is_reverted_after_a_release_and_compared(lab: Lab, new_blank: NewBlank) -> None:
    vm = protected(lab, new_blank)
    vm.host.virsh("snapshot-create-as", vm.name, "one")
    vm.write("vda", "1M", "64k", 2)
    assert sync(vm)["reason"] == "interval", "a snapshot taken changes nothing"
    vm.host.vmreplica("pause", vm.name, "--release")
    vm.host.virsh("snapshot-revert", vm.name, "one")
    vm.host.vmreplica("resume", vm.name)
    cycle = last_cycle(vm, 3)
    assert cycle["kind"] == "resync"
    assert "checkpoint" in cycle["reason"]
    assert cycle["wire_bytes"] <= OVERHEAD
    require_equal(lab, vm)
    vm.host.virsh("snapshot-delete", vm.name, "one")
    vm.write("vda", "2M", "64k", 3)
    assert sync(vm)["reason"] == "interval", "nor does one that is deleted"
    require_equal(lab, vm)


@pytest.mark.slow
def test_a_snapshot_reverted_while_the_vm_is_off_is_sent_from_its_stopped_disks(lab: Lab, new_blank: NewBlank) -> None:
    vm = protected(lab, new_blank)
    vm.stop()
    last_cycle(vm, 2)
    vm.host.exec(["qemu-img", "snapshot", "-c", "one", str(vm.images["vda"])])
    vm.start()
    wait_cycles(vm.host, vm.name, 3)
    vm.write("vda", "1M", "64k", 2)
    vm.stop()
    done = count(vm)
    assert last_cycle(vm, max(done, 4))["guest_bytes"] <= 64 * KiB
    vm.host.vmreplica("pause", vm.name, "--release")
    vm.host.exec(["qemu-img", "snapshot", "-a", "one", str(vm.images["vda"])])
    vm.host.vmreplica("resume", vm.name)
    cycle = last_cycle(vm, max(done, 4) + 1)
    assert cycle["kind"] == "resync"
    require_equal(lab, vm)
