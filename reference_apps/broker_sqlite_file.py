"""The file behind the SQLite broker: how it is opened, its tables, its transactions, and what a new boot makes of it.

    QueueFile ── transaction, reading, version ──▶ broker_sqlite.py
        └─ another boot than before: its clock began anew, leases and delays are over

What is fsynced when is said in broker_sqlite.py. No twin: the simulator's jobs are in memory. It does not repair a file
that is damaged.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal

from reference_apps.broker import BrokerDownError, BrokerFullDiskError
from reference_apps.durable import sync_folder
from reference_apps.sqlite_log import write_ahead

BUSY_TIMEOUT_S = 5.0
FLUSH_INTERVAL_S = 1.0
# The log is cut back to this after a checkpoint; it grows while many write.
_LOG_MAX_BYTES = 67_108_864
_VERSION = 1
_OURS = (sqlite3.IntegrityError, sqlite3.ProgrammingError)

# `id` is the place in line. A new row gets the greatest id there is and one, which is behind every other; rows keep it
# as long as they live. `due` is the end of a lease or of a delay, `ready` when the row got its place, `until` when the
# key of a job that is over may be used again: all monotonic seconds of the boot that `boot` names. `body` is the row of
# the payload: in a table of its own, a payload is written once, and not again with each change of its job.
_SCHEMA = (
    """CREATE TABLE jobs (
        id INTEGER PRIMARY KEY, job TEXT NOT NULL UNIQUE, state INTEGER NOT NULL, priority INTEGER NOT NULL,
        attempt INTEGER NOT NULL, due REAL, lease TEXT, ready REAL NOT NULL, enqueued_s REAL NOT NULL,
        key TEXT, error TEXT NOT NULL, body INTEGER NOT NULL)""",
    "CREATE INDEX jobs_waiting ON jobs (state, priority) WHERE state = 0",
    "CREATE INDEX jobs_due ON jobs (due, state) WHERE due IS NOT NULL",
    """CREATE TABLE dead (
        place INTEGER PRIMARY KEY AUTOINCREMENT, job TEXT NOT NULL UNIQUE, priority INTEGER NOT NULL,
        attempt INTEGER NOT NULL, enqueued_s REAL NOT NULL, died_s REAL NOT NULL,
        key TEXT, error TEXT NOT NULL, body INTEGER NOT NULL)""",
    "CREATE TABLE bodies (id INTEGER PRIMARY KEY, payload BLOB NOT NULL)",
    "CREATE TABLE keys (key TEXT PRIMARY KEY, job TEXT NOT NULL, until REAL) WITHOUT ROWID",
    "CREATE INDEX keys_until ON keys (until) WHERE until IS NOT NULL",
    "CREATE TABLE boot (boot TEXT NOT NULL)",
    "INSERT INTO boot VALUES ('')",
    f"PRAGMA user_version = {_VERSION}",
)


class QueueFile:
    """One process' connection to the file; its threads take turns. Raises BrokerDownError when there can be no file."""

    def __init__(self, path: Path, fsync: Literal["commit", "interval"]) -> None:
        self.path = path
        self._fsync = fsync
        self.lock = threading.Lock()
        self.synchronous = ""
        self.written = 0  # transactions of this connection, which its data_version does not count
        self.closing = threading.Event()
        self.db = _connect(path)
        self._flusher = threading.Thread(target=self._flush, name="queue flush", daemon=True)
        if fsync == "interval":
            self._flusher.start()

    def prepare(self, boot: str, now_s: float, key_ttl_s: float) -> None:
        """Makes the tables, or makes those of another boot fit for this one. Raises BrokerDownError for other files."""
        with self.transaction(durable=True) as db:
            (version,) = db.execute("PRAGMA user_version").fetchone()
            if version == 0:
                for statement in _SCHEMA:
                    db.execute(statement)
            elif version != _VERSION:
                raise BrokerDownError(
                    f"{self.path}: must be a queue of version {_VERSION}, got version {version}. It was made by other "
                    "code. Work it off with that, or give another place."
                )
            (before,) = db.execute("SELECT boot FROM boot").fetchone()
            if before != boot:
                db.execute("UPDATE boot SET boot = ?", (boot,))
                db.execute("UPDATE jobs SET due = ? WHERE due IS NOT NULL", (now_s,))
                db.execute("UPDATE jobs SET ready = ? - max(0.0, ? - enqueued_s)", (now_s, time.time()))
                db.execute("UPDATE keys SET until = ? WHERE until IS NOT NULL", (now_s + key_ttl_s,))

    def transaction(self, durable: bool) -> AbstractContextManager[sqlite3.Connection]:
        """All or nothing; `durable` waits for the disk at its end, where the stage wants that."""
        return _Turn(self, "BEGIN IMMEDIATE", "FULL" if durable and self._fsync == "commit" else "NORMAL")

    def reading(self) -> AbstractContextManager[sqlite3.Connection]:
        """One view of the file, whatever others write meanwhile."""
        return _Turn(self, "BEGIN")

    def turn(self) -> AbstractContextManager[sqlite3.Connection]:
        """The connection, for a statement that stands for itself."""
        return _Turn(self)

    def version(self) -> tuple[int, int]:
        """Another one whenever somebody has written to the file. Takes some microseconds."""
        with self.turn():
            return self._version()

    def glance(self, question: str) -> tuple[tuple[int, int], tuple[Any, ...]]:
        """The version, and the one row that answers the question then, or later: the version tells that, too."""
        with self.turn() as db:
            return self._version(), db.execute(question).fetchone()

    def _version(self) -> tuple[int, int]:
        (others,) = self.db.execute("PRAGMA data_version").fetchone()
        return others, self.written

    def close(self) -> None:
        """Ends the connection; the last one of all processes works the log off into the file."""
        self.closing.set()
        if self._flusher.is_alive():
            self._flusher.join(BUSY_TIMEOUT_S)
        with self.lock:
            self.db.close()

    def _flush(self) -> None:
        """With queue.fsync = "interval": a checkpoint a second, which fsyncs the log, over a connection of its own."""
        db, flushed = _connect(self.path), 0
        with contextlib.closing(db):
            db.execute("PRAGMA synchronous = NORMAL")
            while not self.closing.wait(FLUSH_INTERVAL_S):
                if (written := self.written) != flushed:
                    with contextlib.suppress(sqlite3.Error):  # what ails the disk, the next call hears too
                        db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
                        flushed = written


