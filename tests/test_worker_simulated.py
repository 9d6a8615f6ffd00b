"""Simulated workers: the batches of a replica, leases that run out, turns on a GPU, and a fleet from zero to zero."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal
from simpy import Environment, Event

from simulator.broker import Broker, Job, NewJob
from simulator.clock import At
from simulator.device import open_device
from simulator.one_gpu import on_one_gpu, turns
from simulator.run import simulate
from simulator.sharing import Card, Gpu
from simulator.worker import Worker
from stages.calibration import Calibration
from stages.fleet import Fleet
from stages.policies.sharing import TURN_S
from stages.queue import Queue
from stages.spec import Admission, Stage, load_stage
from stages.traffic import Schedule
from tests.made import Run, a_calibration, a_schedule, a_stage, random_runs
from tests.test_invariants import check

SECOND_EACH = a_calibration({1: (1.0,), 2: (2.0,)})


@dataclass
class Crew:
    """Workers of one queue, and what they have told: (request, worker, attempt, when, reason)."""

    stage: Stage
    calibration: Calibration = SECOND_EACH
    env: Environment = field(default_factory=Environment)
    told: list[tuple[int, int, int, float, str]] = field(default_factory=list)
    stored: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        assert self.stage.queue is not None
        self.broker = Broker(self.stage.queue, self.env)

    def worker(self, number: int, card: Card | None = None) -> Worker:
        device = open_device(self.stage, self.calibration, number=number)
        return Worker(self.stage, self.env, number, self.broker, device, stored=self.stored, ended=self.hear, card=card)

    def hear(self, worker: Worker, job: Job, batch: int, place: int, now_s: float, reason: str) -> None:
        self.told.append((job.request, worker.number, job.attempt, now_s, reason))

    def put(self, count: int, **keys: Any) -> None:
        self.broker.put([NewJob(number, **keys) for number in range(count)])


def killed(worker: Worker, _: Event) -> None:
    worker.kill()


def a_crew(calibration: Calibration = SECOND_EACH, max_batch_size: int = 1, **queue: Any) -> Crew:
    batching = {"max_batch_size": max_batch_size, "batch_wait_timeout_s": 0.0}
    return Crew(a_stage(batching=batching, queue={"lease_s": 5.0, **queue}), calibration)


# ---- batches ----


@settings(max_examples=80, deadline=None)
@given(random_runs(refusing=False))
def test_one_worker_makes_the_very_batches_of_a_replica(run: Run) -> None:
    """A queue changes who fetches what, and not when a batch leaves, nor how large it is."""
    stage, schedule, calibration = run
    queue = Queue(lease_s=3600.0, request_reply_timeout_s=3600.0)
    direct, queued = (
        simulate(each, schedule, calibration=calibration) for each in (stage, stage.model_copy(update={"queue": queue}))
    )
    assert_frame_equal(direct.batches, queued.batches, check_exact=True)
    own = ["gateway_in_s", "gateway_out_s", "tries"]
    assert_frame_equal(direct.requests.drop(own), queued.requests.drop(own), check_exact=True)


@settings(max_examples=80, deadline=None)
@given(random_runs(), st.integers(1, 4), st.integers(4, 40), st.integers(1, 200))
def test_random_queues_keep_every_invariant(run: Run, workers: int, depth: int, patience: int) -> None:
    stage, schedule, calibration = run
    depth = max(depth, stage.batching.max_batch_size)
    queue = Queue(lease_s=3600.0, max_depth=depth, request_reply_timeout_s=patience / 64)
    update = {"queue": queue, "fleet": Fleet(replicas=workers), "admission": Admission()}
    queued = stage.model_copy(update=update)
    records = simulate(queued, schedule, calibration=calibration)
    check(queued, calibration, records)
    assert records.requests.height == schedule.arrivals_s.size


def test_a_full_queue_refuses_and_whoever_waited_long_enough_is_told() -> None:
    stage = a_stage(
        batching={"max_batch_size": 1, "batch_wait_timeout_s": 0.0},
        queue={"max_depth": 3, "request_reply_timeout_s": 1.5},
    )
    records = simulate(stage, a_schedule([0.0] * 5), calibration=a_calibration({1: (1.0,)}))
    assert records.requests["reason"].to_list() == [
        "",
        "upstream_timeout",
        "upstream_timeout",
        "queue_full",
        "queue_full",
    ]
    assert records.requests["replied_s"].to_list() == [1.0, 1.5, 1.5, 0.0, 0.0]
    assert records.batches.height == 2  # the third waited too long to be computed, the second was under way


def test_a_deadline_drops_what_no_worker_has_begun_and_ends_no_wait() -> None:
    stage = a_stage(
        batching={"max_batch_size": 1, "batch_wait_timeout_s": 0.0}, queue={"request_reply_timeout_s": 60.0}
    )
    own = stage.model_copy(update={"admission": Admission(deadline_s=1.25)})
    records = simulate(own, a_schedule([0.0] * 3), calibration=a_calibration({1: (1.0,)}))
    assert records.requests["reason"].to_list() == ["", "", "deadline"]  # the second had begun before 1.25 s
    assert records.requests["replied_s"].to_list() == [1.0, 2.0, 2.0]


def test_workers_compete_and_share_a_backlog() -> None:
    crew = a_crew()
    workers = [crew.worker(number) for number in range(3)]
    crew.put(9)
    crew.env.run(100.0)
    assert sorted(request for request, *_ in crew.told) == list(range(9))
    assert [when for *_, when, _ in crew.told] == [1.0] * 3 + [2.0] * 3 + [3.0] * 3
    assert [worker.life().log.sizes.tolist() for worker in workers] == [[1, 1, 1]] * 3


# ---- leases ----


def test_the_jobs_of_a_worker_that_was_killed_go_to_another_when_their_lease_is_over() -> None:
    crew = a_crew(max_batch_size=2)
    first = crew.worker(0)
    crew.put(2)
    At(crew.env, 0.5).add_callback(lambda _: first.kill())
    At(crew.env, 1.0).add_callback(lambda _: crew.worker(1))
    crew.env.run(100.0)
    assert crew.told == [(0, 1, 2, 7.0, ""), (1, 1, 2, 7.0, "")]  # leased at 0, over at 5, and two seconds' work
    assert first.life().stopped_s == 0.5
    assert crew.broker.depth().leased == 0


def test_a_lease_is_extended_for_as_long_as_a_worker_computes() -> None:
    crew = a_crew(a_calibration({1: (60.0,)}))
    for number in range(2):
        crew.worker(number)
    crew.put(1)
    crew.env.run(100.0)
    assert [(request, attempt, when) for request, _, attempt, when, _ in crew.told] == [(0, 1, 60.0)]
    depth = crew.broker.depth()
    assert (depth.waiting, depth.leased, depth.dead) == (0, 0, 0)


def test_a_job_that_kills_every_worker_is_a_dead_letter() -> None:
    crew = a_crew(attempts_max=3)
    crew.put(1)
    for attempt in range(5):
        worker = crew.worker(attempt)
        At(crew.env, crew.env.now + 0.5).add_callback(partial(killed, worker))
        crew.env.run(crew.env.now + 10.0)
    assert crew.told == []
    assert [(letter.request, letter.attempts) for letter in crew.broker.dead()] == [(0, 3)]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0.01, 8.0), max_size=30), st.integers(1, 25), st.integers(1, 3))
def test_whatever_is_killed_every_job_has_one_result_or_is_a_dead_letter(
    lives_s: list[float], count: int, workers: int
) -> None:
    crew = a_crew(max_batch_size=2, attempts_max=4)
    crew.put(count)
    alive = [crew.worker(number) for number in range(workers)]
    for turn, life_s in enumerate(lives_s):
        crew.env.run(crew.env.now + life_s)
        alive[turn % workers].kill()
        alive[turn % workers] = crew.worker(workers + turn)
    crew.env.run(crew.env.now + 10.0 + 10.0 * count)
    answered = [request for request, *_ in crew.told]
    dead = [letter.request for letter in crew.broker.dead()]
    assert sorted(answered + dead) == list(range(count))
    assert crew.broker.depth().waiting == crew.broker.depth().leased == 0
    assert all(attempt <= 4 for _, _, attempt, _, _ in crew.told)


def test_a_worker_that_drains_finishes_what_it_has_and_claims_nothing_more() -> None:
    crew = a_crew()
    busy, idle = crew.worker(0), crew.worker(1)
    crew.put(1)
    crew.env.run(0.5)
    for worker in (busy, idle):
        worker.drain()
    crew.env.run(1.5)
    crew.put(1)
    crew.env.run(100.0)
    assert [request for request, *_ in crew.told] == [0]
    assert {busy.left_s, idle.left_s} == {0.5, 1.0}
    assert crew.broker.depth().waiting == 1


def test_a_job_whose_deadline_has_passed_takes_no_time_of_the_device() -> None:
    crew = a_crew(a_calibration({1: (10.0,)}))
    worker = crew.worker(0)
    crew.put(2, deadline_s=3.0)
    crew.env.run(100.0)
    assert [(request, when, reason) for request, _, _, when, reason in crew.told] == [
        (0, 10.0, ""),
        (1, 10.0, "deadline"),
    ]
    assert worker.life().log.expired.tolist() == [1]
    assert worker.life().log.sizes.tolist() == [1]


# ---- two models on one GPU ----


def sharing(memory_gib: float, rate_rps: float, seed: int) -> Stage:
    return load_stage(
        "queued",
        {
            "name": f"model-{seed}",
            "scaling": None,
            "model.memory_gib": memory_gib,
            "device.memory_gib": 8.0,
            "traffic.rate.rate_rps": rate_rps,
            "traffic.seed": seed,
            "traffic.timeout_s": 600.0,
            "queue.request_reply_timeout_s": 600.0,
        },
    )


def test_two_models_that_do_not_fit_at_once_take_turns_and_both_are_answered() -> None:
    both = on_one_gpu([sharing(3.0, 5.0, 1), sharing(6.0, 5.0, 2)])
    spans: list[tuple[float, float, int]] = []
    for records in both:
        assert set(records.requests["outcome"]) == {"ok"}
        spans += [(start, end, len(spans)) for start, end in records.batches.select("started_s", "finished_s").rows()]
    spans.sort()
    for (_, ends_s, _), (starts_s, _, _) in pairwise(spans):
        assert starts_s >= ends_s  # never both on the card
    first, second = (records.batches["started_s"].to_numpy() for records in both)
    order = np.argsort(np.concatenate([first, second]))
    changes = 1 + int(np.count_nonzero(np.diff(order >= first.size)))
    assert sum(turns(both)) == changes >= 4
    assert abs(turns(both)[0] - turns(both)[1]) <= 1


def test_two_models_that_fit_at_once_do_not_wait_for_each_other() -> None:
    stages = [sharing(3.0, 5.0, 1), sharing(5.0, 5.0, 2)]
    alone = [simulate(stage) for stage in stages]
    for by_itself, beside in zip(alone, on_one_gpu(stages), strict=True):
        wait_s, beside_s = (
            float(np.mean((each.requests["started_s"] - each.requests["arrived_s"]).to_numpy()))
            for each in (by_itself, beside)
        )
        assert beside_s == pytest.approx(wait_s, rel=0.05)


def test_one_that_is_idle_makes_room_long_before_its_turn_is_over() -> None:
    env = Environment()
    gpu = Gpu(env, 8.0)
    stage = a_stage(batching={"max_batch_size": 1, "batch_wait_timeout_s": 0.0}, queue={"lease_s": 60.0})
    small, large = Crew(stage, env=env), Crew(stage, env=env)
    small.worker(0, Card(gpu, 3.0, "small"))
    large.worker(1, Card(gpu, 6.0, "large"))
    small.put(1)
    At(env, 2.0).add_callback(lambda _: large.put(1))
    env.run(100.0)
    assert [when for *_, when, _ in small.told] == [1.0]
    ((_, _, _, when, _),) = large.told
    assert 3.0 < when < 2.0 + 1.0 + 1.0 < TURN_S


def test_a_model_larger_than_the_gpu_is_refused_in_words() -> None:
    with pytest.raises(ValueError, match=r"at most device\.memory_gib"):
        Card(Gpu(Environment(), 8.0), 9.0, "huge")
    with pytest.raises(ValueError, match="must differ among stages on one GPU, got model-1 twice"):
        on_one_gpu([sharing(3.0, 5.0, 1), sharing(6.0, 5.0, 1)])
    with pytest.raises(ValueError, match="must be the same in all stages"):
        on_one_gpu([sharing(3.0, 5.0, 1), load_stage("queued")])


# ---- from zero to zero ----


def test_workers_go_when_nothing_is_left_and_come_back_with_the_first_job() -> None:
    keys = {"traffic.timeout_s": 300.0, "queue.request_reply_timeout_s": 300.0, "traffic.duration_s": 300.0}
    stage = load_stage("queued", keys)
    arrivals_s = np.concatenate([np.linspace(0.0, 5.0, 100), np.linspace(150.0, 155.0, 800)])
    records = simulate(stage, Schedule(arrivals_s, np.zeros(arrivals_s.size, dtype=np.int64), 300.0))
    assert set(records.requests["outcome"]) == {"ok"}
    looks = records.scaling
    quiet = looks.filter(pl.col("at_s").is_between(100.0, 149.0))
    assert quiet["wanted"].to_list() == [0] * quiet.height
    assert (quiet["ready"] == 0).all()
    back = records.requests.filter(pl.col("scheduled_s") >= 150.0)
    assert float(back["started_s"].to_numpy().min()) >= 150.0 + 18.0  # nobody is there before a cold start
    assert looks["wanted"].to_numpy().max() >= 3
    assert looks["wanted"].to_list()[-1] == 0
    assert records.replicas.filter(pl.col("stopped_s") < 300.0).height >= 2


def test_results_are_the_same_for_the_same_seed() -> None:
    stage = load_stage("queued")
    first, again = simulate(stage, seed=3), simulate(stage, seed=3)
    assert_frame_equal(first.requests, again.requests, check_exact=True)
    assert_frame_equal(first.scaling, again.scaling, check_exact=True)
