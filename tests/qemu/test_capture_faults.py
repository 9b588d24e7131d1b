"""Capture that is killed, robbed of its view, kept waiting, or out of room, and then goes on."""

import errno
import gc
import json
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from capture_kit import (
    BITMAP,
    View,
    assert_same,
    build_image,
    change,
    make_disk,
    noise,
    opening,
    served,
    serving,
    track,
)
from machine_kit import child, small_file_system
from point_kit import VM, segment_of

from vmreplica.capture import capture_point, connection
from vmreplica.capture.build import SegmentBuilder
from vmreplica.capture.plan import READ_BYTES
from vmreplica.capture.view import DiskView
from vmreplica.model.errors import Conflict, HypervisorError, NoSpace, TimedOut
from vmreplica.model.units import GiB, KiB, MiB
from vmreplica.spool import Spool, SpoolPoint

pytestmark = pytest.mark.main_job

SIZE = 512 * MiB
DATA = 40 * MiB


@pytest.fixture
def socket(tmp_path: Path) -> Path:
    return tmp_path / "nbd.sock"


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """A disk with five segments' worth of data that does not compress, in two places."""
    path = make_disk(tmp_path / "vda.qcow2", SIZE)
    half = DATA // 2
    source = noise(tmp_path, half)
    change(path, (f"write -s {source} 5M {half}", f"write -s {source} 400M {half}"))
    return path


@pytest.fixture
def small_fs(tmp_path: Path) -> Iterator[Path]:
    """A file system of 18 MiB."""
    with small_file_system(tmp_path, 18) as mounted:
        yield mounted


def _capture(point: SpoolPoint, view: View, patience: float = 60) -> list[int]:
    told: list[int] = []
    capture_point(
        {"vda": view},
        point,
        cancel=threading.Event(),
        patience=patience,
        progress=lambda done, _: told.append(done),
    )
    return told


def _reopened(spool: Path) -> SpoolPoint:
    point = Spool(spool, GiB).point(VM)
    assert point is not None
    return point


def _identity(point: SpoolPoint, spool: Path) -> dict[str, int]:
    """Which files the waiting segments are: a segment written again would be another file."""
    disk = point.disk("vda")
    names = {f"{number:08d}.seg" for number in disk.waiting()}
    return {path.name: path.stat().st_ino for path in spool.rglob("*.seg") if path.name in names}


_CHILD = """
import sys, threading
from pathlib import Path
from capture_kit import BITMAP, View, opening
from vmreplica.capture import capture_point
from vmreplica.spool import Spool
spool, socket, size, delta = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4] == "delta"
point = Spool(spool, 1 << 40).create(opening({"vda": size}, delta=delta))
view = View(socket, "", size, BITMAP if delta else None)
capture_point({"vda": view}, point, cancel=threading.Event(), progress=lambda done, _: print(done, flush=True))
"""


@pytest.mark.parametrize("kind", ["whole", "delta"])
@pytest.mark.parametrize("after", [1 * MiB, 10 * MiB, 28 * MiB])
def test_a_capture_killed_at_any_point_goes_on_without_reading_twice(
    tmp_path: Path, disk: Path, socket: Path, after: int, kind: str
) -> None:
    spool, base = tmp_path / "spool", None
    if kind == "delta":
        base = make_disk(tmp_path / "base.qcow2", SIZE)
        disk = make_disk(tmp_path / "vdb.qcow2", SIZE)
        track(disk)
        change(disk, (f"write -s {tmp_path / 'noise'} 300M {DATA // 2}", f"write -P 7 20M {DATA // 2}"))
    with served(disk, socket, bitmap=BITMAP if kind == "delta" else None) as view:
        _capture_and_kill(spool, view, kind, after)
        point = _reopened(spool)
        before = _identity(point, spool)
        carried = point.disk("vda").guest_bytes
        told = _capture(point, view)
    assert _identity(point, spool).items() >= before.items()
    assert before or after < 28 * MiB
    assert carried <= told[0] <= carried + READ_BYTES
    assert_same(build_image(point, "vda", tmp_path / "image.qcow2", base), disk)


def _capture_and_kill(spool: Path, view: View, kind: str, after: int) -> None:
    with child(_CHILD, spool, view.socket, view.size, kind) as reader:
        assert reader.stdout is not None
        assert any(int(line) >= after for line in reader.stdout)
        reader.kill()


def test_a_view_that_goes_away_is_a_transient_error_and_its_segments_stay(
    tmp_path: Path, disk: Path, socket: Path
) -> None:
    spool = tmp_path / "spool"
    point = Spool(spool, GiB).create(opening({"vda": SIZE}))
    with serving(socket, "-f", "qcow2", str(disk)) as server:
        with pytest.raises(HypervisorError, match="disk vda of web") as lost:
            capture_point(
                {"vda": View(socket, "", SIZE)},
                point,
                cancel=threading.Event(),
                progress=lambda done, _: server.kill() if done > 12 * MiB else None,
            )
        assert (lost.value.code, lost.value.kind) == ("backup-export-lost", "transient")
    before = _identity(point, spool)
    assert before
    with served(disk, socket) as view:
        _capture(point, view)
    assert _identity(point, spool).items() >= before.items()
    assert_same(build_image(point, "vda", tmp_path / "image.qcow2"), disk)


def test_an_unreadable_disk_is_told_from_a_view_that_went_away(tmp_path: Path, disk: Path, socket: Path) -> None:
    broken = {
        "driver": "qcow2",
        "file": {
            "driver": "blkdebug",
            "image": {"driver": "file", "filename": str(disk)},
            "inject-error": [{"event": "read_aio", "errno": errno.EIO}],
        },
    }
    point = Spool(tmp_path / "spool", GiB).create(opening({"vda": SIZE}))
    with serving(socket, f"json:{json.dumps(broken)}"), pytest.raises(HypervisorError) as failed:
        _capture(point, View(socket, "", SIZE))
    assert failed.value.code == "backup-read-failed"
    assert point.closing is None