class _Turn:
    """A thread's turn at the connection; with `begin`, a transaction. What SQLite has to say is told in words.

    It stands around every call, and costs a third of what generators would.
    """

    __slots__ = ("_begin", "_file", "_synchronous")

    def __init__(self, file: QueueFile, begin: str = "", synchronous: str = "") -> None:
        self._file, self._begin, self._synchronous = file, begin, synchronous

    def __enter__(self) -> sqlite3.Connection:
        file = self._file
        file.lock.acquire()
        try:
            if file.closing.is_set():
                raise BrokerDownError(f"{file.path}: the broker was closed.")
            if self._synchronous and self._synchronous != file.synchronous:
                file.db.execute(f"PRAGMA synchronous = {self._synchronous}")
                file.synchronous = self._synchronous
            if self._begin:
                file.db.execute(self._begin)
        except BaseException as error:
            file.lock.release()
            raise in_words(file.path, error) from error
        return file.db

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        file = self._file
        try:
            if self._begin and error is None:
                file.db.execute("COMMIT")
                file.written += 1
        except sqlite3.Error as failed:
            error = failed
        finally:
            if error is not None and file.db.in_transaction:  # a full disk may have undone it already
                file.db.execute("ROLLBACK")
            file.lock.release()
        if error is not None and (told := in_words(file.path, error)) is not error:
            raise told from error


def in_words(path: Path, error: BaseException) -> BaseException:
    """What SQLite says of the file as a BrokerDownError, or a BrokerFullDiskError where its disk is full.

    Other errors, and those that are mistakes of ours, stay what they are.
    """
    if not isinstance(error, sqlite3.DatabaseError) or isinstance(error, _OURS):
        return error
    if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
        return BrokerFullDiskError(
            f"{path}: there is no room on its disk. Nothing of this call was done, and nothing is lost. Make room."
        )
    return BrokerDownError(f"{path}: {error}.")


def _connect(path: Path) -> sqlite3.Connection:
    """A connection that any thread may use, one at a time. The file's name is on the disk when it returns."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        new = not path.exists()
        db = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
    except (OSError, sqlite3.OperationalError) as error:
        raise BrokerDownError(
            f"{path}: {error}. There would be no queue. Give a place that can be written to."
        ) from error
    try:
        mode = write_ahead(db, BUSY_TIMEOUT_S)
        db.execute(f"PRAGMA journal_size_limit = {_LOG_MAX_BYTES}")
        db.execute("PRAGMA fullfsync = ON")  # macOS, whose fsync alone does not reach the disk
        db.execute("PRAGMA checkpoint_fullfsync = ON")
        if mode != "wal":
            raise BrokerDownError(
                f"{path}: its file system allows no write-ahead log (SQLite says {mode!r}). Processes would block each "
                "other. Give a place on a disk of this machine."
            )
        if new:
            sync_folder(path.parent)
    except BaseException as error:
        db.close()
        raise in_words(path, error) from error
    return db
