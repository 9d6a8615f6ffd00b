"""What the queue carries: `python -m loadtests.bench_queue [ROUNDS] [SECONDS] [FOLDER]`, or `make bench-queue`.

    put, one after the other ──▶ broker ──▶ claim and ack, until nothing is left

Our brokers beside huey on SQLite and Celery on Redis (its transport's queue, read and acked by kombu, without the work
of a worker). In every round each is measured in turn, in one process, and only ratios within a round are told. Files
lie under FOLDER, which must be on a real disk. All of it is done twice:

- commit: what was accepted is on the disk before the call returns. SQLite: ours with synchronous=FULL, huey with
  fsync=True. Redis: one server with appendfsync always, for ours and for Celery.
- interval: a power cut may take the last second. SQLite: ours checkpoints each second; huey with fsync=False never
  waits for the disk. Redis: appendfsync everysec, for both.

What is not alike: huey has no ack, so that a job that was taken is gone with its worker; Celery gives jobs back after
an hour, by the clock. Ours has leases, priorities, a bound on its depth and dead letters in every figure.
"""

from __future__ import annotations

import contextlib
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from rich.table import Table

from reference_apps.asking import wait_until
from reference_apps.broker import Broker, NewJob
from reference_apps.broker_redis import RedisBroker
from reference_apps.broker_sqlite import SqliteBroker
from reference_apps.claim_check import ClaimChecks
from reference_apps.launchers import valkey
from stages.queue import Queue
from stages.terminal import Exit, err, fail, out

PAYLOAD = b"x" * 300
BATCH = 32
LEASE_S = 600.0
_READY_TIMEOUT_S = 10.0

Fsync = Literal["commit", "interval"]


@dataclass
class Way:
    """One way to keep jobs: `put` puts as many as `batch`, `take` claims and acks so many and tells how many."""

    name: str
    against: str  # the way that it is held against
    batch: int
    put: Callable[[], object]
    take: Callable[[], int]
    put_rps: list[float] = field(default_factory=list)
    take_rps: list[float] = field(default_factory=list)

    def measure(self, duration_s: float) -> None:
        """One round: puts for so long, then takes all of them."""
        jobs, began_s = 0, time.perf_counter()
        while (put_s := time.perf_counter() - began_s) < duration_s:
            self.put()
            jobs += self.batch
        self.put_rps.append(jobs / put_s)
        taken, began_s = 0, time.perf_counter()
        while taken < jobs and (some := self.take()):
            taken += some
        if taken < jobs:
            raise RuntimeError(f"{self.name}: {jobs} jobs were put, and {taken} came back")
        self.take_rps.append(taken / (time.perf_counter() - began_s))


def ours(broker: Broker, name: str, against: str, batch: int) -> Way:
    """Our broker, so many jobs a call."""
    new = [NewJob(PAYLOAD)] * batch
    return Way(name, against, batch, lambda: broker.put(new), lambda: broker.ack(broker.claim(batch, LEASE_S)))


def huey_way(path: Path, fsync: Fsync) -> Way:
    """Huey's storage in an SQLite file. It takes a job by deleting it, and has no ack."""
    from huey import SqliteHuey

    huey = SqliteHuey(filename=str(path), fsync=fsync == "commit", results=False)

    put = huey.task()(_never)
    return Way("huey", "", 1, lambda: put(PAYLOAD), lambda: int(huey.dequeue() is not None))


@contextlib.contextmanager
def celery_way(url: str) -> Iterator[Way]:
    """Celery's queue on the server. Its transport keeps a job that was taken in a hash until the ack."""
    from celery import Celery

    app = Celery("bench", broker=url)
    app.conf.task_ignore_result = True
    job, text = app.task(_never), PAYLOAD.decode()
    with app.connection_for_read() as connection, connection.SimpleQueue("celery") as queue:

        def take() -> int:
            queue.get(timeout=_READY_TIMEOUT_S).ack()
            return 1

        yield Way("Celery", "", 1, lambda: job.apply_async((text,)), take)
    app.close()


