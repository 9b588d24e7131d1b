"""Images with patches, their chains and their folds, judged by QEMU."""

import json
import random
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from image_kit import ZERO, check, flat, noise, qemu_img, read_through_qemu, text, with_blocks, write_image

from vmreplica.model.errors import Corrupt
from vmreplica.model.units import CLUSTER, GiB
from vmreplica.qcow2 import fold
from vmreplica.qcow2.tools import create_overlay, image_info

pytestmark = pytest.mark.seeding

CLUSTERS = 100
SIZE = CLUSTERS * CLUSTER - 60 * 1024

#: What happens to a cluster: zeroes, noise, text, or a change of some of its blocks.
kinds = st.sampled_from([0, 1, 2, 3, 3, 3])
turns = st.lists(st.dictionaries(st.integers(0, CLUSTERS - 1), kinds, max_size=50), min_size=1, max_size=5)


def _changed(model: Mapping[int, bytes], number: int, kind: int, seed: int) -> bytes:
    if kind == 3:
        return with_blocks(model.get(number, ZERO), seed)
    return (ZERO, noise(seed), text(seed))[kind]


def _fold_whole(base: Path, overlay: Path, size: int = SIZE) -> None:
    dead = base.with_suffix(".dead")
    sums = base.with_suffix(".tsums")
    beside = fold.Beside(index=overlay.with_suffix(".index"), dead=dead, sums=sums, new_sums=sums)
    header = fold.prepare_fold(base, overlay, beside, size=size, check=lambda: None)
    fold.switch(base, header)
    fold.reclaim(base, dead, lambda: False)


def _shown(model: Mapping[int, bytes], size: int = SIZE) -> bytes:
    return flat(model, size)


def _extended(image: Path) -> bool:
    return bool(image_info(image)["format-specific"]["data"]["extended-l2"])


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(first=st.dictionaries(st.integers(0, CLUSTERS - 1), st.integers(1, 2), max_size=80), later=turns)
def test_any_chain_with_patches_reads_as_its_model_and_folds_to_it(
    first: dict[int, int], later: list[dict[int, int]], tmp_path: Path
) -> None:
    model = {n: _changed({}, n, kind, n) for n, kind in first.items()}
    base, overlays = tmp_path / "base.qcow2", []
    base.with_suffix(".tsums").unlink(missing_ok=True)
    write_image(base, model, SIZE)
    below = base
    for turn, wanted in enumerate(later):
        change = {n: _changed(model, n, kind, 1000 * turn + n) for n, kind in wanted.items()}
        overlay = tmp_path / f"{turn}.qcow2"
        write_image(overlay, change, SIZE, backing=below, each=16, below=model)
        model.update(change)
        check(overlay)
        assert read_through_qemu(overlay) == _shown(model)
        overlays.append(overlay)
        below = overlay
    for overlay in overlays:
        _fold_whole(base, overlay)
        check(base)
        assert not _extended(base)
    assert read_through_qemu(base) == _shown(model)


def test_patches_in_several_tables_and_segments_read_as_their_model(tmp_path: Path) -> None:
    size = 2 * GiB
    numbers = (0, 4095, 4096, 8191, 8192, 20000, 32767)
    model = {number: noise(number) for number in numbers}
    parent, delta = tmp_path / "parent.qcow2", tmp_path / "delta.qcow2"
    write_image(parent, model, size)
    change = {n: with_blocks(model[n], n) for n in numbers} | dict.fromkeys(range(4097, 8191), ZERO) | {5: text(5)}
    write_image(delta, change, size, backing=parent, each=3, below=model)
    check(delta)
    assert _extended(delta)
    expected = tmp_path / "expected.raw"
    with expected.open("wb") as fh:
        fh.truncate(size)
        for number, cluster in (model | change).items():
            if cluster != ZERO:
                fh.seek(number * CLUSTER)
                fh.write(cluster)
    qemu_img("compare", "-f", "qcow2", "-F", "raw", str(delta), str(expected))
    _fold_whole(parent, delta, size)
    check(parent)
    qemu_img("compare", "-f", "qcow2", "-F", "raw", str(parent), str(expected))


def test_a_patch_takes_only_the_room_of_its_blocks(tmp_path: Path) -> None:
    model = {n: noise(n) for n in range(CLUSTERS - 1)}
    parent, delta = tmp_path / "parent.qcow2", tmp_path / "delta.qcow2"
    write_image(parent, model, SIZE)
    change = {n: noise(1000 + n)[:4096] + model[n][4096:] for n in model}
    write_image(delta, change, SIZE, backing=parent, below=model)
    check(delta)
    tables = 6 * CLUSTER
    assert delta.stat().st_blocks * 512 <= len(change) * 4096 + tables


