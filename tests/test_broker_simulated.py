"""The simulator's broker does what the model does that both running brokers are held to, and wakes who waits."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from simpy import Environment, Event

from reference_apps import broker as running
from simulator.broker import Broker, Job, NewJob, QueueFullError
from simulator.clock import At
from stages.policies.queueing import accepts, is_dead
from stages.queue import Queue
from tests.test_broker_model import ATTEMPTS_MAX, DELAY_S, LEASE_S, MAX_DEPTH, PRIORITIES, QUEUE, Known, Model

NEW_JOBS = st.lists(
    st.builds(
        NewJob,
        request=st.just(0),
        priority=st.integers(0, PRIORITIES - 1),
        run_after_s=st.just(0.0) | st.just(DELAY_S),
    ),
    min_size=1,
    max_size=4,
)


def as_running(job: Job) -> running.Job:
    """The job as the model knows it."""
    return running.Job(str(job.job), b"", job.priority, job.enqueued_s, job.attempt, str(job.lease))


class Queues(RuleBasedStateMachine):
    """A simulated queue, and the model beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.env = Environment()
        self.broker = Broker(Queue(**QUEUE), self.env)
        self.model = Model(0.0)
        self.held: list[Job] = []
        self.comes: Event | None = None

    @rule(jobs=NEW_JOBS)
    def put(self, jobs: list[NewJob]) -> None:
        model = self.model
        if not accepts(len(model.jobs), len(jobs), MAX_DEPTH):
            with pytest.raises(QueueFullError):
                self.broker.put(jobs)
            return
        for new, number in zip(jobs, self.broker.put(jobs), strict=True):
            known = Known(running.NewJob(b"", new.priority), "delayed", due_s=model.now_s + DELAY_S)
            assert str(number) not in model.jobs
            model.jobs[str(number)] = known
            if new.run_after_s == 0:
                model.line_up(known)

    @rule(most=st.integers(1, 4))
    def claim(self, most: int) -> None:
        self.model.sweep()
        wanted = self.model.claims(most)
        jobs = self.broker.claim(most, LEASE_S)
        assert [str(job.job) for job in jobs] == wanted
        for job in jobs:
            known = self.model.jobs[str(job.job)]
            known.state, known.lease, known.attempt = "leased", str(job.lease), known.attempt + 1
            known.due_s = self.model.now_s + LEASE_S
            assert (job.priority, job.attempt) == (known.new.priority, known.attempt)
        self.held += jobs

    @precondition(lambda self: self.held)
    @rule(data=st.data(), extends=st.booleans())
    def ack_or_extend(self, data: st.DataObject, extends: bool) -> None:
        chosen = st.lists(
            st.sampled_from(self.held), min_size=1, max_size=3, unique_by=lambda job: (job.job, job.lease)
        )
        jobs = data.draw(chosen)
        ours = [str(job.job) for job in jobs if self.model.ours(as_running(job))]
        assert (self.broker.extend(jobs, LEASE_S) if extends else self.broker.ack(jobs)) == len(ours)
        for job in ours:
            if extends:
                self.model.jobs[job].due_s = self.model.now_s + LEASE_S
            else:
                self.model.gone(job)

    @precondition(lambda self: self.held)
    @rule(data=st.data(), delay_s=st.sampled_from([0.0, DELAY_S, None]))
    def nack_or_dead_letter(self, data: st.DataObject, delay_s: float | None) -> None:
        job = data.draw(st.sampled_from(self.held))
        ours = self.model.ours(as_running(job))
        told = self.broker.dead_letter(job, "p") if delay_s is None else self.broker.nack(job, "failed", delay_s)
        assert told == ours
        if ours:
            known = self.model.jobs[str(job.job)]
            dead = delay_s is None or is_dead(known.attempt, ATTEMPTS_MAX)
            known.state = "dead" if dead else "delayed" if delay_s else "waiting"
            known.due_s = self.model.now_s + (delay_s or 0.0)

    @rule(data=st.data(), everything=st.booleans(), again=st.booleans())
    def raise_the_dead(self, data: st.DataObject, everything: bool, again: bool) -> None:
        self.model.sweep()
        dead = [each.job for each in self.broker.dead()]
        assert {str(job) for job in dead} == {job for job, known in self.model.jobs.items() if known.state == "dead"}
        chosen = dead if everything else [job for job in dead if data.draw(st.booleans())]
        done = (self.broker.retry if again else self.broker.forget)(None if everything else chosen)
        assert done == len(chosen)
        for job in map(str, chosen):
            if again:
                self.model.jobs[job].attempt = 0
                self.model.line_up(self.model.jobs[job])
            else:
                self.model.gone(job)

    @rule()
    def wait_for_work(self) -> None:
        """From now on somebody waits: an alarm is set for leases and delays."""
        self.comes = self.broker.comes()

    @rule(seconds=st.sampled_from([1, 4, 11, 40]))
    def wait(self, seconds: int) -> None:
        before = self.model.count("waiting")
        self.env.run(self.env.now + seconds)
        self.model.now_s += seconds
        self.model.sweep()
        if self.comes is not None and self.model.count("waiting") > before:
            assert self.comes.triggered

    @invariant()
    def both_tell_the_same(self) -> None:
        self.model.sweep()
        depth = self.broker.depth()
        told = {"waiting": depth.waiting, "leased": depth.leased, "delayed": depth.delayed, "dead": depth.dead}
        assert told == {state: self.model.count(state) for state in told}
        waiting = [each for each in self.model.jobs.values() if each.state == "waiting"]
        ages_s = [self.model.now_s - each.ready_s for each in waiting]
        # A delayed job that somebody waits for is in the line from the moment at which it is due.
        assert max(ages_s, default=0.0) <= depth.oldest_s < max(ages_s, default=0.0) + 40.0


