"""History of cycles and events in an embedded database.

It may be deleted at any time without losing a VM: nothing is decided by it. A damaged file is put aside and a new one
begun.
"""

import datetime as dt
import sqlite3
import threading
from pathlib import Path
from typing import Final

from vmreplica.model.ids import VmId
from vmreplica.model.report import CycleReport

KEEP_DAYS: Final = 90

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS cycle (
  id INTEGER PRIMARY KEY, vm TEXT NOT NULL, started TEXT NOT NULL, report TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS cycle_by_vm ON cycle (vm, id);
"""


class Journal:
    """Thread-safe; one connection, short transactions.

    Args:
        path: the database file, created when missing.
    """

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        self._db = _open(path)

    def record(self, vm: VmId, report: CycleReport) -> None:
        """Add one cycle and forget what is older than 90 days."""
        oldest = report.started - dt.timedelta(days=KEEP_DAYS)
        with self._lock, self._db:
            self._db.execute(
                "INSERT INTO cycle (vm, started, report) VALUES (?, ?, ?)",
                (vm, report.started.isoformat(), report.model_dump_json()),
            )
            self._db.execute("DELETE FROM cycle WHERE started < ?", (oldest.isoformat(),))

    def history(self, vm: VmId, limit: int) -> tuple[CycleReport, ...]:
        """List a VM's cycles, newest first."""
        with self._lock:
            rows = self._db.execute(
                "SELECT report FROM cycle WHERE vm = ? ORDER BY id DESC LIMIT ?", (vm, limit)
            ).fetchall()
        return tuple(CycleReport.model_validate_json(row[0]) for row in rows)

    def close(self) -> None:
        """Close the database."""
        with self._lock:
            self._db.close()


def _open(path: Path) -> sqlite3.Connection:
    try:
        return _connect(path)
    except sqlite3.DatabaseError:
        path.replace(path.with_suffix(".damaged"))
        return _connect(path)


def _connect(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, check_same_thread=False)
    try:
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=NORMAL")
        db.executescript(_SCHEMA)
    except sqlite3.DatabaseError:
        db.close()
        raise
    return db
