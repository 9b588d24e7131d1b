"""Points with patches: received, published, folded, and refused where they cannot stand."""

import random
from pathlib import Path

import numpy as np
import pytest
from machine_kit import leave_free, small_file_system
from point_kit import VM
from repository_kit import (
    OWNER,
    SIZE,
    Killed,
    Primary,
    check_all,
    fill,
    kill_at,
    new_replica,
    noise,
    offer,
    open_repository,
    read_image,
    with_blocks,
)

from vmreplica.model.errors import Corrupt, NoSpace
from vmreplica.model.point import DiskClosing, PointClosing, PointOpening
from vmreplica.model.units import CLUSTER, MiB
from vmreplica.qcow2 import frames
from vmreplica.qcow2.segment import BLOCK, DATA_START, RECORD, clusters_of, pack, patch_kind
from vmreplica.qcow2.tools import image_info
from vmreplica.repository import Replica
from vmreplica.repository.layout import Layout

pytestmark = pytest.mark.seeding


def _patch_point(replica: Replica, primary: Primary, frame: bytes, mask: int) -> tuple[PointOpening, bytes, int]:
    """Open a point, and make its only segment of one patch."""
    opening = primary.opening()
    replica.open_point(opening)
    head, buffers = pack(
        point=opening.point,
        target="vda",
        number=0,
        data_offset=DATA_START,
        next_cluster=clusters_of(SIZE),
        records=np.array([(3, len(frame), patch_kind(mask))], RECORD),
        data=[],
        patches=[frame],
    )
    return opening, b"".join(buffers), head.data_end


def _complete(replica: Replica, opening: PointOpening, data_end: int) -> None:
    disk = DiskClosing(target="vda", segments=1, data_end=data_end)
    replica.complete(opening.point, PointClosing(disks=(disk,), guest_bytes=0))


def test_a_chain_of_patches_reads_right_at_every_point_and_after_folds(tmp_path: Path) -> None:
    replica = new_replica(tmp_path, keep=3)
    primary = Primary({"vda": SIZE, "vdb": 10 * CLUSTER + 512}, each=3, patches=True)
    fill(replica, primary, 8)
    assert check_all(replica, primary) == sorted(primary.expected)
    newest = image_info(replica.image(replica.points()[0].point, "vda"))
    assert newest["format-specific"]["data"]["extended-l2"]
    assert replica.apply_retention() == 5
    assert check_all(replica, primary) == sorted(primary.expected)[-3:]
    oldest = image_info(replica.image(replica.points()[-1].point, "vda"))
    assert not oldest["format-specific"]["data"]["extended-l2"]
    assert check_all(open_repository(tmp_path).replica(VM), primary) == sorted(primary.expected)[-3:]


@pytest.mark.parametrize("step", ["prepare vdb", "commit", "switch vda", "rename vda", "reclaim", "manifest"])
def test_a_crash_in_a_fold_of_patches_costs_no_point(step: str, tmp_path: Path) -> None:
    replica, primary = new_replica(tmp_path, keep=2), Primary({"vda": SIZE, "vdb": SIZE}, patches=True)
    fill(replica, primary, 4)
    replica.before_fold_step = kill_at(step)
    with pytest.raises(Killed):
        replica.apply_retention()
    assert check_all(replica, primary)[-3:] == sorted(primary.expected)[-3:]
    again = open_repository(tmp_path).replica(VM)
    assert check_all(again, primary)[-3:] == sorted(primary.expected)[-3:]
    again.apply_retention()
    assert check_all(again, primary) == sorted(primary.expected)[-2:]
    assert not Layout(tmp_path / VM).fold.exists()


def test_segments_with_patches_may_come_in_any_order_and_twice(tmp_path: Path) -> None:
    replica, primary = new_replica(tmp_path), Primary(each=2, patches=True)
    primary.send(replica, {"vda": {n: noise(n) for n in range(40)}})
    opening = primary.opening()
    disk = primary.disks["vda"]
    change = {n: (with_blocks(disk[n], n), noise(500 + n))[n % 3 == 0] for n in range(40)}
    segments, closing = primary.write(opening, {"vda": change})
    replica.open_point(opening)
    for number in random.Random(1).sample(range(len(segments["vda"])), len(segments["vda"])):
        for _ in range(2):
            replica.put_segment(opening.point, "vda", number, segments["vda"][number])
    again = open_repository(tmp_path).replica(VM)
    summary = again.complete(opening.point, closing)
    assert check_all(again, primary)[-1] == opening.point
    assert summary.wire_bytes == sum(len(body) for body in segments["vda"])
    assert summary.stored_bytes < 14 * CLUSTER + 26 * 15 * BLOCK + 8 * CLUSTER


