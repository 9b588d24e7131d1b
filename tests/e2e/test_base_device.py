"""The base of a replica on a block device, through the command line, to a failover."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from device_kit import loop_device
from job_kit import (
    NewBlank,
    NewGuest,
    check_point,
    cycles,
    enable,
    images,
    points,
    refusal,
    relation,
    same_content,
    wait_cycles,
)

from vmreplica.lab import Guest, Host, Lab
from vmreplica.lab.waiting import until
from vmreplica.model.units import MiB

pytestmark = pytest.mark.seeding


def base(replica: Host, vm: str) -> dict[str, Any]:
    """Read what the oldest point says about its disks, by target."""
    store = replica.layout.store / vm / "points"
    (alone,) = (
        manifest
        for path in sorted(store.glob("[0-9]*/manifest.json"))
        if (manifest := json.loads(path.read_text()))["parent"] is None
    )
    return {disk["target"]: disk for disk in alone["disks"]}


@contextlib.contextmanager
def device_for(lab: Lab, name: str, backing: Path, size: int) -> Iterator[Path]:
    """Make a device for a VM's base; its name is used again by others, so its replica goes with it."""
    with loop_device(backing, size) as device:
        try:
            yield device
        finally:
            for host in lab.hosts:
                if host.up:
                    host.vmreplica("disable", name, "--delete-copy", "--yes", check=False)


def test_a_guest_whose_base_stands_on_a_device_is_failed_over_with_all_its_records(
    lab: Lab, new_guest: NewGuest, lab_dir: Path
) -> None:
    a, b = lab.host("a"), lab.host("b")
    guest = new_guest(a, disks=2)
    guest.wait_record(3)
    with device_for(lab, guest.name, lab_dir / "vda", 80 * MiB) as device:
        _expect_to_be_asked(a, guest, device)
        enable(a, guest.name, "--base-device", f"vda={device}", "--keep", "2", "--yes")
        vm = guest.uuid
        wait_cycles(a, guest.name, 4)
        assert until(lambda: base(b, vm)["vda"]["device"] is not None, 60)
        assert base(b, vm)["vda"]["device"]["path"] == str(device)
        assert base(b, vm)["vdb"]["device"] is None

        # On the disks before the cycles begin that follow: whatever the guest's clock says, they have to carry it.
        promised = guest.check().last
        wait_cycles(a, guest.name, len(cycles(a, guest.name)) + 2)
        lab.crash("a")
        plan = b.ask("failover", guest.name, "--yes")["plan"]
        alive = b.wait_domain_alive(guest.name)
        report = check_point(b, vm, plan["point"])
        assert 0 < promised <= report.last <= guest.check().last
        assert alive > report.last
        assert f"/dev/loop{device.name.removeprefix('loop')}" in b.virsh("dumpxml", guest.name).stdout, (
            "the chain of the running copy ends at the device"
        )
        b.virsh("destroy", guest.name)
        b.virsh("undefine", guest.name)
        b.ask("disable", guest.name, "--delete-copy", "--yes")
        with device.open("rb") as raw:
            assert raw.read(512)[-2:] == b"\x55\xaa", "the device keeps its content"


def _expect_to_be_asked(a: Host, guest: Guest, device: Path) -> None:
    """Nobody's data is lost unasked, and no device is taken that the replica does not give away."""
    code, error = refusal(a, "enable", guest.name, "--to", "b", "--base-device", f"vda={device}")
    assert (code, error["code"]) == (2, "confirmation-needed")
    assert str(device) in error["message"]
    assert "80.0 MiB" in error["message"]
    for wish, expected in {
        "vda=/dev/vg/web": "base-device-forbidden",
        f"vdc={device}": "disk-unknown",
    }.items():
        assert refusal(a, "enable", guest.name, "--to", "b", "--yes", "--base-device", wish)[1]["code"] == expected
    assert guest.uuid not in {row["vm"] for row in a.ask("status")["relationships"]}


def test_a_disk_that_outgrows_its_device_is_told_on_both_sides_and_still_replicated(
    lab: Lab, new_blank: NewBlank, lab_dir: Path
) -> None:
    a, b = lab.host("a"), lab.host("b")
    vm = new_blank(a)
    vm.write("vda", "0", "1M", 1)
    with device_for(lab, vm.name, lab_dir / "vda", 64 * MiB) as device:
        enable(a, vm.name, "--base-device", f"vda={device}", "--keep", "1", "--yes", every="24h")
        assert until(lambda: base(b, vm.uuid)["vda"]["device"] is not None, 60)
        a.virsh("blockresize", vm.name, "vda", "65M")
        vm.write("vda", "64M", "1M", 2)
        a.ask("sync", vm.name)
        assert until(lambda: "does not fit" in json.dumps(relation(b, vm.name)["health"]), 60)
        a.ask("sync", vm.name)
        assert "does not fit" in json.dumps(relation(a, vm.name)["health"])
        newest = points(b, vm.name)[-1]["point"]
        (copy,) = images(b, vm.uuid, newest)
        assert same_content(copy, vm.images["vda"])
