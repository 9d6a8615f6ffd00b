"""Both brokers against a model that is simple enough to be right: hypothesis puts, claims, acks, fails and waits.

The model keeps a list and asks stages/policies/queueing.py for every decision, so that what the brokers decide in SQL
and in Lua is held to the functions that the simulator calls. Leases and delays end halfway between the whole seconds
that time passes in: no boundary is met by chance.
"""

from __future__ import annotations

import shutil
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from reference_apps.broker import Job, NewJob, QueueFullError
from stages.policies.queueing import accepts, is_dead, next_priority, ran_out
from tests.brokers import Kind, Place

ATTEMPTS_MAX, MAX_DEPTH, PRIORITIES = 3, 12, 3
LEASE_S, DELAY_S, KEY_TTL_S = 10.5, 3.5, 20.5
QUEUE: dict[str, Any] = {
    "attempts_max": ATTEMPTS_MAX,
    "max_depth": MAX_DEPTH,
    "priorities": PRIORITIES,
    "result_ttl_s": KEY_TTL_S,
    "payload_max_bytes": 1024,
    "fsync": "interval",
}
NEW_JOBS = st.lists(
    st.builds(
        NewJob,
        payload=st.binary(max_size=4) | st.just(b"large" * 300),
        priority=st.integers(0, PRIORITIES - 1),
        key=st.none() | st.sampled_from(["k", "l"]),
        run_after_s=st.just(0.0) | st.just(DELAY_S),
    ),
    min_size=1,
    max_size=4,
)


@dataclass
class Known:
    """What the model knows of a job."""

    new: NewJob
    state: str
    place: int = 0
    attempt: int = 0
    lease: str = ""
    due_s: float = 0.0
    ready_s: float = 0.0


@dataclass
class Model:
    """A queue as a dictionary; `died` has the dead letters in the order of their death."""

    slack_s: float
    now_s: float = 0.0
    jobs: dict[str, Known] = field(default_factory=dict)
    keys: dict[str, tuple[str, float | None]] = field(default_factory=dict)
    places: int = 0

    def line_up(self, known: Known) -> None:
        self.places += 1
        known.state, known.place, known.ready_s = "waiting", self.places, self.now_s

    def sweep(self) -> None:
        """What is over, in the order of its end."""
        for known in sorted(self.jobs.values(), key=lambda known: known.due_s):
            if known.state == "leased" and ran_out(known.due_s, self.now_s):
                known.state = "dead" if is_dead(known.attempt, ATTEMPTS_MAX) else "waiting"
            elif known.state == "delayed" and ran_out(known.due_s, self.now_s):
                if known.attempt == 0:
                    self.line_up(known)
                known.state = "waiting"

    def owner(self, key: str | None) -> str | None:
        job, until_s = self.keys.get(key or "", (None, None))
        return None if until_s is not None and ran_out(until_s, self.now_s) else job

    def claims(self, most: int) -> list[str]:
        """The jobs that go next."""
        waiting = [[j for j, k in self.jobs.items() if k.state == "waiting" and k.new.priority == p] for p in range(3)]
        for line in waiting:
            line.sort(key=lambda job: self.jobs[job].place)
        chosen: list[str] = []
        while len(chosen) < most and (first := next_priority([len(line) for line in waiting])) is not None:
            chosen.append(waiting[first].pop(0))
        return chosen

    def ours(self, job: Job) -> bool:
        known = self.jobs.get(job.job)
        return (
            known is not None
            and (known.state, known.lease) == ("leased", job.lease)
            and not ran_out(known.due_s, self.now_s)
        )

    def gone(self, job: str) -> None:
        key = self.jobs.pop(job).new.key
        if key is not None:
            self.keys[key] = (job, self.now_s + KEY_TTL_S)

    def count(self, state: str) -> int:
        return sum(known.state == state for known in self.jobs.values())


