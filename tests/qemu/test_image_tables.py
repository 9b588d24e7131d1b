"""Images that we write, judged by QEMU."""

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest
from image_kit import ZERO, check, flat, noise, qemu_img, read_through_qemu, text, write_image

from vmreplica.model.errors import Corrupt, HypervisorError
from vmreplica.model.units import CLUSTER, GiB, MiB, TiB
from vmreplica.qcow2.tools import create_overlay, image_info, qemu_img_check

pytestmark = pytest.mark.main_job

CONTENTS: dict[str, tuple[int, Mapping[int, bytes]]] = {
    "empty": (64 * MiB, {}),
    "zero runs only": (8 * MiB, dict.fromkeys((0, 1, 2, 50, 127), ZERO)),
    "incompressible": (8 * MiB, {number: noise(number) for number in range(40)}),
    "compressible": (8 * MiB, {number: text(number) for number in range(128)}),
    "mixed": (
        8 * MiB,
        {n: (noise(n), text(n), ZERO)[n % 3] for n in range(0, 128, 1) if n % 7},
    ),
    "size no multiple of a cluster": (
        5 * CLUSTER + 512,
        {0: text(0), 5: b"tail" * 128 + bytes(CLUSTER - 512)},
    ),
    "one sector": (512, {0: b"x" * 512 + bytes(CLUSTER - 512)}),
}


@pytest.mark.parametrize("name", CONTENTS)
def test_an_image_is_sound_and_reads_as_its_model(name: str, tmp_path: Path) -> None:
    size, content = CONTENTS[name]
    image = tmp_path / "vda.qcow2"
    result = write_image(image, content, size, each=7)
    check(image)
    qemu_img_check(image)
    assert image.stat().st_size == result.file_bytes
    (tmp_path / "model.raw").write_bytes(flat(content, size))
    qemu_img("compare", "-f", "qcow2", "-F", "raw", str(image), str(tmp_path / "model.raw"))


