"""Merged points are checked like all others: nothing is found in them, nothing of them is put right wrongly."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from repository_kit import SIZE, Primary, check_all, fill, new_replica, noise
from scrub_kit import flipped, scrub, tools

from vmreplica.model.keep import Keep
from vmreplica.model.units import CLUSTER
from vmreplica.qcow2.head import BLOCK, KIND_PATCH, KIND_ZSTD, patch_masks
from vmreplica.qcow2.index import read_heads
from vmreplica.qcow2.layout import Header
from vmreplica.qcow2.patching import mask_runs
from vmreplica.repository import Replica, folding, merging
from vmreplica.repository.layout import Layout
from vmreplica.repository.scrub import Moved, scrub_point

pytestmark = pytest.mark.points


def _keep(replica: Replica, points: list[str]) -> None:
    """Let all others be merged away."""
    for point in points:
        replica.hold(point, "a person", "of value", kind="pin")
    replica.update(keep=Keep(last=1))
    replica.apply_retention()


def _sound(replica: Replica, point: str) -> bool:
    found = scrub(replica, point, repair=True)
    return not found.damages and not found.repaired


def test_scrub_finds_nothing_in_a_merged_point_and_each_block_that_goes_bad(tmp_path: Path) -> None:
    replica, primary = new_replica(tmp_path, keep=1000), Primary(patches=True, each=3)
    fill(replica, primary, 9)
    listed = sorted(primary.expected)
    _keep(replica, [listed[0], listed[6]])
    assert check_all(replica, primary) == [listed[0], *listed[6:]]
    manifest = replica.point(listed[6])
    assert manifest.merged
    assert _sound(replica, listed[6])
    image, places = replica.image(listed[6], "vda"), list(_places(replica.image(listed[6], "vda")))
    assert len({kind for kind, _cluster, _place in places}) == 2, "whole clusters and patches"
    for _kind, cluster, place in places:
        with flipped(image, place, 3):
            (damage,) = scrub(replica, listed[6]).damages
        assert (damage.disk, damage.guest_offset // CLUSTER) == ("vda", cluster)


def _places(image: Path) -> Iterator[tuple[int, int, int]]:
    """Kind and guest cluster of each frame and patch, and the place of one of its bytes."""
    with image.with_suffix(".index").open("rb") as heads:
        for head, records in read_heads(heads):
            data, patches = head.data_offset, head.patches_at
            rows = zip(records.tolist(), patch_masks(records).tolist(), strict=True)
            for (cluster, length, kind), mask in rows:
                if kind == KIND_ZSTD:
                    yield KIND_ZSTD, cluster, data + length // 2
                    data += length
                elif mask:
                    yield KIND_PATCH, cluster, patches + next(mask_runs(mask))[0] * BLOCK + 77
                    patches += CLUSTER


@pytest.mark.parametrize("again", [False, True])
def test_a_point_that_took_in_a_disk_made_smaller_and_larger_again_stands_alone_for_good(
    tmp_path: Path, *, again: bool
) -> None:
    replica, primary = new_replica(tmp_path, keep=1000), Primary()
    primary.send(replica, {"vda": {n: noise(n) for n in range(60)}})
    primary.sizes["vda"], primary.disks["vda"] = SIZE // 2, {}
    opening = primary.opening().model_copy(update={"modes": {"vda": "whole"}})
    primary.send(replica, {"vda": {3: noise(400)}}, opening=opening)
    primary.sizes["vda"] = SIZE
    primary.send(replica, {"vda": {5: noise(500)}})
    primary.send(replica, {"vda": {50: noise(600)}})
    fill(replica, primary, 1 + again)
    listed = sorted(primary.expected)
    _keep(replica, [listed[0], listed[3]])
    assert replica.point(listed[3]).parent == listed[0]
    assert _sound(replica, listed[3])
    assert check_all(replica, primary) == [listed[0], *listed[3:]]
    for hold in list(replica._holds._holds):
        replica.release(hold)
    replica.apply_retention()
    assert check_all(replica, primary) == listed[-1:]


def _of_two_disks(tmp_path: Path) -> tuple[Replica, Primary, list[str]]:
    replica = new_replica(tmp_path, keep=1000)
    primary = Primary({"vda": SIZE, "vdb": 10 * CLUSTER + 512}, patches=True)
    fill(replica, primary, 4)
    return replica, primary, sorted(primary.expected)


def _scrubbed_while(replica: Replica, point: str, change: Callable[[], object], at: int) -> None:
    """Scrub a point, and have something else happen when so much was read of it; that it moved must be seen."""
    reads = 0

    def pace(_size: int) -> None:
        nonlocal reads
        reads += 1
        if reads == at:
            change()

    with pytest.raises(Moved):
        scrub_point(Layout(replica.dir), replica.point(point), replace(tools(repair=True), pace=pace))
    assert reads >= at


@pytest.mark.parametrize("at", [1, 3])
def test_a_point_that_gets_another_parent_while_it_is_scrubbed_keeps_it(tmp_path: Path, at: int) -> None:
    replica, primary, points = _of_two_disks(tmp_path)
    layout, guide, point = Layout(replica.dir), folding.Guidance(), points[2]
    merging.rebase(layout, replica.point(point), points[0], points[1:2], guide)
    replica.reload()
    manifest = replica.point(point)
    _scrubbed_while(replica, point, lambda: merging.reparent(layout, manifest, points[1], guide), at)
    for target in manifest.disks:
        raw = replica.image(point, target.target).read_bytes()[:CLUSTER]
        assert Header.unpack(raw, "image", overlay=True).backing == f"../{points[1]}/{target.file}"
    replica.reload()
    assert _sound(replica, point)
    assert check_all(replica, primary) == points


@pytest.mark.parametrize("at", [1, 3])
def test_a_point_that_is_merged_while_it_is_scrubbed_is_not_called_damaged(tmp_path: Path, at: int) -> None:
    replica, primary, points = _of_two_disks(tmp_path)
    layout, guide, point = Layout(replica.dir), folding.Guidance(), points[2]
    manifest = replica.point(point)
    _scrubbed_while(replica, point, lambda: merging.rebase(layout, manifest, points[0], points[1:2], guide), at)
    replica.reload()
    assert _sound(replica, point)
    assert check_all(replica, primary) == points
