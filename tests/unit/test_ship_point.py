"""Shipping over wires that break, forget, damage and dawdle."""

import threading
import time
from collections import Counter
from pathlib import Path

import pytest
from point_kit import VM
from spool_kit import MemoryReplica, add_segment, fill, flipped, opening

from vmreplica.model.body import Body
from vmreplica.model.errors import Conflict, Corrupt, Unreachable
from vmreplica.model.ids import DiskTarget, PointId, VmId
from vmreplica.model.point import HeldSegments, IncomingPoint, PointClosing, PointOpening, PointSummary
from vmreplica.model.units import CLUSTER, GiB
from vmreplica.ship import ship_point
from vmreplica.spool import Spool, SpoolPoint

pytestmark = pytest.mark.main_job

WORKERS = 2


@pytest.fixture
def point(tmp_path: Path) -> SpoolPoint:
    return Spool(tmp_path, GiB).create(opening("vda", "vdb"))


def _ship(point: SpoolPoint, wire: MemoryReplica, cancel: threading.Event | None = None) -> PointSummary:
    return ship_point(point, wire, workers=WORKERS, cancel=cancel or threading.Event())


def _nothing_waits(point: SpoolPoint) -> bool:
    return all(not disk.waiting() for disk in point.disks)


class CutWire(MemoryReplica):
    """Breaks in the middle of some request; the answer may be what gets lost."""

    def __init__(self, at: int, delivered: bool) -> None:
        super().__init__()
        self.at = at
        self.begun = 0
        self.delivered = delivered

    def put_segment(self, vm: VmId, point: PointId, target: DiskTarget, number: int, body: Body) -> None:
        """Let it through, or not."""
        with self.lock:
            broken = self.begun >= self.at
            self.begun += 1
        if not broken or self.delivered:
            super().put_segment(vm, point, target, number, body)
        else:
            with self.lock:
                self.puts.append((target, number))
        if broken:
            raise Unreachable("peer-unreachable", "the connection broke")


