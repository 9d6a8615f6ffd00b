"""The broker's contract, asked of both brokers: SQLite in a file, Redis Streams on a real server.

Time is moved by hand. What processes do to each other, and what becomes of the jobs when they are killed, is in
test_broker_crashes.py; what only one of the brokers has to promise, in test_broker_sqlite.py and test_broker_redis.py.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from reference_apps.broker import (
    BATCH_MAX,
    LEASE_RAN_OUT,
    Broker,
    BrokerDownError,
    Depth,
    Found,
    Job,
    NewJob,
    QueueFullError,
    new_job_ids,
)
from tests.brokers import Kind, Place
from tests.conftest import PATIENCE_S

LEASE_S = 10.0
LONGER_S = 12.0  # than a lease, and the slack that a broker may add
PAYLOAD_MAX_BYTES = 1024


@pytest.fixture(params=["sqlite", "redis"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """An empty queue's place."""
    kind: Kind = request.param
    return Place(kind, tmp_path, request.getfixturevalue("redis_url") if kind == "redis" else "")


@pytest.fixture
def broker(place: Place) -> Iterator[Broker]:
    """A broker at that place."""
    with place.open(attempts_max=3, max_depth=8, payload_max_bytes=PAYLOAD_MAX_BYTES, result_ttl_s=60.0) as broker:
        yield broker


def put(broker: Broker, *payloads: str, priority: int = 1) -> list[str]:
    """Puts a job for each payload; their ids."""
    return [one.job for one in broker.put([NewJob(payload.encode(), priority) for payload in payloads])]


def claim(broker: Broker, most: int = 8) -> list[Job]:
    return broker.claim(most, LEASE_S)


def counts(broker: Broker) -> tuple[int, int, int, int]:
    """waiting, leased, delayed, dead"""
    depth = broker.depth()
    return depth.waiting, depth.leased, depth.delayed, depth.dead


def test_a_job_is_put_claimed_acked_and_gone(broker: Broker) -> None:
    before_s = time.time()
    (accepted,) = broker.put([NewJob(b"\x00pay\xffload", priority=2)])
    assert not accepted.duplicate
    assert broker.depth() == Depth(1, 0, 0, 0, 0.0)
    assert broker.look([accepted.job, "nobody"]) == {accepted.job: Found("waiting", 0, "")}
    (job,) = claim(broker)
    assert (job.job, job.payload, job.priority, job.attempt) == (accepted.job, b"\x00pay\xffload", 2, 1)
    assert before_s <= job.enqueued_s <= time.time()
    assert broker.look([job.job]) == {job.job: Found("leased", 1, "")}
    assert claim(broker) == []
    assert broker.ack([job]) == 1
    assert broker.ack([job]) == 0
    assert broker.depth() == Depth(0, 0, 0, 0, 0.0)
    assert broker.look([job.job]) == {}


def test_nothing_asked_is_nothing_done(broker: Broker) -> None:
    assert broker.put([]) == []
    assert broker.ack([]) == 0
    assert broker.extend([], 1.0) == 0
    assert broker.look([]) == {}
    assert broker.retry([]) == broker.forget([]) == broker.retry() == broker.forget() == 0
    assert broker.dead() == []


def test_the_highest_priority_goes_first_and_the_oldest_within_it(broker: Broker) -> None:
    for payload, priority in (("a", 1), ("b", 2), ("c", 0), ("d", 1), ("e", 0)):
        put(broker, payload, priority=priority)
    assert [job.payload for job in claim(broker, 3)] == [b"c", b"e", b"a"]
    put(broker, "f", priority=0)
    assert [job.payload for job in claim(broker, 3)] == [b"f", b"d", b"b"]


def test_a_lease_that_ran_out_gives_the_job_to_another_at_its_old_place(place: Place, broker: Broker) -> None:
    ids = put(broker, "a", "b", "c")
    first = claim(broker, 2)
    place.clock.pass_s(LEASE_S - 1)
    assert [job.job for job in claim(broker)] == ids[2:]
    place.clock.pass_s(1 + place.slack_s)
    put(broker, "d")
    assert counts(broker) == (3, 1, 0, 0)
    again = claim(broker, 2)
    assert [(job.job, job.attempt) for job in again] == [(ids[0], 2), (ids[1], 2)]
    assert broker.ack(first) == 0
    assert broker.extend(first, LEASE_S) == 0
    assert not broker.nack(first[0], "late", 0.0)
    assert not broker.dead_letter(first[1], "late")
    assert broker.ack(again) == 2


