"""Roles swapped after an unplanned failover: the old primary becomes the replica, with its old disks in place."""

import sys
import uuid
from pathlib import Path

import pytest
from job_kit import (
    Blank,
    NewBlank,
    NewGuest,
    check_point,
    cycles,
    enable,
    inside,
    points,
    refusal,
    relation,
    same_content,
    switch_off,
    wait_cycles,
)
from life_kit import write_noise
from reverse_kit import KiB, MiB, diverge, keep, on, require_equal, require_swapped, wait_reversed

from vmreplica.lab import Host, Lab
from vmreplica.peer.wire import ReverseRequest

pytestmark = pytest.mark.failover


def test_the_old_primary_becomes_the_replica_and_only_what_differs_travels(
    lab: Lab, new_blank: NewBlank, tmp_path: Path
) -> None:
    a, b = lab.host("a"), lab.host("b")
    vm = new_blank(a)
    distinct = diverge(lab, vm)
    unsent = keep(vm.images["vda"], tmp_path / "unsent")
    _expect_to_wait_for_the_old_primary(b, vm)

    lab.start("a")
    wait_reversed(b, vm.name)
    require_swapped(a, b, vm)
    first = cycles(b, vm.name)[0]
    assert first["kind"] == "resync"
    assert 2 * MiB < first["wire_bytes"] <= 1.2 * distinct, first
    adopted, newest = points(a, vm.name)
    assert (adopted["kind"], newest["kind"]) == ("adopted", "resync")
    require_equal(a, b, vm)
    held = inside(a, a.layout.store) / vm.uuid / "points" / adopted["point"] / "vda.qcow2"
    assert same_content(held, unsent), "what was never sent is kept"
    _expect_it_to_go_on(a, b, vm)
    _expect_the_unsent_writes_to_boot(a, vm, adopted["point"])
    assert same_content(vm.images["vda"], unsent), "nothing writes into the base but a fold"


def _expect_to_wait_for_the_old_primary(b: Host, vm: Blank) -> None:
    plan = b.ask("reverse", vm.name, "--dry-run")
    assert [step["name"] for step in plan["steps"]] == ["protect", "adopt", "undefine", "send"]
    assert any("does not answer" in warning for warning in plan["warnings"])
    assert relation(b, vm.name)["role"] == "replica", "nothing was done yet"
    said = b.ask("reverse", vm.name, "--yes")
    assert said["error_code"] == "old-primary-away"
    state = relation(b, vm.name)
    assert (state["role"], state["state"], state["waits"]) == ("primary", "reversing", "old-primary-away")
    assert {reason["code"] for reason in state["health"]["reasons"]} == {"not-protected"}
    assert state["stands_on"] == 1
    assert refusal(b, "enable", vm.name, "--to", "a", "--every", "1m")[1]["code"] == "reversing", "no fresh copy there"
    assert refusal(b, "failover", vm.name, "--cancel", "--yes")[1]["code"] == "roles-swapped"


def _expect_it_to_go_on(a: Host, b: Host, vm: Blank) -> None:
    moved = on(b, vm)
    write_noise(moved, "vda", 30 * MiB, 64 * KiB)
    cycle = b.ask("sync", vm.name, timeout=300)["result"]
    assert (cycle["kind"], cycle["outcome"]) == ("delta", "published")
    assert cycle["guest_bytes"] <= 2 * 64 * KiB, "its bitmap tells what changed"
    require_equal(a, b, vm)
    assert [point["point"] for point in b.ask("points", vm.name)["points"]] == [
        point["point"] for point in a.ask("points", vm.name)["points"]
    ]
    assert b.ask("reverse", vm.name, "--yes")["result"]["outcome"] == "published", "again is harmless"


def _expect_the_unsent_writes_to_boot(a: Host, vm: Blank, point: str) -> None:
    test = a.ask("failover", vm.name, "--test", "--point", point)
    assert test["test"]["running"] is not False
    a.ask("failover", vm.name, "--test", "--cancel")


