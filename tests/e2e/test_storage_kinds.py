"""Disks on every kind of storage in one VM: copied, followed and started on the replica.

What is tested here stands in the table of docs/design/storage.md.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from device_kit import loop_device
from job_kit import Blank, NewBlank, enable, images, points, qemu_img, same_content

from vmreplica.hypervisor.backup_xml import checkpoint_disks
from vmreplica.lab import Host, Lab
from vmreplica.model.units import KiB, MiB

pytestmark = pytest.mark.seeding

SIZE = 8 * MiB
#: No whole number of sectors; the guest sees whole ones.
ODD = 5 * MiB + 1000
#: Disks whose changes QEMU keeps in bitmaps; all others are compared.
TRACKED = ("vda", "vdb", "vdc", "vdd")
WRITTEN = 64 * KiB


def make(place: Path, target: str, *options: str, size: int = SIZE, form: str = "qcow2") -> Path:
    """Create an image."""
    path = place / f"{target}.{form}"
    qemu_img("create", "-q", "-f", form, *options, str(path), str(size))
    return path


def xml(target: str, source: Path, form: str, driver: str = "") -> str:
    """Describe a disk to libvirt."""
    kind, name = ("block", "dev") if source.is_relative_to("/dev") else ("file", "file")
    return (
        f"<disk type='{kind}' device='disk'><driver name='qemu' type='{form}' {driver}/><source {name}='{source}'/>"
        f"<target dev='{target}' bus='virtio'/></disk>"
    )


@contextlib.contextmanager
def every_kind(place: Path) -> Iterator[dict[str, tuple[Path, str]]]:
    """Make a disk of every kind, besides vda, a plain qcow2; path and format by target."""
    with (
        loop_device(place / "loop-qcow2", 16 * MiB) as formatted,
        loop_device(place / "loop-raw", SIZE) as raw,
        loop_device(place / "loop-4k", SIZE, sector=4096) as native,
    ):
        qemu_img("create", "-q", "-f", "qcow2", str(formatted), str(SIZE))
        below = make(place, "below", form="raw")
        data = make(place, "data", form="raw")
        odd, whole = place / "odd.raw", place / "whole.raw"
        odd.write_bytes(bytes(ODD))
        with whole.open("wb") as fh:
            os.posix_fallocate(fh.fileno(), 0, SIZE)
        yield {
            "vdb": (make(place, "vdb", "-b", str(below), "-F", "raw"), "qcow2"),
            "vdc": (make(place, "vdc", "-o", f"data_file={data},data_file_raw=on"), "qcow2"),
            "vdd": (formatted, "qcow2"),
            "vde": (make(place, "vde", "-o", "compat=0.10"), "qcow2"),
            "vdf": (make(place, "vdf", form="raw"), "raw"),
            "vdg": (whole, "raw"),
            "vdh": (odd, "raw"),
            "vdi": (raw, "raw"),
            "vdj": (native, "raw"),
            "vdk": (make(place, "vdk", form="vdi"), "vdi"),
            "vdl": (make(place, "vdl", form="vmdk"), "vmdk"),
            "vdm": (make(place, "vdm", form="vpc"), "vpc"),
        }


def test_every_kind_of_storage_is_copied_followed_and_started_on_the_replica(
    lab: Lab, new_blank: NewBlank, lab_dir: Path
) -> None:
    a, b = lab.host("a"), lab.host("b")
    with every_kind(lab_dir) as kinds:
        direct = "cache='none' io='native'"
        disks = "".join(xml(t, path, form, direct if t in {"vdi", "vdj"} else "") for t, (path, form) in kinds.items())
        vm = new_blank(a, devices=disks)
        sources = {"vda": (vm.images["vda"], "qcow2"), **kinds}
        for number, target in enumerate(sources, 1):
            vm.write(target, "0", "1M", number)
            vm.write(target, str(ODD // 512 * 512 - 4096), "4096", number)
        enable(a, vm.name, every="24h")
        for number, target in enumerate(sources, 1):
            vm.write(target, "2M", str(WRITTEN), number)
            vm.write(target, "512", "512", number + 100)
        cycle = a.ask("sync", vm.name)["result"]
        assert cycle["kind"] == "delta"
        assert tracked(a, vm) == set(TRACKED)

        copies = images(b, vm.uuid, points(a, vm.name)[-1]["point"])
        assert [copy.stem for copy in copies] == sorted(sources)
        for copy in copies:
            path, form = sources[copy.stem]
            assert same_content(copy, path), f"{copy.stem} ({form})"
        vm.stop()
        b.ask("failover", vm.name, "--yes")
        assert len(b.disk_paths(vm.name)) == len(sources)


def tracked(host: Host, vm: Blank) -> frozenset[str]:
    """Name the disks that have a bitmap for the next delta."""
    (kept,) = (host.layout.state_dir / "checkpoints" / vm.uuid).glob("*.xml")
    return checkpoint_disks(kept.read_text())