def test_patches_of_a_disk_that_is_not_held_yet_cost_the_sender_its_point(tmp_path: Path) -> None:
    replica, primary = new_replica(tmp_path), Primary()
    frame = frames.encode_patch(memoryview(noise(1)[:BLOCK]), 1)
    opening, body, end = _patch_point(replica, primary, frame, 1)
    replica.put_segment(opening.point, "vda", 0, body)
    with pytest.raises(Corrupt, match="no copy here yet") as caught:
        _complete(replica, opening, end)
    assert caught.value.code == "point-damaged"
    assert replica.points() == []
    assert list((replica.dir / "incoming").iterdir()) == []


def test_a_patch_that_does_not_decompress_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    replica, primary = new_replica(tmp_path), Primary()
    primary.send(replica, {"vda": {3: noise(3)}})
    frame = bytearray(frames.encode_patch(memoryview(noise(1)[:BLOCK]), 1))
    frame[-1] ^= 1
    opening, body, _ = _patch_point(replica, primary, bytes(frame), 1)
    with pytest.raises(Corrupt) as caught:
        replica.put_segment(opening.point, "vda", 0, body)
    assert caught.value.code == "frame-broken"
    held = replica.position().incoming
    assert held is not None
    assert held.held[0].ranges == ()
    image = replica.dir / "incoming" / opening.point / "vda.image"
    assert image.stat().st_blocks == 0
    good = frames.encode_patch(memoryview(noise(2)[:BLOCK]), 1)
    opening, body, end = _patch_point(replica, primary, good, 1 << 5)
    replica.put_segment(opening.point, "vda", 0, body)
    _complete(replica, opening, end)


def test_room_is_asked_for_what_patches_decode_to(tmp_path: Path) -> None:
    with small_file_system(tmp_path, 24) as mounted:
        replica = open_repository(mounted, min_free=MiB).create(VM, OWNER, offer())
        primary = Primary()
        primary.send(replica, {"vda": {3: noise(3)}})
        opening = primary.opening()
        replica.open_point(opening)
        frame = frames.encode_patch(memoryview(b"q" * 15 * BLOCK), 1)
        _, buffers = pack(
            point=opening.point,
            target="vda",
            number=0,
            data_offset=DATA_START,
            next_cluster=64,
            records=np.array([(n, len(frame), patch_kind(0x7FFF)) for n in range(64)], RECORD),
            data=[],
            patches=[frame] * 64,
        )
        body = b"".join(buffers)
        leave_free(mounted / "ballast", 4 * MiB + 256 * 1024)
        assert len(body) < 64 * 1024, "with the reserve it would fit, and so would what it decodes to without it"
        with pytest.raises(NoSpace):
            replica.put_segment(opening.point, "vda", 0, body)
        (mounted / "ballast").unlink()
        replica.put_segment(opening.point, "vda", 0, body)


def test_a_fold_of_patches_asks_for_the_room_of_whole_clusters_first(tmp_path: Path) -> None:
    with small_file_system(tmp_path, 64) as mounted:
        replica, primary = new_replica(mounted, keep=1), Primary({"vda": 128 * CLUSTER}, patches=True)
        primary.send(replica, {"vda": {n: noise(n) for n in range(100)}})
        primary.send(replica, {"vda": {n: noise(9)[:BLOCK] + c[BLOCK:] for n, c in primary.disks["vda"].items()}})
        leave_free(mounted / "ballast", 20 * MiB)
        before = {path: path.stat().st_mtime_ns for path in replica.dir.rglob("*.qcow2")}
        with pytest.raises(NoSpace):
            replica.apply_retention()
        assert {path: path.stat().st_mtime_ns for path in replica.dir.rglob("*.qcow2")} == before
        (mounted / "ballast").unlink()
        assert replica.apply_retention() == 1
        image = replica.image(str(primary.latest), "vda")
        assert read_image(image, tmp_path) == primary.expected[str(primary.latest)]["vda"]
