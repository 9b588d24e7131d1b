"""A disk that became smaller stands alone in its point: nothing behind its new end ever comes back."""

import random
from pathlib import Path

import pytest
from point_kit import VM
from repository_kit import SIZE, Primary, check_all, new_replica, noise, open_repository

from vmreplica.model.errors import BadRequest
from vmreplica.model.units import CLUSTER
from vmreplica.repository import Replica

pytestmark = pytest.mark.seeding


def _send_shrunk(replica: Replica, primary: Primary, size: int) -> None:
    """Send a point in which vda is smaller, and whole; the other disks are deltas."""
    primary.sizes["vda"] = size
    content = {number: data for number, data in primary.disks["vda"].items() if number < size // CLUSTER}
    primary.disks["vda"] = dict(content)
    opening = primary.opening().model_copy(update={"modes": {"vda": "whole", "vdb": "delta"}})
    primary.send(replica, {"vda": content, "vdb": {1: noise(99)}}, opening=opening)


def _fill(replica: Replica, primary: Primary, points: int, seed: int) -> None:
    source = random.Random(seed)
    for turn in range(points):
        changes = {
            target: {number: noise(seed + turn + number) for number in source.sample(range(size // CLUSTER), 5)}
            for target, size in primary.sizes.items()
        }
        primary.send(replica, changes)


@pytest.mark.parametrize("keep", [1, 2, 3, 4])
def test_points_before_and_after_a_shrink_read_right_while_they_are_folded(tmp_path: Path, keep: int) -> None:
    replica, primary = new_replica(tmp_path, keep=keep), Primary({"vda": SIZE, "vdb": 8 * CLUSTER})
    _fill(replica, primary, 2, seed=1)
    _send_shrunk(replica, primary, SIZE // 2)
    _fill(replica, primary, 1, seed=50)
    primary.sizes["vda"] = SIZE
    _fill(replica, primary, 1, seed=70)
    assert check_all(replica, primary) == sorted(primary.expected)
    replica.apply_retention()
    assert check_all(replica, primary) == sorted(primary.expected)[-keep:]
    assert check_all(open_repository(tmp_path).replica(VM), primary) == sorted(primary.expected)[-keep:]


def test_a_smaller_disk_that_is_not_whole_is_refused(tmp_path: Path) -> None:
    replica, primary = new_replica(tmp_path), Primary({"vda": SIZE, "vdb": 8 * CLUSTER})
    _fill(replica, primary, 1, seed=1)
    primary.sizes["vda"] = SIZE // 2
    with pytest.raises(BadRequest) as caught:
        replica.open_point(primary.opening())
    assert caught.value.code == "disk-shrunk"
