"""The journal's database file, which may be damaged, full or gone at any moment: never an error for who writes."""

import contextlib
import os
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

import structlog

_T = TypeVar("_T")
_log: Final = structlog.get_logger(__name__)

#: Seconds that another process, for example a person's ``sqlite3``, may keep the file locked.
_LOCK_LIMIT: Final = 2.0
_PRIVATE: Final = 0o600
_DAMAGED: Final = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})


class JournalFile:
    """Thread-safe; one connection, short transactions, opened anew after each error.

    Args:
        path: the database file, created when missing, put aside when damaged.
        schema: statements that may be run on every opening.
    """

    def __init__(self, path: Path, schema: str) -> None:
        self._path = path
        self._schema = schema
        self._lock = threading.Lock()
        self._db: sqlite3.Connection | None = None
        self._inode: int | None = None
        self._closed = False
        self._failures = 0
        self.use(lambda _db: None, otherwise=None)

    def use(self, act: Callable[[sqlite3.Connection], _T], *, otherwise: _T) -> _T:
        """Do something in a transaction of its own, once more if the file had to be replaced.

        Args:
            act: what to do; may be called twice.
            otherwise: what to hand back when it cannot be done.
        """
        with self._lock:
            if self._closed:
                return otherwise
            for last in (False, True):
                try:
                    with self._connected() as db:
                        result = act(db)
                except (sqlite3.Error, OSError) as error:
                    self._failed(error)
                    if last or not self._replaceable(error):
                        return otherwise
                else:
                    self._failures = 0
                    return result
        return otherwise

    def close(self) -> None:
        """Close the database; what is asked for later is not done."""
        with self._lock:
            self._closed = True
            self._disconnect()

    def _connected(self) -> sqlite3.Connection:
        if self._db is not None and _inode(self._path) != self._inode:
            # Somebody deleted or replaced it: what is written to the old file is lost.
            self._disconnect()
        if self._db is None:
            self._db = _connect(self._path, self._schema)
            self._inode = _inode(self._path)
        return self._db

    def _disconnect(self) -> None:
        db, self._db = self._db, None
        if db is not None:
            db.close()

    def _replaceable(self, error: Exception) -> bool:
        """Put a damaged file aside; tell whether another attempt is worth it."""
        code = getattr(error, "sqlite_errorcode", 0)
        if code == sqlite3.SQLITE_READONLY_DBMOVED:
            return True
        if not isinstance(error, sqlite3.DatabaseError) or code & 0xFF not in _DAMAGED:
            return False
        try:
            self._path.replace(self._path.with_suffix(".damaged"))
            for suffix in ("-wal", "-shm"):
                # They belong to the damaged file, and would be played into the new one.
                self._path.with_name(f"{self._path.name}{suffix}").unlink(missing_ok=True)
        except OSError:
            return False
        return True

    def _failed(self, error: Exception) -> None:
        self._disconnect()
        self._failures += 1
        if self._failures & (self._failures - 1) == 0:  # the 1st, 2nd, 4th, 8th... time
            _log.warning("the journal fails, history has a gap", file=str(self._path), why=str(error))


def _inode(path: Path) -> int | None:
    try:
        return path.stat().st_ino
    except OSError:
        return None


def _make_private(path: Path) -> None:
    """Let nobody else read names of VMs and what happened to them; ``-wal`` and ``-shm`` get the mode of the file."""
    # An existing file is not opened for it: closing it would let go of SQLite's own locks.
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _PRIVATE))
    for suffix in ("", "-wal", "-shm"):
        with contextlib.suppress(FileNotFoundError):
            path.with_name(f"{path.name}{suffix}").chmod(_PRIVATE)


def _connect(path: Path, schema: str) -> sqlite3.Connection:
    _make_private(path)
    db = sqlite3.connect(path, timeout=_LOCK_LIMIT, check_same_thread=False)
    try:
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=NORMAL")
        db.executescript(schema)
    except BaseException:
        db.close()
        raise
    return db
