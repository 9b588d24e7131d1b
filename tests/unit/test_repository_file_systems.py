"""The store on the file systems that hosts have: everything works on each, and space is given back where it can be."""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from machine_kit import in_page_cache, leave_free
from point_kit import VM
from repository_kit import SIZE, ZERO, Primary, check_all, new_replica, noise, open_repository, read_image

from vmreplica.model.errors import NoSpace
from vmreplica.model.units import CLUSTER, MiB
from vmreplica.repository import Replica

pytestmark = [
    pytest.mark.seeding,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount file systems"),
]

#: How each one is made, and the smallest that its tool makes.
FILE_SYSTEMS = {
    "ext4": (["mkfs.ext4", "-q", "-F"], 64 * MiB),
    "ext2": (["mkfs.ext2", "-q", "-F"], 64 * MiB),
    "xfs": (["mkfs.xfs", "-q", "-f"], 320 * MiB),
    "btrfs": (["mkfs.btrfs", "-q", "-f"], 128 * MiB),
}


@contextlib.contextmanager
def mounted(kind: str, place: Path) -> Iterator[Path]:
    """Mount a fresh file system of a kind."""
    make, size = FILE_SYSTEMS[kind]
    if shutil.which(make[0]) is None:
        pytest.skip(f"{make[0]} is not installed")
    image, directory = place / "image", place / "mounted"
    with image.open("wb") as fh:
        fh.truncate(size)
    directory.mkdir()
    subprocess.run([*make, str(image)], check=True, capture_output=True, timeout=60)
    mount = ["mount", "-o", "loop", str(image), str(directory)]
    run = subprocess.run(mount, check=False, capture_output=True, text=True, timeout=60)
    if run.returncode != 0:
        pytest.skip(f"{kind} cannot be mounted here: {run.stderr.strip()}")
    try:
        yield directory
    finally:
        subprocess.run(["umount", "-l", str(directory)], check=True, timeout=60)


def send_some(replica: Replica, primary: Primary, points: int) -> None:
    """Send points that overwrite and clear the same clusters again and again."""
    for _ in range(points):
        turn = primary.count
        primary.send(replica, {"vda": {n: ZERO if (n + turn) % 5 == 0 else noise(turn * 100 + n) for n in range(24)}})


@pytest.mark.parametrize("kind", FILE_SYSTEMS)
def test_points_are_kept_folded_and_found_again_on_every_file_system(kind: str, tmp_path: Path) -> None:
    with mounted(kind, tmp_path) as directory:
        replica, primary = new_replica(directory / "store", keep=2), Primary(patches=True)
        for _ in range(4):
            send_some(replica, primary, 2)
            replica.apply_retention()
        assert check_all(replica, primary) == sorted(primary.expected)[-2:]
        again = open_repository(directory / "store").replica(VM)
        assert check_all(again, primary) == sorted(primary.expected)[-2:]
        oldest = again.points()[-1]
        used = sum(primary.expected[oldest.point]["vda"][n : n + CLUSTER] != ZERO for n in range(0, SIZE, CLUSTER))
        assert oldest.stored_bytes < 2 * used * CLUSTER, "the space of superseded clusters is given back"


def test_a_full_disk_costs_no_point_and_retention_goes_on_when_there_is_room(tmp_path: Path) -> None:
    with mounted("ext4", tmp_path) as directory:
        replica, primary = new_replica(directory / "store", keep=1), Primary()
        send_some(replica, primary, 3)
        leave_free(directory / "ballast", MiB)
        with pytest.raises(NoSpace):
            replica.apply_retention()
        with pytest.raises(NoSpace):
            send_some(replica, primary, 1)
        sent = sorted(primary.expected)[:3]
        for point in sent:
            assert read_image(replica.image(point, "vda"), tmp_path) == primary.expected[point]["vda"]
        (directory / "ballast").unlink()
        replica.apply_retention()
        assert [summary.point for summary in replica.points()] == sent[-1:]
        assert check_all(replica, primary) == sent[-1:]
        replica.retire()


@pytest.mark.main_job
def test_what_is_durable_leaves_the_page_cache_and_pushes_nothing_else_out_of_it(tmp_path: Path) -> None:
    with mounted("ext4", tmp_path) as directory:
        replica, primary = new_replica(directory), Primary(each=64)
        opening = primary.opening()
        segments, closing = primary.write(opening, {"vda": {n: noise(n) for n in range(64)}})
        replica.open_point(opening)
        (segment,) = segments["vda"]
        replica.put_segment(opening.point, "vda", 0, segment)
        cached = in_page_cache(replica.dir / "incoming" / opening.point / "vda.image")
        assert len(segment) > 64 * CLUSTER
        assert cached < MiB // 4
        replica.complete(opening.point, closing)
        assert check_all(replica, primary) == [opening.point]
        replica.retire()