def test_jobs_that_come_back_keep_their_order(place: Place, broker: Broker) -> None:
    ids = put(broker, "a", "b", "c", "d")
    first, second, third = claim(broker, 3)
    assert broker.nack(third, "failed", 2.0)
    place.clock.pass_s(3.0)
    assert broker.depth().waiting == 2  # the third is back
    assert broker.nack(second, "failed", 0.0)
    place.clock.pass_s(LONGER_S)
    assert broker.ack([first]) == 0
    assert [job.job for job in claim(broker)] == ids


def test_a_lease_that_ran_out_is_over_though_nobody_took_the_job(place: Place, broker: Broker) -> None:
    put(broker, "a")
    (job,) = claim(broker)
    place.clock.pass_s(LEASE_S + place.slack_s)
    assert broker.ack([job]) == 0
    assert broker.extend([job], LEASE_S) == 0
    assert counts(broker) == (1, 0, 0, 0)


def test_an_extended_lease_lasts(place: Place, broker: Broker) -> None:
    put(broker, "a", "b")
    first, second = claim(broker)
    for _ in range(3):
        place.clock.pass_s(LEASE_S - 1)
        assert broker.extend([first], LEASE_S) == 1
    place.clock.pass_s(LEASE_S - 1)
    assert [job.job for job in claim(broker)] == [second.job]
    assert broker.ack([first, second]) == 1


def test_a_failed_job_comes_back_after_its_delay_and_dies_of_its_last_attempt(place: Place, broker: Broker) -> None:
    (job_id,) = put(broker, "a")
    for attempt in (1, 2):
        (job,) = claim(broker)
        assert job.attempt == attempt
        assert broker.nack(job, f"failure {attempt}", 5.0)
        assert not broker.nack(job, "twice", 5.0)
        assert counts(broker) == (0, 0, 1, 0)
        assert broker.look([job_id]) == {job_id: Found("delayed", attempt, f"failure {attempt}")}
        place.clock.pass_s(4.0)
        assert claim(broker) == []
        place.clock.pass_s(1.0)
    (job,) = claim(broker)
    assert broker.nack(job, "failure 3", 5.0)
    assert counts(broker) == (0, 0, 0, 1)
    assert broker.look([job_id]) == {job_id: Found("dead", 3, "failure 3")}
    (dead,) = broker.dead()
    assert (dead.job, dead.payload, dead.priority, dead.attempts, dead.error) == (job_id, b"a", 1, 3, "failure 3")
    assert dead.enqueued_s == job.enqueued_s


def test_a_failed_job_without_a_delay_is_back_at_once(broker: Broker) -> None:
    ids = put(broker, "a", "b")
    first = claim(broker, 1)[0]
    assert broker.nack(first, "once more", 0.0)
    assert [job.job for job in claim(broker)] == ids


def test_a_worker_that_is_killed_counts_as_an_attempt(place: Place, broker: Broker) -> None:
    (job_id,) = put(broker, "a")
    (job,) = claim(broker)
    assert broker.nack(job, "first failure", 0.0)
    for _ in range(2):
        assert len(claim(broker)) == 1
        place.clock.pass_s(LONGER_S)
    assert counts(broker) == (0, 0, 0, 1)
    (dead,) = broker.dead()
    assert (dead.job, dead.attempts, dead.error) == (job_id, 3, f"{LEASE_RAN_OUT} (before: first failure)")


def test_a_dead_letter_waits_for_a_retry_which_begins_anew(place: Place, broker: Broker) -> None:
    ids = put(broker, "a", "b", "c")
    for job in claim(broker):
        assert broker.dead_letter(job, "poison")
    put(broker, "d")
    place.clock.pass_s(1e6)
    assert counts(broker) == (1, 0, 0, 3)
    assert broker.retry([ids[1], "nobody"]) == 1
    assert broker.retry([ids[1]]) == 0
    assert broker.look([ids[1]]) == {ids[1]: Found("waiting", 0, "poison")}
    assert broker.retry() == 2
    jobs = claim(broker)
    assert [(job.payload, job.attempt) for job in jobs] == [(b"d", 1), (b"b", 1), (b"a", 1), (b"c", 1)]


