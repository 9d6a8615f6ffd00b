"""The real batcher: on a fake clock against cases worked by hand, for the wait that it promises, and under threads."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest
from hypothesis import given, settings

from reference_apps.batcher import Batcher, Request
from stages.spec import Admission, Batching
from tests.cases import CASES, Case
from tests.fake_clock import replay
from tests.made import Run, random_runs

LONG_S = 60.0  # a wait that a test which fails would sit out; none that passes does


# ---- on a fake clock -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_case_worked_by_hand(case: Case) -> None:
    batching = Batching(max_batch_size=case.max_batch_size, batch_wait_timeout_s=case.batch_wait_timeout_s)
    admission = Admission(max_queue_length=case.max_queue_length, deadline_s=case.deadline_s)
    found = replay(batching, admission, case.arrivals_s, case.service_time_s.__getitem__)
    assert found.batches == list(case.batches)
    assert tuple(found.shed) == case.shed
    assert tuple(number for number, _ in found.expired) == case.expired


@settings(max_examples=80, deadline=None)
@given(random_runs())
def test_nobody_waits_for_company_longer_than_was_promised(run: Run) -> None:
    stage, schedule, calibration = run
    arrivals_s = schedule.arrivals_s.tolist()
    found = replay(stage.batching, stage.admission, arrivals_s, calibration.service_time_s)
    free_s = 0.0
    for (started_s, members), finished_s in zip(found.batches, found.finished_s, strict=True):
        for number in members:
            assert started_s <= max(free_s, arrivals_s[number] + stage.batching.batch_wait_timeout_s)
        free_s = finished_s


@settings(max_examples=80, deadline=None)
@given(random_runs(refusing=False))
def test_a_batch_leaves_when_full_or_when_its_oldest_has_waited_enough(run: Run) -> None:
    stage, schedule, calibration = run
    arrivals_s, batching = schedule.arrivals_s.tolist(), stage.batching
    found = replay(batching, stage.admission, arrivals_s, calibration.service_time_s)
    free_s = 0.0
    for (started_s, members), finished_s in zip(found.batches, found.finished_s, strict=True):
        if len(members) == batching.max_batch_size:
            assert started_s <= max(free_s, arrivals_s[members[0]] + batching.batch_wait_timeout_s)
            assert started_s >= max(free_s, arrivals_s[members[-1]])
        else:
            assert started_s == max(free_s, arrivals_s[members[0]] + batching.batch_wait_timeout_s)
        free_s = finished_s
    assert [number for _, members in found.batches for number in members] == list(range(len(arrivals_s)))


@settings(max_examples=80, deadline=None)
@given(random_runs())
def test_every_request_has_one_end(run: Run) -> None:
    stage, schedule, calibration = run
    arrivals_s = schedule.arrivals_s.tolist()
    found = replay(stage.batching, stage.admission, arrivals_s, calibration.service_time_s)
    served = [number for _, members in found.batches for number in members]
    assert served == sorted(served)
    ends = [*served, *found.shed, *(number for number, _ in found.expired)]
    assert sorted(ends) == list(range(len(arrivals_s)))


def test_length_and_age_of_the_queue() -> None:
    now_s = 5.0
    batcher = Batcher(Batching(max_batch_size=2), Admission(), clock=lambda: now_s)
    assert (batcher.queue_length, batcher.oldest_wait_s) == (0, 0.0)
    for arrived_s in (1.0, 2.0):
        assert batcher.put(a_request(0, arrived_s))
    assert (batcher.queue_length, batcher.oldest_wait_s) == (2, 4.0)
    batcher.take()
    assert (batcher.queue_length, batcher.oldest_wait_s) == (0, 0.0)


# ---- under real threads --------------------------------------------------------------------------------------


def a_request(number: object, arrived_s: float | None = None) -> Request:
    def refuse(request: Request) -> None:
        raise AssertionError(f"{request} has no deadline")

    return Request(None, time.monotonic() if arrived_s is None else arrived_s, None, refuse, number)


def in_threads(*calls: Callable[[], None]) -> list[threading.Thread]:
    threads = [threading.Thread(target=call, daemon=True) for call in calls]
    for thread in threads:
        thread.start()
    return threads


def all_end(threads: list[threading.Thread]) -> bool:
    deadline_s = time.monotonic() + LONG_S / 2
    for thread in threads:
        thread.join(max(0.0, deadline_s - time.monotonic()))
    return not any(thread.is_alive() for thread in threads)


class Watched(threading.Condition):
    """A condition that knows how many wait on it."""

    waiting = 0

    def wait(self, timeout: float | None = None) -> bool:
        self.waiting += 1
        try:
            return super().wait(timeout)
        finally:
            self.waiting -= 1

    def await_waiting(self, count: int) -> None:
        deadline_s = time.monotonic() + LONG_S / 2
        while self.waiting != count:
            assert time.monotonic() < deadline_s
            time.sleep(0.001)


@pytest.mark.parametrize(("producers", "takers", "wait_s"), [(1, 1, 0.0), (4, 1, 0.001), (4, 3, 0.0), (4, 3, 0.001)])
def test_nothing_is_lost_doubled_or_out_of_order(producers: int, takers: int, wait_s: float) -> None:
    each = 500
    batching = Batching(max_batch_size=5, batch_wait_timeout_s=wait_s)
    batcher = Batcher(batching, Admission(max_queue_length=20))
    refused = [0] * producers
    taken: list[list[list[tuple[int, int]]]] = [[] for _ in range(takers)]

    def produce(producer: int) -> None:
        for number in range(each):
            while not batcher.put(a_request((producer, number))):
                refused[producer] += 1
                time.sleep(0)

    def take(taker: int) -> None:
        while batch := batcher.take():
            taken[taker].append([request.reply for request in batch])

    takes = in_threads(*(lambda taker=taker: take(taker) for taker in range(takers)))
    assert all_end(in_threads(*(lambda producer=p: produce(producer) for p in range(producers))))
    batcher.close()
    assert all_end(takes)
    everything = [request for batches in taken for batch in batches for request in batch]
    assert sorted(everything) == [(producer, number) for producer in range(producers) for number in range(each)]
    for batches in taken:
        for producer in range(producers):
            numbers = [number for batch in batches for which, number in batch if which == producer]
            assert numbers == sorted(numbers)
        assert all(1 <= len(batch) <= 5 for batch in batches)


def test_every_taker_is_woken_while_there_is_a_batch_for_it() -> None:
    changed = Watched()
    batching = Batching(max_batch_size=2, batch_wait_timeout_s=LONG_S)
    batcher = Batcher(batching, Admission(), changed=changed)
    sizes: list[int] = []
    takers = in_threads(*[lambda: sizes.append(len(batcher.take()))] * 3)
    changed.await_waiting(3)
    with changed:  # all six are there before the first taker looks
        for number in range(6):
            batcher.put(a_request(number))
    assert all_end(takers)
    assert sizes == [2, 2, 2]


def test_closing_lets_those_who_wait_leave_and_nobody_in() -> None:
    changed = Watched()
    batcher = Batcher(Batching(max_batch_size=8, batch_wait_timeout_s=LONG_S), Admission(), changed=changed)
    taken: list[list[int]] = []

    def take() -> None:
        while batch := batcher.take():
            taken.append([request.reply for request in batch])

    for number in range(3):
        assert batcher.put(a_request(number))
    takers = in_threads(take, take)
    changed.await_waiting(2)
    batcher.close()
    assert all_end(takers)
    assert taken == [[0, 1, 2]]
    assert not batcher.put(a_request(3))
    assert batcher.take() == []
