"""Receiving a point: any order, several threads, crashes, full disks, and peers that lie."""

import contextlib
import os
import random
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import xxhash
from machine_kit import child, leave_free, small_file_system
from point_kit import VM
from repository_kit import OWNER, SIZE, ZERO, Primary, check_all, new_replica, noise, offer, open_repository, read_image

from vmreplica.model.errors import BadRequest, Conflict, Corrupt, NoSpace, NotFound
from vmreplica.model.point import DiskClosing, PointClosing
from vmreplica.model.units import CLUSTER, MiB
from vmreplica.qcow2.segment import HEAD
from vmreplica.repository import Replica, incoming, publish

pytestmark = pytest.mark.main_job

FULL = {n: noise(n) for n in range(64)}


def _put_until_full(replica: Replica, point: str, bodies: list[bytes], first: int = 0) -> int:
    """Tell the number of the first segment that found no room."""
    for number, body in enumerate(bodies, first):
        try:
            replica.put_segment(point, "vda", number, body)
        except NoSpace:
            return number
    return first + len(bodies)


@pytest.fixture
def small_fs(tmp_path: Path) -> Iterator[Path]:
    with small_file_system(tmp_path, 24) as mounted:
        yield mounted


def _resigned(body: bytes, **fields: int) -> bytes:
    """A segment with other fields and a true digest."""
    places = {"number": ("<I", 8), "data_offset": ("<Q", 16)}
    changed = bytearray(body)
    for name, value in fields.items():
        struct.pack_into(places[name][0], changed, places[name][1], value)
    changed[88:104] = xxhash.xxh3_128_digest(bytes(changed[:88]) + bytes(changed[HEAD:]))
    return bytes(changed)


def test_segments_may_come_in_any_order_from_several_threads(tmp_path: Path) -> None:
    replica, primary = new_replica(tmp_path), Primary({"vda": SIZE, "vdb": SIZE}, each=2)
    opening = primary.opening()
    segments, closing = primary.write(opening, {"vda": FULL, "vdb": {n: noise(n) for n in range(0, 64, 3)}})
    replica.open_point(opening)
    work = [(target, number) for target, bodies in segments.items() for number in range(len(bodies))] * 2
    random.Random(3).shuffle(work)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda it: replica.put_segment(opening.point, it[0], it[1], segments[it[0]][it[1]]), work))
    summary = replica.complete(opening.point, closing)
    assert summary.wire_bytes == sum(len(body) for bodies in segments.values() for body in bodies)
    assert check_all(replica, primary) == [opening.point]
    heads = (replica.image(opening.point, "vda").with_suffix(".index")).read_bytes()
    assert heads.count(b"VMRSEG1\0") == len(segments["vda"])


def test_what_was_acknowledged_is_held_after_a_restart_and_only_the_rest_is_sent(tmp_path: Path) -> None:
    replica, primary = new_replica(tmp_path), Primary(each=4)
    opening = primary.opening()
    segments, closing = primary.write(opening, {"vda": FULL})
    replica.open_point(opening)
    for number in (0, 1, 5, 7, 6, 12):
        replica.put_segment(opening.point, "vda", number, segments["vda"][number])
    with (replica.dir / "incoming" / opening.point / "vda.index").open("ab") as fh:
        fh.write(b"VMRSEG1\0 torn by a crash")
    replica.retire()
    again = open_repository(tmp_path).replica(VM)
    held = again.position().incoming
    assert held is not None
    assert held == again.open_point(opening)
    assert held.held[0].ranges == ((0, 2), (5, 8), (12, 13))
    for number in (2, 3, 4, 8, 9, 10, 11, 13, 14, 15):
        again.put_segment(opening.point, "vda", number, segments["vda"][number])
    again.complete(opening.point, closing)
    assert check_all(again, primary) == [opening.point]


def test_a_killed_receiver_has_lost_nothing_that_it_acknowledged(tmp_path: Path) -> None:
    primary = Primary(each=1)
    opening = primary.opening()
    segments, closing = primary.write(opening, {"vda": FULL})
    new_replica(tmp_path / "store").retire()
    (tmp_path / "opening").write_text(opening.model_dump_json())
    for number, body in enumerate(segments["vda"]):
        (tmp_path / f"{number}.seg").write_bytes(body)
    script = (
        "import sys; from pathlib import Path; from vmreplica.repository import Repository\n"
        "from vmreplica.model.point import PointOpening\n"
        "here = Path(sys.argv[1]); opening = PointOpening.model_validate_json((here / 'opening').read_bytes())\n"
        "replica = Repository(here / 'store').replica(opening.vm); replica.open_point(opening)\n"
        "for number in range(64):\n"
        "    replica.put_segment(opening.point, 'vda', number, (here / f'{number}.seg').read_bytes())\n"
        "    print(number, flush=True)\n"
    )
    with child(script, tmp_path) as process:
        assert process.stdout is not None
        acknowledged = [int(process.stdout.readline()) for _ in range(20)]
        process.kill()
    replica = open_repository(tmp_path / "store").replica(VM)
    ((start, end),) = replica.open_point(opening).held[0].ranges
    assert start == 0
    assert end >= len(acknowledged)
    for number in range(end, 64):
        replica.put_segment(opening.point, "vda", number, segments["vda"][number])
    replica.complete(opening.point, closing)
    assert check_all(replica, primary) == [opening.point]


