"""Merged points are checked like all others: nothing is found in them, nothing of them is put right wrongly."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from repository_kit import SIZE, Primary, check_all, fill, new_replica, noise
from scrub_kit import flipped, scrub

from vmreplica.model.keep import Keep
from vmreplica.model.units import CLUSTER
from vmreplica.qcow2.head import BLOCK, KIND_PATCH, KIND_ZSTD, patch_masks
from vmreplica.qcow2.index import read_heads
from vmreplica.qcow2.patching import mask_runs
from vmreplica.repository import Replica

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
