"""What replications of a point amount to: every metric with its 95 % interval, and differences that are paired.

    one value a replication ──▶ mean ± t(n - 1) · s / √n         replication k has seed + k at every point: common
    of two points, seed by seed ──▶ differences ──▶ the same     random numbers, which leave differences little noise

The interval is that of the IUPAC Gold Book, "confidence limits (about the mean)", C01247; what common random numbers
do to differences: Stout and Goldie, "Keeping the noise down", Health Care Management Science 11, 2008. No twin.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.special import stdtrit

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean, and the bounds between which the true one lies in 95 % of all cases; NaN for a single value."""

    mean: float
    low: float
    high: float

    @property
    def half_width(self) -> float:
        """How far the bounds are from the mean."""
        return (self.high - self.low) / 2

    def overlaps(self, other: Interval) -> bool:
        """Whether the two have a value in common; a bound that is not known has none."""
        return self.low <= other.high and other.low <= self.high


def interval_of(values: Sequence[float]) -> Interval:
    """The interval of the mean of independent values, without those that are NaN; infinite where one of them is."""
    known = [value for value in values if not math.isnan(value)]
    count = len(known)
    if not count:
        return Interval(math.nan, math.nan, math.nan)
    mean = sum(known) / count
    if count == 1 or math.isinf(mean):
        return Interval(mean, math.nan, math.nan) if count == 1 else Interval(mean, mean, mean)
    variance = sum((value - mean) ** 2 for value in known) / (count - 1)
    half = float(stdtrit(count - 1, (1 + CONFIDENCE) / 2)) * math.sqrt(variance / count)
    return Interval(mean, mean - half, mean + half)


@dataclass(frozen=True)
class Estimate:
    """A point, simulated several times. `values` has one value a replication for each metric, in the order of `seeds`.

    `requests` is how many were simulated, all together, and `wall_s` the time that it took on one core.
    """

    seeds: tuple[int, ...]
    values: dict[str, tuple[float, ...]]
    requests: int
    wall_s: float

    def __getitem__(self, metric: str) -> Interval:
        """The metric with its interval. Raises KeyError for one that there is not."""
        return interval_of(self.values[metric])

    def difference(self, other: Estimate, metric: str) -> Interval:
        """This one less the other, paired by their common seeds: what the dice did to both is not in it."""
        theirs = dict(zip(other.seeds, other.values[metric], strict=True))
        pairs = zip(self.seeds, self.values[metric], strict=True)
        return interval_of([value - theirs[seed] for seed, value in pairs if seed in theirs])

    def plus(self, other: Estimate) -> Estimate:
        """Both together. Raises ValueError where a seed is in both: it would count twice."""
        if twice := set(self.seeds) & set(other.seeds):
            raise ValueError(f"replications must differ in their seeds, got {sorted(twice)} twice")
        values = {name: own + other.values[name] for name, own in self.values.items()}
        return Estimate(self.seeds + other.seeds, values, self.requests + other.requests, self.wall_s + other.wall_s)
