"""Existing copies that a primary names: which are read, and what is said about all others."""

import os
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from capture_kit import change, make_disk, run

from vmreplica.agent.seed_source import SeedRules, opened, usable_size
from vmreplica.model.errors import VmReplicaError
from vmreplica.model.seed import SeedDisk, SeedFormat
from vmreplica.model.units import MiB
from vmreplica.qcow2.foreign import check_tables

pytestmark = pytest.mark.seeding

SIZE = 8 * MiB
#: QEMU's name of each format.
KINDS: dict[SeedFormat, str] = {
    "raw": "raw",
    "qcow2": "qcow2",
    "vhdx": "vhdx",
    "vmdk": "vmdk",
    "vdi": "vdi",
    "vhd": "vpc",
}


@pytest.fixture
def seeds(tmp_path: Path) -> Path:
    directory = tmp_path / "seeds"
    directory.mkdir()
    return directory


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make_disk(tmp_path / "source.qcow2", SIZE, ["write -q -P 7 0 1M", "write -q -P 9 5M 64k"])


@pytest.fixture
def loop(seeds: Path) -> Iterator[str]:
    disk = seeds / "under-the-device"
    disk.write_bytes(b"\x07" * SIZE)
    device = run("losetup", "--find", "--show", "--read-only", disk).strip()
    yield device
    run("losetup", "--detach", device)


def look(path: Path | str, root: Path, said: SeedFormat | None = None, devices: tuple[str, ...] = ()) -> int:
    """Open a copy as the replica does; gives how much of it is read."""
    disk = SeedDisk(target="vda", size=SIZE, path=str(path), format=said)
    with opened(disk, SeedRules(dirs=(root,), devices=devices)) as image:
        size = usable_size(disk, image)
        check_tables(image, lambda: False)
        return size


def refused(path: Path | str, root: Path, said: SeedFormat | None = None, devices: tuple[str, ...] = ()) -> str:
    """Tell the code of the error that a copy is refused with."""
    with pytest.raises(VmReplicaError) as error:
        look(path, root, said, devices)
    assert error.value.hint
    assert str(path) in error.value.message
    assert "/proc/" not in error.value.message
    return error.value.code


@pytest.mark.parametrize("kind", list(KINDS))
def test_each_format_is_known_by_its_ending_and_read_up_to_the_disk_of_the_vm(
    seeds: Path, source: Path, kind: SeedFormat
) -> None:
    copy = seeds / f"web.{kind}"
    run("qemu-img", "convert", "-O", KINDS[kind], source, copy)
    assert look(copy, seeds) == SIZE


def test_a_stream_optimized_vmdk_is_read(seeds: Path, source: Path) -> None:
    copy = seeds / "web.vmdk"
    run("qemu-img", "convert", "-O", "vmdk", "-o", "subformat=streamOptimized", source, copy)
    assert look(copy, seeds) == SIZE


def test_of_a_smaller_copy_all_is_read(seeds: Path) -> None:
    assert look(make_disk(seeds / "small.qcow2", 3 * MiB), seeds) == 3 * MiB


def test_a_block_device_is_read_when_the_administrator_allows_it(seeds: Path, loop: str) -> None:
    assert look(loop, seeds, devices=("/dev/loop*",)) == SIZE
    assert refused(loop, seeds) == "seed-path-forbidden"
    assert refused(loop, seeds, devices=("/dev/backup/*",)) == "seed-path-forbidden"


def test_a_device_file_among_the_images_is_refused(seeds: Path, loop: str) -> None:
    os.mknod(seeds / "sda.raw", 0o060600, Path(loop).stat().st_rdev)
    assert refused(seeds / "sda.raw", seeds) == "seed-path-forbidden"


@pytest.mark.parametrize("name", ["../source.qcow2", "below/../../source.qcow2"])
def test_no_path_leads_out_of_the_allowed_directories(seeds: Path, source: Path, name: str) -> None:
    (seeds / "below").mkdir()
    assert refused(f"{seeds}/{name}", seeds) == "seed-path-forbidden"
    assert refused(source, seeds) == "seed-path-forbidden"
    assert refused(seeds, seeds) == "seed-path-forbidden"


def test_symbolic_links_are_not_followed_wherever_they_stand(seeds: Path, source: Path) -> None:
    (seeds / "link.qcow2").symlink_to(source)
    (seeds / "there").symlink_to(source.parent)
    assert refused(seeds / "link.qcow2", seeds) == "seed-path-forbidden"
    assert refused(seeds / "there" / "source.qcow2", seeds) == "seed-path-forbidden"


def test_what_is_no_file_is_refused_without_waiting(seeds: Path) -> None:
    (seeds / "directory.raw").mkdir()
    os.mkfifo(seeds / "pipe.raw")
    assert refused(seeds / "directory.raw", seeds) == "seed-not-a-file"
    assert refused(seeds / "pipe.raw", seeds) == "seed-not-a-file"
    assert refused(seeds / "missing.raw", seeds) == "seed-path-missing"
    (seeds / "empty.raw").touch()
    assert refused(seeds / "empty.raw", seeds) == "seed-not-an-image"