def test_the_simulated_broker_does_what_the_model_does() -> None:
    run_state_machine_as_test(
        Queues,
        settings=settings(
            max_examples=60,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        ),
    )


def a_queue(**keys: Any) -> tuple[Environment, Broker]:
    env = Environment()
    return env, Broker(Queue(**keys), env)


def test_whoever_waits_hears_of_a_put_a_lease_that_ran_out_and_a_delay_that_is_over() -> None:
    env, broker = a_queue(attempts_max=10)
    heard: list[float] = []

    def listen() -> None:
        def hear(_: Event) -> None:
            heard.append(env.now)
            assert len(broker.claim(1, 5.0)) == 1
            listen()

        event = broker.comes()
        assert event.callbacks is not None
        event.callbacks.append(hear)

    listen()
    At(env, 2.0).add_callback(lambda _: broker.put([NewJob(0)]))
    env.run(13.0)
    assert heard == [2.0, 7.0, 12.0]  # each claim's lease runs out five seconds later
    env, broker = a_queue()
    heard.clear()
    broker.put([NewJob(0, run_after_s=3.0)])
    listen()
    env.run(4.0)
    assert heard == [3.0]


def test_the_age_is_that_of_the_job_that_has_been_ready_longest_in_any_line() -> None:
    env, broker = a_queue()
    broker.put([NewJob(0, 2)])
    env.run(4.0)
    broker.put([NewJob(1, 0)])
    env.run(5.0)
    assert broker.depth().oldest_s == 5.0
    assert [job.request for job in broker.claim(1, 10.0)] == [1]
    assert broker.depth().oldest_s == 5.0
    broker.claim(1, 10.0)
    assert broker.depth().oldest_s == 0.0


def test_a_job_that_comes_back_has_its_old_place_and_one_that_is_retried_the_last() -> None:
    _, broker = a_queue(attempts_max=1)
    broker.put([NewJob(n) for n in range(3)])
    first = broker.claim(1, 10.0)
    assert broker.nack(first[0], "failed", 0.0)
    assert [each.error for each in broker.dead()] == ["failed"]  # the only attempt
    assert broker.retry() == 1
    assert [job.request for job in broker.claim(3, 10.0)] == [1, 2, 0]
    _, broker = a_queue()
    broker.put([NewJob(n) for n in range(3)])
    assert broker.nack(broker.claim(1, 10.0)[0], "failed", 0.0)
    assert [(job.request, job.attempt) for job in broker.claim(3, 10.0)] == [(0, 2), (1, 1), (2, 1)]
