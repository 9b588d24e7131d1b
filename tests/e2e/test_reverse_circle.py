"""A VM that is failed over there and back again and again: each host adopts what the VM ran on, wherever that is."""

from pathlib import Path

import pytest
from job_kit import Blank, NewBlank, enable, inside, points, switch_off
from life_kit import write_noise
from reverse_kit import KiB, MiB, on, require_equal, wait_reversed

from vmreplica.lab import Host, Lab

pytestmark = pytest.mark.failover


def test_a_vm_goes_there_and_back_and_there_again_and_its_disks_stay_where_they_are(
    lab: Lab, new_blank: NewBlank
) -> None:
    a, b = lab.host("a"), lab.host("b")
    vm = new_blank(a)
    write_noise(vm, "vda", MiB, 4 * MiB)
    enable(a, vm.name, every="24h")

    _move(vm, a, b)
    assert _lowest(a, vm) == vm.images["vda"], "a's base is its old disk"
    _move(vm, b, a)
    assert _lowest(b, vm) == _store(b, vm) / "base" / "vda.qcow2", "b's base is what the VM ran on in its store"
    _move(vm, a, b)
    assert _lowest(a, vm) == _store(a, vm) / "base" / "vda.qcow2", "what it ran on in a's store stands on the old disk"
    assert vm.images["vda"].exists()


def _move(vm: Blank, old: Host, new: Host) -> None:
    """Fail the VM over with all it has written, swap the roles, and make it independent of the points there."""
    switch_off(on(old, vm))
    new.ask("failover", vm.name, "--yes")
    here = on(new, vm)
    write_noise(here, "vda", 8 * MiB, 64 * KiB)
    first = new.ask("reverse", vm.name, "--yes", timeout=300)["result"]
    assert (first["kind"], first["outcome"]) == ("delta", "published")
    assert first["wire_bytes"] <= 1.2 * 64 * KiB, "nothing is sent again"
    wait_reversed(new, vm.name)
    new.ask("commit", vm.name, "--yes", timeout=300)
    write_noise(here, "vda", 9 * MiB, 64 * KiB)
    assert new.ask("sync", vm.name, timeout=300)["result"]["outcome"] == "published"
    require_equal(old, new, vm)
    test = old.ask("failover", vm.name, "--test")
    assert test["test"]["running"] is not False
    old.ask("failover", vm.name, "--test", "--cancel")


def _store(host: Host, vm: Blank) -> Path:
    return host.layout.store / vm.uuid


def _lowest(host: Host, vm: Blank) -> Path:
    """Tell what the images of the oldest point on a host stand on."""
    oldest = points(host, vm.name)[0]["point"]
    image = inside(host, host.layout.store) / vm.uuid / "points" / oldest / "vda.qcow2"
    backing = image.read_bytes()[:4096]
    place, size = int.from_bytes(backing[8:16], "big"), int.from_bytes(backing[16:20], "big")
    name = backing[place : place + size].decode()
    return Path(name) if name.startswith("/") else _store(host, vm) / name.removeprefix("../../")