def test_a_patch_of_a_disk_that_grew_reads_as_zeroes_around_it(tmp_path: Path) -> None:
    small, large = 3 * CLUSTER + 512, 40 * CLUSTER
    base, overlay = tmp_path / "base.qcow2", tmp_path / "overlay.qcow2"
    model = {0: noise(0), 3: text(3)[:512].ljust(CLUSTER, b"\0")}
    write_image(base, model, small)
    change = {3: with_blocks(model[3], 7), 30: with_blocks(ZERO, 8)}
    write_image(overlay, change, large, backing=base, below=model)
    check(overlay)
    model.update(change)
    assert read_through_qemu(overlay) == _shown(model, large)
    _fold_whole(base, overlay, large)
    check(base)
    assert read_through_qemu(base) == _shown(model, large)


def test_a_cluster_that_a_patch_makes_all_zero_leaves_nothing_behind(tmp_path: Path) -> None:
    model = {5: ZERO[:4096] + noise(5)[4096:8192] + ZERO[8192:]}
    base, overlay = tmp_path / "base.qcow2", tmp_path / "overlay.qcow2"
    write_image(base, model, SIZE)
    write_image(overlay, {5: ZERO}, SIZE, backing=base, below=model)
    assert _extended(overlay)
    _fold_whole(base, overlay)
    check(base)
    assert [run for run in json.loads(qemu_img("map", "--output=json", str(base))) if run["data"]] == []


def test_a_damaged_base_stops_the_fold_and_nothing_has_changed(tmp_path: Path) -> None:
    model = {n: noise(n) for n in range(20)}
    base, overlay = tmp_path / "base.qcow2", tmp_path / "overlay.qcow2"
    write_image(base, model, SIZE)
    write_image(overlay, {7: with_blocks(model[7], 1)}, SIZE, backing=base, below=model)
    with base.open("r+b") as fh:
        fh.seek(CLUSTER + 7 * (CLUSTER + 16) + 30_000)
        fh.write(bytes(8))
    before = base.read_bytes()
    with pytest.raises(Corrupt, match="compressed cluster"):
        _fold_whole(base, overlay)
    fold.undo(base, len(before))
    assert base.read_bytes() == before


def test_a_block_of_a_patch_that_went_bad_is_not_folded(tmp_path: Path) -> None:
    model = {n: noise(n) for n in range(9)}
    base, overlay = tmp_path / "base.qcow2", tmp_path / "overlay.qcow2"
    write_image(base, model, SIZE)
    write_image(overlay, {n: noise(90 + n)[:4096] + model[n][4096:] for n in model}, SIZE, backing=base, below=model)
    with overlay.open("r+b") as fh:
        fh.seek(CLUSTER + 7 * CLUSTER + 99)
        fh.write(b"?")
    before = base.read_bytes()
    with pytest.raises(Corrupt, match="of 7 that has not its sum"):
        _fold_whole(base, overlay)
    fold.undo(base, len(before))
    assert base.read_bytes() == before


def test_many_folds_of_patches_neither_grow_the_base_without_end_nor_lose_a_block(tmp_path: Path) -> None:
    base, overlay, source = tmp_path / "base.qcow2", tmp_path / "overlay.qcow2", random.Random(3)
    model = {n: noise(n) for n in range(CLUSTERS - 1)}
    write_image(base, model, SIZE)
    base.with_suffix(".tsums").unlink(missing_ok=True)
    for turn in range(20):
        change = {n: with_blocks(model[n], 100 * turn + n) for n in source.sample(sorted(model), 20)}
        write_image(overlay, change, SIZE, backing=base, below=model)
        model.update(change)
        _fold_whole(base, overlay)
    check(base)
    assert read_through_qemu(base) == _shown(model)
    assert base.stat().st_blocks * 512 < 1.5 * CLUSTERS * CLUSTER


def test_a_vm_may_run_on_a_patched_point(tmp_path: Path) -> None:
    model = {n: noise(n) for n in range(20)}
    base, point, run = tmp_path / "base.qcow2", tmp_path / "point.qcow2", tmp_path / "run.qcow2"
    write_image(base, model, SIZE)
    change = {n: with_blocks(model[n], n) for n in range(10)}
    write_image(point, change, SIZE, backing=base, below=model)
    create_overlay(run, point, SIZE)
    before = point.read_bytes()
    writes = ["-c", f"write -P 7 {3 * CLUSTER + 5000} 512", "-c", f"write -z {4 * CLUSTER} {CLUSTER}"]
    subprocess.run(["qemu-io", "-f", "qcow2", *writes, str(run)], check=True, capture_output=True, timeout=60)
    expected = bytearray(_shown(model | change | {4: ZERO}))
    expected[3 * CLUSTER + 5000 : 3 * CLUSTER + 5512] = b"\7" * 512
    check(run)
    assert read_through_qemu(run) == expected
    assert point.read_bytes() == before
