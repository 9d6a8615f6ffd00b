"""What the SQLite broker says to its file: the statements, and the small things that several of its calls do.

The tables are in broker_sqlite_file.py, and what is fsynced when in broker_sqlite.py. No twin.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import orjson

from reference_apps.broker import ERROR_MAX_CHARS, Job

WAITING, LEASED, DELAYED = range(3)

PUT = "INSERT INTO jobs VALUES (NULL, ?, ?, ?, 0, ?, NULL, ?, ?, ?, '', ?)"
CLAIM = """UPDATE jobs SET state = 1, attempt = attempt + 1, due = ?, lease = ?
    WHERE id IN (SELECT id FROM jobs WHERE state = 0 ORDER BY priority, id LIMIT ?)
    RETURNING priority, id, job, (SELECT payload FROM bodies WHERE bodies.id = body), enqueued_s, attempt"""
# Its parameter is `listed`; those of OURS are the lease, the time, and `listed`. The plus signs keep SQLite from going
# through all that is leased in search of the few that are named.
LISTED = "job IN (SELECT value FROM json_each(?))"
OURS = f"+state = 1 AND lease = ? AND +due > ? AND {LISTED}"
DUE = "SELECT job, state, attempt, error FROM jobs WHERE due <= ? ORDER BY due, id LIMIT ?"
NEXT = "SELECT EXISTS (SELECT 1 FROM jobs WHERE state = 0), (SELECT min(due) FROM jobs WHERE due IS NOT NULL)"
BEHIND = "UPDATE jobs SET id = (SELECT max(id) + 1 FROM jobs), ready = ? WHERE job = ?"
AGAIN = "UPDATE jobs SET state = 0, due = NULL, lease = NULL WHERE job = ?"
FAILED = "UPDATE jobs SET state = ?, due = ?, lease = NULL, error = ? WHERE job = ?"
ROOM = """SELECT (SELECT coalesce(max(id), 0) FROM bodies), (SELECT count(*) FROM dead),
    coalesce((SELECT max(id) FROM jobs) - (SELECT min(id) FROM jobs) + 1, 0)"""
COUNTS = """SELECT (SELECT count(*) FROM jobs WHERE state = 0),
    count(*) FILTER (WHERE state = 1), count(*) FILTER (WHERE state = 2), (SELECT count(*) FROM dead)
    FROM jobs WHERE due IS NOT NULL"""
OLDEST = "SELECT ready FROM jobs WHERE state = 0 AND priority = ? ORDER BY id LIMIT 1"
DEAD = """SELECT job, payload, priority, enqueued_s, attempt, error, died_s, place
    FROM dead JOIN bodies ON bodies.id = body WHERE place > ? ORDER BY place LIMIT ?"""
RETRY = """INSERT INTO jobs SELECT NULL, job, 0, priority, 0, NULL, NULL, ?, enqueued_s, key, error, body
    FROM dead WHERE {} ORDER BY place"""
_BURY = """INSERT INTO dead SELECT NULL, job, priority, attempt, enqueued_s, ?, key, ?, body
    FROM jobs WHERE job = ?"""


def known_keys(db: sqlite3.Connection, keys: list[str], now_s: float) -> dict[str, str]:
    """Key → job, for those of the keys that are in use; keys whose time is over are thrown away."""
    if not keys:
        return {}
    db.execute("DELETE FROM keys WHERE until <= ?", (now_s,))
    question = "SELECT key, job FROM keys WHERE key IN (SELECT value FROM json_each(?))"
    return dict(db.execute(question, (listed(keys),)).fetchall())


def is_ours(db: sqlite3.Connection, job: Job, now_s: float) -> bool:
    """Whether the job's lease is still the one that we were given, and not over."""
    question = f"SELECT 1 FROM jobs WHERE {OURS}"
    return db.execute(question, (job.lease, now_s, listed([job.job]))).fetchone() is not None


def bury(db: sqlite3.Connection, job: str, error: str) -> None:
    """The job is a dead letter from now on."""
    db.execute(_BURY, (time.time(), error[:ERROR_MAX_CHARS], job))
    db.execute("DELETE FROM jobs WHERE job = ?", (job,))


def let_go(db: sqlite3.Connection, gone: Iterable[tuple[str | None, str, int]], until_s: float) -> list[str]:
    """What goes with jobs that are gone, given as (key, job, body): their payloads, and until when their keys hold."""
    gone = list(gone)
    db.executemany("DELETE FROM bodies WHERE id = ?", [(body,) for _, _, body in gone])
    db.executemany("UPDATE keys SET until = ? WHERE key = ?", [(until_s, key) for key, *_ in gone if key is not None])
    return [job for _, job, _ in gone]


def by_lease(jobs: Iterable[Job]) -> Iterator[tuple[str, str]]:
    """Each lease, and its jobs as `listed`."""
    claims: dict[str, list[str]] = {}
    for job in jobs:
        claims.setdefault(job.lease, []).append(job.job)
    return ((lease, listed(ids)) for lease, ids in claims.items())


def chosen(jobs: Sequence[str] | None) -> tuple[str, tuple[Any, ...]]:
    """The condition that says these jobs, or all, and its parameters."""
    return ("1", ()) if jobs is None else (LISTED, (listed(jobs),))


def listed(names: Iterable[str | int]) -> str:
    """Any number of names, or of ids, as one parameter."""
    return orjson.dumps(list(names)).decode()
