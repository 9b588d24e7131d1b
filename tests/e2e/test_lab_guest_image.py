"""Building the guest: the kernel it takes, what is on its disk, and what is refused."""

import subprocess
from pathlib import Path

import pytest

from vmreplica.lab import GuestSpec, domain_xml, fill_with_system_files
from vmreplica.lab.cpio import Archive
from vmreplica.lab.image import boot_image, newest_kernel, set_command_line
from vmreplica.lab.qemu_img import image_format
from vmreplica.model.errors import BadRequest, Refused
from vmreplica.model.units import GiB, MiB

pytestmark = pytest.mark.main_job


def install_kernels(root: Path, *versions: str) -> None:
    (root / "boot").mkdir()
    for version in versions:
        (root / "boot" / f"vmlinuz-{version}").touch()
        (root / "modules" / version).mkdir(parents=True)


def test_a_kernel_for_virtual_machines_goes_before_a_newer_one_for_machines(tmp_path: Path) -> None:
    install_kernels(tmp_path, "6.9.0-1-amd64", "6.1.0-9-cloud-amd64", "6.1.0-56-cloud-amd64")
    assert newest_kernel(tmp_path / "boot", tmp_path / "modules") == "6.1.0-56-cloud-amd64"


def test_without_a_kernel_the_packages_are_named(tmp_path: Path) -> None:
    install_kernels(tmp_path)
    with pytest.raises(Refused) as refused:
        newest_kernel(tmp_path / "boot", tmp_path / "modules")
    assert refused.value.code == "lab-needs-kernel"
    assert "linux-image-cloud-amd64" in refused.value.hint


def test_an_archive_of_ours_is_unpacked_by_cpio_itself(tmp_path: Path) -> None:
    archive = Archive()
    archive.directory("etc")
    archive.file("etc/odd", b"12345", 0o640)
    archive.console("console")
    subprocess.run(["busybox", "cpio", "-i"], input=archive.finish(), cwd=tmp_path, check=True, capture_output=True)
    assert (tmp_path / "etc" / "odd").read_bytes() == b"12345"
    assert (tmp_path / "etc" / "odd").stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "console").is_char_device()


def test_a_second_guest_takes_the_boot_disk_from_the_cache(tmp_path: Path) -> None:
    said: list[str] = []
    first = boot_image(said.append, tmp_path)
    stamp = first.stat().st_mtime_ns
    assert boot_image(said.append, tmp_path) == first
    assert first.stat().st_mtime_ns == stamp
    assert len(said) == 1
    assert [path.name for path in tmp_path.iterdir()] == [first.name]


def test_the_command_line_on_the_disk_is_the_one_that_was_set(tmp_path: Path) -> None:
    disk = tmp_path / "boot.raw"
    disk.write_bytes(boot_image(lambda _: None).read_bytes())
    set_command_line(disk, "lab.interval=33")
    set_command_line(disk, "lab.interval=44")
    shown = subprocess.run(
        ["mtype", "-i", f"{disk}@@{MiB}", "::syslinux.cfg"], check=True, capture_output=True, text=True
    ).stdout
    assert shown.splitlines()[-1].endswith(" lab.interval=44")


def test_system_files_fill_exactly_the_room_they_are_given(tmp_path: Path) -> None:
    disk = tmp_path / "disk.raw"
    disk.write_bytes(b"\xff" * (4 * MiB))
    fill_with_system_files(disk, MiB, 2 * MiB)
    content = disk.read_bytes()
    assert content[:MiB] == content[3 * MiB :] == b"\xff" * MiB
    assert len(content) == 4 * MiB
    assert content[MiB : 3 * MiB].count(b"\xff") < MiB


@pytest.mark.parametrize(
    ("spec", "names"),
    [
        (GuestSpec(name="../up"), "../up"),
        (GuestSpec(name="vm", disks=0), "disks"),
        (GuestSpec(name="vm", disks=99), "disks"),
        (GuestSpec(name="vm", size=8 * MiB), "8.0 MiB"),
        (GuestSpec(name="vm", fill=GiB), "1.0 GiB"),
        (GuestSpec(name="vm", interval_ms=0), "interval"),
    ],
)
def test_a_guest_that_cannot_be_is_refused_by_name(spec: GuestSpec, names: str) -> None:
    with pytest.raises(BadRequest, match=names) as refused:
        spec.check()
    assert refused.value.code == "lab-guest-invalid"


def test_a_guest_has_a_card_only_when_a_network_is_named(tmp_path: Path) -> None:
    image = (tmp_path / "vda.qcow2",)
    assert "<interface" not in domain_xml(GuestSpec(name="vm"), image, tmp_path / "c", "qemu")
    assert "<source network='lan'/>" in domain_xml(GuestSpec(name="vm", network="lan"), image, tmp_path / "c", "qemu")


def test_an_images_format_is_what_it_is_and_not_what_it_is_called(tmp_path: Path) -> None:
    image = tmp_path / "disk.raw"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(image), "1M"], check=True)
    assert image_format(image) == "qcow2"
