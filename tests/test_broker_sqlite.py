"""What the SQLite broker promises beside the contract: what it fsyncs, full disks, other boots, files that are none."""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from reference_apps.broker import BrokerDownError, BrokerFullDiskError, Job, NewJob, open_broker
from reference_apps.broker_sqlite import SqliteBroker
from reference_apps.claim_check import ClaimChecks
from reference_apps.results import Result, Results, sqlite_url
from stages.queue import Queue
from tests.brokers import HandClock, Place
from tests.conftest import PATIENCE_S
from tests.disks import disk_of, grow

LEASE_S = 10.0


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place("sqlite", tmp_path)


@pytest.fixture
def broker(place: Place) -> Iterator[SqliteBroker]:
    with place.open(attempts_max=2) as broker:
        assert isinstance(broker, SqliteBroker)
        yield broker


def result(job: Job, outcome: str = "ok") -> Result:
    return Result(job.job, outcome, "{}", "model", "1", job.attempt, job.enqueued_s, 2.0, 3.0)


def stored(path: Path) -> dict[str, str]:
    with contextlib.closing(sqlite3.connect(path)) as db:
        return dict(db.execute("SELECT job, outcome FROM results"))


def synchronous(broker: SqliteBroker) -> str:
    """How the last transaction ended: SQLite fsyncs the log at each commit with FULL, and at no commit with NORMAL."""
    with broker._file.turn() as db:
        return {1: "NORMAL", 2: "FULL"}[db.execute("PRAGMA synchronous").fetchone()[0]]


@pytest.mark.parametrize(("fsync", "ends"), [("commit", "FULL"), ("interval", "NORMAL")])
def test_what_is_accepted_and_what_is_over_waits_for_the_disk(place: Place, fsync: str, ends: str) -> None:
    with place.open(fsync=fsync) as broker, Results(sqlite_url(place.folder / "queue.db")):
        assert isinstance(broker, SqliteBroker)
        broker.put([NewJob(b"a"), NewJob(b"b"), NewJob(b"c"), NewJob(b"d")])
        assert synchronous(broker) == ends
        jobs = broker.claim(4, LEASE_S)
        assert synchronous(broker) == "NORMAL"
        broker.finish(jobs[:1], [result(jobs[0])])
        assert synchronous(broker) == ends
        broker.extend(jobs[1:], LEASE_S)
        broker.nack(jobs[1], "failed", 0.0)
        assert synchronous(broker) == "NORMAL"
        broker.ack(jobs[2:3])
        assert synchronous(broker) == ends
        broker.claim(1, LEASE_S)
        broker.dead_letter(jobs[3], "poison")
        assert synchronous(broker) == ends
        with broker._file.turn() as db:
            assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_interval_brings_the_log_to_the_disk_within_moments(place: Place) -> None:
    """A checkpoint fsyncs the log, and then fills the file from it: that is how it shows."""
    copy = place.folder / "copy.db"
    with place.open(fsync="interval") as broker:
        broker.put([NewJob(b"x" * 1000)] * 100)
        deadline_s = time.monotonic() + PATIENCE_S
        jobs = 0
        while jobs != 100:
            assert time.monotonic() < deadline_s, "the log was never worked off"
            time.sleep(0.05)
            copy.write_bytes((place.folder / "queue.db").read_bytes())
            with contextlib.closing(sqlite3.connect(copy)) as db, contextlib.suppress(sqlite3.DatabaseError):
                (jobs,) = db.execute("SELECT count(*) FROM jobs").fetchone()


def test_a_result_and_its_ack_are_one(place: Place, broker: SqliteBroker) -> None:
    with Results(sqlite_url(broker.path)) as results:
        broker.put([NewJob(b"a"), NewJob(b"b"), NewJob(b"c")])
        jobs = broker.claim(3, LEASE_S)
        with pytest.raises(KeyError):
            broker.finish(jobs[:2], [result(jobs[0])])
        assert broker.depth().leased == 3
        assert stored(broker.path) == {}
        assert broker.finish(jobs[:2], [result(jobs[1]), result(jobs[0])]) == {jobs[0].job, jobs[1].job}
        assert broker.finish(jobs[:2], [result(job) for job in jobs]) == set()
        assert broker.depth().leased == 1
        assert stored(broker.path) == {jobs[0].job: "ok", jobs[1].job: "ok"}
        assert results.find([jobs[0].job])[jobs[0].job].attempts == 1


def test_a_late_result_counts_while_the_job_has_no_end(place: Place, broker: SqliteBroker) -> None:
    with Results(sqlite_url(broker.path)):
        broker.put([NewJob(b"late"), NewJob(b"dead")])
        late, dead = broker.claim(2, LEASE_S)
        place.clock.pass_s(LEASE_S)
        again = broker.claim(2, LEASE_S)
        assert [job.attempt for job in again] == [2, 2]
        assert broker.dead_letter(again[1], "poison")
        assert broker.finish([late, dead], [result(late), result(dead)]) == {late.job}
        assert stored(broker.path) == {late.job: "ok"}
        assert broker.ack(again) == 0
        assert [each.job for each in broker.dead()] == [dead.job]