def test_dead_letters_are_paged_and_forgotten(broker: Broker) -> None:
    ids = put(broker, "a", "b", "c")
    for job in claim(broker):
        assert broker.dead_letter(job, f"poison {job.payload.decode()}")
    first = broker.dead(most=2)
    rest = broker.dead(most=2, after=first[-1].place)
    assert [dead.job for dead in (*first, *rest)] == ids
    assert broker.dead(after=rest[-1].place) == []
    assert broker.forget([ids[0], "nobody"]) == 1
    assert broker.retry([ids[1]]) == 1
    (job,) = claim(broker)
    assert broker.dead_letter(job, "poison still")
    assert [(dead.job, dead.error) for dead in broker.dead(after=rest[-1].place)] == [(ids[1], "poison still")]
    assert broker.forget() == 2
    assert broker.depth() == Depth(0, 0, 0, 0, 0.0)


def test_the_same_key_is_the_same_job_until_its_time_is_over(place: Place, broker: Broker) -> None:
    first = broker.put([NewJob(b"a", key="k"), NewJob(b"b", key="k"), NewJob(b"c", key="other key\n!")])
    assert [one.duplicate for one in first] == [False, True, False]
    assert first[0].job == first[1].job != first[2].job
    assert broker.put([NewJob(b"d", key="k")]) == [first[1]]
    jobs = claim(broker)
    assert [job.payload for job in jobs] == [b"a", b"c"]
    assert broker.ack(jobs) == 2
    place.clock.pass_s(59.0)
    assert broker.put([NewJob(b"e", key="k")]) == [first[1]]
    assert counts(broker) == (0, 0, 0, 0)
    place.clock.pass_s(1.0)
    (anew,) = broker.put([NewJob(b"f", key="k")])
    assert not anew.duplicate
    assert anew.job != first[0].job


def test_a_key_lives_as_long_as_its_job_waits(place: Place, broker: Broker) -> None:
    (first,) = broker.put([NewJob(b"a", key="k")])
    place.clock.pass_s(1e6)
    assert broker.put([NewJob(b"b", key="k")])[0].job == first.job


def test_more_than_the_depth_is_refused_all_or_nothing(place: Place, broker: Broker) -> None:
    put(broker, "a", "b", "c", "d", "e")
    jobs = claim(broker, 2)
    broker.dead_letter(jobs[0], "poison")
    broker.nack(jobs[1], "failed", 100.0)
    with pytest.raises(QueueFullError, match=r"5 jobs are inside.*at most 8") as caught:
        broker.put([NewJob(b"f", key="k"), NewJob(b"g"), NewJob(b"h"), NewJob(b"i")])
    assert (caught.value.inside, caught.value.max_depth) == (5, 8)
    assert counts(broker) == (3, 0, 1, 1)
    assert not broker.put([NewJob(b"f", key="k"), NewJob(b"g"), NewJob(b"h")])[0].duplicate
    with pytest.raises(QueueFullError):
        put(broker, "i")
    broker.ack(claim(broker, 1))
    put(broker, "i")
    with pytest.raises(QueueFullError):
        put(broker, "j")
    assert broker.put([NewJob(b"j", key="k")])[0].duplicate


def test_a_delayed_job_has_its_place_from_when_it_is_due(place: Place, broker: Broker) -> None:
    delayed = broker.put([NewJob(b"later", run_after_s=5.0), NewJob(b"latest", run_after_s=8.0)])
    put(broker, "now")
    assert counts(broker) == (1, 0, 2, 0)
    assert broker.look([delayed[0].job]) == {delayed[0].job: Found("delayed", 0, "")}
    place.clock.pass_s(5.0)
    assert counts(broker) == (2, 0, 1, 0)
    put(broker, "last")
    place.clock.pass_s(2.0)
    assert [job.payload for job in claim(broker)] == [b"now", b"later", b"last"]
    assert broker.depth().oldest_s == 0.0
    place.clock.pass_s(1.0)
    assert [job.payload for job in claim(broker)] == [b"latest"]


def test_the_age_is_that_of_the_job_that_is_ready_longest(place: Place, broker: Broker) -> None:
    put(broker, "a", priority=2)
    place.clock.pass_s(7.0)
    put(broker, "b", priority=0)
    place.clock.pass_s(1.0)
    assert broker.depth().oldest_s == pytest.approx(8.0)
    (job,) = claim(broker, 1)
    assert job.payload == b"b"
    assert broker.depth().oldest_s == pytest.approx(8.0)
    claim(broker, 1)
    assert broker.depth().oldest_s == 0.0
    place.clock.pass_s(LONGER_S)
    assert broker.depth().oldest_s == pytest.approx(8.0 + LONGER_S)
    claim(broker, 1)
    assert broker.depth().oldest_s == pytest.approx(8.0 + LONGER_S)


