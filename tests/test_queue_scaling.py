"""Workers by the queue: as many as its depth or its age wants, none when it is empty, one when something comes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from stages.policies.autoscaling import Scaler, timetable
from stages.policies.scaling import Seen
from stages.policies.scraping import QueueSample, Sample, observe
from stages.scaling import Scaling

COLD_S = 2.0


@dataclass
class Workers:
    """Workers that take `each_rps` jobs a second out of a queue that is filled by the script: (from when, jobs)."""

    script: tuple[tuple[float, float], ...]
    each_rps: float
    now_s: float = 0.0
    waiting: float = 0.0
    since_s: float = 0.0  # from when on something has waited
    begins_s: dict[int, float] = field(default_factory=dict)
    number: int = 0
    silent: bool = False

    def pass_s(self, seconds: float) -> None:
        for at_s, jobs in self.script:
            if self.now_s < at_s <= self.now_s + seconds:
                self.waiting += jobs
        self.now_s += seconds
        self.waiting = max(0.0, self.waiting - seconds * self.each_rps * len(self.ready()))
        if not self.waiting:
            self.since_s = self.now_s

    def sample(self) -> Sample:
        queue = QueueSample(self.waiting, float(len(self.ready())) if self.waiting else 0.0, self.now_s - self.since_s)
        return Sample(self.now_s, queue=None if self.silent else queue)

    def members(self) -> list[int]:
        return self.ready()

    def ready(self) -> list[int]:
        return [number for number, begins_s in self.begins_s.items() if begins_s <= self.now_s]

    def starting(self) -> list[int]:
        return [number for number, begins_s in self.begins_s.items() if begins_s > self.now_s]

    def start(self, cold_start_s: float) -> None:
        self.begins_s[self.number] = self.now_s + cold_start_s
        self.number += 1

    def drain(self, number: int) -> None:
        del self.begins_s[number]


def wanted(workers: Workers, until_s: float, **keys: Any) -> list[tuple[float, int]]:
    """Every change of what is wanted, by a [scaling] that looks and scrapes every second."""
    table = {
        "policy": "keda",
        "min_replicas": 0,
        "max_replicas": 8,
        "metric": "queue-depth",
        "target": 100.0,
        "interval_s": 1.0,
        "scrape_interval_s": 1.0,
        "window_s": 1.0,
        "polling_interval_s": 1.0,
        "cooldown_s": 5.0,
        "up": {"replicas": 8, "period_s": 1.0},
        "down": {"stabilisation_window_s": 0.0, "period_s": 1.0},
        "cold_start": {"model_s": COLD_S},
    }
    scaling = Scaling.model_validate(table | keys)
    scaler = Scaler(scaling, workers, len(workers.begins_s))
    changes: list[tuple[float, int]] = []
    last = len(workers.begins_s)
    for at_s, scrapes, decides in timetable(scaling):
        if at_s > until_s:
            return changes
        workers.pass_s(at_s - workers.now_s)
        look = scaler.look(at_s, scrapes, decides)
        if look is not None and look.wanted != last:
            last = look.wanted
            changes.append((at_s, last))
    raise AssertionError


def test_the_first_job_makes_the_first_worker_and_the_backlog_more() -> None:
    workers = Workers(((5.0, 350.0),), each_rps=10.0)
    changes = wanted(workers, 60.0)
    assert changes[0] == (5.0, 1)  # seen at the look at 5 s
    assert changes[1] == (6.0, 4)  # the depth is known while nobody works yet
    assert workers.begins_s == {}


def test_nobody_goes_before_the_backlog_is_worked_off() -> None:
    """Nothing arrives for longer than the cool-down, and a worker takes a minute for what is there."""
    workers = Workers(((1.0, 60.0),), each_rps=1.0)
    changes = wanted(workers, 120.0)
    assert changes == [(1.0, 1), (67.0, 0)]  # a job was last there at 61 s, and more than five seconds ago at 67 s
    assert workers.begins_s == {}


def test_an_empty_queue_lets_workers_go_and_a_job_brings_one_back() -> None:
    workers = Workers(((30.0, 3.0),), each_rps=10.0)
    workers.start(0.0)
    assert [count for _, count in wanted(workers, 60.0)] == [0, 1, 0]


def test_a_broker_that_does_not_answer_changes_nothing() -> None:
    workers = Workers(((0.5, 1000.0),), each_rps=1.0)
    workers.start(0.0)
    workers.silent = True
    assert wanted(workers, 30.0) == []
    workers.silent = False
    assert wanted(workers, 30.0)[0][1] == 8


def test_by_age_workers_come_while_the_oldest_waits_too_long() -> None:
    workers = Workers(((1.0, 2000.0),), each_rps=10.0)
    workers.start(0.0)
    keys = {"policy": "target-tracking", "min_replicas": 1, "metric": "queue-age", "target": 10.0, "max_replicas": 4}
    changes = wanted(workers, 200.0, **keys)
    assert changes[0] == (12.0, 2)  # 11 s old is near the target of 10, 12 s is not
    assert max(count for _, count in changes) == 4
    assert changes[-1][1] == 1


@pytest.mark.parametrize("policy", ["target-tracking", "step"])
def test_a_depth_is_shared_by_all_workers(policy: str) -> None:
    workers = Workers(((0.5, 1000.0),), each_rps=0.0)
    for _ in range(2):
        workers.start(0.0)
    keys: dict[str, Any] = {"policy": policy, "min_replicas": 1}
    if policy == "step":
        keys |= {"target": None, "above": 400.0, "factor_up": 2.0}
    changes = wanted(workers, 20.0, **keys)
    # Tracking wants one for each hundred at once; a step doubles while each has over 400, and four have 250 each.
    assert changes == [(1.0, 8)] if policy == "target-tracking" else [(1.0, 4)]


def test_what_a_window_tells() -> None:
    samples = [Sample(float(n), queue=QueueSample(10.0 * n, 1.0, float(n))) for n in range(4)]
    assert observe("queue-depth", samples, [0, 1]) == Seen(2, 20.0, work=31.0)
    assert observe("queue-age", samples, []) == Seen(0, 2.0, work=31.0)
    assert observe("queue-depth", samples[:1], [0]) == Seen(1, 0.0, work=1.0)
    gone = [*samples[:1], Sample(1.0), Sample(2.0)]
    assert observe("queue-depth", gone, [0]) == Seen(1, None)
    assert observe("queue-age", [Sample(0.0), Sample(1.0)], [0]) == Seen(1, None, 1)
