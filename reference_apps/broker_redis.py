"""The broker in Redis Streams, for workers on many machines: a stream a priority, read by one consumer group.

    put ── XADD ──▶ line:0 line:1 line:2 ── XREADGROUP ──▶ leased ── XACK, XDEL ──▶ gone
                        ▲ XCLAIM, at its old place           │ the last attempt failed
                        └──────────── back ◀─────────────────┴──▶ dead (a stream)

Any server that speaks Redis 7 (Valkey, too). Every call is one Lua script (broker_redis_scripts.py): all or nothing, in
memory and in the server's append-only file. What is on the server's disk when a call returns:

- queue.fsync = "commit" (appendonly yes, appendfsync always): everything that was written, fsynced before the answer.
- "interval" (appendfsync everysec): all but the last second, or two while its disk is slow.

A server that is set to less, or that may evict keys, is refused at the start. The end of the server, however it comes,
loses no more than that; a replica that takes over has what had reached it. On a full disk, "interval" refuses every
call that writes, and a server with "always" ends itself: it comes back with all that it had accepted.

Leases are told by no date. Each process carries a shared clock: the server keeps the latest time that anybody told it,
in milliseconds, and each caller tells what that was when it last heard it and the monotonic seconds since. So the clock
goes at everybody's pace, stands still when nobody is there, and never jumps, whatever is done to the clocks of server
and clients. Interface: broker.py, whose twin is simulator/broker.py. It does not do for several servers that share the
keys (Redis Cluster).
"""

from __future__ import annotations

import contextlib
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from redis.exceptions import RedisError, ResponseError
from redis.exceptions import TimeoutError as NoAnswerError