def test_the_same_segment_again_is_fine_and_another_one_is_refused(tmp_path: Path) -> None:
    replica, primary = new_replica(tmp_path), Primary(each=4)
    opening = primary.opening()
    segments, _ = primary.write(opening, {"vda": FULL})
    other, _ = primary.write(opening, {"vda": {n: noise(900 + n) for n in range(64)}})
    replica.open_point(opening)
    replica.put_segment(opening.point, "vda", 3, segments["vda"][3])
    replica.put_segment(opening.point, "vda", 3, memoryview(segments["vda"][3]))
    with pytest.raises(Conflict) as caught:
        replica.put_segment(opening.point, "vda", 3, other["vda"][3])
    assert caught.value.code == "segment-differs"


def test_lost_answers_are_asked_for_again_without_harm(tmp_path: Path) -> None:
    replica, primary = new_replica(tmp_path, keep=1), Primary(each=4)
    opening = primary.opening()
    segments, closing = primary.write(opening, {"vda": FULL})
    assert replica.open_point(opening) == replica.open_point(opening)
    for number, body in enumerate(segments["vda"]):
        replica.put_segment(opening.point, "vda", number, body)
    first = replica.complete(opening.point, closing)
    assert replica.complete(opening.point, closing) == first
    assert replica.open_point(opening).held[0].ranges == ((0, 16),)
    primary.latest = opening.point
    later = primary.send(replica, {"vda": {1: ZERO}})
    replica.apply_retention()
    assert replica.complete(later.point, closing).point == later.point
    replica.abandon(later.point)
    assert check_all(replica, primary) == [later.point]


def test_completing_with_segments_missing_names_the_lack_and_loses_nothing(tmp_path: Path) -> None:
    replica, primary = new_replica(tmp_path), Primary(each=4)
    opening = primary.opening()
    segments, closing = primary.write(opening, {"vda": FULL})
    replica.open_point(opening)
    for number in range(15):
        replica.put_segment(opening.point, "vda", number, segments["vda"][number])
    with pytest.raises(Conflict, match="15 of 16") as caught:
        replica.complete(opening.point, closing)
    assert (caught.value.code, caught.value.kind) == ("point-incomplete", "transient")
    replica.put_segment(opening.point, "vda", 15, segments["vda"][15])
    replica.complete(opening.point, closing)
    assert check_all(replica, primary) == [opening.point]


@pytest.mark.parametrize("offset", [65536, 65536 + 3 * 65540, 65536 + 8 * 65540])
def test_segments_that_overlap_or_leave_a_gap_cost_the_sender_its_point(offset: int, tmp_path: Path) -> None:
    replica, primary = new_replica(tmp_path), Primary(each=4)
    opening = primary.opening()
    segments, closing = primary.write(opening, {"vda": {n: noise(n) for n in range(8)}})
    replica.open_point(opening)
    replica.put_segment(opening.point, "vda", 0, segments["vda"][0])
    replica.put_segment(opening.point, "vda", 1, _resigned(segments["vda"][1], data_offset=offset))
    with pytest.raises(Corrupt) as caught:
        replica.complete(opening.point, closing)
    assert caught.value.code == "point-damaged"
    assert replica.position().incoming is None
    assert not list((replica.dir / "incoming").iterdir())


def test_segments_whose_records_go_backwards_cost_the_sender_its_point(tmp_path: Path) -> None:
    replica, primary = new_replica(tmp_path), Primary(each=4)
    opening = primary.opening()
    content = {n: noise(n) for n in range(8)}
    segments, closing = primary.write(opening, {"vda": content})
    length = len(segments["vda"][0]) - HEAD - 4 * 16
    replica.open_point(opening)
    replica.put_segment(opening.point, "vda", 0, _resigned(segments["vda"][1], number=0, data_offset=65536))
    replica.put_segment(opening.point, "vda", 1, _resigned(segments["vda"][0], number=1, data_offset=65536 + length))
    with pytest.raises(Corrupt, match="does not go on"):
        replica.complete(opening.point, closing)


