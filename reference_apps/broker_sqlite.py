"""The broker in an SQLite file, for the processes of one machine.

    put ──▶ [ jobs: waiting, leased, delayed ] ── ack, finish ──▶ gone          keys: idempotency key ─▶ job
                  ▲ retry          │ the last attempt failed
                  └──── [ dead ] ◀─┘

WAL; a process has one connection, a call is one transaction, and SQLite lets one write at a time. What is on the disk
when a call returns (as far as the file system's fsync means it):

- put, ack, finish, dead_letter, retry, forget with queue.fsync = "commit": everything, by an fsync of the log at the
  commit (synchronous=FULL).
- The same with "interval": all but the last second, by a checkpoint a second; no fsync at the commit.
- claim, extend, nack, and what the end of a lease brings: no fsync of their own. A power cut may undo them, and after
  it no lease counts any more.

The end of a process, however it comes, loses nothing either way, and nothing is ever half done. A full disk fails the
transaction that it meets, and that one alone. Deadlines are monotonic seconds of this boot, which nobody can set: after
another boot every lease is over, every delay too, and ages go on from `enqueued_s`. Interface: broker.py, whose twin is
simulator/broker.py. It does not do for a file that machines share over a network.
"""

from __future__ import annotations

import contextlib
import math
import secrets
import sqlite3
import time
from collections.abc import Callable, Sequence
from operator import itemgetter
from pathlib import Path

from reference_apps import broker_sqlite_rows as sql
from reference_apps.broker import (
    BATCH_MAX,
    ERROR_MAX_CHARS,
    LEASE_RAN_OUT,
    Accepted,
    BrokerFullDiskError,
    DeadJob,
    Depth,
    Found,
    Job,
    NewJob,
    QueueFullError,
    State,
    check_claim,
    check_many,
    check_put,
    new_job_ids,
)
from reference_apps.broker_sqlite_file import QueueFile
from reference_apps.claim_check import ClaimChecks
from reference_apps.envelope import boot_id
from reference_apps.results import Result, row_of, sqlite_insert
from stages.policies.queueing import accepts, is_dead, ran_out
from stages.queue import Queue

# A claim that waits looks so often whether anybody has written; a look costs some microseconds.
POLL_S = 0.005
_SWEEP_MAX = 1000
_STATES: tuple[State, ...] = ("waiting", "leased", "delayed")


