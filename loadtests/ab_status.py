"""What an experiment says so far: each arm's figures with intervals that hold at every look, and the verdict in words.

    predictions, labels ──▶ FeedbackReader ──▶ Arm, Arm ──▶ difference ──▶ Status ──▶ table, JSON, effect over time

The intervals are those of stages/policies/sequential.py: whoever looks every minute and stops at the first verdict is
wrong with probability alpha at most. Where they are the narrowest follows from the stage and the question alone: from
what was seen by then, it would be another at each look. Each holds by itself; not all of them together. What one look
would say stands beside. No twin: it measures; simulator/experiments.py predicts how long that takes. Latencies and
seconds on the device are taken to be independent, which requests in one queue are not: read their intervals as too
narrow.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reference_apps.feedback_reading import Counts, FeedbackReader, JudgedRows, Version
from stages.bill import replica_usd_per_hour
from stages.policies import fixed_horizon, sequential
from stages.spec import Stage

Floats = NDArray[np.float64]
Moments = tuple[float, float, int]  # mean, variance and number of a sample
Counted = NDArray[np.int64]

POWER = 0.8
_POINTS = 500  # of the effect over time


@dataclass(frozen=True)
class Asked:
    """How it is to be told: the level of the intervals, and the effect that one wants to see at which baseline."""

    alpha: float = 0.05
    effect: float = 0.01
    baseline: float = 0.95
    since_at: float | None = None  # seconds since the epoch; the challenger's first answer without it


@dataclass(frozen=True)
class Figure:
    """A value with its interval; NaN and infinities where nothing can be said yet."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Arm:
    """What one version has done. Times in seconds; `usd_per_1000` is of its device's time; None without [cost]."""

    arm: str
    version: str
    counts: Counts
    accuracy: Figure
    latency_s_mean: Figure
    latency_s_p95: Figure
    device_s_mean: Figure
    usd_per_1000: Figure | None


@dataclass(frozen=True)
class Effect:
    """The challenger's share of right answers less the champion's, after each of `at` (seconds since the epoch)."""

    at: Floats
    labelled: NDArray[np.int64]
    value: Floats
    low: Floats
    high: Floats


@dataclass(frozen=True)
class Status:
    """An experiment so far. `challenger` and what compares are None while only one version has answered."""

    stage: str
    since_at: float
    until_at: float
    asked: Asked
    champion: Arm
    challenger: Arm | None = None
    difference: Figure | None = None
    latency_difference_s: Figure | None = None
    one_look: Figure | None = None
    one_look_p: float | None = None
    decided_after: int | None = None  # labelled requests at the first look that told the arms apart
    decided_after_s: float | None = None  # from the beginning to that look
    planned: int | None = None  # labelled requests for one look
    left: int | None = None  # until the effect that is asked for would show, at the latest
    left_s: float | None = None
    verdict: str = ""
    over_time: Effect | None = None


def status(stage: Stage, reader: FeedbackReader, asked: Asked) -> Status | None:
    """The experiment of a stage so far; None while nobody has answered. Raises FeedbackDownError."""
    newest = reader.newest()
    champion, challenger = newest.get("champion", newest.get("")), newest.get("challenger")
    if champion is None:
        champion, challenger = challenger, None
    if champion is None:
        return None
    since_at = asked.since_at if asked.since_at is not None else (challenger or champion).first_at
    until_at = max(champion.last_at, challenger.last_at if challenger else 0.0)
    arm_a, means_a = _arm(stage, reader, champion, 0, since_at, asked)
    if challenger is None:
        verdict = "Only one version has answered. There is nothing to compare it with."
        return Status(stage.name, since_at, until_at, asked, arm_a, verdict=verdict)
    arm_b, means_b = _arm(stage, reader, challenger, stage.fleet.replicas, since_at, asked)
    rows = reader.judged(champion, challenger, since_at)
    return _compared(stage, asked, (since_at, until_at), (arm_a, arm_b), (means_a, means_b), rows)


