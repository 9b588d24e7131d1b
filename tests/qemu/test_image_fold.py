"""Folding an overlay into its base, judged by QEMU."""

import random
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from image_kit import ZERO, check, flat, noise, read_through_qemu, text, write_image

from vmreplica.model.errors import Conflict
from vmreplica.model.units import CLUSTER, MiB
from vmreplica.qcow2 import fold

pytestmark = pytest.mark.main_job

CLUSTERS = 200
SIZE = CLUSTERS * CLUSTER

Change = Mapping[int, bytes]


def _cluster(number: int, kind: int, seed: int) -> bytes:
    return (ZERO, noise(seed), text(seed), bytes([seed % 255 + 1]) * CLUSTER)[kind % 4] if number >= 0 else ZERO


def _nothing() -> None:
    """The check of a fold that nobody stops."""


def _beside(base: Path, overlay: Path) -> fold.Beside:
    sums = base.with_suffix(".tsums")
    return fold.Beside(index=overlay.with_suffix(".index"), dead=base.with_suffix(".dead"), sums=sums, new_sums=sums)


def _fold(base: Path, overlay: Path, size: int = SIZE) -> bytes:
    return fold.prepare_fold(base, overlay, _beside(base, overlay), size=size, check=_nothing)


def _fold_whole(base: Path, overlay: Path, size: int = SIZE) -> None:
    header = _fold(base, overlay, size)
    fold.switch(base, header)
    fold.reclaim(base, base.with_suffix(".dead"), lambda: False)


changes = st.lists(
    st.dictionaries(st.integers(0, CLUSTERS - 1), st.integers(0, 3), max_size=60), min_size=1, max_size=6
)


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(first=st.dictionaries(st.integers(0, CLUSTERS - 1), st.integers(1, 3), max_size=150), later=changes)
def test_any_sequence_of_folds_equals_its_model(
    first: dict[int, int], later: list[dict[int, int]], tmp_path: Path
) -> None:
    model: dict[int, bytes] = {n: _cluster(n, kind, n) for n, kind in first.items()}
    base = tmp_path / "base.qcow2"
    write_image(base, model, SIZE)
    base.with_suffix(".tsums").unlink(missing_ok=True)
    for turn, kinds in enumerate(later):
        change = {n: _cluster(n, kind, 1000 * turn + n) for n, kind in kinds.items()}
        overlay = tmp_path / f"{turn}.qcow2"
        write_image(overlay, change, SIZE, backing=base, each=16)
        model.update(change)
        _fold_whole(base, overlay)
        check(base)
        assert read_through_qemu(base) == flat(model, SIZE)


def test_until_the_switch_the_base_is_what_it_was(tmp_path: Path) -> None:
    base, overlay = tmp_path / "base.qcow2", tmp_path / "overlay.qcow2"
    before = {n: noise(n) for n in range(100)}
    write_image(base, before, SIZE)
    write_image(overlay, {n: text(n) for n in range(50, 150)}, SIZE, backing=base)
    size = base.stat().st_size
    _fold(base, overlay)
    assert read_through_qemu(base) == flat(before, SIZE)
    fold.undo(base, size)
    check(base)
    assert base.stat().st_size == size
    assert read_through_qemu(base) == flat(before, SIZE)


def test_after_the_switch_the_overlay_over_the_base_reads_as_before(tmp_path: Path) -> None:
    base, overlay = tmp_path / "base.qcow2", tmp_path / "overlay.qcow2"
    write_image(base, {n: noise(n) for n in range(100)}, SIZE)
    write_image(overlay, {n: (text(n), ZERO)[n % 2] for n in range(50, 150)}, SIZE, backing=base)
    expected = read_through_qemu(overlay)
    header = _fold(base, overlay)
    fold.switch(base, header)
    fold.switch(base, header)
    assert read_through_qemu(overlay) == expected
    fold.reclaim(base, base.with_suffix(".dead"), lambda: False)
    fold.reclaim(base, base.with_suffix(".dead"), lambda: False)
    assert read_through_qemu(base) == expected


def test_a_fold_that_is_stopped_leaves_the_base_as_it_was(tmp_path: Path) -> None:
    base, overlay = tmp_path / "base.qcow2", tmp_path / "overlay.qcow2"
    write_image(base, {0: noise(1)}, SIZE)
    write_image(overlay, {n: noise(n) for n in range(40)}, SIZE, backing=base, each=10)
    size, calls = base.stat().st_size, iter(range(2))

    def stop() -> None:
        if next(calls, None) is None:
            raise Conflict("fold-stopped", "enough")

    with pytest.raises(Conflict):
        fold.prepare_fold(base, overlay, _beside(base, overlay), size=SIZE, check=stop)
    assert base.stat().st_size > size - 1
    fold.undo(base, size)
    check(base)
    assert read_through_qemu(base) == flat({0: noise(1)}, SIZE)


def test_a_disk_that_grew_is_folded_at_its_new_size(tmp_path: Path) -> None:
    base, overlay = tmp_path / "base.qcow2", tmp_path / "overlay.qcow2"
    small, large = 3 * CLUSTER + 512, 600 * MiB
    write_image(base, {0: noise(0), 2: text(2)}, small)
    write_image(overlay, {1: text(1), 8200: noise(3)}, large, backing=base)
    expected = read_through_qemu(overlay)
    _fold_whole(base, overlay, large)
    check(base)
    assert len(expected) == large
    assert read_through_qemu(base) == expected


def test_forty_folds_neither_grow_the_file_without_end_nor_keep_dead_data(tmp_path: Path) -> None:
    base, source = tmp_path / "base.qcow2", random.Random(7)
    model = {n: noise(n) for n in range(CLUSTERS)}
    write_image(base, model, SIZE)
    base.with_suffix(".tsums").unlink(missing_ok=True)
    for turn in range(40):
        change = {n: noise(1000 + turn) for n in source.sample(range(CLUSTERS), 20)}
        overlay = tmp_path / "overlay.qcow2"
        write_image(overlay, change, SIZE, backing=base)
        model.update(change)
        _fold_whole(base, overlay)
    check(base)
    assert read_through_qemu(base) == flat(model, SIZE)
    live = CLUSTERS * CLUSTER
    assert base.stat().st_size < 4 * live, "apparent size: free clusters are used again"
    assert base.stat().st_blocks * 512 < 1.5 * live, "space on disk: what is dead is punched out"
