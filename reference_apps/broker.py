"""The broker: what was accepted and is not done yet, kept until somebody has done it.

    put ──▶ waiting ── claim ──▶ leased ── ack ──▶ gone
               ▲                   │
               ├──── delayed ◀─────┤ nack, or (with no delay) a lease that ran out: again, while attempts are left
               └── retry ── dead ◀─┘ the attempts are used up, or dead_letter

The interface and its words. broker_sqlite.py keeps the jobs in a file for the processes of one machine, broker_redis.py
in Redis Streams for many machines, claim_check.py keeps payloads that are too large for a queue beside it. What both
have to decide is in stages/policies/queueing.py.

A job is delivered at least once, and more than once only after its lease ran out: whoever stores results stores each
once (results.py). Leases, delays and ages are told by a clock that nobody can set; only `enqueued_s` and `died_s` are
dates, for people to read. Twin: simulator/broker.py. Neither broker keeps the order of jobs that are worked on beside
each other.
"""

from __future__ import annotations

import os
import secrets
import threading
import time
from base64 import b32encode
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from stages.queue import BATCH_MAX as BATCH_MAX
from stages.queue import Queue

__all__ = ["Broker", "Depth", "Job", "NewJob"]

ERROR_MAX_CHARS = 2000
KEY_MAX_CHARS = 256
JOB_ID_CHARS = 26

# Why a job is dead that nobody said anything about.
LEASE_RAN_OUT = "the lease of its last attempt ran out: its worker was killed, hung, or lost its way to the broker"

State = Literal["waiting", "leased", "delayed", "dead"]


class QueueFullError(RuntimeError):
    """The broker holds as many jobs as it may; of this call none was accepted."""

    def __init__(self, inside: int, max_depth: int) -> None:
        super().__init__(
            f"queue.max_depth: {inside} jobs are inside (dead letters too), and at most {max_depth} may be. "
            "Nothing was accepted. Come back later, add workers, or make room: `rung jobs dead`, `rung jobs forget`."
        )
        self.inside = inside
        self.max_depth = max_depth


class BrokerDownError(RuntimeError):
    """The broker does not answer, or refuses. What it had accepted before, it still has.

    After a `put` that ends so, the jobs of the call may have been accepted or not (all or none of them): put them again
    under the same idempotency keys. After an `ack`, nobody knows either: the jobs are delivered again, or gone.
    """


class BrokerFullDiskError(BrokerDownError):
    """There is no room on the broker's disk (or in its memory). A `put` that ends so has accepted nothing."""


@dataclass(frozen=True, slots=True)
class NewJob:
    """What is to be done: the payload as bytes, whatever its size."""

    payload: bytes
    priority: int = 1  # 0 goes first; less than queue.priorities
    # The same key is the same job, whatever its payload, until queue.result_ttl_s after the job is over.
    key: str | None = None
    run_after_s: float = 0.0  # not before so many seconds from now


@dataclass(frozen=True, slots=True)
class Accepted:
    """The answer to a NewJob: its id, or (`duplicate`) that of the job which has the same idempotency key."""

    job: str
    duplicate: bool = False


@dataclass(frozen=True, slots=True)
class Job:
    """A job under a lease."""

    job: str  # 26 characters; those of one process sort in the order in which they were put
    payload: bytes
    priority: int
    enqueued_s: float  # when it was put: seconds since the epoch, by the clock of whoever put it
    attempt: int  # deliveries, this one included
    lease: str  # of the claim that this job came with


@dataclass(frozen=True, slots=True)
class DeadJob:
    """A job that nobody is given any more, until somebody says `retry`."""

    job: str
    payload: bytes
    priority: int
    enqueued_s: float
    attempts: int
    error: str  # why its last attempt failed
    died_s: float  # seconds since the epoch
    place: str  # among the dead: `dead` goes on after it


