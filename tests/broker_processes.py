"""What the processes do that tests of the brokers start and kill: `python -m tests.broker_processes WHAT FOLDER`.

Each line of their output is a word and the jobs that it is about; a line is out before the next thing is done.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from reference_apps.broker import Broker, BrokerDownError, Job, NewJob, open_broker
from reference_apps.broker_sqlite import SqliteBroker
from reference_apps.results import Result, Results, sqlite_url
from stages.queue import Queue

LEASE_S = 30.0
HELD_S = 0.5  # a lease that its holder does not live to see the end of
LARGE = b"large" * 300


def the_queue() -> Queue:
    """The one that all of them are about."""
    kind = "redis" if os.environ.get("RUNG_BROKER_URL") else "sqlite"
    return Queue(broker=kind, payload_max_bytes=1024, attempts_max=1000)


def say(word: str, jobs: Iterable[str]) -> None:
    sys.stdout.write(" ".join([word, *jobs]) + "\n")
    sys.stdout.flush()


def compete(broker: Broker) -> None:
    """Claims and acks until nothing is left."""
    while jobs := broker.claim(7, LEASE_S, wait_s=1.0):
        say("claimed", (job.job for job in jobs))
        say("acked" if broker.ack(jobs) == len(jobs) else "lost", (job.job for job in jobs))


def hold(broker: Broker) -> None:
    """Claims one job, and never gives it back."""
    say("claimed", (job.job for job in broker.claim(1, HELD_S, wait_s=30.0)))
    time.sleep(600.0)


def churn(broker: Broker) -> None:
    """Puts some, claims some, ends some, until it is killed. A broker that is down is tried again."""
    results = Results(sqlite_url(broker.path)) if isinstance(broker, SqliteBroker) else None
    payloads = [b"a", LARGE, b"c"]
    while True:
        try:
            accepted = broker.put([NewJob(payload) for payload in payloads])
            say("accepted", (one.job for one in accepted))
            jobs = broker.claim(3, HELD_S)
            assert all(job.payload in payloads for job in jobs), "a payload was mixed up"
            say("ending", (job.job for job in jobs))
            say("ended", end(broker, jobs, stored=results is not None))
        except BrokerDownError as error:
            say("down", [type(error).__name__])
            time.sleep(0.02)


def end(broker: Broker, jobs: list[Job], stored: bool) -> list[str]:
    """Ends the jobs, in SQLite with their results; which of them that ended for certain."""
    if isinstance(broker, SqliteBroker) and stored:
        return sorted(broker.finish(jobs, [result(job) for job in jobs]))
    return [job.job for job in jobs if broker.ack([job])]


def result(job: Job) -> Result:
    """Some result of the job."""
    return Result(job.job, "ok", "{}", "model", "1", job.attempt, job.enqueued_s, time.time(), time.time() + 1e6)


def main(what: str, folder: str) -> None:
    """Does it."""
    broker = open_broker(the_queue(), Path(folder))
    say("open", [])
    {"compete": compete, "hold": hold, "churn": churn}[what](broker)
    broker.close()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
