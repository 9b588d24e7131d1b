"""History of runs and events in an embedded database.

It may be damaged, full or deleted at any time without harming replication: nothing is decided by it, and no method
raises because of it. What cannot be written is lost to history, and said in the log.
"""

import datetime as dt
import json
import re
import sqlite3
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

import structlog
from pydantic import ValidationError

from vmreplica.agent.journal_file import JournalFile
from vmreplica.agent.totals import Totals
from vmreplica.model.events import EventKind, EventSeverity, JournalEvent
from vmreplica.model.ids import VmId
from vmreplica.model.report import CycleReport

_Shape = TypeVar("_Shape", CycleReport, JournalEvent)
_log: Final = structlog.get_logger(__name__)

Side = Literal["sent", "received"]
_TABLES: Final[dict[Side, str]] = {"sent": "cycle", "received": "receipt"}
_UUID: Final = re.compile("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
KEEP_DAYS: Final = 90
#: Rows of each table at most, whatever their age.
MAX_ROWS: Final = 1_000_000
_MAX_TEXT: Final = 2000
_MAX_DETAILS: Final = 16384

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS cycle (
  id INTEGER PRIMARY KEY, vm TEXT NOT NULL, started TEXT NOT NULL, report TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS cycle_by_vm ON cycle (vm, id);
CREATE INDEX IF NOT EXISTS cycle_by_start ON cycle (started);
CREATE TABLE IF NOT EXISTS event (
  id INTEGER PRIMARY KEY, at REAL NOT NULL, vm TEXT, kind TEXT NOT NULL, event TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS receipt (
  id INTEGER PRIMARY KEY, vm TEXT NOT NULL, started TEXT NOT NULL, report TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS receipt_by_vm ON receipt (vm, id);
CREATE INDEX IF NOT EXISTS receipt_by_start ON receipt (started);
CREATE TABLE IF NOT EXISTS sample (
  at REAL NOT NULL, place TEXT NOT NULL, free INTEGER NOT NULL
);
CREATE INDEX IF NOT EXISTS sample_by_time ON sample (at);
CREATE INDEX IF NOT EXISTS event_by_vm ON event (vm, id);
CREATE INDEX IF NOT EXISTS event_by_time ON event (at);
"""


class Journal:
    """Thread-safe; no method raises because of the file.

    Args:
        path: the database file, created when missing.
    """

    def __init__(self, path: Path) -> None:
        self._file = JournalFile(path, _SCHEMA)
        #: What all runs and events since the start add up to.
        self.totals = Totals()
        #: The newest event's id, as far as written from here.
        self._last = 0
        self._names: dict[VmId, str] = {}
        self._names_lock = threading.Lock()

    # ---- writing

    def know(self, vm: VmId, name: str) -> None:
        """Take note of what a VM is called, for events of those who know only its id."""
        with self._names_lock:
            self._names[vm] = name

    def named(self, vm: str) -> tuple[VmId | None, str]:
        """Tell a VM's id and name, by either, as far as known; an id of one that is not known is given as it is."""
        with self._names_lock:
            if vm in self._names:
                return vm, self._names[vm]
            found = next((known for known, name in self._names.items() if name == vm), None)
        return (found, vm) if found else (vm if _UUID.fullmatch(vm) else None, vm)

    def record(self, vm: VmId, report: CycleReport) -> None:
        """Add one run and forget what is older than 90 days."""
        self.totals.add(vm, report)
        table = _TABLES[report.side]
        oldest = report.started - dt.timedelta(days=KEEP_DAYS)

        def write(db: sqlite3.Connection) -> None:
            row = db.execute(
                f"INSERT INTO {table} (vm, started, report) VALUES (?, ?, ?)",  # noqa: S608 - one of two names
                (vm, report.started.isoformat(), report.model_dump_json()),
            ).lastrowid
            db.execute(f"DELETE FROM {table} WHERE started < ?", (oldest.isoformat(),))  # noqa: S608 - likewise
            db.execute(f"DELETE FROM {table} WHERE id <= ?", ((row or 0) - MAX_ROWS,))  # noqa: S608 - likewise

        self._file.use(write, otherwise=None)

    def event(
        self,
        vm: VmId | None,
        kind: EventKind,
        code: str,
        text: str,
        *,
        severity: EventSeverity = "info",
        name: str = "",
        **details: object,
    ) -> None:
        """Take note of something that happened; never fails, and takes a few milliseconds at most.

        Args:
            vm: which VM; None: it is about the host.
            kind: what it is about.
            code: stable, lower-case, dashed; of a failure the code of its error.
            text: a sentence for people, without secrets.
            severity: how urgent.
            name: the VM's name, where it is known better than to the journal.
            details: figures and names that belong to it; what JSON does not know is kept as text.
        """
        now = dt.datetime.now(dt.UTC)
        with self._names_lock:
            called = name or (self._names.get(vm, "") if vm else "")
        try:
            event = JournalEvent(
                id=0,
                at=now,
                vm=vm,
                name=called,
                kind=kind,
                severity=severity,
                code=code,
                text=text[:_MAX_TEXT],
                details=_plain(details),
            )
        except ValidationError as error:
            _log.warning("an event does not fit the journal", kind=kind, code=code, why=str(error))
            return
        self.totals.count(event)
        added = self._file.use(lambda db: _add(db, event, self._last), otherwise=0)
        self._last = max(self._last, added)

    def sample(self, place: str, at: float, free: int) -> None:
        """Take note of the bytes that are free somewhere, at a time in seconds since the epoch."""

        def write(db: sqlite3.Connection) -> None:
            db.execute("INSERT INTO sample (at, place, free) VALUES (?, ?, ?)", (at, place, free))
            db.execute("DELETE FROM sample WHERE at < ?", (at - KEEP_DAYS * 86400,))

        self._file.use(write, otherwise=None)

    # ---- reading

    def samples(self, place: str, since: float) -> list[tuple[float, float]]:
        """List what was free somewhere, oldest first."""
        rows = self._rows("SELECT at, free FROM sample WHERE place = ? AND at >= ? ORDER BY at", (place, since))
        return [(float(at), float(free)) for at, free in rows]

    def history(
        self, vm: VmId, limit: int, *, since: dt.datetime | None = None, side: Side = "sent"
    ) -> tuple[CycleReport, ...]:
        """List a VM's runs, newest first: those that sent points from here, or those that received them here."""
        after = since.astimezone(dt.UTC).isoformat() if since else ""
        query = f"SELECT report FROM {_TABLES[side]} WHERE vm = ? AND started >= ? ORDER BY id DESC LIMIT ?"  # noqa: S608 - one of two names
        rows = self._rows(query, (vm, after, limit))
        return tuple(_readable(CycleReport, (row[0] for row in rows)))

    def events(
        self,
        *,
        limit: int,
        vm: VmId | None = None,
        kinds: tuple[str, ...] = (),
        but: tuple[str, ...] = (),
        since: dt.datetime | None = None,
        after: int | None = None,
    ) -> tuple[JournalEvent, ...]:
        """List events, oldest first.

        Args:
            limit: how many at most: the newest, or with ``after`` the oldest that follow.
            vm: of this VM only.
            kinds: of these kinds only; none: of all.
            but: of none of these kinds.
            since: not before this instant.
            after: such as follow the event with this id.
        """
        where: list[str] = ["1"]
        values: list[object] = []
        for clause, value in (
            ("vm = ?", vm),
            ("at >= ?", since.timestamp() if since else None),
            ("id > ?", after),
        ):
            if value is not None:
                where.append(clause)
                values.append(value)
        if kinds:
            where.append(f"kind IN ({','.join('?' * len(kinds))})")
        if but:
            where.append(f"kind NOT IN ({','.join('?' * len(but))})")
        order = "DESC" if after is None else "ASC"
        query = f"SELECT id, event FROM event WHERE {' AND '.join(where)} ORDER BY id {order} LIMIT ?"  # noqa: S608 - placeholders
        rows = self._rows(query, (*values, *kinds, *but, limit))
        if after is None:
            rows.reverse()
        return tuple(
            event.model_copy(update={"id": row[0]}) for row in rows for event in _readable(JournalEvent, (row[1],))
        )

    def newest(self) -> int:
        """Tell the id of the newest event; 0: there is none."""
        return self._file.use(_newest, otherwise=0)

    def _rows(self, query: str, values: tuple[object, ...]) -> list[tuple[Any, ...]]:
        nothing: list[tuple[Any, ...]] = []
        return self._file.use(lambda db: db.execute(query, values).fetchall(), otherwise=nothing)

    def close(self) -> None:
        """Close the database; what happens later is not written down."""
        self._file.close()


def _add(db: sqlite3.Connection, event: JournalEvent, known: int) -> int:
    # Milliseconds at first: a journal that was begun anew goes on above what the old one counted to.
    at = event.at.timestamp()
    last = max(_newest(db), known)
    row = last + 1 if last else int(at * 1000)
    db.execute(
        "INSERT INTO event (id, at, vm, kind, event) VALUES (?, ?, ?, ?, ?)",
        (row, at, event.vm, event.kind, event.model_dump_json()),
    )
    db.execute("DELETE FROM event WHERE at < ?", (at - KEEP_DAYS * 86400,))
    db.execute("DELETE FROM event WHERE id <= ?", (row - MAX_ROWS,))
    return row


def _newest(db: sqlite3.Connection) -> int:
    found = db.execute("SELECT max(id) FROM event").fetchone()[0]
    return int(found or 0)


def _plain(details: dict[str, object]) -> dict[str, Any]:
    """Make JSON of whatever was given, within bounds."""
    text = json.dumps(details, default=str)
    return json.loads(text) if len(text) <= _MAX_DETAILS else {"left_out": f"{len(text)} characters"}


def _readable(shape: type[_Shape], rows: Iterable[str]) -> Iterable[_Shape]:
    """Read rows; those of a newer version, or damaged ones, are passed over."""
    for row in rows:
        try:
            yield shape.model_validate_json(row)
        except ValidationError:
            continue