@pytest.mark.parametrize("change", [{"segments": 1}, {"segments": 3}, {"data_end": 65536}, {"target": "vdb"}])
def test_a_closing_that_does_not_fit_publishes_nothing(change: dict[str, object], tmp_path: Path) -> None:
    replica, primary = new_replica(tmp_path), Primary(each=4)
    opening = primary.opening()
    segments, closing = primary.write(opening, {"vda": {n: noise(n) for n in range(8)}})
    replica.open_point(opening)
    for number, body in enumerate(segments["vda"]):
        replica.put_segment(opening.point, "vda", number, body)
    lie = PointClosing(disks=(closing.disks[0].model_copy(update=change),), guest_bytes=0)
    with pytest.raises((Corrupt, Conflict, BadRequest)):
        replica.complete(opening.point, lie)
    assert replica.points() == []


def test_a_disk_named_twice_in_the_closing_is_refused(tmp_path: Path) -> None:
    replica, primary = new_replica(tmp_path), Primary()
    opening = primary.opening()
    replica.open_point(opening)
    disk = DiskClosing(target="vda", segments=0, data_end=CLUSTER)
    with pytest.raises(BadRequest, match="other disks"):
        replica.complete(opening.point, PointClosing(disks=(disk, disk), guest_bytes=0))


def test_segments_of_unknown_points_disks_and_numbers_are_refused(tmp_path: Path) -> None:
    replica, primary = new_replica(tmp_path), Primary(each=4)
    opening = primary.opening()
    segments, _ = primary.write(opening, {"vda": FULL})
    body = segments["vda"][0]
    with pytest.raises(Conflict, match="not open"):
        replica.put_segment(opening.point, "vda", 0, body)
    replica.open_point(opening)
    with pytest.raises(NotFound, match="without disk vdb"):
        replica.put_segment(opening.point, "vdb", 0, body)
    with pytest.raises(Corrupt, match="no segment 5000"):
        replica.put_segment(opening.point, "vda", 5000, _resigned(body, number=5000))
    with pytest.raises(Corrupt) as caught:
        replica.put_segment(opening.point, "vda", 1, _resigned(body, number=1, data_offset=2**40))
    assert caught.value.code == "segment-offset"
    assert (replica.dir / "incoming" / opening.point / "vda.image").stat().st_size == 0


def test_a_new_point_replaces_the_one_under_construction(tmp_path: Path) -> None:
    replica, primary = new_replica(tmp_path), Primary()
    first, second = primary.opening(), primary.opening()
    replica.open_point(first)
    replica.open_point(second)
    assert [path.name for path in (replica.dir / "incoming").iterdir()] == [second.point]
    changed = second.model_copy(update={"definition": "<other/>"})
    with pytest.raises(Conflict, match="other disks or another parent"):
        replica.open_point(changed)
    replica.abandon(first.point)
    assert replica.position().incoming is not None
    replica.abandon(second.point)
    assert replica.position().incoming is None


def test_only_a_successor_of_the_newest_point_may_be_opened(tmp_path: Path) -> None:
    replica, primary = new_replica(tmp_path), Primary({"vda": SIZE})
    early = primary.opening()
    primary.send(replica, {"vda": {0: noise(0)}})
    primary.send(replica, {"vda": {1: noise(1)}})
    with pytest.raises(Conflict, match="newest point here") as caught:
        replica.open_point(early)
    assert caught.value.code == "point-older"
    stale = primary.opening().model_copy(update={"parent": min(primary.expected)})
    with pytest.raises(Conflict) as caught:
        replica.open_point(stale)
    assert caught.value.code == "parent-mismatch"
    primary.sizes["vda"] = SIZE - CLUSTER
    with pytest.raises(BadRequest, match="whole copy"):
        replica.open_point(primary.opening())
    replica.open_point(primary.opening(whole=True))


def test_a_delta_is_refused_where_nothing_is(tmp_path: Path) -> None:
    replica, primary = new_replica(tmp_path), Primary()
    primary.latest = "20250101T000000Z-00000000"
    with pytest.raises(Conflict, match="None"):
        replica.open_point(primary.opening())


def test_a_full_store_takes_no_segment_and_goes_on_when_there_is_room(small_fs: Path) -> None:
    replica, primary = new_replica(small_fs / "store"), Primary({"vda": 512 * CLUSTER}, each=16)
    opening = primary.opening()
    segments, closing = primary.write(opening, {"vda": {n: noise(n) for n in range(160)}})
    replica.open_point(opening)
    leave_free(small_fs / "ballast", 4 * MiB)
    sent = _put_until_full(replica, opening.point, segments["vda"])
    assert 0 < sent < len(segments["vda"])
    assert replica.open_point(opening).held[0].ranges == ((0, sent),)
    (small_fs / "ballast").unlink()
    again = open_repository(small_fs / "store").replica(VM)
    for number in range(sent, len(segments["vda"])):
        again.put_segment(opening.point, "vda", number, segments["vda"][number])
    again.complete(opening.point, closing)
    assert read_image(again.image(opening.point, "vda")) == primary.expected[opening.point]["vda"]


