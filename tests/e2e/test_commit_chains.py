"""Commits of long chains, of bases on devices, and below a guest that writes all the time."""

from pathlib import Path

import pytest
import xxhash
from job_kit import (
    NewBlank,
    NewGuest,
    at,
    enable,
    inside,
    points,
    qemu_img,
    relation,
    switch_off,
    tracking,
    wait_cycles,
)
from test_base_device import device_for

from vmreplica.lab import Lab, check_records
from vmreplica.lab.waiting import until
from vmreplica.model.units import MiB

pytestmark = [pytest.mark.failover, pytest.mark.slow]


def test_no_record_of_a_guest_that_writes_all_the_time_is_lost(lab: Lab, new_guest: NewGuest) -> None:
    a, b = lab.host("a"), lab.host("b")
    guest = new_guest(a, disks=2)
    guest.wait_record(3)
    enable(a, guest.name)
    wait_cycles(a, guest.name, 3)
    guest.stop()
    b.ask("failover", guest.name, "--yes")
    before = b.wait_domain_alive(guest.name)
    done = b.ask("commit", guest.name, "--yes")["committed"]
    assert b.wait_domain_alive(guest.name) > before, "it never stopped"
    b.virsh("destroy", guest.name)
    images = [inside(b, Path(image)) for image in done["images"]]
    for image in images:
        qemu_img("check", "-q", str(image))
    report = check_records(images)
    assert (report.missing, report.torn) == (0, 0)
    assert report.last > before


def test_thirty_points_are_folded_into_the_lowest(lab: Lab, new_blank: NewBlank, tmp_path: Path) -> None:
    a, b = lab.host("a"), lab.host("b")
    vm = new_blank(a)
    enable(a, vm.name, "--keep", "40", every="24h")
    for number in range(1, 30):
        vm.write("vda", f"{number}M", "64k", number)
        a.ask("sync", vm.name)
    switch_off(vm)
    assert len(points(b, vm.name)) >= 30
    b.ask("failover", vm.name, "--yes")
    (layer,) = b.disk_paths(vm.name)
    content = _content(layer, tmp_path)
    done = b.ask("commit", vm.name, "--yes")["committed"]
    assert _content(inside(b, Path(done["images"][0])), tmp_path) == content
    assert [count for _target, _name, count in tracking(b, vm)] == [0]


def test_a_base_on_a_device_is_left_alone_and_the_bitmap_kept(
    lab: Lab, new_blank: NewBlank, lab_dir: Path, tmp_path: Path
) -> None:
    a, b = lab.host("a"), lab.host("b")
    vm = new_blank(a)
    vm.write("vda", "0", "1M", 1)
    with device_for(lab, vm.name, lab_dir / "vda", 64 * MiB) as device:
        enable(a, vm.name, "--base-device", f"vda={device}", "--keep", "1", "--yes", every="24h")
        vm.write("vda", "2M", "64k", 2)
        a.ask("sync", vm.name)
        switch_off(vm)
        assert until(lambda: len(points(b, vm.name)) == 1, 60)
        b.ask("failover", vm.name, "--yes")
        at(b, vm).write("vda", "5M", "64k", 5)
        (layer,) = b.disk_paths(vm.name)
        content, raw = _content(layer, tmp_path), device.read_bytes()
        done = b.ask("commit", vm.name, "--yes")["committed"]
        (image,) = (inside(b, Path(name)) for name in done["images"])
        assert _content(image, tmp_path) == content
        assert device.read_bytes() == raw, "nothing is written to a device that cannot hold a bitmap"
        assert [count for _target, _name, count in tracking(b, vm)] == [65536]
        assert relation(b, vm.name)["state"] == "committed"
        b.virsh("destroy", vm.name)
        b.virsh("undefine", vm.name)


def _content(image: Path, scratch: Path) -> str:
    """Digest what a guest reads from an image that may be in use."""
    raw = scratch / "content.raw"
    qemu_img("convert", "-U", "-O", "raw", str(image), str(raw))
    return xxhash.xxh3_128_hexdigest(raw.read_bytes())
