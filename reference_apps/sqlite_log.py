"""SQLite's write-ahead log, switched on by whoever opens a file first while others open it too.

    connection ──▶ PRAGMA journal_mode = WAL ── locked: again, until it is late ──▶ the mode that the file is in

While one connection switches, another one's switch fails at once: SQLite's busy timeout does not hold for it
(https://www.sqlite.org/c3ref/busy_handler.html). No twin: the simulator keeps no files.
"""

from __future__ import annotations

import sqlite3
import time
from typing import Any

PAUSE_S = 0.01


def write_ahead(connection: Any, timeout_s: float) -> str:
    """Has a connection or cursor of sqlite3 use the write-ahead log. Gives the mode: "wal", or what the file's system
    allows. Raises sqlite3.OperationalError."""
    deadline_s = time.monotonic() + timeout_s
    while True:
        try:
            (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline_s:
                raise
            time.sleep(PAUSE_S)
        else:
            return str(mode)