def test_a_format_is_never_guessed_from_what_a_guest_may_have_written(seeds: Path, source: Path) -> None:
    disguised = seeds / "web.raw"
    disguised.write_bytes(source.read_bytes())
    assert refused(disguised, seeds) == "seed-format-differs"
    assert look(disguised, seeds, "raw") < SIZE, "a person said raw, so it is its bytes that count"
    assert look(disguised, seeds, "qcow2") == SIZE
    (seeds / "web.backup").write_bytes(source.read_bytes())
    assert refused(seeds / "web.backup", seeds) == "seed-format-unknown"


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "raw"])
def test_what_is_not_the_image_it_is_called_is_refused(seeds: Path, kind: SeedFormat) -> None:
    copy = seeds / f"web.{kind}"
    copy.write_bytes(os.urandom(MiB))
    assert refused(copy, seeds) == "seed-not-an-image"


def test_an_image_that_is_cut_short_is_refused(seeds: Path, tmp_path: Path) -> None:
    noise = tmp_path / "noise"
    noise.write_bytes(os.urandom(SIZE))
    kinds: tuple[SeedFormat, ...] = ("qcow2", "vmdk", "vhdx", "vhd")
    for kind in kinds:
        copy = seeds / f"web.{kind}"
        run("qemu-img", "convert", "-f", "raw", "-O", KINDS[kind], noise, copy)
        os.truncate(copy, copy.stat().st_size // 2)
        assert refused(copy, seeds) in {"seed-damaged", "seed-not-an-image"}
    short = seeds / "short.qcow2"
    short.write_bytes(b"QFI\xfb\0\0\0\3")
    assert refused(short, seeds) == "seed-not-an-image"


def test_images_that_need_other_files_are_refused_before_these_are_touched(seeds: Path, source: Path) -> None:
    run("qemu-img", "create", "-q", "-f", "qcow2", "-b", source, "-F", "qcow2", seeds / "overlay.qcow2")
    assert refused(seeds / "overlay.qcow2", seeds) == "seed-not-alone"
    data = seeds / "data.bin"
    run("qemu-img", "create", "-q", "-f", "qcow2", "-o", f"data_file={data}", seeds / "split.qcow2", str(SIZE))
    # Opening it would block for ever, or reach over the network.
    data.unlink()
    os.mkfifo(data)
    assert refused(seeds / "split.qcow2", seeds) == "seed-not-alone"
    run("qemu-img", "convert", "-O", "vmdk", "-o", "subformat=monolithicFlat", source, seeds / "flat.vmdk")
    assert refused(seeds / "flat.vmdk", seeds) == "seed-not-an-image"
    assert look(seeds / "flat-flat.vmdk", seeds, "raw") == SIZE


def test_a_vmdk_whose_descriptor_names_another_file_is_refused(seeds: Path, source: Path) -> None:
    copy = seeds / "web.vmdk"
    run("qemu-img", "convert", "-O", "vmdk", source, copy)
    whole = bytearray(copy.read_bytes())
    struct.pack_into("<Q", whole, 12, 0)  # no sectors of its own: QEMU then goes by the names in the descriptor
    copy.write_bytes(whole)
    assert refused(copy, seeds) == "seed-not-alone"


def test_a_vmdk_with_a_parent_is_refused(seeds: Path, source: Path) -> None:
    below = seeds / "below.vmdk"
    run("qemu-img", "convert", "-O", "vmdk", source, below)
    run("qemu-img", "create", "-q", "-f", "vmdk", "-b", below, "-F", "vmdk", seeds / "above.vmdk")
    assert refused(seeds / "above.vmdk", seeds) == "seed-not-alone"


def test_an_encrypted_image_is_refused(seeds: Path) -> None:
    secret = ("--object", "secret,id=key,data=open sesame", "-o", "encrypt.format=luks,encrypt.key-secret=key")
    options = (*secret[:2], "-f", "qcow2", *secret[2:], "-o", "encrypt.iter-time=10")
    run("qemu-img", "create", "-q", *options, seeds / "closed.qcow2", str(SIZE))
    assert refused(seeds / "closed.qcow2", seeds) == "seed-encrypted"


def test_an_image_that_a_program_writes_is_refused(seeds: Path) -> None:
    disk = make_disk(seeds / "web.qcow2", SIZE)
    with subprocess.Popen(
        ["qemu-io", "-f", "qcow2", str(disk)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as writer:
        assert writer.stdin is not None
        assert writer.stdout is not None
        writer.stdin.write(b"write 0 4k\n")
        writer.stdin.flush()
        writer.stdout.readline()
        assert refused(disk, seeds) == "seed-in-use"
        writer.stdin.close()
    change(disk, [])
    assert look(disk, seeds) == SIZE