@pytest.mark.parametrize("name", CONTENTS)
def test_a_delta_hides_its_parent_exactly_where_it_says_something(name: str, tmp_path: Path) -> None:
    size, content = CONTENTS[name]
    below = {number: noise(900 + number) for number in range(min(130, -(-size // CLUSTER)))}
    below[max(below)] = below[max(below)][: (size - 1) % CLUSTER + 1].ljust(CLUSTER, b"\0")
    parent, delta = tmp_path / "parent.qcow2", tmp_path / "delta.qcow2"
    write_image(parent, below, size)
    write_image(delta, content, size, backing=parent)
    check(delta)
    assert image_info(delta)["format-specific"]["data"]["compression-type"] == "zstd"
    assert read_through_qemu(delta) == flat({**below, **content}, size)


def test_a_delta_over_several_l2_tables_reads_as_its_model(tmp_path: Path) -> None:
    size = 2 * GiB
    parent, delta = tmp_path / "parent.qcow2", tmp_path / "delta.qcow2"
    write_image(parent, {number: noise(number) for number in (8190, 8191, 8192, 8193, 20000, 24575, 24576)}, size)
    zeroes = range(8193, 24576)
    change = {8191: noise(2), 8192: text(3), **dict.fromkeys(zeroes, ZERO)}
    write_image(delta, change, size, backing=parent, each=20000)
    check(delta)
    for number, expected in {8190: noise(8190), 24576: noise(24576), **change}.items():
        if number in {8190, 8191, 8192, 8193, 20000, 24575, 24576}:
            assert _read_cluster(delta, number) == expected


def test_a_huge_sparse_disk_costs_little_and_is_sound(tmp_path: Path) -> None:
    size = 8 * TiB
    last = size // CLUSTER - 1
    content = {0: text(1), 70_000_000: noise(2), last - 1: ZERO, last: text(3)}
    image = tmp_path / "vda.qcow2"
    result = write_image(image, content, size, backing=None)
    check(image)
    assert result.file_bytes < MiB
    for number, data in content.items():
        assert _read_cluster(image, number) == data


@pytest.mark.slow
def test_data_across_the_reach_of_one_refcount_block_is_sound(tmp_path: Path) -> None:
    """A refcount block covers 2 GiB of file."""
    size, content = 4 * GiB, {number: noise(number % 5) for number in range(33000)}
    image = tmp_path / "vda.qcow2"
    write_image(image, content, size, each=128)
    check(image)
    for number in (0, 32766, 32767, 32768, 32999):
        assert _read_cluster(image, number) == content[number]


def test_a_chain_of_thirty_points_reads_as_its_model(tmp_path: Path) -> None:
    size, model, below = 4 * MiB + 512, {}, None
    for depth in range(30):
        change = {(depth * 7 + k) % 64: (noise(depth * 9 + k), ZERO, text(depth))[k % 3] for k in range(5)}
        model.update(change)
        image = tmp_path / f"{depth}.qcow2"
        write_image(image, change, size, backing=below)
        below = image
    assert below is not None
    check(below)
    assert read_through_qemu(below) == flat(model, size)


def test_writing_tables_again_gives_the_same_file(tmp_path: Path) -> None:
    size, content = CONTENTS["mixed"]
    first = write_image(tmp_path / "a.qcow2", content, size)
    second = write_image(tmp_path / "b.qcow2", content, size)
    assert first == second
    assert (tmp_path / "a.qcow2").read_bytes() == (tmp_path / "b.qcow2").read_bytes()


def test_a_frame_that_inflates_to_something_else_is_a_read_error(tmp_path: Path) -> None:
    image = tmp_path / "vda.qcow2"
    write_image(image, {0: text(0), 1: noise(1), 2: text(2)}, MiB)
    with image.open("r+b") as fh:
        fh.seek(CLUSTER + 40_000)  # inside the frame of guest cluster 1
        byte = fh.read(1)
        fh.seek(-1, os.SEEK_CUR)
        fh.write(bytes([byte[0] ^ 1]))
    assert _read_cluster(image, 0) == text(0)
    assert _read_cluster(image, 2) == text(2)
    with pytest.raises(AssertionError, match="Input/output error"):
        _read_cluster(image, 1)


def test_an_overlay_is_made_over_a_point_and_is_writable(tmp_path: Path) -> None:
    point, overlay = tmp_path / "point.qcow2", tmp_path / "run.qcow2"
    write_image(point, {0: text(0)}, MiB)
    create_overlay(overlay, point, MiB)
    run = subprocess.run(
        ["qemu-io", "-f", "qcow2", "-c", "write -P 7 0 512", str(overlay)], capture_output=True, check=False
    )
    assert run.returncode == 0
    assert read_through_qemu(overlay)[:1024] == b"\7" * 512 + text(0)[512:1024]
    assert _read_cluster(point, 0) == text(0)


def test_the_tools_say_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(HypervisorError, match="qemu-img create"):
        create_overlay(tmp_path / "o.qcow2", tmp_path / "missing.qcow2", MiB)
    with pytest.raises(HypervisorError, match="qemu-img info"):
        image_info(tmp_path / "missing.qcow2")
    image = tmp_path / "vda.qcow2"
    write_image(image, {0: text(0), 1: text(1)}, MiB)
    with image.open("r+b") as fh:
        fh.seek(2 * CLUSTER)
        fh.write(b"\xff" * 8)  # the first L2 entry
    with pytest.raises(Corrupt, match="damaged"):
        qemu_img_check(image)


def _read_cluster(image: Path, number: int) -> bytes:
    out = image.with_name("cluster.raw")
    offset = f"offset={number * CLUSTER},size={CLUSTER}"
    source = f"driver=raw,{offset},file.driver=qcow2,file.file.filename={image}"
    qemu_img("convert", "-O", "raw", "--image-opts", source, str(out))
    return out.read_bytes()
