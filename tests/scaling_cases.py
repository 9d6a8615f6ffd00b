"""Autoscaling worked by hand: how much load there is when, and how many replicas are wanted from when on.

Both worlds' autoscalers are driven by these cases, in front of the same make-believe fleet. Unless a case says
otherwise it looks and scrapes every second, windows are one scrape (so that what changes at 5 s is known at 6 s), a
replica is ready 3 s after it was wanted, nothing is stabilised, and there is room for any change.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from stages.policies.histogram import LatencyCounts
from stages.policies.scraping import ReplicaSample, Sample
from stages.scaling import Scaling

COLD_START_S = 3.0


@dataclass(frozen=True)
class Case:
    """`load` is in the metric's unit, of all replicas together: (from when, how much), and 0 before.

    Of latency-p95 it is what answers take; of rate, arrivals per second, which there are none of in other cases unless
    `arrivals_rps` says so.
    """

    name: str
    load: tuple[tuple[float, float], ...]
    wanted: tuple[tuple[float, int], ...]  # every change: (when, to how many)
    until_s: float
    scaling: Mapping[str, Any] = field(default_factory=dict)
    replicas: int = 1
    arrivals_rps: tuple[tuple[float, float], ...] = ()
    down: tuple[tuple[float, float], ...] = ()  # spans in which the gateway does not answer

    def tables(self) -> Scaling:
        """The [scaling] of the case."""
        table: dict[str, Any] = {
            "max_replicas": 20,
            "interval_s": 1.0,
            "scrape_interval_s": 1.0,
            "window_s": 1.0,
            "up": {"replicas": 20, "period_s": 1.0},
            "down": {"stabilisation_window_s": 0.0, "period_s": 1.0},
            "cold_start": {"model_s": COLD_START_S},
        }
        return Scaling.model_validate(table | dict(self.scaling))


class PretendFleet:
    """Replicas that share a load evenly, are ready when their cold start is over, and go at once when drained."""

    def __init__(self, case: Case, now_s: Callable[[], float]) -> None:
        self._case, self._now_s = case, now_s
        self._ready_s = dict.fromkeys(range(case.replicas), 0.0)
        self._next = case.replicas
        self._latencies = LatencyCounts()
        self._spent_s = dict.fromkeys(range(case.replicas), 0.0)
        self._scraped_s = 0.0

    def sample(self) -> Sample:
        now_s, case = self._now_s(), self._case
        if any(start_s <= now_s < end_s for start_s, end_s in case.down):
            return Sample(now_s)
        ready, metric = self.ready(), case.tables().metric
        whole = _at(case.load, now_s)
        each = whole / len(ready) if ready else 0.0
        arrivals = case.load if metric == "rate" else case.arrivals_rps
        if metric == "latency-p95" and whole:
            for _ in range(100):
                self._latencies.add(whole)
        worked = [number for number, ready_s in self._ready_s.items() if ready_s < now_s]
        for number in worked:
            done = _until(case.load, now_s) - _until(case.load, self._scraped_s)
            self._spent_s[number] = self._spent_s.get(number, 0.0) + done / len(worked)
        self._scraped_s = now_s
        spent_s = {number: self._spent_s.get(number, 0.0) for number in ready}
        replicas = {number: ReplicaSample(held_s=s, queued=each, busy_s=s) for number, s in spent_s.items()}
        return Sample(now_s, _until(arrivals, now_s), self._latencies.within(), replicas)

    def members(self) -> list[int]:
        return self.ready()

    def ready(self) -> list[int]:
        return [number for number, ready_s in self._ready_s.items() if ready_s <= self._now_s()]

    def starting(self) -> list[int]:
        return [number for number, ready_s in self._ready_s.items() if ready_s > self._now_s()]

    def start(self, cold_start_s: float) -> None:
        self._ready_s[self._next] = self._now_s() + cold_start_s
        self._next += 1

    def drain(self, number: int) -> None:
        del self._ready_s[number]


def _at(steps: tuple[tuple[float, float], ...], now_s: float) -> float:
    return next((value for from_s, value in reversed(steps) if from_s <= now_s), 0.0)


def _until(steps: tuple[tuple[float, float], ...], now_s: float) -> float:
    """The sum of the load over the time so far."""
    ends_s = [*(from_s for from_s, _ in steps[1:]), now_s]
    spans = zip(steps, ends_s, strict=True) if steps else ()
    return sum(value * (max(from_s, min(end_s, now_s)) - from_s) for (from_s, value), end_s in spans if now_s > from_s)


_TEN = {"target": 10.0}

CASES = (
    Case("at the target nothing changes", ((0.0, 20.0),), (), 60.0, _TEN, replicas=2),
    Case("near the target nothing changes", ((0.0, 21.9),), (), 60.0, _TEN, replicas=2),
    Case("further from it something does", ((0.0, 22.1),), ((1.0, 3),), 60.0, _TEN, replicas=2),
    Case("four times the target, four replicas, once", ((5.0, 40.0),), ((6.0, 4),), 60.0, _TEN),
    Case("the most is the most", ((5.0, 400.0),), ((6.0, 7),), 60.0, _TEN | {"max_replicas": 7}),
    Case("the least is the least", ((0.0, 1.0),), ((1.0, 2),), 60.0, _TEN | {"min_replicas": 2}, replicas=3),
    Case(
        "no more than the limit in a period",
        ((5.0, 200.0),),
        ((6.0, 4), (16.0, 8), (26.0, 16), (36.0, 20)),
        60.0,
        _TEN | {"up": {"replicas": 3, "share": 1.0, "period_s": 10.0}},
    ),
    Case(
        "no fewer than the limit in a period",
        ((0.0, 80.0), (5.0, 10.0)),
        ((6.0, 6), (16.0, 4), (26.0, 2), (36.0, 1)),
        60.0,
        _TEN | {"down": {"stabilisation_window_s": 0.0, "replicas": 2, "share": 0.1, "period_s": 10.0}},
        replicas=8,
    ),
    Case(
        "the load is gone, the replicas stay for the window",
        ((0.0, 40.0), (10.0, 10.0)),
        ((40.0, 1),),  # the last look that wanted four was at 10 s
        60.0,
        _TEN | {"down": {"stabilisation_window_s": 30.0, "period_s": 1.0}},
        replicas=4,
    ),
    Case(
        "a dip within the window changes nothing",
        ((0.0, 40.0), (10.0, 10.0), (35.0, 40.0)),
        (),
        60.0,
        _TEN | {"down": {"stabilisation_window_s": 30.0, "period_s": 1.0}},
        replicas=4,
    ),
    Case(
        "what is found at the start is kept for the window too",
        ((0.0, 10.0),),
        ((30.0, 1),),
        60.0,
        _TEN | {"down": {"stabilisation_window_s": 30.0, "period_s": 1.0}},
        replicas=4,
    ),
    Case(
        "a peak within the window up changes nothing, a longer one does",
        ((0.0, 10.0), (10.0, 40.0), (15.0, 10.0), (20.0, 40.0)),
        ((30.0, 4),),  # the last look that wanted one was at 20 s
        60.0,
        _TEN | {"up": {"stabilisation_window_s": 10.0, "replicas": 20, "period_s": 1.0}},
    ),
    Case(
        "decisions are as late as the scrapes",
        ((0.5, 40.0),),
        ((4.0, 4),),
        60.0,
        _TEN | {"scrape_interval_s": 4.0, "window_s": 4.0},
    ),
    Case(
        "a gauge is the mean over its window",
        ((0.0, 10.0), (5.0, 40.0)),
        ((5.0, 2), (6.0, 3), (7.0, 4)),  # of 10, 10, 40, then of 10, 40, 40
        7.5,
        _TEN | {"metric": "queue-depth", "window_s": 3.0},
    ),
    Case(
        "the busy share of the devices",
        ((0.0, 0.5), (10.0, 1.0)),
        ((11.0, 2),),
        30.0,
        {"metric": "utilisation", "target": 0.5},
    ),
    Case(
        "a total needs no replica that tells it",
        ((0.0, 10.0), (5.0, 100.0)),
        ((6.0, 10),),
        30.0,
        {"metric": "rate", "target": 10.0},
    ),
    Case(
        "slow answers, by the replicas that are ready",
        ((0.0, 0.5), (5.0, 1.5)),  # 95 of 100 within the bucket up to 1.5 s: 1.475 s
        ((5.0, 3), (8.0, 9), (11.0, 20)),
        20.0,
        {"metric": "latency-p95", "target": 0.5, "tolerance": 0.2},
    ),
    Case(
        "what nobody tells changes nothing",
        ((0.0, 10.0), (5.0, 40.0)),
        ((13.0, 4),),  # two scrapes make a rate
        60.0,
        _TEN,
        down=((5.0, 12.0),),
    ),
    Case(
        "KEDA: idle for the cool-down, then none; the first request brings one back",
        ((0.0, 10.0), (10.0, 0.0), (100.0, 10.0)),
        ((41.0, 0), (101.0, 1)),  # polled at 1 s, 6 s, 11 s …: last active at 6 s, more than 30 s ago at 41 s
        120.0,
        _TEN | {"policy": "keda", "min_replicas": 0, "polling_interval_s": 5.0, "cooldown_s": 30.0},
        arrivals_rps=((0.0, 5.0), (10.0, 0.0), (100.0, 5.0)),
    ),
    Case(
        "KEDA: so little that it is no activity",
        ((0.0, 1.0),),
        ((31.0, 0),),
        60.0,
        _TEN
        | {
            "policy": "keda",
            "min_replicas": 0,
            "polling_interval_s": 5.0,
            "cooldown_s": 30.0,
            "activation_rps": 2.0,
        },
        arrivals_rps=((0.0, 2.0),),
    ),
    Case(
        "KEDA: in between it is target tracking, and leaves the last replica",
        ((0.0, 40.0), (10.0, 0.0)),
        ((1.0, 4), (11.0, 1)),
        60.0,
        _TEN | {"policy": "keda", "min_replicas": 0, "polling_interval_s": 5.0, "cooldown_s": 300.0},
        arrivals_rps=((0.0, 5.0),),
    ),
    Case(
        "double when over 100 requests, and wait for them",
        ((5.0, 390.0),),
        ((6.0, 2), (16.0, 4)),
        60.0,
        {"policy": "step", "above": 100.0, "cooldown_s": 10.0},
    ),
    Case(
        "halve when under 10",
        ((0.0, 30.0),),
        ((1.0, 2),),  # 15 each, and 4 of them have 7.5
        60.0,
        {"policy": "step", "above": 100.0, "below": 10.0, "cooldown_s": 10.0},
        replicas=4,
    ),
    Case(
        "a timetable",
        (),
        ((10.0, 4), (20.0, 2)),
        60.0,
        {
            "policy": "scheduled",
            "schedule": [{"at_s": 10.0, "replicas": 4}, {"at_s": 20.0, "replicas": 2}],
        },
    ),
    Case(
        "a timetable of short days",
        (),
        ((10.0, 4), (20.0, 0), (40.0, 4), (50.0, 0)),
        65.0,
        {
            "policy": "scheduled",
            "min_replicas": 0,
            "day_s": 30.0,
            "schedule": [{"at_s": 10.0, "replicas": 4}, {"at_s": 20.0, "replicas": 0}],
        },
    ),
)