@pytest.mark.parametrize("left", [0, 64, 128, 196, 256, 260, 264, 300])
def test_a_store_that_fills_up_while_a_point_is_published_loses_nothing(
    left: int, small_fs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check of the room before is taken out: something else fills the store just after it."""
    replica, primary = new_replica(small_fs / "store"), Primary({"vda": 512 * CLUSTER}, each=16)
    opening = primary.opening()
    segments, closing = primary.write(opening, {"vda": {n: noise(n) for n in range(100)}})
    replica.open_point(opening)
    for number, body in enumerate(segments["vda"]):
        replica.put_segment(opening.point, "vda", number, body)
    leave_free(small_fs / "ballast", left << 10)
    with pytest.raises(NoSpace, match="needs"):
        replica.complete(opening.point, closing)
    monkeypatch.setattr(publish, "require_free", _no_check)
    with contextlib.suppress(NoSpace):
        replica.complete(opening.point, closing)
    if not replica.points():
        assert replica.open_point(opening).held[0].ranges == ((0, len(segments["vda"])),)
        (small_fs / "ballast").unlink()
        replica.complete(opening.point, closing)
    assert read_image(replica.image(opening.point, "vda"), small_fs.parent) == primary.expected[opening.point]["vda"]


def _no_check(_path: Path, _needed: int, _what: str) -> None:
    """Find room everywhere."""


def test_a_store_that_fills_up_within_a_segment_holds_it_whole_or_not(
    small_fs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replica, primary = new_replica(small_fs / "store"), Primary(each=1)
    monkeypatch.setattr(incoming, "require_free", _no_check)
    opening = primary.opening()
    segments, closing = primary.write(opening, {"vda": FULL})
    replica.open_point(opening)
    held = set()
    for number, body in enumerate(segments["vda"]):
        leave_free(small_fs / "ballast", number * 4096)
        held |= {number} - {_put_until_full(replica, opening.point, [body], number)}
        (small_fs / "ballast").unlink()
    assert 0 < len(held) < 64
    ranges = open_repository(small_fs / "store").replica(VM).open_point(opening).held[0].ranges
    assert {n for start, end in ranges for n in range(start, end)} == held
    for number in set(range(64)) - held:
        replica.put_segment(opening.point, "vda", number, segments["vda"][number])
    replica.complete(opening.point, closing)
    assert read_image(replica.image(opening.point, "vda")) == primary.expected[opening.point]["vda"]


def test_a_reserve_is_left_free(tmp_path: Path) -> None:
    free = os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize
    new_replica(tmp_path).retire()
    replica, primary = open_repository(tmp_path, min_free=free * 2).replica(VM), Primary()
    opening = primary.opening()
    segments, _ = primary.write(opening, {"vda": {0: noise(0)}})
    replica.open_point(opening)
    with pytest.raises(NoSpace, match="segment of vda"):
        replica.put_segment(opening.point, "vda", 0, segments["vda"][0])
    assert "must be" in replica.position().complaints[0]
    with pytest.raises(NoSpace):
        open_repository(tmp_path, min_free=free * 2).create(VM.replace("1", "7"), OWNER, offer())


@pytest.mark.parametrize("torn", ["renamed image", "definition", "manifest"])
def test_a_crash_while_publishing_leaves_a_point_that_can_be_completed(torn: str, tmp_path: Path) -> None:
    replica, primary = new_replica(tmp_path), Primary()
    opening = primary.opening()
    segments, closing = primary.write(opening, {"vda": FULL})
    replica.open_point(opening)
    for number, body in enumerate(segments["vda"]):
        replica.put_segment(opening.point, "vda", number, body)
    replica.retire()
    directory = replica.dir / "incoming" / opening.point
    with (directory / "vda.image").open("r+b") as fh:
        fh.write(b"QFI\xfb")
    (directory / "vda.image").rename(directory / "vda.qcow2")
    if torn != "renamed image":
        (directory / ".definition.xml.1234.tmp").write_text("<dom")
        (directory / "definition.xml").write_text("<domain/>")
    if torn == "manifest":
        (directory / "manifest.json").write_text("{}")
    again = open_repository(tmp_path).replica(VM)
    assert again.points() == []
    again.open_point(opening)
    again.complete(opening.point, closing)
    assert check_all(again, primary) == [opening.point]
    assert not list(again.dir.glob("**/*.tmp"))
