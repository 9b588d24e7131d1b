"""Old disks of other shapes than one qcow2 file as the base of a replica: written by folds, read by libvirt."""

import json
from pathlib import Path

import pytest
from job_kit import Blank, NewBlank, disk_xml, enable, inside, points, qemu_img, same_content, switch_off
from life_kit import write_noise
from reverse_kit import KiB, MiB, on, wait_reversed

from vmreplica.lab import Host, Lab
from vmreplica.lab.waiting import until

pytestmark = [pytest.mark.failover, pytest.mark.slow]


def test_old_disks_over_a_template_and_raw_take_the_points_that_are_too_old_and_start_again(
    lab: Lab, new_blank: NewBlank
) -> None:
    a, b = lab.host("a"), lab.host("b")
    raw = a.layout.images / "shapes-vdb.raw"
    qemu_img("create", "-q", "-f", "raw", str(raw), "32M")
    vm = new_blank(a, start=False, devices=disk_xml("vdb", raw, "raw"))
    template = _onto_a_template(vm.images["vda"])
    try:
        vm.start()
        for target in ("vda", "vdb"):
            write_noise(vm, target, MiB, 2 * MiB)
        enable(a, vm.name, "--keep", "1", every="24h")
        switch_off(vm)
        b.ask("failover", vm.name, "--yes")
        moved = on(b, vm)
        _write_and_sync(b, moved, first=True)
        wait_reversed(b, vm.name)
        for _ in range(2):
            _write_and_sync(b, moved)
        assert until(lambda: _standing_alone(a, vm), 60), points(a, vm.name)

        test = a.ask("failover", vm.name, "--test")["test"]["name"]
        chain = a.virsh("dumpxml", test).stdout
        assert all(str(path) in chain for path in (vm.images["vda"], template, raw)), "libvirt knows the whole chain"
        a.ask("failover", vm.name, "--cancel", "--yes")
        (newest,) = points(a, vm.name)
        for target, layer in zip(("vda", "vdb"), b.disk_paths(vm.name), strict=True):
            image = inside(a, a.layout.store) / vm.uuid / "points" / newest["point"] / f"{target}.qcow2"
            assert same_content(image, layer), target
        b.ask("disable", vm.name, "--delete-copy", "--yes")
        assert vm.images["vda"].exists(), "the old disks stay"
        assert raw.exists()
    finally:
        for path in (raw, template):
            path.unlink(missing_ok=True)


def _onto_a_template(image: Path) -> Path:
    template = image.with_name(f"{image.stem}-template.qcow2")
    image.rename(template)
    qemu_img("create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", template.name, str(image))
    return template


def _write_and_sync(host: Host, vm: Blank, *, first: bool = False) -> None:
    for place, target in enumerate(("vda", "vdb")):
        write_noise(vm, target, (2 + place) * MiB, 64 * KiB)
    host.ask(*(("reverse", vm.name, "--yes") if first else ("sync", vm.name)), timeout=300)


def _standing_alone(host: Host, vm: Blank) -> bool:
    """Tell whether one point is left, whose images are over the old disks."""
    found = sorted((inside(host, host.layout.store) / vm.uuid / "points").glob("[0-9]*/manifest.json"))
    manifests = [json.loads(path.read_text()) for path in found]
    return len(manifests) == 1 and all(disk["adopted"] for disk in manifests[0]["disks"])
