"""What becomes of jobs when processes compete, and when they and the server are killed: each has one owner at a time,
and nothing that was accepted is lost or ended twice.
"""

from __future__ import annotations

import contextlib
import os
import random
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from reference_apps.broker import Broker, NewJob, open_broker
from reference_apps.results import Results, sqlite_url
from tests.broker_processes import LARGE, end, the_queue
from tests.conftest import PATIENCE_S, ROOT
from tests.redis_server import RedisServer, redis_server

KILLS = 2
SEED = 7


@pytest.fixture(params=["sqlite", "redis"])
def server(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[RedisServer | None]:
    """A server of this test's own for Redis, under the variable that says where it is; None for SQLite."""
    monkeypatch.delenv("RUNG_BROKER_URL", raising=False)
    if request.param == "sqlite":
        yield None
        return
    with redis_server(tmp_path / "redis") as server:
        monkeypatch.setenv("RUNG_BROKER_URL", server.url)
        yield server


@contextlib.contextmanager
def opened(folder: Path) -> Iterator[Broker]:
    with contextlib.closing(open_broker(the_queue(), folder)) as broker:
        yield broker


class Process:
    """One process of tests/broker_processes.py; its output goes to a file, which outlives it."""

    def __init__(self, what: str, folder: Path) -> None:
        self.output = folder / f"{what}-{time.monotonic_ns()}.txt"
        command = [sys.executable, "-m", "tests.broker_processes", what, str(folder)]
        with self.output.open("wb") as output, (folder / "errors.txt").open("ab") as errors:
            self.process = subprocess.Popen(command, stdout=output, stderr=errors, cwd=ROOT, env=os.environ)

    def lines(self) -> list[list[str]]:
        """The words of each whole line so far."""
        return [line.split() for line in self.output.read_text().splitlines(keepends=True) if line.endswith("\n")]

    def jobs(self, *words: str) -> list[str]:
        """The jobs of the lines that begin with one of these words."""
        return [job for first, *jobs in self.lines() if first in words for job in jobs]

    def wait_for(self, word: str, lines: int = 1) -> None:
        deadline_s = time.monotonic() + PATIENCE_S
        while sum(line[0] == word for line in self.lines()) < lines:
            assert self.process.poll() is None, (self.output.parent / "errors.txt").read_text()
            assert time.monotonic() < deadline_s, f"no {word!r} within {PATIENCE_S} s: {self.lines()}"
            time.sleep(0.01)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(PATIENCE_S)


@contextlib.contextmanager
def started(what: str, folder: Path) -> Iterator[Process]:
    process = Process(what, folder)
    try:
        yield process
    finally:
        process.kill()


def drained(broker: Broker, stored: bool) -> list[str]:
    """Ends every job that is left, the leases of the killed included; which they were."""
    ended: list[str] = []
    while True:
        depth = broker.depth()
        if depth.waiting + depth.leased + depth.delayed == 0:
            assert depth.dead == 0
            return ended
        jobs = broker.claim(1000, PATIENCE_S, wait_s=PATIENCE_S)
        assert jobs, "what is left is never given to anybody"
        ended += end(broker, jobs, stored)


def test_each_job_goes_to_one_of_many_processes(server: RedisServer | None, tmp_path: Path) -> None:
    with opened(tmp_path) as broker, contextlib.ExitStack() as stack:
        ids = [one.job for _ in range(10) for one in broker.put([NewJob(b"job")] * 50)]
        processes = [stack.enter_context(started("compete", tmp_path)) for _ in range(2)]
        for process in processes:
            assert process.process.wait(PATIENCE_S) == 0, (tmp_path / "errors.txt").read_text()
        claimed = [job for process in processes for job in process.jobs("claimed")]
        acked = [job for process in processes for job in process.jobs("acked")]
        assert sorted(claimed) == sorted(ids)
        assert sorted(acked) == sorted(ids)
        assert broker.depth().waiting == broker.depth().leased == 0


def test_a_job_whose_holder_is_killed_goes_to_another(server: RedisServer | None, tmp_path: Path) -> None:
    with opened(tmp_path) as broker, started("hold", tmp_path) as holder:
        (accepted,) = broker.put([NewJob(LARGE)])
        holder.wait_for("claimed")
        assert holder.jobs("claimed") == [accepted.job]
        holder.kill()
        (job,) = broker.claim(1, PATIENCE_S, wait_s=PATIENCE_S)
        assert (job.job, job.attempt, job.payload) == (accepted.job, 2, LARGE)
        assert broker.ack([job]) == 1


def test_processes_that_are_killed_anywhere_lose_nothing(server: RedisServer | None, tmp_path: Path) -> None:
    chance = random.Random(SEED)
    dead: list[Process] = []
    with contextlib.ExitStack() as stack:
        for _ in range(KILLS // 2):
            pair = [stack.enter_context(started("churn", tmp_path)) for _ in range(2)]
            for process in pair:
                process.wait_for("ended", 3)
                time.sleep(chance.uniform(0.0, 0.05))
                process.kill()
            dead += pair
    check_that_nothing_is_lost(dead, server, tmp_path)


def test_a_server_that_is_killed_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chance = random.Random(SEED)
    with redis_server(tmp_path / "redis") as server:
        monkeypatch.setenv("RUNG_BROKER_URL", server.url)
        with started("churn", tmp_path) as process:
            for kill in range(KILLS // 2):
                process.wait_for("ended", 5 * (kill + 1))
                time.sleep(chance.uniform(0.0, 0.05))
                server.kill()
                process.wait_for("down", kill + 1)
                server.start()
                before = len([line for line in process.lines() if line[0] == "ended"])
                process.wait_for("ended", before + 2)
        check_that_nothing_is_lost([process], server, tmp_path)


def check_that_nothing_is_lost(processes: list[Process], server: RedisServer | None, folder: Path) -> None:
    """Every accepted job was ended by somebody, or is there to be ended; none that was ended comes back."""
    accepted = {job for process in processes for job in process.jobs("accepted")}
    ended = [job for process in processes for job in process.jobs("ended")]
    perhaps = {job for process in processes for job in process.jobs("ending")}
    assert len(accepted) > 10
    assert len(ended) == len(set(ended))
    with contextlib.ExitStack() as stack:
        broker = stack.enter_context(opened(folder))
        if server is None:
            stack.enter_context(Results(sqlite_url(folder / "queue.db")))
        last = drained(broker, stored=server is None)
        assert len(last) == len(set(last))
        assert not set(last) & set(ended)
        if server is None:
            with contextlib.closing(sqlite3.connect(folder / "queue.db")) as db:
                stored = {job for (job,) in db.execute("SELECT job FROM results")}
            assert accepted <= stored
            assert set(ended) | set(last) <= stored
        unsure = accepted - set(ended) - set(last)  # killed, or cut off, between the ack and the word of it
        assert unsure <= perhaps
        breaks = sum(1 + sum(line[0] == "down" for line in process.lines()) for process in processes)
        assert len(unsure) <= 3 * breaks
        assert broker.look(sorted(accepted)[:1000]) == {}
    with opened(folder):  # what the killed left half done is cleared away
        assert not [path for path in (folder / "payloads").iterdir() if path.name != ".lock"]
