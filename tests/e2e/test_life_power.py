"""A VM that is switched off, on and over again: its last point is complete, and nothing is sent twice."""

import os
from collections.abc import Iterator

import pytest
from job_kit import (
    NewBlank,
    NewGuest,
    check_point,
    disk_xml,
    enable,
    points,
    qemu_img,
    reasons,
    refusal,
    relation,
    wait_reason,
)
from life_kit import count, last_cycle, protected, require_equal, sync, write_noise

from vmreplica.lab import Lab, check_records
from vmreplica.lab.waiting import until
from vmreplica.model.units import KiB, MiB

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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.fixture
def small_spool(lab: Lab) -> Iterator[None]:
    """Let host a read no further ahead than it sends."""
    config = lab.host("a").layout.agent_config
    usual = config.read_text()
    for text in (f"{usual}\n[limits]\nspool_cap = {12 * MiB}\n", usual):
        config.write_text(text)
        lab.host("a").stop_agent()
        lab.host("a").start_agent()
        if text != usual:
            yield


@pytest.mark.usefixtures("small_spool")
def test_a_vm_started_while_its_stopped_disks_are_read_starts_and_gets_no_torn_point(
    lab: Lab, new_blank: NewBlank
) -> None:
    a = lab.host("a")
    raw = a.layout.images / "long.raw"
    raw.write_bytes(os.urandom(64 * MiB))
    vm = new_blank(a, devices=disk_xml("vdb", raw, "raw"), start=False)
    a.vmreplica("enable", vm.name, "--to", "b", "--every", "24h", "--limit", "4M", "--no-wait")
    assert until(lambda: (relation(a, vm.name)["progress"] or {}).get("done_bytes", 0) > 0, 60), relation(a, vm.name)
    vm.start()
    vm.write("vdb", "0", "1M", 5)
    vm.write("vdb", "63M", "1M", 6)
    a.vmreplica("limit", vm.name, "none")
    first = last_cycle(vm, 1)
    assert (first["kind"], first["reason"]) == ("initial", "no point yet")
    assert [cycle["error_code"] for cycle in a.ask("history", vm.name)["cycles"]] == [None, "vm-started"]
    sync(vm)  # the first point may have come between the writes
    require_equal(lab, vm, vm.images | {"vdb": raw})
    raw.unlink()


@pytest.mark.slow
def test_a_vm_switched_off_in_the_middle_of_a_cycle_ends_it_and_its_last_point_has_everything(
    lab: Lab, new_blank: NewBlank
) -> None:
    vm = protected(lab, new_blank)
    write_noise(vm, "vda", 0, 48 * MiB)
    vm.host.vmreplica("limit", vm.name, "2M")
    vm.host.vmreplica("sync", vm.name, "--no-wait")
    assert until(lambda: relation(vm.host, vm.name)["progress"] is not None, 60)
    vm.stop()
    vm.host.vmreplica("limit", vm.name, "none")
    assert until(lambda: "vm-off" in reasons(vm.host, vm.name), 90), vm.host.ask("history", vm.name)
    require_equal(lab, vm)


@pytest.mark.slow
def test_a_vm_reset_in_the_middle_of_a_cycle_does_not_disturb_it(lab: Lab, new_blank: NewBlank) -> None:
    vm = protected(lab, new_blank)
    write_noise(vm, "vda", 0, 24 * MiB)
    vm.host.vmreplica("limit", vm.name, "2M")
    vm.host.vmreplica("sync", vm.name, "--no-wait")
    assert until(lambda: relation(vm.host, vm.name)["progress"] is not None, 60)
    vm.host.virsh("reset", vm.name)
    vm.host.vmreplica("limit", vm.name, "none")
    assert last_cycle(vm, 2)["reason"] == "interval"
    require_equal(lab, vm)


@pytest.mark.slow
def test_a_real_guest_that_is_switched_off_loses_no_record_in_a_failover(lab: Lab, new_guest: NewGuest) -> None:
    a, b = lab.host("a"), lab.host("b")
    guest = new_guest(a, disks=2)
    guest.wait_record(3)
    enable(a, guest.name, every="24h")
    guest.wait_record((guest.last_seen() or 0) + 20)
    guest.stop()
    last = check_records(guest.images).last
    assert until(lambda: "vm-off" in reasons(a, guest.name), 90), a.ask("history", guest.name)
    assert check_point(b, guest.uuid, points(b, guest.name)[-1]["point"]).last == last
    lab.crash("a")
    b.ask("failover", guest.name, "--yes")
    assert b.wait_domain_alive(guest.name) > last, "it goes on behind the very last record"