def test_after_an_acknowledged_last_write_nothing_is_sent_again_and_only_the_replica_may_ask(
    lab: Lab, new_blank: NewBlank
) -> None:
    a, b = lab.host("a"), lab.host("b")
    vm, foreign = new_blank(a), new_blank(a, start=False)
    write_noise(vm, "vda", 0, 4 * MiB)
    enable(a, vm.name, every="24h")
    assert _ask(b, vm, epoch=99) == "vm-runs-there", "a VM that runs is never taken away"
    switch_off(vm)
    assert _ask(b, vm, epoch=1, vm_id=foreign.uuid) == "not-your-vm"
    assert _ask(b, vm, epoch=1, vm_id=str(uuid.uuid4())) == "not-your-vm"
    assert refusal(b, "reverse", vm.name, "--yes")[1]["code"] == "not-failed-over"
    assert {vm.name, foreign.name} <= set(a.guest_names())

    last = points(b, vm.name)[-1]["point"]
    b.ask("failover", vm.name, "--yes")
    write_noise(on(b, vm), "vda", 20 * MiB, 64 * KiB)
    cycle = b.ask("reverse", vm.name, "--yes", timeout=300)["result"]
    assert (cycle["kind"], cycle["outcome"]) == ("delta", "published"), "its changes were tracked from the first one on"
    assert 64 * KiB <= cycle["wire_bytes"] <= 1.2 * 64 * KiB, cycle
    wait_reversed(b, vm.name)
    require_swapped(a, b, vm)
    require_equal(a, b, vm)
    oldest = points(a, vm.name)[0]
    assert (oldest["point"], oldest["kind"], oldest["wire_bytes"]) == (last, "final", 0)
    assert _ask(b, vm, epoch=1) == "agreed", "again it is just answered"
    assert _ask(b, vm, epoch=7) == "not-your-vm", "there is nothing left to take over"
    _expect_either_side_to_give_it_up(a, b, vm)


def _expect_either_side_to_give_it_up(a: Host, b: Host, vm: Blank) -> None:
    a.ask("disable", vm.name, "--delete-copy", "--yes")
    assert not (inside(a, a.layout.store) / vm.uuid).exists()
    assert vm.images["vda"].exists(), "the old disk was never ours to delete"
    assert refusal(b, "sync", vm.name)[1]["code"] == "not-your-replica"
    b.ask("disable", vm.name, "--yes")
    left = relation(b, vm.name)
    assert (left["role"], left["state"]) == ("replica", "failed-over"), "it runs on, on the points it was started from"
    assert vm.name in b.guest_names()


@pytest.mark.slow
def test_guests_write_all_the_time_and_nothing_that_was_written_on_either_side_is_lost(
    lab: Lab, new_guest: NewGuest
) -> None:
    a, b = lab.host("a"), lab.host("b")
    guest = new_guest(a, disks=2)
    vm = guest.uuid
    guest.wait_record(3)
    enable(a, guest.name)
    wait_cycles(a, guest.name, 2)
    lab.cut("a", "b")
    guest.wait_record(guest.check().last + 10)
    lab.crash("a")
    written = guest.check().last
    b.ask("failover", guest.name, "--yes")
    alive = b.wait_domain_alive(guest.name)
    lab.heal("a", "b")
    lab.start("a")
    assert b.ask("reverse", guest.name, "--yes", timeout=300)["result"]["kind"] == "resync"
    wait_cycles(b, guest.name, 3)
    assert b.wait_domain_alive(guest.name) > alive, "its guest was never stopped"

    adopted, *others = points(a, guest.name)
    assert check_point(a, vm, adopted["point"]).last == written, "what was never sent is kept"
    last = [check_point(a, vm, point["point"]).last for point in others]
    assert last == sorted(last)
    assert last[-1] > alive
    test = a.ask("failover", guest.name, "--test", "--point", adopted["point"])["test"]
    assert a.wait_domain_alive(test["name"]) >= written, "it boots"
    a.ask("failover", guest.name, "--test", "--cancel")


def _ask(host: Host, vm: Blank, *, epoch: int, vm_id: str | None = None) -> str:
    request = ReverseRequest(vm=vm_id or vm.uuid, name=vm.name, epoch=epoch, interval=60, keep=3)
    script = Path(__file__).with_name("ask_reverse.py")
    command = [sys.executable, str(script), str(host.layout.state_dir), "a", request.model_dump_json()]
    return host.exec(command).stdout.strip().splitlines()[-1]