def test_after_another_boot_every_lease_and_delay_is_over(place: Place) -> None:
    with place.open(attempts_max=2, result_ttl_s=60.0) as broker:
        ids = [one.job for one in broker.put([NewJob(b"a"), NewJob(b"b", key="k"), NewJob(b"c", run_after_s=50.0)])]
        first, second = broker.claim(2, 1000.0)
        broker.nack(first, "failed", 1000.0)
        broker.ack([second])
    place.boot, place.clock = "the next boot", HandClock(3.0)
    with place.open(attempts_max=2, result_ttl_s=60.0) as broker:
        assert broker.depth().waiting == 2
        assert 0.0 <= broker.depth().oldest_s < 60.0
        jobs = broker.claim(2, LEASE_S)
        assert {(job.job, job.attempt) for job in jobs} == {(ids[0], 2), (ids[2], 1)}
        assert broker.ack([first]) == 0
        place.clock.pass_s(59.0)
        assert broker.put([NewJob(b"d", key="k")])[0].duplicate
        place.clock.pass_s(1.0)
        assert not broker.put([NewJob(b"d", key="k")])[0].duplicate
    with place.open(attempts_max=2) as broker:  # and the boot is the same from now on
        assert broker.depth().delayed == 0


def test_a_full_file_refuses_what_is_new_and_keeps_what_is_there(broker: SqliteBroker) -> None:
    ids = [one.job for one in broker.put([NewJob(b"x" * 500) for _ in range(20)])]
    with broker._file.turn() as db:
        (pages,) = db.execute("PRAGMA page_count").fetchone()
        db.execute(f"PRAGMA max_page_count = {pages + 3}")
    with pytest.raises(BrokerFullDiskError, match="no room on its disk"):
        broker.put([NewJob(b"y" * 500, key=f"k{n}") for n in range(50)])
    jobs = broker.claim(10, LEASE_S)
    assert [job.job for job in jobs] == ids[:10]
    assert broker.ack(jobs) == 10
    assert not broker.put([NewJob(b"y" * 500, key="k0")])[0].duplicate
    assert broker.depth().waiting == 11


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 1 MiB."""
    with disk_of(tmp_path / "small", "1m") as folder:
        yield folder


def test_on_a_full_disk_nothing_that_was_accepted_is_lost(small_disk: Path) -> None:
    queue = Queue(payload_max_bytes=4096)
    broker = open_broker(queue, small_disk)
    accepted: list[str] = []
    try:
        with pytest.raises(BrokerFullDiskError):
            for number in range(10_000):
                size_bytes = 10_000 if number % 5 == 0 else 3000  # beside the queue, and in it
                accepted += [one.job for one in broker.put([NewJob(b"%d " % number + b"x" * size_bytes)])]
        with contextlib.suppress(OSError):
            (small_disk / "ballast").write_bytes(b"x" * 1_048_576)
        for size_bytes in (3000, 10_000):
            with pytest.raises(BrokerFullDiskError):
                broker.put([NewJob(b"x" * size_bytes)])
        found: list[str] = []
        with contextlib.suppress(BrokerFullDiskError):  # as far as it goes
            while jobs := broker.claim(1, 1000.0):
                found += [job.job for job in jobs if broker.ack([job])]
        grow(small_disk, "16m")
        held = set(broker.look(accepted[:1000]))
        assert held | set(found) == set(accepted)
    finally:
        broker.close()
    with contextlib.closing(SqliteBroker(small_disk / "queue.db", queue, _checks(small_disk, queue))) as broker:
        held -= {job.job for job in broker.claim(1000, 1000.0) if broker.ack([job])}
        assert len(held) == broker.depth().leased  # claimed by the broker that could not tell us so
        assert broker.depth().waiting == 0


def _checks(folder: Path, queue: Queue) -> ClaimChecks:
    return ClaimChecks(folder / "payloads", queue.payload_max_bytes)


def test_a_file_that_is_no_queue_is_refused_in_words(tmp_path: Path) -> None:
    (tmp_path / "queue.db").write_bytes(b"no database at all " * 100)
    with pytest.raises(BrokerDownError, match=r"queue\.db: file is not a database"):
        open_broker(Queue(), tmp_path)


def test_a_queue_of_another_version_is_refused_in_words(tmp_path: Path) -> None:
    with contextlib.closing(sqlite3.connect(tmp_path / "queue.db")) as db:
        db.execute("PRAGMA user_version = 7")
    with pytest.raises(BrokerDownError, match="must be a queue of version 1, got version 7"):
        open_broker(Queue(), tmp_path)


def test_a_place_that_cannot_be_is_refused_in_words(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(BrokerDownError, match="There would be no queue"):
        open_broker(Queue(), tmp_path / "file")


def test_the_variable_says_where_the_file_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for value in (str(tmp_path / "one.db"), f"sqlite:///{tmp_path}/two.db"):
        monkeypatch.setenv("RUNG_BROKER_URL", value)
        open_broker(Queue(), tmp_path / "folder").close()
    assert {path.name for path in tmp_path.glob("*.db")} == {"one.db", "two.db"}
    monkeypatch.setenv("RUNG_BROKER_URL", "redis://127.0.0.1:1/0")
    with pytest.raises(BrokerDownError, match=r'must name a file when queue.broker is "sqlite", got a URL of redis'):
        open_broker(Queue(), tmp_path)


def test_a_file_that_somebody_holds_for_too_long_is_down_and_then_up_again(
    broker: SqliteBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker.put([NewJob(b"a")])
    with broker._file.turn() as db:
        db.execute("PRAGMA busy_timeout = 50")
    with contextlib.closing(sqlite3.connect(broker.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(BrokerDownError, match="locked"):
            broker.put([NewJob(b"b")])
        assert broker.depth().waiting == 1
        other.execute("ROLLBACK")
    broker.put([NewJob(b"b")])
    assert broker.depth().waiting == 2