class SlowWire(MemoryReplica):
    """Takes its time, and sees how many segments come at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0

    def put_segment(self, vm: VmId, point: PointId, target: DiskTarget, number: int, body: Body) -> None:
        """Wait, then keep."""
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)
        time.sleep(0.03)
        super().put_segment(vm, point, target, number, body)
        with self.lock:
            self.now -= 1


class NoisyWire(MemoryReplica):
    """Damages the first so many bodies."""

    def __init__(self, damaged: int) -> None:
        super().__init__()
        self.damaged = damaged

    def put_segment(self, vm: VmId, point: PointId, target: DiskTarget, number: int, body: Body) -> None:
        """Flip a bit."""
        with self.lock:
            self.damaged -= 1
            spoil = self.damaged >= 0
        super().put_segment(vm, point, target, number, flipped(body) if spoil else body)


class LostCompletion(MemoryReplica):
    """Publishes, but its first answer does not arrive."""

    lost = False

    def complete(self, vm: VmId, point: PointId, closing: PointClosing) -> PointSummary:
        """Publish; fall silent once."""
        summary = super().complete(vm, point, closing)
        if not self.lost:
            self.lost = True
            raise Unreachable("peer-unreachable", "no answer")
        return summary


class HostileReplica(MemoryReplica):
    """Says that it holds what nobody ever made."""

    def open_point(self, opening: PointOpening) -> IncomingPoint:
        """Answer nonsense."""
        super().open_point(opening)
        nonsense = ((-5, -1), (7, 3), (1 << 62, 1 << 63), (5, 1 << 60))
        return IncomingPoint(
            point=opening.point,
            held=(HeldSegments(target="vdz", ranges=((0, 9),)), HeldSegments(target="vda", ranges=nonsense)),
        )


def test_a_complete_point_is_sent_once_and_published(point: SpoolPoint) -> None:
    fill(point)
    replica = MemoryReplica()
    summary = _ship(point, replica)
    assert summary.guest_bytes == 2 * 3 * 4 * CLUSTER
    assert sorted(replica.puts) == [(target, number) for target in ("vda", "vdb") for number in range(3)]
    assert _nothing_waits(point)


def test_shipping_follows_a_growing_spool_and_sends_several_at_once(point: SpoolPoint) -> None:
    replica = SlowWire()
    writer = threading.Thread(target=fill, args=(point, 6))
    writer.start()
    _ship(point, replica)
    writer.join()
    assert max(Counter(replica.puts).values()) == 1
    assert len(replica.held) == 12
    assert replica.most == WORKERS


def test_a_slow_wire_holds_capture_at_the_cap_and_both_get_on(tmp_path: Path) -> None:
    spool = Spool(tmp_path, 600_000)
    point = spool.create(opening("vda"))
    replica, most = SlowWire(), [0]

    def write() -> None:
        for _ in range(12):
            add_segment(point.disk("vda"))
            most[0] = max(most[0], spool.used_bytes())
        point.finish(0)

    writer = threading.Thread(target=write)
    writer.start()
    _ship(point, replica)
    writer.join()
    assert 500_000 < most[0] <= 600_000
    assert replica.closing is not None
    assert replica.closing.disks[0].segments == 12


@pytest.mark.parametrize("delivered", [True, False])
@pytest.mark.parametrize("at", [0, 2, 4])
def test_after_a_cut_only_the_open_segments_are_sent_again(point: SpoolPoint, at: int, delivered: bool) -> None:
    fill(point)
    replica = CutWire(at, delivered=delivered)
    with pytest.raises(Unreachable, match="broke"):
        _ship(point, replica)
    open_then = len(replica.puts) - at
    assert 1 <= open_then <= WORKERS
    replica.at = 1000
    _ship(point, replica)
    again = len(replica.puts) - len(set(replica.puts))
    assert again == (0 if delivered else open_then)
    assert len(replica.held) == 6
    assert _nothing_waits(point)


def test_a_cut_before_the_guest_was_read_to_its_end_loses_nothing(point: SpoolPoint) -> None:
    for disk in point.disks:
        add_segment(disk)
    replica = CutWire(1, delivered=True)
    with pytest.raises(Unreachable):
        _ship(point, replica)
    fill(point)
    replica.at = 1000
    assert _ship(point, replica).disks == point.opening.disks
    assert len(replica.puts) == len(replica.held) == 8


def test_what_the_replica_holds_already_is_acknowledged_without_being_sent(point: SpoolPoint) -> None:
    fill(point)
    replica = MemoryReplica()
    replica.held[("vda", 0)] = replica.held[("vda", 2)] = b"as sent by an earlier process"
    _ship(point, replica)
    assert ("vda", 0) not in replica.puts
    assert ("vda", 2) not in replica.puts
    assert len(replica.puts) == 4


def test_a_lost_acknowledgement_of_the_whole_point_is_found_without_sending_anything(
    point: SpoolPoint,
) -> None:
    fill(point)
    replica = LostCompletion()
    with pytest.raises(Unreachable):
        _ship(point, replica)
    sent = len(replica.puts)
    assert _ship(point, replica).point == point.opening.point
    assert len(replica.puts) == sent == 6


def test_a_segment_damaged_on_the_way_is_sent_once_more(point: SpoolPoint) -> None:
    fill(point)
    replica = NoisyWire(1)
    _ship(point, replica)
    assert len(replica.puts) == 7
    assert len(replica.held) == 6


def test_a_segment_refused_twice_is_an_error_and_stays_in_the_spool(point: SpoolPoint) -> None:
    fill(point)
    replica = NoisyWire(1000)
    with pytest.raises(Corrupt, match="digest"):
        _ship(point, replica)
    assert len(replica.puts) <= 2 * WORKERS
    assert [len(disk.waiting()) for disk in point.disks] == [3, 3]


def test_a_replica_that_lost_what_it_acknowledged_is_noticed_at_once(point: SpoolPoint) -> None:
    fill(point)
    replica = CutWire(3, delivered=True)
    with pytest.raises(Unreachable):
        _ship(point, replica)
    replica.held.clear()
    sent = len(replica.puts)
    with pytest.raises(Conflict, match="no longer holds") as lost:
        _ship(point, replica)
    assert (lost.value.code, lost.value.kind) == ("replica-lost-segments", "transient")
    assert len(replica.puts) == sent


def test_nonsense_about_held_segments_changes_nothing(point: SpoolPoint) -> None:
    fill(point)
    replica = HostileReplica()
    _ship(point, replica)
    assert len(replica.puts) == 6


def test_shipping_waits_for_capture_until_it_is_cancelled(point: SpoolPoint) -> None:
    add_segment(point.disk("vda"))
    replica = MemoryReplica()
    cancel = threading.Event()
    timer = threading.Timer(0.2, cancel.set)
    timer.start()
    with pytest.raises(Conflict) as end:
        _ship(point, replica, cancel)
    timer.join()
    assert end.value.code == "cancelled"
    assert replica.puts == [("vda", 0)]
    assert replica.closing is None


def test_a_discarded_point_ends_its_shipping(point: SpoolPoint) -> None:
    replica = MemoryReplica()
    timer = threading.Timer(0.2, point.discard)
    timer.start()
    with pytest.raises(Conflict) as end:
        _ship(point, replica)
    timer.join()
    assert end.value.code == "point-discarded"


def test_a_restarted_process_sends_only_what_was_not_acknowledged(tmp_path: Path) -> None:
    point = Spool(tmp_path, GiB).create(opening("vda", "vdb"))
    fill(point)
    replica = CutWire(3, delivered=True)
    with pytest.raises(Unreachable):
        _ship(point, replica)
    sent = len(replica.puts)
    again = Spool(tmp_path, GiB).point(VM)
    assert again is not None
    replica.at = 1000
    _ship(again, replica)
    assert len(replica.puts) == 6
    assert sent >= 4
