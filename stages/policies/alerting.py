"""When does an alert begin, and when is it over?

    readings of the metrics ─▶ value of the rule's signal over each of its windows ─▶ above? ─▶ for how long?
    inactive ──above──▶ pending ──for_s──▶ firing ──not above──▶ resolved            (pending ──not above──▶ inactive)

The arithmetic is Prometheus', so that the same rules in PromQL decide alike: windows hold the readings that are
at most so old, and a percentile is interpolated within a histogram's bucket.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from stages.policies.histogram import LATENCY_BOUNDS_S, quantile

Signal = Literal["latency", "errors", "queue", "utilisation", "burn-rate"]
Severity = Literal["page", "ticket"]
State = Literal["inactive", "pending", "firing", "resolved"]

_SLACK_S = 1e-6  # of times that are sums of intervals


@dataclass(frozen=True, slots=True)
class Reading:
    """What one look at the metrics of the whole stack gave: counts since it began, and the state of its queues now."""

    at_s: float
    requests: float = 0.0  # that came to their end; those that the client got wrong are not counted
    errors: float = 0.0  # of them, those that got no answer
    answers_within: tuple[float, ...] = ()  # answers by bound of the latency histogram, cumulative; the last: all
    device_busy_s: float = 0.0  # of all devices together
    queue_length: float = 0.0  # now, of all queues together
    replicas: int = 0  # that could be asked now


@dataclass(frozen=True, slots=True)
class Rule:
    """One question to the metrics: is `signal` above `above` over every one of the windows, for `for_s`?

    `above` is in seconds for a latency, a share (of requests, of the queues' room, of time) for errors, queue and
    utilisation, and a multiple of the allowed pace for a burn rate. `share` is the percentile of a latency (0.95), and
    the promised share of a burn rate.
    """

    name: str
    signal: Signal
    above: float
    windows_s: tuple[float, ...]
    for_s: float
    severity: Severity
    share: float = 0.0


@dataclass(frozen=True, slots=True)
class Limits:
    """What signals are measured against: the histogram's bounds, the promise, the room of one replica's queue."""

    bounds_s: tuple[float, ...]
    slo_latency_s: float
    max_queue_length: int
    one_queue: bool = False  # it is the room of one queue that all replicas have in common


@dataclass(frozen=True, slots=True)
class Status:
    """Where an alert stands, and since when. Times are seconds of the readings' clock."""

    state: State = "inactive"
    since_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Change:
    """An alert that began to wait, fires, is resolved, or stopped waiting (inactive). `value` is that of its signal."""

    alert: str
    state: State
    at_s: float
    value: float | None  # over the shortest window; None when nothing was there to measure
    above: float
    severity: Severity


class RuleSet:
    """The rules of a stage and where each of them stands; the same class in both worlds."""

    def __init__(self, rules: Iterable[Rule], limits: Limits) -> None:
        self.rules, self._limits = tuple(rules), limits
        self._status = {rule.name: Status() for rule in self.rules}
        self._kept_s = max((max(rule.windows_s) for rule in self.rules), default=0.0)
        self._times_s: list[float] = []
        self._readings: list[Reading] = []

    def ask(self, reading: Reading) -> list[Change]:
        """Adds a reading, later than all before it, and gives the changes that it brings."""
        self._times_s.append(reading.at_s)
        self._readings.append(reading)
        self._forget(reading.at_s)
        changes = []
        for rule in self.rules:
            values = [value(rule, self._over(window_s), self._limits) for window_s in rule.windows_s]
            above = all(each is not None and each > rule.above for each in values)
            before = self._status[rule.name]
            now = self._status[rule.name] = after(before, above, reading.at_s, rule.for_s)
            if now.state != before.state:
                told = "resolved" if before.state == "firing" else now.state
                changes.append(Change(rule.name, told, reading.at_s, values[-1], rule.above, rule.severity))
        return changes

    def status(self, alert: str) -> Status:
        """Where an alert stands. Raises KeyError for an alert that no rule has."""
        return self._status[alert]

    def _over(self, window_s: float) -> Sequence[Reading]:
        first = bisect_left(self._times_s, self._times_s[-1] - window_s - _SLACK_S)
        return self._readings[first:]

    def _forget(self, now_s: float) -> None:
        """Drops what no window reaches any more, many at a time."""
        gone = bisect_left(self._times_s, now_s - self._kept_s - _SLACK_S)
        if gone > len(self._times_s) // 2:
            del self._times_s[:gone], self._readings[:gone]


def after(status: Status, above: bool, now_s: float, for_s: float) -> Status:
    """The next status of an alert whose signal is above its threshold now, or is not."""
    if not above:
        return status if status.state == "inactive" else Status("inactive", now_s)
    if status.state == "firing":
        return status
    since_s = status.since_s if status.state == "pending" else now_s
    if now_s - since_s >= for_s - _SLACK_S:
        return Status("firing", now_s)
    return Status("pending", since_s)


def value(rule: Rule, window: Sequence[Reading], limits: Limits) -> float | None:
    """The rule's signal over the readings of a window, oldest first; None when there is nothing to measure."""
    first, last = window[0], window[-1]
    requests = last.requests - first.requests
    match rule.signal:
        case "queue":
            return mean_queue_share(window, limits.max_queue_length, limits.one_queue)
        case "utilisation":
            return utilisation(window)
        case "errors":
            return (last.errors - first.errors) / requests if requests else None
        case "latency":
            return quantile(_answers(first, last), limits.bounds_s, rule.share)
        case "burn-rate":
            answers = _answers(first, last)
            kept = answers[limits.bounds_s.index(limits.slo_latency_s)] if answers else 0.0
            return burn_rate(requests, kept, rule.share) if requests else None


def burn_rate(requests: float, kept: float, promised_share: float) -> float:
    """How many times faster than allowed the budget burns: 1 spends it exactly by the end of the promise's period.

    `kept` of the `requests` (more than 0) were answered in time; the budget is 1 - `promised_share`.
    """
    return (1 - kept / requests) / (1 - promised_share)


def mean_queue_share(window: Sequence[Reading], max_queue_length: int, one_queue: bool = False) -> float | None:
    """How full the queues are, in the mean over the readings: 1 when every replica's queue is full all the time, or the
    one that they have in common is."""
    queues = ((each.queue_length, 1 if one_queue else each.replicas) for each in window)
    shares = [length / (count * max_queue_length) for length, count in queues if count]
    return sum(shares) / len(shares) if shares else None


def utilisation(window: Sequence[Reading]) -> float | None:
    """Busy device seconds over the seconds that devices were there."""
    there_s = sum((later.at_s - each.at_s) * (later.replicas + each.replicas) / 2 for each, later in pairwise(window))
    return (window[-1].device_busy_s - window[0].device_busy_s) / there_s if there_s else None


def latency_bounds_s(thresholds_s: Iterable[float]) -> tuple[float, ...]:
    """Bounds in seconds, ascending, for latencies that are asked about at `thresholds_s`, each of which is one.

    The bounds that autoscaling reads are among them, so that one histogram does for both.
    One bound is beyond every threshold, because a percentile in the last, open bucket reads as the highest bound.
    """
    thresholds = set(thresholds_s)
    return tuple(sorted({0.001, 0.002, *LATENCY_BOUNDS_S, *thresholds, 2 * max(thresholds, default=1.0)}))


def _answers(first: Reading, last: Reading) -> tuple[float, ...]:
    before = first.answers_within or (0.0,) * len(last.answers_within)
    return tuple(now - then for then, now in zip(before, last.answers_within, strict=True))