def test_a_view_that_comes_to_a_stand_can_be_cancelled(tmp_path: Path, disk: Path, socket: Path) -> None:
    point = Spool(tmp_path / "spool", GiB).create(opening({"vda": SIZE}))
    cancel = threading.Event()
    with serving(socket, "-f", "qcow2", str(disk)) as server:
        timer = threading.Timer(0.2, cancel.set)

        def stop(done: int, _total: int) -> None:
            if done and timer.ident is None:
                server.send_signal(signal.SIGSTOP)
                timer.start()

        started = time.monotonic()
        with pytest.raises(Conflict) as end:
            capture_point({"vda": View(socket, "", SIZE)}, point, workers=1, cancel=cancel, progress=stop)
        assert end.value.code == "cancelled"
        assert time.monotonic() - started < 5
        timer.join()


def test_a_view_that_stands_still_has_a_limit(
    tmp_path: Path, disk: Path, socket: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    point = Spool(tmp_path / "spool", GiB).create(opening({"vda": SIZE}))
    monkeypatch.setattr(connection, "TIME_LIMIT", 0.3)
    monkeypatch.setattr(connection, "HANDSHAKE_LIMIT", 0.3)
    with serving(socket, "-f", "qcow2", str(disk)) as server:
        server.send_signal(signal.SIGSTOP)
        with pytest.raises(TimedOut, match="disk vda of web"):
            _capture(point, View(socket, "", SIZE))


def test_a_full_spool_stops_capture_and_it_goes_on_when_there_is_room(
    tmp_path: Path, disk: Path, socket: Path, small_fs: Path
) -> None:
    point = Spool(small_fs / "spool", GiB).create(opening({"vda": SIZE}))
    saved = tmp_path / "saved"
    saved.mkdir()
    with served(disk, socket) as view:
        for _ in range(2):
            with pytest.raises(NoSpace, match=str(small_fs)):
                _capture(point, view, patience=0.05)
            _drain(point, saved)
        _capture(point, view)
    _drain(point, saved)
    assert len(list(saved.iterdir())) == point.disk("vda").next_segment == 5
    _restore(saved, small_fs, tmp_path / "again")
    assert_same(build_image(_reopened(tmp_path / "again"), "vda", tmp_path / "image.qcow2"), disk)


def test_capture_and_shipping_get_through_a_spool_smaller_than_a_segment(
    tmp_path: Path, disk: Path, socket: Path
) -> None:
    spool = Spool(tmp_path / "spool", 100 * KiB)
    point = spool.create(opening({"vda": SIZE}))
    taken: list[int] = []

    def take() -> None:
        seen = 0
        while point.closing is None or point.disk("vda").waiting():
            seen = point.wait(seen, 1)
            assert len(point.disk("vda").waiting()) <= 1
            for number in point.disk("vda").waiting():
                taken.append(len(segment_of(point.disk("vda"), number)))
                point.disk("vda").acknowledge(number)

    taker = threading.Thread(target=take)
    taker.start()
    with served(disk, socket) as view:
        _capture(point, view)
    taker.join()
    assert sum(taken) > DATA
    assert spool.used_bytes() == 0


def _drain(point: SpoolPoint, saved: Path) -> None:
    """Take everything that waits, as shipping does."""
    disk = point.disk("vda")
    for number in disk.waiting():
        assert not (saved / f"{number:08d}.seg").exists()
        (saved / f"{number:08d}.seg").write_bytes(segment_of(disk, number))
        disk.acknowledge(number)


def _restore(saved: Path, small_fs: Path, spool: Path) -> None:
    """A spool in which all segments wait."""
    point = Spool(spool, GiB).create(opening({"vda": SIZE}))
    saved.rename(saved.with_name("vda"))
    directory = spool / VM / point.opening.point
    (directory / "vda").rmdir()
    saved.with_name("vda").rename(directory / "vda")
    assert (small_fs / "spool" / VM).exists()


def test_a_handshake_is_gone_through_even_when_the_capture_is_to_stop(disk: Path, socket: Path) -> None:
    """QEMU's nbd-server-stop waits for ever for a client that hangs up, or stops, in its handshake."""
    with served(disk, socket) as view:
        shaken = connection.Connection(view, "disk vda of web", lambda: True)
        assert shaken.size == SIZE
        with pytest.raises(Conflict, match=r"stopped|cancelled"):
            shaken.read_into(memoryview(bytearray(512)), 0)
        shaken.close()
        shaken.close()


def test_reading_keeps_no_memory(disk: Path, socket: Path) -> None:
    """What libnbd's own buffers do not give back would be megabytes in each cycle."""
    buffer = memoryview(bytearray(512))
    before = sys.getrefcount(buffer)
    with served(disk, socket) as view:
        reader = connection.Connection(view, "disk vda of web", lambda: False)
        for _ in range(10):
            reader.read_into(buffer, 0)
        reader.close()
    assert sys.getrefcount(buffer) == before


def test_nothing_of_a_capture_waits_for_a_collection(disk: Path, socket: Path, tmp_path: Path) -> None:
    """Python looks for circles of objects rarely: cycle after cycle the buffers of the views would add up."""
    point = Spool(tmp_path / "spool", GiB).create(opening({"vda": SIZE}))
    gc.collect()
    gc.disable()
    try:
        with served(disk, socket) as view:
            _capture(point, view)
        assert not [left for left in gc.get_objects() if isinstance(left, (DiskView, SegmentBuilder))]
    finally:
        gc.enable()