def _compared(
    stage: Stage,
    asked: Asked,
    times: tuple[float, float],
    arms: tuple[Arm, Arm],
    latencies: tuple[Moments, Moments],
    rows: JudgedRows,
) -> Status:
    a, b = (arm.counts for arm in arms)
    share = _share(a.predictions, b.predictions)
    tuned_at = sequential.tuned_for(asked.baseline, _possible(asked), _meant(stage), asked.alpha, POWER)
    counts = (a.right, a.labelled, b.right, b.labelled)
    value = b.right / max(1, b.labelled) - a.right / max(1, a.labelled) if a.labelled and b.labelled else math.nan
    difference = Figure(value, *_pair(sequential.difference_of_shares(*counts, asked.alpha, tuned_at)))
    one_look = Figure(value, *_pair(fixed_horizon.difference_of_shares(*counts, asked.alpha)))
    (mean_a, *_), (mean_b, *_) = latencies
    bounds = sequential.difference_of_means(*latencies[0], *latencies[1], asked.alpha, tuned_at)
    slower = Figure(mean_b - mean_a, *_pair(bounds))
    planned = fixed_horizon.sample_size(asked.baseline, _possible(asked), share, asked.alpha, POWER)
    at_latest = sequential.requests_needed(asked.baseline, _possible(asked), share, asked.alpha, POWER, tuned_at)
    labelled = a.labelled + b.labelled
    left = max(0, at_latest - labelled)
    seconds = times[1] - times[0]
    left_s = left * seconds / labelled if labelled and seconds > 0.0 else math.inf
    first = decided(rows, asked.alpha, tuned_at)
    return Status(
        stage.name,
        *times,
        asked,
        *arms,
        difference=difference,
        latency_difference_s=slower,
        one_look=one_look,
        one_look_p=fixed_horizon.p_value(float(fixed_horizon.z_statistic(*counts))),
        decided_after=None if first is None else first[0],
        decided_after_s=None if first is None else max(0.0, first[1] - times[0]),
        planned=planned,
        left=left,
        left_s=left_s,
        verdict=verdict(difference, left, left_s, asked.effect),
        over_time=over_time(rows, asked.alpha, tuned_at),
    )


def verdict(difference: Figure, left: int, left_s: float, effect: float) -> str:
    """The verdict in words, of an interval that may be looked at all the time."""
    low, high = 100.0 * difference.low, 100.0 * difference.high
    if difference.low > 0.0:
        return f"The challenger is better: {low:+.2f} to {high:+.2f} points more right answers."
    if difference.high < 0.0:
        return f"The challenger is worse: {low:+.2f} to {high:+.2f} points more right answers."
    if math.isnan(difference.value):
        return "Not decided: an arm has no labels yet."
    text = f"Not decided: the difference is between {low:+.2f} and {high:+.2f} points."
    if not left:
        return f"{text} One of {100.0 * abs(effect):g} points would most likely have shown by now."
    wait = f", about {duration(left_s)} more" if math.isfinite(left_s) else ""
    return f"{text} One of {100.0 * abs(effect):g} points shows within {left:,} more labels, most likely{wait}."


def decided(rows: JudgedRows, alpha: float, tuned_at: float) -> tuple[int, float] | None:
    """After how many labels, and when (seconds since the epoch), the interval first left out 0; None for never."""
    ok_a, n_a, ok_b, n_b = _running(rows)
    low, high = sequential.difference_of_shares(ok_a, n_a, ok_b, n_b, alpha, tuned_at)
    apart = np.flatnonzero((low > 0.0) | (high < 0.0))
    return (int(apart[0]) + 1, float(rows.at[apart[0]])) if apart.size else None


def over_time(rows: JudgedRows, alpha: float, tuned_at: float) -> Effect:
    """The difference after each label, or after some hundreds of moments where there are more of them."""
    b = rows.challenger
    running = _running(rows)
    first = int(np.argmax((running[1] > 0) & (running[3] > 0))) if b.any() and not b.all() else b.size
    chosen = np.unique(np.linspace(first, b.size - 1, _POINTS).round().astype(np.int64)) if first < b.size else b[:0]
    at = np.asarray(chosen, dtype=np.int64)
    ok_a, n_a, ok_b, n_b = (each[at] for each in running)
    low, high = sequential.difference_of_shares(ok_a, n_a, ok_b, n_b, alpha, tuned_at)
    value = ok_b / np.maximum(n_b, 1) - ok_a / np.maximum(n_a, 1)
    return Effect(rows.at[at], at + 1, value, low, high)