from reference_apps import broker_redis_scripts as scripts
from reference_apps.broker import (
    BATCH_MAX,
    ERROR_MAX_CHARS,
    LEASE_RAN_OUT,
    Accepted,
    BrokerDownError,
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
from reference_apps.broker_redis_server import TIMEOUT_S, SharedClock, check_server, in_words, open_client
from reference_apps.claim_check import ClaimChecks
from stages.queue import Queue

# The longest that a waiting claim hears nothing; what others nack or put wakes it before.
BLOCK_S = 1.0
TICK_S = 0.5
# A process that has just come may lag behind the shared clock by a tick and by what is not worth telling. So much
# longer a lease lasts than was asked for, so that nobody sees it end too early.
SLACK_S = 1.0
_GROUP = "workers"
_STATES: dict[bytes, State] = {b"w": "waiting", b"l": "leased", b"d": "delayed", b"x": "dead"}
_SCRIPTS = ("tick", "put", "claim", "ack", "extend", "fail", "retry", "forget", "settle", "look", "depth")


class RedisBroker:
    """The jobs under one name on one server. Raises BrokerDownError when it does not answer, or may lose jobs."""

    def __init__(
        self,
        url: str,
        queue: Queue,
        checks: ClaimChecks,
        clock_s: Callable[[], float] = time.monotonic,
        name: str = "rung",
    ) -> None:
        """`name` tells the queues of one server apart; their keys begin with it, in braces."""
        self._queue, self._checks = queue, checks
        self._prefix = f"{{{name}}}"
        self._clock = SharedClock(clock_s)
        self._client = open_client(url)
        prelude = scripts.PRELUDE.replace("@LEASE_RAN_OUT@", LEASE_RAN_OUT)
        self._scripts = {
            script: self._client.register_script(prelude + getattr(scripts, script.upper())) for script in _SCRIPTS
        }
        self._closing = threading.Event()
        try:
            with in_words():
                check_server(self._client, queue)
                self._make_groups()
            self._run("tick")
            checks.sweep(self.look)
        except BaseException:
            self._client.close()
            raise
        self._ticker = threading.Thread(target=self._tick, name="queue clock", daemon=True)
        self._ticker.start()

    def put(self, jobs: Sequence[NewJob]) -> list[Accepted]:
        """On the server's disk as queue.fsync says, as everything here that writes."""
        check_put(jobs, self._queue.priorities)
        if not jobs:
            return []
        ids = new_job_ids(len(jobs))
        with self._checks.stowed(ids, [job.payload for job in jobs]) as queued:
            words: list[Any] = []
            for job, new, payload in zip(ids, jobs, queued, strict=True):
                words += [job, new.priority, _ms(new.run_after_s), new.key or "", payload]
            outcome, told = self._run("put", self._queue.max_depth, repr(time.time()), *words)
            if outcome == b"full":
                raise QueueFullError(told, self._queue.max_depth)
        first = [answer.decode() for answer in told]
        self._checks.discard(job for job, one in zip(ids, first, strict=True) if job != one)
        return [Accepted(one, duplicate=job != one) for job, one in zip(ids, first, strict=True)]

    def claim(self, most: int, lease_s: float, wait_s: float = 0.0) -> list[Job]:
        """A lease lasts SLACK_S longer than `lease_s`."""
        check_claim(most, lease_s)
        ends_s = time.monotonic() + wait_s
        lease = secrets.token_hex(8)
        while True:
            claimed, *otherwise = self._run("claim", most, _ms(lease_s + SLACK_S), lease, self._queue.priorities)
            if claimed and (jobs := self._opened(claimed, lease)):
                return jobs
            left_s = ends_s - time.monotonic()
            if left_s <= 0:
                return []
            if otherwise:
                due_ms, seen = otherwise
                self._wait(due_ms, seen, left_s)

    def ack(self, jobs: Sequence[Job]) -> int:
        """Sent again by itself where the connection broke: then it may tell 0 of jobs that it acked."""
        check_many(jobs)
        (told,) = self._run("ack", _ms(self._queue.result_ttl_s), *_leases(jobs))
        gone = {job.decode() for job in told}
        self._checks.over((job.job, job.payload) for job in jobs if job.job in gone)
        return len(gone)

    def nack(self, job: Job, error: str, delay_s: float) -> bool:
        """One script."""
        return self._fail(job, error, _ms(max(0.0, delay_s)))

    def extend(self, jobs: Sequence[Job], lease_s: float) -> int:
        """As in a claim, SLACK_S longer."""
        check_many(jobs)
        check_claim(1, lease_s)
        (extended,) = self._run("extend", _ms(lease_s + SLACK_S), *_leases(jobs))
        return int(extended)

    def dead_letter(self, job: Job, error: str) -> bool:
        """One script."""
        return self._fail(job, error, -1)

    def dead(self, most: int = 100, after: str = "") -> list[DeadJob]:
        """A script for the leases that ran out, and a range of the stream of dead letters."""
        self._run("settle")
        with in_words():
            first = f"({after}" if after else "-"
            rows = self._client.xrange(f"{self._prefix}:dead", min=first, count=min(most, BATCH_MAX))
        return [self._dead(place.decode(), row) for place, row in rows]

    def retry(self, jobs: Sequence[str] | None = None) -> int:
        """A script for each thousand."""
        return sum(len(some) for some in self._choose("retry", jobs))

    def forget(self, jobs: Sequence[str] | None = None) -> int:
        """A script for each thousand."""
        forgotten = 0
        for some in self._choose("forget", jobs):
            self._checks.discard(job.decode() for job in some)
            forgotten += len(some)
        return forgotten

    def look(self, jobs: Sequence[str]) -> dict[str, Found]:
        """One script."""
        check_many(jobs)
        (rows,) = self._run("look", *jobs)
        return {job.decode(): Found(_STATES[state], attempts, _text(error)) for job, state, attempts, error in rows}

    def depth(self) -> Depth:
        """One script, whatever the depth."""
        waiting, leased, delayed, dead, oldest_ms = self._run("depth", self._queue.priorities)
        return Depth(waiting, leased, delayed, dead, oldest_ms / 1000)

    def close(self) -> None:
        """Ends every connection."""
        self._closing.set()
        self._ticker.join(TIMEOUT_S)
        self._client.close()

    def _fail(self, job: Job, error: str, delay_ms: int) -> bool:
        (done,) = self._run("fail", job.job, job.lease, error[:ERROR_MAX_CHARS], delay_ms)
        return bool(done)

    def _choose(self, script: str, jobs: Sequence[str] | None) -> Iterator[list[bytes]]:
        """Has the script done for dead letters, some at a time: these, or as many as there are now."""
        ttl_ms = _ms(self._queue.result_ttl_s)
        if jobs is None:
            with in_words():
                there = self._client.xlen(f"{self._prefix}:dead") + BATCH_MAX  # and those that die by their leases now
            for _ in range(0, there, BATCH_MAX):
                yield from self._run(script, ttl_ms, "all")
        else:
            for first in range(0, len(jobs), BATCH_MAX):
                yield from self._run(script, ttl_ms, "these", *jobs[first : first + BATCH_MAX])

    def _opened(self, claimed: list[list[Any]], lease: str) -> list[Job]:
        """The jobs of a claim; one whose payload cannot be read has failed."""
        jobs = []
        for name, queued, priority, enqueued, attempt in claimed:
            job = Job(name.decode(), b"", priority, float(enqueued), attempt, lease)
            try:
                payload = self._checks.load(job.job, queued)
            except OSError as error:
                self.nack(job, f"its payload cannot be read: {error}", self._queue.retry_delay_max_s)
            else:
                jobs.append(Job(job.job, payload, priority, job.enqueued_s, attempt, lease))
        return jobs

    def _dead(self, place: str, row: dict[bytes, bytes]) -> DeadJob:
        job = row[b"job"].decode()
        try:
            payload = self._checks.load(job, row[b"payload"])
        except OSError:
            payload = b""
        attempts, priority = int(row[b"attempts"]), int(row[b"priority"])
        enqueued_s, died_s = float(row[b"enqueued"]), float(row[b"died"])
        return DeadJob(job, payload, priority, enqueued_s, attempts, _text(row[b"error"]), died_s, place)

    def _wait(self, due_ms: int, seen: list[list[bytes]], left_s: float) -> None:
        """Until something new is in line, something is due, or BLOCK_S is over.

        The server waits by a clock that may be set meanwhile: then it wakes us too early, or we stop waiting for it.
        """
        until_due_s = left_s if due_ms < 0 else (due_ms - self._clock.now_ms()) / 1000
        block_ms = max(1, _ms(min(left_s, until_due_s, BLOCK_S)))
        with in_words(), contextlib.suppress(NoAnswerError):
            self._client.xread(dict(seen), count=1, block=block_ms)

    def _run(self, script: str, *words: Any) -> list[Any]:
        """What a script gives, after the time; a server that has lost everything gets its groups anew."""
        if self._closing.is_set():
            raise BrokerDownError("the broker was closed.")
        told: list[Any] = []
        for groups_are_there in (False, True):
            args = [self._clock.now_ms(), self._queue.attempts_max, repr(time.time()), *words]
            try:
                with in_words():
                    told_ms, *told = self._scripts[script](keys=[self._prefix], args=args)
                break
            except ResponseError as error:
                if groups_are_there or "NOGROUP" not in str(error):
                    raise
                with in_words():
                    self._make_groups()
        self._clock.heard(told_ms)
        return told

    def _make_groups(self) -> None:
        for priority in range(self._queue.priorities):
            try:
                self._client.xgroup_create(f"{self._prefix}:line:{priority}", _GROUP, id="0", mkstream=True)
            except ResponseError as error:
                if "BUSYGROUP" not in str(error):  # it is there
                    raise

    def _tick(self) -> None:
        """Keeps the shared clock going while this process has nothing else to say."""
        while not self._closing.wait(TICK_S):
            with contextlib.suppress(BrokerDownError, RedisError):
                self._run("tick")


def _leases(jobs: Sequence[Job]) -> list[str]:
    return [word for job in jobs for word in (job.job, job.lease)]


def _ms(seconds: float) -> int:
    return round(1000 * seconds)


def _text(told: bytes) -> str:
    return told.decode("utf-8", "replace")