@contextlib.contextmanager
def server(folder: Path, queue: Queue) -> Iterator[str]:
    """The URL of a server as a launcher would start it for this queue."""
    folder.mkdir()
    password, port = secrets.token_urlsafe(24), valkey.free_port()
    config = folder / "server.conf"
    valkey.write_secret(config, valkey.configuration("127.0.0.1", port, password, valkey.of_queue(queue, str(folder))))
    process = subprocess.Popen(
        [valkey.server_binary("queue"), str(config)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        if not wait_until(lambda: valkey.answers("127.0.0.1", port, password, 1.0), _READY_TIMEOUT_S):
            fail(f"The server did not answer within {_READY_TIMEOUT_S:g} s.")
        yield valkey.url("127.0.0.1", port, password)
    finally:
        process.terminate()
        process.wait(_READY_TIMEOUT_S)


@contextlib.contextmanager
def all_ways(folder: Path, fsync: Fsync) -> Iterator[list[Way]]:
    """Every way, with queues of their own."""
    sqlite = Queue(broker="sqlite", fsync=fsync, max_depth=10_000_000)
    redis = Queue(broker="redis", fsync=fsync, max_depth=10_000_000)
    checks = ClaimChecks(folder / "payloads", sqlite.payload_max_bytes)
    with contextlib.ExitStack() as stack:
        url = stack.enter_context(server(folder / "server", redis))
        ways = []
        for batch in (1, BATCH):
            many = "" if batch == 1 else f", {batch} a call"
            file = SqliteBroker(folder / f"ours-{batch}.db", sqlite, checks)
            ways.append(ours(stack.enter_context(contextlib.closing(file)), f"SQLite{many}", "huey", batch))
            streams = RedisBroker(url, redis, checks, name=f"rung-{batch}")
            broker = stack.enter_context(contextlib.closing(streams))
            ways.append(ours(broker, f"Redis{many}", "Celery", batch))
        yield [*ways, huey_way(folder / "huey.db", fsync), stack.enter_context(celery_way(url))]


def _never(payload: str | bytes) -> None:
    """A task of huey and Celery; nobody executes it."""


def show(ways: list[Way], fsync: Fsync) -> None:
    """Prints each of ours against the other on the same kind of storage."""
    others = {way.name: way for way in ways}
    table = Table(f"{fsync}", "against", "enqueue", "least, most", "claim + ack", "least, most")
    for column in table.columns[2:]:
        column.justify = "right"
    for way in ways:
        if way.against:
            other = others[way.against]
            put, take = np.array(way.put_rps) / other.put_rps, np.array(way.take_rps) / other.take_rps
            cells = [
                cell
                for ratio in (put, take)
                for cell in (f"{np.median(ratio):.2f}", f"{ratio.min():.2f}, {ratio.max():.2f}")
            ]
            table.add_row(way.name, way.against, *cells)
    out.print(table, soft_wrap=False)


def main(rounds: int, duration_s: float, parent: Path) -> int:
    """Prints a table for each durability, of `rounds` rounds of `duration_s` seconds a way."""
    parent.mkdir(parents=True, exist_ok=True)
    levels: tuple[Fsync, ...] = ("commit", "interval")
    for fsync in levels:
        with tempfile.TemporaryDirectory(dir=parent) as folder, all_ways(Path(folder), fsync) as ways:
            with err.status(f"Measuring {fsync} …"):
                for number in range(rounds):
                    for way in ways[number % len(ways) :] + ways[: number % len(ways)]:
                        way.measure(duration_s)
            show(ways, fsync)
    out.print("Ratios of jobs per second within a round, the median of all rounds; more is better for ours.")
    return int(Exit.DONE)


if __name__ == "__main__":
    words = [*sys.argv[1:], *("5", "2", "runs/bench-queue")[len(sys.argv) - 1 :]]
    sys.exit(main(int(words[0]), float(words[1]), Path(words[2])))
