"""The journal, the tasks and the meter."""

import datetime as dt
from pathlib import Path

import pytest
from point_kit import make_summary

from vmreplica.agent.journal import Journal
from vmreplica.agent.keeper import harmless
from vmreplica.agent.meter import Meter
from vmreplica.agent.relationship import Relationship
from vmreplica.agent.tasks import Tasks
from vmreplica.model.errors import Conflict, NotFound
from vmreplica.model.point import PointKind, Position
from vmreplica.model.policy import Policy
from vmreplica.model.report import CycleReport
from vmreplica.model.states import State
from vmreplica.model.units import GiB

pytestmark = pytest.mark.main_job

VM = "11111111-2222-3333-4444-555555555555"
NOW = dt.datetime(2026, 11, 22, 10, 0, tzinfo=dt.UTC)


def cycle(started: dt.datetime) -> CycleReport:
    return CycleReport(kind="delta", point=None, reason="interval", started=started, seconds=1.0, outcome="failed")


def test_history_is_newest_first_and_survives_a_restart(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.db")
    for minute in range(3):
        journal.record(VM, cycle(NOW + dt.timedelta(minutes=minute)))
    journal.close()
    again = Journal(tmp_path / "journal.db")
    assert [report.started.minute for report in again.history(VM, 2)] == [2, 1]
    assert again.history("other", 5) == ()
    again.close()


def test_history_older_than_ninety_days_is_forgotten(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.db")
    journal.record(VM, cycle(NOW - dt.timedelta(days=91)))
    journal.record(VM, cycle(NOW))
    assert [report.started for report in journal.history(VM, 9)] == [NOW]
    journal.close()


def test_a_damaged_journal_is_put_aside_not_fatal(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    path.write_bytes(b"this is no database at all, not even a bit of one" * 100)
    journal = Journal(path)
    journal.record(VM, cycle(NOW))
    assert len(journal.history(VM, 9)) == 1
    journal.close()
    assert path.with_suffix(".damaged").exists()


def test_a_task_tells_its_end_and_its_whole_error() -> None:
    tasks = Tasks()
    task = tasks.start("initial replication of web")
    assert not tasks.get(task.id).report().done
    task.finish(None, Conflict("paused", "web is paused", hint="resume it"))
    report = tasks.get(task.id).report()
    assert report.done
    assert (report.error_code, report.hint) == ("paused", "resume it")
    with pytest.raises(NotFound):
        tasks.get("nobody")


def test_the_meter_tells_rate_and_time_left() -> None:
    now = [0.0]
    meter = Meter(clock=lambda: now[0])
    assert meter.progress().seconds_left is None
    for second in range(1, 5):
        now[0] = float(second)
        meter.read(second * 100, 1000)
    assert meter.progress().rate == pytest.approx(100)
    assert meter.progress().seconds_left == pytest.approx(6)


def test_time_left_is_that_of_the_line_when_it_is_slower_than_reading() -> None:
    now = [0.0]
    meter = Meter(clock=lambda: now[0])
    meter.read(0, 1000)
    for second in range(1, 6):
        now[0] = float(second)
        meter.read(second * 100, 1000)
        meter.sent(10)
    meter.waiting(450)
    progress = meter.progress()
    assert progress.wire_bytes == 50
    assert progress.wire_rate == pytest.approx(10)
    # 450 bytes wait, and the other half of the disk will bring as many as the first half did: 500.
    assert progress.seconds_left == pytest.approx(95)
    meter.read(1000, 1000)
    assert meter.progress().seconds_left == pytest.approx(45)
    meter.sent(450)
    assert meter.progress().seconds_left == pytest.approx(0)


@pytest.mark.parametrize(
    ("sending", "state"), [(None, State.REPLICATING), ("delta", State.REPLICATING), ("resync", State.RESYNC)]
)
def test_a_resynchronisation_under_way_is_a_state_of_its_own(sending: PointKind | None, state: State) -> None:
    point = make_summary("20261122T100000Z-00000000")
    position = Position(vm=VM, state="replicating", epoch=0, latest=point, incoming=None, free_bytes=0)
    policy = Policy(replica="ab" * 16)
    rel = Relationship(vm=VM, name="web", policy=policy, due=0.0, position=position, sending=sending)
    assert rel.state() is state


@pytest.mark.parametrize(
    ("used", "free", "left"), [(0, 9 * GiB, True), (0, 8 * GiB, False), (7 * GiB, 2 * GiB, True), (9 * GiB, GiB, True)]
)
def test_a_job_is_left_unwatched_only_where_its_scratch_may_grow_to_its_cap(used: int, free: int, left: bool) -> None:
    assert harmless(used, free, cap=8 * GiB, min_free=GiB) is left


def test_what_sending_waits_for_is_shown_until_the_next_bytes_are_sent() -> None:
    meter = Meter()
    meter.phase("exporting to /mnt/usb")
    meter.obstacle("the medium is full")
    assert meter.progress().phase == "exporting to /mnt/usb (waiting: the medium is full)"
    meter.sent(4096)
    assert meter.progress().phase == "exporting to /mnt/usb"


def test_a_cycle_tells_how_long_it_waited_for_its_turn_and_for_its_base() -> None:
    rel = Relationship(vm=VM, name="web", policy=Policy(replica="ab" * 16, interval=10), due=100.0)
    rel.count_waiting(135.0, NOW)
    assert (rel.queued_seconds, rel.missed, rel.base_seconds) == (35, 0, 0), "no turn was missed before the first point"
    latest = make_summary("20261122T100000Z-00000001", {"vda": GiB})
    rel.position = Position(vm=VM, state="replicating", epoch=0, latest=latest, incoming=None, free_bytes=0)
    rel.await_base(since=110.0)
    rel.await_base(since=130.0)
    rel.count_waiting(135.0, NOW)
    assert (rel.queued_seconds, rel.missed, rel.base_seconds) == (35, 3, 25)
    rel.await_base(since=None)
    rel.count_waiting(90.0, NOW)
    assert (rel.queued_seconds, rel.missed, rel.base_seconds) == (0, 0, 0)


def test_time_that_several_connections_are_held_up_at_once_counts_once() -> None:
    now = [0.0]
    meter = Meter(clock=lambda: now[0])
    for since, until in ((0.0, 1.0), (0.5, 1.0), (0.5, 1.5), (3.0, 4.0)):
        now[0] = until
        meter.held(since)
    assert meter.held_seconds() == pytest.approx(2.5)
