"""The journal of runs and events: whatever happens to its file, nobody who writes to it is harmed."""

import datetime as dt
import os
import shutil
import sqlite3
import stat
from pathlib import Path

import pytest

from vmreplica.agent.journal import Journal
from vmreplica.model.report import CycleReport

pytestmark = pytest.mark.points

VM, OTHER = "11111111-2222-3333-4444-555555555555", "99999999-2222-3333-4444-555555555555"
NOW = dt.datetime.now(dt.UTC)


def run(minute: int = 0) -> CycleReport:
    started = NOW - dt.timedelta(minutes=minute)
    return CycleReport(kind="delta", point=None, reason="interval", started=started, seconds=1.0, outcome="published")


def codes(journal: Journal, **chosen: object) -> list[str]:
    return [event.code for event in journal.events(limit=50, **chosen)]  # type: ignore[arg-type]


def test_events_come_back_oldest_first_with_all_that_was_told(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.db")
    journal.know(VM, "web")
    journal.event(VM, "merge", "points-merged", "3 points were merged", points=3, files=("a", "b"))
    journal.event(None, "space", "space-low", "full in 3 days", severity="warning")
    first, second = journal.events(limit=50)
    assert (first.vm, first.name, first.kind, first.severity) == (VM, "web", "merge", "info")
    assert first.details == {"points": 3, "files": ["a", "b"]}
    assert (second.vm, second.severity, second.text) == (None, "warning", "full in 3 days")
    assert abs((first.at - dt.datetime.now(dt.UTC)).total_seconds()) < 60
    assert 0 < first.id < second.id == journal.newest()
    journal.close()


def test_events_are_chosen_by_vm_kind_time_and_place(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.db")
    for number in range(4):
        journal.event(OTHER if number == 3 else VM, "scrub" if number % 2 else "test", f"e{number}", "...")
    all_of_them = journal.events(limit=50)
    assert codes(journal, vm=VM) == ["e0", "e1", "e2"]
    assert codes(journal, kinds=("scrub",)) == ["e1", "e3"]
    assert codes(journal, since=all_of_them[2].at) == ["e2", "e3"]
    assert codes(journal, after=all_of_them[1].id) == ["e2", "e3"]
    assert [event.code for event in journal.events(limit=2)] == ["e2", "e3"]
    assert [event.code for event in journal.events(limit=2, after=0)] == ["e0", "e1"]
    journal.close()


def test_what_does_not_fit_is_left_out_and_never_an_error(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.db")
    journal.event(VM, "merge", "long", "x" * 100_000, much="y" * 100_000, path=tmp_path)
    journal.event("no uuid", "merge", "never", "...")
    (event,) = journal.events(limit=50)
    assert len(event.text) == 2000
    assert list(event.details) == ["left_out"]
    journal.close()


def test_an_old_journal_with_runs_only_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    db = sqlite3.connect(path)
    db.execute("CREATE TABLE cycle (id INTEGER PRIMARY KEY, vm TEXT NOT NULL, started TEXT NOT NULL, report TEXT)")
    old = run(5).model_dump_json(
        include={"kind", "point", "reason", "started", "seconds", "outcome", "guest_bytes", "wire_bytes"}
    )
    db.execute("INSERT INTO cycle (vm, started, report) VALUES (?, ?, ?)", (VM, run(5).started.isoformat(), old))
    db.execute(
        "INSERT INTO cycle (vm, started, report) VALUES (?, ?, ?)", (VM, run(4).started.isoformat(), '{"of": "2031"}')
    )
    db.commit()
    db.close()
    journal = Journal(path)
    journal.event(VM, "pause", "paused", "...")
    journal.record(VM, run())
    assert [report.started for report in journal.history(VM, 9)] == [run().started, run(5).started]
    assert codes(journal) == ["paused"]
    journal.close()


def test_a_journal_that_is_deleted_while_it_is_open_begins_anew_and_counts_on(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    journal = Journal(path)
    journal.event(VM, "pause", "before", "...")
    before = journal.newest()
    for file in tmp_path.iterdir():
        file.unlink()
    journal.event(VM, "pause", "after", "...")
    assert codes(journal, after=before) == ["after"]
    journal.close()
    again = Journal(path)
    assert codes(again) == ["after"]
    again.close()


def test_a_journal_that_is_damaged_while_it_is_open_is_put_aside(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    journal = Journal(path)
    for _ in range(50):
        journal.event(VM, "pause", "before", "..." * 100)
    journal.close()
    journal = Journal(path)
    with path.open("r+b") as file:
        file.seek(0)
        file.write(b"\xa5" * path.stat().st_size)
    journal.event(VM, "pause", "after", "...")
    journal.record(VM, run())
    assert codes(journal) == ["after"]
    assert len(journal.history(VM, 9)) == 1
    journal.close()
    assert path.with_suffix(".damaged").exists()


def test_a_journal_that_cannot_be_opened_or_written_harms_nobody_and_goes_on_later(tmp_path: Path) -> None:
    path = tmp_path / "gone" / "journal.db"
    journal = Journal(path)
    journal.event(VM, "pause", "lost", "...")
    journal.record(VM, run())
    assert journal.history(VM, 9) == ()
    assert journal.newest() == 0
    path.parent.mkdir()
    journal.event(VM, "pause", "kept", "...")
    assert codes(journal) == ["kept"]
    shutil.rmtree(path.parent)
    journal.event(VM, "pause", "lost", "...")
    journal.close()
    journal.event(VM, "pause", "too late", "...")


def test_a_full_disk_costs_history_only(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    journal = Journal(path)
    journal.event(VM, "pause", "before", "...")
    # The page limit of SQLite itself answers as a full disk does.
    journal._file.use(lambda db: db.execute("PRAGMA max_page_count = 1").fetchall(), otherwise=[])
    for _ in range(100):
        journal.event(VM, "pause", "lost?", "x" * 1000)
    journal.close()
    again = Journal(path)
    again.event(VM, "pause", "after", "...")
    assert codes(again)[-1] == "after"
    again.close()


def test_another_process_that_locks_the_file_delays_but_does_not_stop(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    journal = Journal(path)
    other = sqlite3.connect(path)
    other.execute("BEGIN IMMEDIATE")
    journal.event(VM, "pause", "lost", "...")
    other.rollback()
    other.close()
    journal.event(VM, "pause", "kept", "...")
    assert codes(journal) == ["kept"]
    journal.close()


def test_nobody_else_can_read_it_whatever_the_umask_and_also_if_it_was_made_otherwise(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    mask = os.umask(0o022)
    try:
        for _ in range(2):
            journal = Journal(path)
            journal.event(VM, "pause", "kept", "...")
            assert {stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir()} == {0o600}
            assert len(list(tmp_path.iterdir())) == 3, "with -wal and -shm"
            journal.close()
            path.chmod(0o644)
    finally:
        os.umask(mask)