@dataclass(frozen=True, slots=True)
class Found:
    """Where a job is. `error` is that of its last failed attempt, empty when none failed."""

    state: State
    attempts: int
    error: str


@dataclass(frozen=True, slots=True)
class Depth:
    """How many jobs are where, and how long the first in line of any priority has been ready, in seconds (0: none)."""

    waiting: int
    leased: int
    delayed: int
    dead: int
    oldest_s: float


class Broker(Protocol):
    """Keeps jobs. Any thread may use it; a process opens its own, and never takes one through a fork.

    Every method raises BrokerDownError (its subclass where the disk is full), and ValueError for a call that no broker
    could answer: more than BATCH_MAX jobs, a priority or a lease that there is none of.
    """

    def put(self, jobs: Sequence[NewJob]) -> list[Accepted]:
        """Accepts the jobs, all or none, and answers in their order.

        What it returns is accepted: with queue.fsync = "commit" it survives a power cut and the end of every process.
        With "interval" a power cut, or the end of a Redis server, may take the last second. Raises QueueFullError.
        """
        ...

    def claim(self, most: int, lease_s: float, wait_s: float = 0.0) -> list[Job]:
        """At most so many waiting jobs, each of them ours alone for `lease_s` seconds.

        The highest priority comes first; within it, the job that has been ready longest. One that comes back (nack, a
        lease that ran out) has its old place; one that was delayed when it was put has its place from when it is due.
        Waits at most `wait_s` seconds for the first, and never for a second: an empty list when there is none.
        """
        ...

    def ack(self, jobs: Sequence[Job]) -> int:
        """The jobs are done, and gone with their payloads; how many of them were still ours.

        One whose lease has run out is not ours, even where nobody has claimed it since.
        """
        ...

    def nack(self, job: Job, error: str, delay_s: float) -> bool:
        """The attempt failed: again in `delay_s` seconds (stages.policies.queueing.retry_delay_s), or, when it was the
        last of queue.attempts_max, a dead letter. False, and nothing done, when the job was not ours any more."""
        ...

    def extend(self, jobs: Sequence[Job], lease_s: float) -> int:
        """The leases last `lease_s` seconds from now; how many of the jobs were still ours, and only theirs do."""
        ...

    def dead_letter(self, job: Job, error: str) -> bool:
        """No attempt would end otherwise: a dead letter at once. False when the job was not ours any more."""
        ...

    def dead(self, most: int = 100, after: str = "") -> list[DeadJob]:
        """The dead letters, the longest dead first, from after the `place` of one of them on.

        None is ever thrown away but by `retry` or `forget`. A payload that cannot be read is empty here.
        """
        ...

    def retry(self, jobs: Sequence[str] | None = None) -> int:
        """These dead letters, or all, wait once more: at the end of the line, with all their attempts. How many."""
        ...

    def forget(self, jobs: Sequence[str] | None = None) -> int:
        """Throws these dead letters away, or all of them, with their payloads; how many there were."""
        ...

    def look(self, jobs: Sequence[str]) -> dict[str, Found]:
        """Where those of the jobs are that the broker holds; a job that is done, or never was, is not among them."""
        ...

    def depth(self) -> Depth:
        """The queue's depth and age; cheap enough for once a second."""
        ...

    def close(self) -> None:
        """Lets go of file and connections. Leases stay as they are."""
        ...