class SqliteBroker:
    """The jobs of one file. Raises BrokerDownError when the file cannot be opened, or is no queue."""

    def __init__(
        self,
        path: Path,
        queue: Queue,
        checks: ClaimChecks,
        clock_s: Callable[[], float] = time.monotonic,
        boot: str | None = None,
    ) -> None:
        """`clock_s` counts from the start of the boot that `boot` names, alike in all processes."""
        self.path = path
        self._queue, self._checks, self._clock_s = queue, checks, clock_s
        self._insert_result = sqlite_insert()
        self._file = QueueFile(path, queue.fsync)
        try:
            self._file.prepare(boot_id() if boot is None else boot, clock_s(), queue.result_ttl_s)
            checks.sweep(self.look)
        except BaseException:
            self._file.close()
            raise

    def put(self, jobs: Sequence[NewJob]) -> list[Accepted]:
        """Fsynced with "commit", as ack, finish, dead_letter, retry and forget; the interface says the rest."""
        check_put(jobs, self._queue.priorities)
        if not jobs:
            return []
        ids = new_job_ids(len(jobs))
        with (
            self._checks.stowed(ids, [job.payload for job in jobs]) as queued,
            self._file.transaction(durable=True) as db,
        ):
            now_s, enqueued_s = self._clock_s(), time.time()
            known = sql.known_keys(db, [job.key for job in jobs if job.key is not None], now_s)
            body, dead, alive = db.execute(sql.ROOM).fetchone()
            answers, rows, bodies = [], [], []
            for job, new, payload in zip(ids, jobs, queued, strict=True):
                if new.key is not None and (first := known.setdefault(new.key, job)) != job:
                    answers.append(Accepted(first, duplicate=True))
                    continue
                answers.append(Accepted(job))
                state, due_s = (sql.DELAYED, now_s + new.run_after_s) if new.run_after_s > 0 else (sql.WAITING, None)
                body += 1
                bodies.append((body, payload))
                rows.append((job, state, new.priority, due_s, now_s, enqueued_s, new.key, body))
            self._check_room(db, len(rows), dead, alive)
            db.executemany("INSERT INTO bodies VALUES (?, ?)", bodies)
            db.executemany(sql.PUT, rows)
            db.executemany("INSERT INTO keys VALUES (?, ?, NULL)", [(row[6], row[0]) for row in rows if row[6]])
        self._checks.discard(job for job, answer in zip(ids, answers, strict=True) if answer.duplicate)
        return answers

    def claim(self, most: int, lease_s: float, wait_s: float = 0.0) -> list[Job]:
        """No fsync. While it waits it holds nothing, and looks every POLL_S whether the file has changed."""
        check_claim(most, lease_s)
        ends_s = time.monotonic() + wait_s
        while True:
            seen, next_s = self._glance()
            if ran_out(next_s, self._clock_s()) and (jobs := self._claim(most, lease_s)):
                return jobs
            while True:
                left_s = ends_s - time.monotonic()
                if left_s <= 0:
                    return []
                time.sleep(min(POLL_S, left_s))
                if self._file.version() != seen or ran_out(next_s, self._clock_s()):
                    break

    def ack(self, jobs: Sequence[Job]) -> int:
        """Fsynced with "commit"."""
        check_many(jobs)
        gone: list[tuple[str | None, str, int]] = []
        with self._file.transaction(durable=True) as db:
            now_s = self._clock_s()
            for lease, listed in sql.by_lease(jobs):
                delete = f"DELETE FROM jobs WHERE {sql.OURS} RETURNING key, job, body"
                gone += db.execute(delete, (lease, now_s, listed)).fetchall()
            acked = set(sql.let_go(db, gone, now_s + self._queue.result_ttl_s))
        self._discard(jobs, acked)
        return len(acked)

    def finish(self, jobs: Sequence[Job], results: Sequence[Result]) -> set[str]:
        """Acks the jobs and stores their results in the same file, all in one transaction; which jobs that ended.

        A job that is still in the queue ends, whoever may have its lease by now: its result is there. One that is dead
        or gone stores nothing, so that no job has two ends. The table must be there (results.Results makes it). Fsynced
        with "commit".
        """
        check_many(jobs)
        rows = {result.job: row_of(result) for result in results}
        with self._file.transaction(durable=True) as db:
            delete = f"DELETE FROM jobs WHERE {sql.LISTED} RETURNING key, job, body"
            gone = db.execute(delete, (sql.listed(job.job for job in jobs),)).fetchall()
            ended = set(sql.let_go(db, gone, self._clock_s() + self._queue.result_ttl_s))
            db.executemany(self._insert_result, [rows[job] for job in ended])
        self._discard(jobs, ended)
        return ended

    def nack(self, job: Job, error: str, delay_s: float) -> bool:
        """No fsync: what a power cut undoes of it, it makes up for by ending every lease."""
        with self._file.transaction(durable=False) as db:
            now_s = self._clock_s()
            if not sql.is_ours(db, job, now_s):
                return False
            if is_dead(job.attempt, self._queue.attempts_max):
                sql.bury(db, job.job, error)
                return True
            state, due_s = (sql.DELAYED, now_s + delay_s) if delay_s > 0 else (sql.WAITING, None)
            db.execute(sql.FAILED, (state, due_s, error[:ERROR_MAX_CHARS], job.job))
            return True

    def extend(self, jobs: Sequence[Job], lease_s: float) -> int:
        """No fsync."""
        check_many(jobs)
        check_claim(1, lease_s)
        update, extended = f"UPDATE jobs SET due = ? WHERE {sql.OURS}", 0
        with self._file.transaction(durable=False) as db:
            now_s = self._clock_s()
            for lease, listed in sql.by_lease(jobs):
                extended += db.execute(update, (now_s + lease_s, lease, now_s, listed)).rowcount
        return extended

    def dead_letter(self, job: Job, error: str) -> bool:
        """Fsynced with "commit"."""
        with self._file.transaction(durable=True) as db:
            ours = sql.is_ours(db, job, self._clock_s())
            if ours:
                sql.bury(db, job.job, error)
            return ours

    def dead(self, most: int = 100, after: str = "") -> list[DeadJob]:
        """One look at the file."""
        self._settle()
        with self._file.reading() as db:
            rows = db.execute(sql.DEAD, (int(after or 0), min(most, BATCH_MAX))).fetchall()
        return [
            DeadJob(job, self._payload(job, queued), priority, enqueued_s, attempts, error, died_s, str(place))
            for job, queued, priority, enqueued_s, attempts, error, died_s, place in rows
        ]

    def retry(self, jobs: Sequence[str] | None = None) -> int:
        """Fsynced with "commit"."""
        where, listed = sql.chosen(jobs)
        with self._file.transaction(durable=True) as db:
            now_s = self._clock_s()
            self._sweep(db, now_s)
            retried = db.execute(sql.RETRY.format(where), (now_s, *listed)).rowcount
            db.execute(f"DELETE FROM dead WHERE {where}", listed)
        return retried

    def forget(self, jobs: Sequence[str] | None = None) -> int:
        """Fsynced with "commit"."""
        where, listed = sql.chosen(jobs)
        with self._file.transaction(durable=True) as db:
            now_s = self._clock_s()
            self._sweep(db, now_s)
            gone = db.execute(f"DELETE FROM dead WHERE {where} RETURNING key, job, body", listed).fetchall()
            forgotten = sql.let_go(db, gone, now_s + self._queue.result_ttl_s)
        self._checks.discard(forgotten)
        return len(forgotten)

    def look(self, jobs: Sequence[str]) -> dict[str, Found]:
        """One look at the file."""
        check_many(jobs)
        self._settle()
        listed = (sql.listed(jobs),)
        with self._file.reading() as db:
            alive = db.execute(f"SELECT job, state, attempt, error FROM jobs WHERE {sql.LISTED}", listed).fetchall()
            dead = db.execute(f"SELECT job, attempt, error FROM dead WHERE {sql.LISTED}", listed).fetchall()
        found = {job: Found(_STATES[state], attempt, error) for job, state, attempt, error in alive}
        return found | {job: Found("dead", attempt, error) for job, attempt, error in dead}

    def depth(self) -> Depth:
        """Counts two indexes: some milliseconds for 100,000 jobs."""
        self._settle()
        with self._file.reading() as db:
            waiting, leased, delayed, dead = db.execute(sql.COUNTS).fetchone()
            firsts = [db.execute(sql.OLDEST, (priority,)).fetchone() for priority in range(self._queue.priorities)]
            now_s = self._clock_s()
        oldest_s = max((now_s - first[0] for first in firsts if first is not None), default=0.0)
        return Depth(waiting, leased, delayed, dead, oldest_s)

    def close(self) -> None:
        """The last connection of all processes works the log off into the file."""
        self._file.close()

    def _claim(self, most: int, lease_s: float) -> list[Job]:
        lease = secrets.token_hex(8)
        with self._file.transaction(durable=False) as db:
            now_s = self._clock_s()
            self._sweep(db, now_s)
            rows = db.execute(sql.CLAIM, (now_s + lease_s, lease, most)).fetchall()
        rows.sort(key=itemgetter(0, 1))
        jobs = []
        for priority, _, job, queued, enqueued_s, attempt in rows:
            try:
                jobs.append(Job(job, self._checks.load(job, queued), priority, enqueued_s, attempt, lease))
            except OSError as error:
                unread = Job(job, b"", priority, enqueued_s, attempt, lease)
                self.nack(unread, f"its payload cannot be read: {error}", self._queue.retry_delay_max_s)
        return jobs

    def _sweep(self, db: sqlite3.Connection, now_s: float) -> None:
        """Leases and delays that are over: such jobs are back in line, or dead."""
        for job, state, attempt, error in db.execute(sql.DUE, (now_s, _SWEEP_MAX)).fetchall():
            if state == sql.LEASED and is_dead(attempt, self._queue.attempts_max):
                sql.bury(db, job, f"{LEASE_RAN_OUT} (before: {error})" if error else LEASE_RAN_OUT)
                continue
            if attempt == 0:  # put with a delay: it gets its place now
                db.execute(sql.BEHIND, (now_s, job))
            db.execute(sql.AGAIN, (job,))

    def _settle(self) -> None:
        """Sees to what is over, before somebody looks; where there is no room to write that, it is left for later."""
        _, (_, due_s) = self._file.glance(sql.NEXT)
        if due_s is not None and ran_out(due_s, self._clock_s()):
            with contextlib.suppress(BrokerFullDiskError), self._file.transaction(durable=False) as db:
                self._sweep(db, self._clock_s())

    def _check_room(self, db: sqlite3.Connection, more: int, dead: int, at_most: int) -> None:
        """Raises QueueFullError when so many more jobs would be too many.

        `at_most` is the range of the ids of those alive: no id is used twice at a time, so that there are no more of
        them, and a range costs nothing to ask for.
        """
        max_depth = self._queue.max_depth
        if not accepts(dead + at_most, more, max_depth):
            (alive,) = db.execute("SELECT count(*) FROM jobs").fetchone()
            if not accepts(dead + alive, more, max_depth):
                raise QueueFullError(dead + alive, max_depth)

    def _discard(self, jobs: Sequence[Job], gone: set[str]) -> None:
        self._checks.over((job.job, job.payload) for job in jobs if job.job in gone)

    def _payload(self, job: str, queued: bytes) -> bytes:
        try:
            return self._checks.load(job, queued)
        except OSError:
            return b""

    def _glance(self) -> tuple[tuple[int, int], float]:
        """The file's version, and when there is something to claim as far as it tells: in the past for at once."""
        seen, (waiting, due_s) = self._file.glance(sql.NEXT)
        return seen, -math.inf if waiting else math.inf if due_s is None else due_s