@pytest.mark.parametrize("step_s", [1e6, -1e6])
def test_a_clock_that_is_set_touches_no_lease(
    place: Place, broker: Broker, step_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = put(broker, "a", "b")
    broker.put([NewJob(b"later", run_after_s=5.0, key="k")])
    (first,) = claim(broker, 1)
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + step_s)
    with place.open(attempts_max=3, max_depth=8) as other:
        assert [job.job for job in claim(other)] == [ids[1]]
        assert counts(other) == (0, 2, 1, 0)
        put(other, "c")
        assert other.put([NewJob(b"later", key="k")])[0].duplicate
    place.clock.pass_s(LEASE_S - 1)
    assert [job.payload for job in claim(broker)] == [b"c", b"later"]
    assert broker.extend([first], LEASE_S) == 1
    assert broker.depth().oldest_s == 0.0
    assert broker.ack([first]) == 1


def test_ids_ascend_while_the_clock_is_set_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: 4e9)
    before = [*new_job_ids(3), *new_job_ids(1), *new_job_ids(2)]
    monkeypatch.setattr(time, "time", lambda: 1.0)
    ids = [*before, *new_job_ids(3)]
    assert ids == sorted(set(ids))
    assert all(re.fullmatch("[0-7][0-9A-HJKMNP-TV-Z]{25}", job) for job in ids)
    assert before[0].startswith("03MD998G00")  # 4e12 milliseconds in Crockford's base 32


def test_what_was_accepted_is_there_for_the_next_process(place: Place) -> None:
    with place.open() as broker:
        ids = put(broker, "a", "b", "c")
        broker.put([NewJob(b"later", run_after_s=5.0)])
        (job,) = claim(broker, 1)
    with place.open() as broker:
        assert counts(broker) == (2, 1, 1, 0)
        assert [each.job for each in claim(broker)] == ids[1:]
        assert broker.ack([job]) == 1
        place.clock.pass_s(5.0)
        assert [each.payload for each in claim(broker)] == [b"later"]


def test_a_claim_that_waits_is_woken_by_what_another_process_puts(place: Place, broker: Broker) -> None:
    found: list[Job] = []
    waiting = threading.Thread(target=lambda: found.extend(broker.claim(1, LEASE_S, wait_s=PATIENCE_S)))
    waiting.start()
    try:
        time.sleep(0.05)  # so that it waits, most of the time
        with place.open() as other:
            (job_id,) = put(other, "a")
            waiting.join(PATIENCE_S / 2)
        assert [job.job for job in found] == [job_id]
    finally:
        waiting.join(2 * PATIENCE_S)


def test_a_claim_that_waits_gets_what_another_gives_back(place: Place, broker: Broker) -> None:
    put(broker, "a")
    found: list[Job] = []
    with place.open() as other:
        (job,) = claim(other)
        waiting = threading.Thread(target=lambda: found.extend(broker.claim(1, LEASE_S, wait_s=PATIENCE_S)))
        waiting.start()
        try:
            time.sleep(0.05)
            other.nack(job, "not here", 5.0)
            place.clock.pass_s(5.0)
            waiting.join(PATIENCE_S / 2)
            assert [(each.job, each.attempt) for each in found] == [(job.job, 2)]
        finally:
            waiting.join(2 * PATIENCE_S)


def test_a_claim_that_waits_for_nothing_ends(broker: Broker) -> None:
    assert broker.claim(1, LEASE_S, wait_s=0.05) == []


def test_a_large_payload_is_kept_beside_the_queue_as_long_as_its_job(place: Place, broker: Broker) -> None:
    large = bytes(range(256)) * 8
    small = b"s" * PAYLOAD_MAX_BYTES
    accepted = broker.put([NewJob(large), NewJob(small), NewJob(large, key="k"), NewJob(large, key="k")])
    assert files(place) == {accepted[0].job, accepted[2].job}
    jobs = claim(broker)
    assert [job.payload for job in jobs] == [large, small, large]
    assert broker.ack(jobs[:2]) == 2
    assert files(place) == {accepted[2].job}
    assert broker.dead_letter(jobs[2], "poison")
    assert broker.dead()[0].payload == large
    broker.retry()
    assert claim(broker)[0].payload == large
    place.clock.pass_s(LONGER_S)
    (job,) = claim(broker)
    broker.dead_letter(job, "poison")
    broker.forget()
    assert files(place) == set()