def open_broker(queue: Queue, folder: Path, clock_s: Callable[[], float] = time.monotonic) -> Broker:
    """The broker that the stage names, with its claim checks under `folder`.

    SQLite: the file that the variable queue.url_env names (a path, or sqlite:///PATH), or `folder`/queue.db where it is
    not set. Redis: the server at that variable's URL, whose workers all see the same `folder`. `clock_s` is a monotonic
    clock in seconds. Raises BrokerDownError in words when there is none, or one that may lose what it accepted.
    """
    from reference_apps.claim_check import ClaimChecks

    url = os.environ.get(queue.url_env, "")
    checks = ClaimChecks(folder / "payloads", queue.payload_max_bytes)
    if queue.broker == "sqlite":
        from reference_apps.broker_sqlite import SqliteBroker

        if "://" in url and not url.startswith("sqlite:///"):
            raise BrokerDownError(
                f'queue.url_env: {queue.url_env} must name a file when queue.broker is "sqlite", got a URL of '
                f'{url.partition(":")[0]}. Nothing could be kept. Give a path, unset it, or use queue.broker = "redis".'
            )
        path = Path(url.removeprefix("sqlite:///")) if url else folder / "queue.db"
        return SqliteBroker(path, queue, checks, clock_s)
    try:
        from reference_apps.broker_redis import RedisBroker
    except ModuleNotFoundError as error:
        raise BrokerDownError(
            f'queue.broker: "redis" needs the package redis, which is not installed ({error}). There would be no '
            "queue. Install it with `pip install 'rung[redis]'`, or use queue.broker = \"sqlite\"."
        ) from None

    if not url:
        raise BrokerDownError(
            f'queue.url_env: {queue.url_env} must hold the server\'s URL when queue.broker is "redis", got nothing. '
            'There would be no queue. Set it to redis://HOST:PORT/0, or use queue.broker = "sqlite".'
        )
    return RedisBroker(url, queue, checks, clock_s)


def check_put(jobs: Sequence[NewJob], priorities: int) -> None:
    """Raises ValueError for jobs that no broker can take."""
    if len(jobs) > BATCH_MAX:
        raise ValueError(f"put: takes at most {BATCH_MAX} jobs a call, got {len(jobs)}. Put them in several calls.")
    for job in jobs:
        if not 0 <= job.priority < priorities:
            raise ValueError(f"priority: must be 0 to {priorities - 1} (queue.priorities), got {job.priority}.")
        if job.key is not None and not 1 <= len(job.key) <= KEY_MAX_CHARS:
            raise ValueError(f"idempotency key: must be 1 to {KEY_MAX_CHARS} characters, got {len(job.key)}.")
        if not 0.0 <= job.run_after_s < float("inf"):
            raise ValueError(f"run_after_s: must be at least 0 seconds, got {job.run_after_s}.")


def check_claim(most: int, lease_s: float) -> None:
    """Raises ValueError for a claim that no broker can answer."""
    if not 1 <= most <= BATCH_MAX:
        raise ValueError(f"claim: gives 1 to {BATCH_MAX} jobs a call, got {most}.")
    if not 0.0 < lease_s < float("inf"):
        raise ValueError(f"lease_s: must be greater than 0 seconds, got {lease_s}.")


def check_many(jobs: Sequence[object]) -> None:
    """Raises ValueError for more jobs than a call may have."""
    if len(jobs) > BATCH_MAX:
        raise ValueError(f"a call takes at most {BATCH_MAX} jobs, got {len(jobs)}. Make several.")


# The digits of base 32 as Python's standard library has them, and as a ULID has them.
_DIGITS = bytes.maketrans(b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567", b"0123456789ABCDEFGHJKMNPQRSTVWXYZ")
_last_id = 0
_last_id_lock = threading.Lock()


def new_job_ids(count: int) -> list[str]:
    """Ids as ULIDs are (https://github.com/ulid/spec): 48 bits of milliseconds, 80 of chance, in 26 characters.

    The ids of one process ascend, also when the clock is set back, and those of a call follow each other: order by them
    means something, but is not relied on.
    """
    global _last_id
    drawn = (int(time.time() * 1000) << 80) | secrets.randbits(80)
    with _last_id_lock:
        first = max(drawn, _last_id + 1)
        _last_id = first + count - 1
    numbers = range(first, first + count)
    return [b32encode(number.to_bytes(20, "big")).translate(_DIGITS)[-JOB_ID_CHARS:].decode() for number in numbers]