def document(found: Status) -> dict[str, Any]:
    """The status as plain values; what cannot be told is NaN, or infinite."""
    told = asdict(found)
    effect = found.over_time
    told["over_time"] = None if effect is None else {name: values.tolist() for name, values in vars(effect).items()}
    return told


def duration(seconds: float) -> str:
    """Seconds as a person reads them."""
    for unit, size in (("days", 86_400.0), ("hours", 3600.0), ("minutes", 60.0)):
        if seconds >= 2.0 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} seconds"


def _arm(
    stage: Stage, reader: FeedbackReader, version: Version, replica: int, since_at: float, asked: Asked
) -> tuple[Arm, Moments]:
    """An arm's figures, and the moments of its latencies. `replica` is one that it runs on, for its price."""
    counts = reader.counts(version, since_at)
    latencies, device = reader.seconds(version, since_at)
    accuracy = counts.right / counts.labelled if counts.labelled else math.nan
    device_s = _mean(device, asked.alpha)
    p95 = float(np.quantile(latencies, 0.95)) if latencies.size else math.nan
    arm = Arm(
        version.arm,
        version.version,
        counts,
        Figure(accuracy, *_pair(sequential.share(counts.right, counts.labelled, asked.alpha))),
        _mean(latencies, asked.alpha),
        Figure(p95, *sequential.quantile(np.sort(latencies), 0.95, asked.alpha)),
        device_s,
        _dollars(stage, replica, device_s),
    )
    return arm, (*_moments(latencies), int(latencies.size))


def _dollars(stage: Stage, replica: int, device_s: Figure) -> Figure | None:
    """US dollars of 1000 answers, of the time that a device was busy for them; what it idles is not in it."""
    if stage.cost is None:
        return None
    price = replica_usd_per_hour(stage, replica) / 3600.0 * 1000.0
    return Figure(price * device_s.value, price * device_s.low, price * device_s.high)


def _mean(values: Floats, alpha: float) -> Figure:
    mean, variance = _moments(values)
    return Figure(mean if values.size else math.nan, *_pair(sequential.mean(mean, variance, values.size, alpha)))


def _moments(values: Floats) -> tuple[float, float]:
    """Mean and variance of a sample; 0 where there is none."""
    mean = float(values.mean()) if values.size else 0.0
    return mean, float(values.var(ddof=1)) if values.size > 1 else 0.0


def _pair(bounds: tuple[Floats, Floats]) -> tuple[float, float]:
    return float(bounds[0]), float(bounds[1])


def _running(rows: JudgedRows) -> tuple[Counted, Counted, Counted, Counted]:
    """After each label: right answers and labels of the champion, and of the challenger."""
    b, right = rows.challenger, rows.right
    n_b, ok_a, ok_b = (np.cumsum(each, dtype=np.int64) for each in (b, ~b & right, b & right))
    return ok_a, np.arange(1, b.size + 1) - n_b, ok_b, n_b


def _meant(stage: Stage) -> float:
    """The challenger's share as the stage has it in the end, whatever it got by now; one half without a split."""
    split = stage.split
    if split is None:
        return 0.5
    share = split.challenger_share if split.ramp is None else split.ramp.shares[-1]
    return min(0.99, max(0.01, share if split.mode == "split" else share / (1.0 + share)))


def _share(a: int, b: int) -> float:
    """The challenger's share of the answers, which both arms have some of."""
    return min(0.99, max(0.01, b / max(1, a + b)))


def _possible(asked: Asked) -> float:
    """The effect, downwards where there is no room for it above the baseline: the sizes are about the same."""
    return asked.effect if asked.baseline + asked.effect <= 1.0 else -asked.effect
