"""What an autoscaler knows: scrapes of gateway and replicas, and the metric that they amount to over a window.

    Sample, Sample, … (one a scrape interval) ──▶ observe(metric, window) ──▶ Seen

Gauges are means over the samples of the window, counters differences between its ends, as Prometheus' avg_over_time
and rate give them, and a percentile comes out of the difference of two histograms. Concurrency is no gauge but the
growth of the time that requests have spent in a replica, as Knative measures it: the number at a moment is mostly
chance. Windows are counted in samples: a scrape that comes a millisecond late neither joins nor leaves one.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from stages.policies.histogram import LATENCY_BOUNDS_S, increase, quantile
from stages.policies.scaling import Seen
from stages.scaling import Metric, Scaling


@dataclass(frozen=True)
class ReplicaSample:
    """What one scrape found of one replica."""

    held_s: float = 0.0  # what requests have spent there, all together, as the gateway counts them
    queued: float = 0.0  # requests that wait for a batch now
    busy_s: float = 0.0  # of its device, since it started


@dataclass(frozen=True)
class QueueSample:
    """What one scrape found of the queue of a stage that has one."""

    waiting: float = 0.0  # jobs
    leased: float = 0.0  # jobs that a worker has
    oldest_s: float = 0.0  # how long the first in line has waited


@dataclass(frozen=True)
class Sample:
    """What one scrape found. Counters count from the start of whoever keeps them."""

    at_s: float
    arrived: float = 0.0  # requests at the gateway, the refused too
    answers_within: tuple[float, ...] = ()  # answers by bound of LATENCY_BOUNDS_S, cumulative; the last: all
    replicas: Mapping[int, ReplicaSample] | None = None  # of those that answered; None when the gateway did not
    queue: QueueSample | None = None  # None where the stage has none, and when its broker did not answer


def samples_of(scaling: Scaling) -> int:
    """How many samples a window reaches back to, its older end included."""
    return max(1, round(scaling.window_s / scaling.scrape_interval_s)) + 1


def observe(metric: Metric, samples: Sequence[Sample], ready: Collection[int]) -> Seen:
    """What the samples of a window (oldest first, `samples_of` at most) tell about the replicas that are ready now."""
    if any(sample.queue is not None for sample in samples):
        return _of_queue(metric, samples, len(ready))
    answered = [sample for sample in samples if sample.replicas is not None]
    rate_rps = _rate_rps(answered)
    if metric == "rate":
        return Seen(len(ready), rate_rps, rate_rps=rate_rps)
    if metric == "latency-p95":
        return Seen(len(ready), _p95_s(answered), rate_rps=rate_rps)
    values = [_of_replica(metric, answered, number) for number in ready]
    told = [value for value in values if value is not None]
    mean = sum(told) / len(told) if told else None
    return Seen(len(ready), mean, len(values) - len(told), rate_rps)


def _of_queue(metric: Metric, samples: Sequence[Sample], ready: int) -> Seen:
    """What a window tells of a queue, which is nobody's own: means over it, and the work that is there now."""
    # As of a replica's: the oldest sample is the older end of the window, and none of its own.
    within = list(samples)[-max(1, len(samples) - 1) :]
    told = [sample.queue for sample in within if sample.queue is not None]
    if not told:
        return Seen(ready, None)
    values = [each.oldest_s if metric == "queue-age" else each.waiting for each in told]
    return Seen(ready, sum(values) / len(values), work=told[-1].waiting + told[-1].leased)


def _of_replica(metric: Metric, samples: Sequence[Sample], number: int) -> float | None:
    """One replica's metric; None when the last sample has nothing of it, or too little to tell a rate."""
    own = [(s.at_s, s.replicas[number]) for s in samples if s.replicas is not None and number in s.replicas]
    if not own or own[-1][0] != samples[-1].at_s:
        return None
    if metric == "queue-depth":
        # The oldest sample is the older end of the window, and none of its own.
        within = [each.queued for at_s, each in own if len(samples) == 1 or at_s > samples[0].at_s]
        return sum(within) / len(within)
    (start_s, first), (end_s, last) = own[0], own[-1]
    if end_s <= start_s:
        return None
    busy = metric == "utilisation"
    counted = increase(first.busy_s, last.busy_s) if busy else increase(first.held_s, last.held_s)
    return counted / (end_s - start_s)


def _rate_rps(samples: Sequence[Sample]) -> float | None:
    if len(samples) < 2 or samples[-1].at_s <= samples[0].at_s:
        return None
    return increase(samples[0].arrived, samples[-1].arrived) / (samples[-1].at_s - samples[0].at_s)


def _p95_s(samples: Sequence[Sample]) -> float | None:
    if len(samples) < 2:
        return None
    pairs = zip(samples[0].answers_within, samples[-1].answers_within, strict=False)
    return quantile([increase(first, last) for first, last in pairs], LATENCY_BOUNDS_S, 0.95)
