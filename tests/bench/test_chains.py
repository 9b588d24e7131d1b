"""The images that the bench merges are images of ours, the same each time, and merge to what they read as."""

import subprocess
from pathlib import Path

import pytest
from bench.chains import POINT, TARGET, make_chain

from vmreplica.qcow2.index import read_heads
from vmreplica.qcow2.merge import ImageFiles, merge_images

pytestmark = pytest.mark.points

MiB = 1 << 20
SIZE = 64 * MiB


def test_a_chain_of_the_bench_is_sound_and_merges_to_its_newest_image(tmp_path: Path) -> None:
    chain = make_chain(tmp_path, size=SIZE, points=3, changes=60)
    out = ImageFiles(tmp_path / "out.qcow2", tmp_path / "out.index", tmp_path / "out.sums")
    merged = merge_images(
        chain,
        out,
        point=POINT,
        target=TARGET,
        size=SIZE,
        backing="base.qcow2",
        check=lambda: None,
        pace=lambda _count: None,
    )
    for image in (chain[-1].image, out.image):
        subprocess.run(["qemu-img", "check", "-q", image], check=True)
    subprocess.run(["qemu-img", "compare", "-q", chain[-1].image, out.image], check=True)
    assert merged.encoded, "points overlap"


def test_a_chain_of_the_bench_has_runs_single_clusters_and_patches_as_the_same_seed_says(tmp_path: Path) -> None:
    folders = [tmp_path / "one", tmp_path / "other"]
    for folder in folders:
        folder.mkdir()
    one, other = (make_chain(folder, size=SIZE, points=1, changes=200)[0] for folder in folders)
    assert one.index.read_bytes() == other.index.read_bytes()
    with one.index.open("rb") as heads:
        ((head, records),) = read_heads(heads)
    assert 0 < head.patch_count < 70
    assert head.record_count >= 200
    assert (records["cluster"][1:] == records["cluster"][:-1] + 1).sum() > 90, "runs"