class Queues(RuleBasedStateMachine):
    """One queue of either kind, and the model beside it."""

    kind: ClassVar[Kind]
    url: ClassVar[str] = ""

    @initialize()
    def begin(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="queue-"))
        self.place = Place(self.kind, self.folder, self.url)
        self.model = Model(self.place.slack_s, self.place.clock.now_s)
        self.held: list[Job] = []
        self.stack = ExitStack()
        self.broker = self.stack.enter_context(self.place.open(**QUEUE))

    def teardown(self) -> None:
        if hasattr(self, "stack"):
            self.stack.close()
            shutil.rmtree(self.folder)

    @rule(jobs=NEW_JOBS)
    def put(self, jobs: list[NewJob]) -> None:
        model, taken, fresh = self.model, dict[str, int](), list[int]()
        for n, new in enumerate(jobs):
            if model.owner(new.key) is None and (new.key is None or new.key not in taken):
                fresh.append(n)
                if new.key is not None:
                    taken[new.key] = n
        if not accepts(len(model.jobs), len(fresh), MAX_DEPTH):
            with pytest.raises(QueueFullError):
                self.broker.put(jobs)
            return
        answers = self.broker.put(jobs)
        assert [n for n, answer in enumerate(answers) if not answer.duplicate] == fresh
        for n, (new, answer) in enumerate(zip(jobs, answers, strict=True)):
            if n not in fresh:
                assert new.key is not None
                assert answer.job == (answers[taken[new.key]].job if new.key in taken else model.owner(new.key))
        for n in fresh:
            known = Known(jobs[n], "delayed", due_s=model.now_s + DELAY_S)
            model.jobs[answers[n].job] = known
            if jobs[n].run_after_s == 0:
                model.line_up(known)
            if (key := jobs[n].key) is not None:
                model.keys[key] = (answers[n].job, None)

    @rule(most=st.integers(1, 4))
    def claim(self, most: int) -> None:
        self.model.sweep()
        wanted = self.model.claims(most)
        jobs = self.broker.claim(most, LEASE_S)
        assert [job.job for job in jobs] == wanted
        for job in jobs:
            known = self.model.jobs[job.job]
            known.state, known.lease, known.attempt = "leased", job.lease, known.attempt + 1
            known.due_s = self.model.now_s + LEASE_S + self.model.slack_s
            assert (job.payload, job.priority, job.attempt) == (known.new.payload, known.new.priority, known.attempt)
        self.held += jobs

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def ack(self, data: st.DataObject) -> None:
        jobs = data.draw(some_of(self.held))
        ours = [job.job for job in jobs if self.model.ours(job)]
        assert self.broker.ack(jobs) == len(ours)
        for job in ours:
            self.model.gone(job)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def extend(self, data: st.DataObject) -> None:
        jobs = data.draw(some_of(self.held))
        ours = [job.job for job in jobs if self.model.ours(job)]
        assert self.broker.extend(jobs, LEASE_S) == len(ours)
        for job in ours:
            self.model.jobs[job].due_s = self.model.now_s + LEASE_S + self.model.slack_s

    @precondition(lambda self: self.held)
    @rule(data=st.data(), delay_s=st.sampled_from([0.0, DELAY_S]))
    def nack(self, data: st.DataObject, delay_s: float) -> None:
        job = data.draw(st.sampled_from(self.held))
        ours = self.model.ours(job)
        assert self.broker.nack(job, "failed", delay_s) == ours
        if ours:
            known = self.model.jobs[job.job]
            known.state = "dead" if is_dead(known.attempt, ATTEMPTS_MAX) else "delayed" if delay_s else "waiting"
            known.due_s = self.model.now_s + delay_s

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def dead_letter(self, data: st.DataObject) -> None:
        job = data.draw(st.sampled_from(self.held))
        ours = self.model.ours(job)
        assert self.broker.dead_letter(job, "poison") == ours
        if ours:
            self.model.jobs[job.job].state = "dead"

    @rule(data=st.data(), everything=st.booleans(), again=st.booleans())
    def raise_the_dead(self, data: st.DataObject, everything: bool, again: bool) -> None:
        self.model.sweep()
        dead = [each.job for each in self.broker.dead(1000)]
        assert sorted(dead) == sorted(job for job, known in self.model.jobs.items() if known.state == "dead")
        chosen = dead if everything else [job for job in dead if data.draw(st.booleans())]
        done = (self.broker.retry if again else self.broker.forget)(None if everything else chosen)
        assert done == len(chosen)
        for job in chosen:
            if again:
                self.model.jobs[job].attempt = 0
                self.model.line_up(self.model.jobs[job])
            else:
                self.model.gone(job)

    @rule(seconds=st.sampled_from([1, 4, 11, 40]))
    def wait(self, seconds: int) -> None:
        self.place.clock.pass_s(seconds)
        self.model.now_s += seconds

    @rule()
    def open_again(self) -> None:
        self.stack.close()
        self.broker = self.stack.enter_context(self.place.open(**QUEUE))

    @invariant()
    def both_tell_the_same(self) -> None:
        if not hasattr(self, "broker"):
            return
        self.model.sweep()
        depth = self.broker.depth()
        told = {"waiting": depth.waiting, "leased": depth.leased, "delayed": depth.delayed, "dead": depth.dead}
        assert told == {state: self.model.count(state) for state in told}
        ages_s = [self.model.now_s - each.ready_s for each in self.model.jobs.values() if each.state == "waiting"]
        assert depth.oldest_s == pytest.approx(max(ages_s, default=0.0))
        found = self.broker.look(list(self.model.jobs))
        assert {job: (each.state, each.attempts) for job, each in found.items()} == {
            job: (known.state, known.attempt) for job, known in self.model.jobs.items()
        }
        large = {job for job, known in self.model.jobs.items() if len(known.new.payload) > QUEUE["payload_max_bytes"]}
        folder = self.place.payloads
        files = {path.name for path in folder.iterdir()} - {".lock"} if folder.is_dir() else set()
        assert files == large


def some_of(held: list[Job]) -> st.SearchStrategy[list[Job]]:
    """Some of the jobs that were ever claimed, each claim of a job once."""
    return st.lists(st.sampled_from(held), min_size=1, max_size=3, unique_by=lambda job: (job.job, job.lease))


@pytest.mark.parametrize("kind", ["sqlite", "redis"])
def test_a_broker_does_what_the_model_does(kind: Kind, request: pytest.FixtureRequest) -> None:
    class Machine(Queues):
        pass

    Machine.kind = kind
    Machine.url = request.getfixturevalue("redis_url") if kind == "redis" else ""
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=40,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        ),
    )