def test_a_refused_payload_leaves_no_file(place: Place, broker: Broker) -> None:
    put(broker, *"abcdefg")
    with pytest.raises(QueueFullError):
        broker.put([NewJob(b"l" * 2000), NewJob(b"m" * 2000)])
    assert files(place) == set()


def test_a_payload_that_cannot_be_read_fails_its_job_alone(place: Place, broker: Broker) -> None:
    lost, cut, whole = (one.job for one in broker.put([NewJob(b"l" * 2000), NewJob(b"c" * 2000), NewJob(b"w" * 2000)]))
    (place.payloads / lost).unlink()
    (place.payloads / cut).write_bytes(b"c")
    assert [job.job for job in claim(broker)] == [whole]
    found = broker.look([lost, cut])
    assert [found[job].state for job in (lost, cut)] == ["delayed", "delayed"]
    assert "cannot be read" in found[lost].error
    for _ in range(2):
        place.clock.pass_s(60.0)
        claim(broker)
    assert [(dead.job, dead.payload) for dead in broker.dead() if dead.job != whole] == [(lost, b""), (cut, b"")]


def test_what_a_killed_process_left_behind_is_cleared_away(place: Place, broker: Broker) -> None:
    (job,) = broker.put([NewJob(b"l" * 2000)])
    whole, half = new_job_ids(2)
    (place.payloads / whole).write_bytes(b"nobody's")
    (place.payloads / f".{half}").write_bytes(b"half")
    with place.open():
        assert files(place) == {job.job}


def test_a_closed_broker_says_so(place: Place) -> None:
    with place.open() as broker:
        pass
    with pytest.raises(BrokerDownError, match="closed"):
        put(broker, "a")
    with pytest.raises(BrokerDownError, match="closed"):
        claim(broker)


@pytest.mark.parametrize(
    ("job", "told"),
    [
        (NewJob(b"", priority=3), "priority: must be 0 to 2"),
        (NewJob(b"", priority=-1), "priority: must be 0 to 2"),
        (NewJob(b"", key=""), "idempotency key: must be 1 to 256 characters, got 0"),
        (NewJob(b"", key="k" * 257), "idempotency key"),
        (NewJob(b"", run_after_s=-1.0), "run_after_s: must be at least 0"),
        (NewJob(b"", run_after_s=float("nan")), "run_after_s"),
    ],
)
def test_what_no_broker_can_take_is_refused_in_words(broker: Broker, job: NewJob, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        broker.put([NewJob(b"good"), job])
    assert counts(broker) == (0, 0, 0, 0)


def test_a_call_has_a_bounded_size(broker: Broker) -> None:
    job = Job("job", b"", 1, 0.0, 1, "lease")
    with pytest.raises(ValueError, match="at most 1000"):
        broker.put([NewJob(b"")] * (BATCH_MAX + 1))
    for call in (broker.ack, lambda jobs: broker.extend(jobs, 1.0), broker.look):
        with pytest.raises(ValueError, match="at most 1000"):
            call([job] * (BATCH_MAX + 1))
    for most in (0, BATCH_MAX + 1):
        with pytest.raises(ValueError, match="1 to 1000 jobs"):
            broker.claim(most, LEASE_S)
    with pytest.raises(ValueError, match="lease_s: must be greater than 0"):
        broker.claim(1, 0.0)


def test_a_whole_batch_goes_through(place: Place) -> None:
    with place.open() as broker:
        accepted = broker.put([NewJob(b"%d" % n, key=f"key {n}") for n in range(BATCH_MAX)])
        jobs = broker.claim(BATCH_MAX, LEASE_S)
        assert [job.payload for job in jobs] == [b"%d" % n for n in range(BATCH_MAX)]
        assert broker.extend(jobs, LEASE_S) == BATCH_MAX
        place.clock.pass_s(LONGER_S)
        assert counts(broker) == (BATCH_MAX, 0, 0, 0)
        jobs = broker.claim(BATCH_MAX, LEASE_S)
        assert [job.job for job in jobs] == [one.job for one in accepted]
        assert broker.ack(jobs) == BATCH_MAX
        place.clock.pass_s(1e6)
        assert not any(one.duplicate for one in broker.put([NewJob(b"", key=f"key {n}") for n in range(BATCH_MAX)]))


def files(place: Place) -> set[str]:
    """The payloads that lie beside the queue."""
    return {path.name for path in place.payloads.iterdir()} - {".lock"} if place.payloads.is_dir() else set()
