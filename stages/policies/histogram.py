"""Histograms of latencies and counters, read as Prometheus reads them.

answers so far by bound, at two moments ──▶ increase ──▶ quantile
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate

# Upper bounds in seconds of the buckets that autoscaling reads, in both worlds; a gateway's histogram may have more.
LATENCY_BOUNDS_S = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0)


class LatencyCounts:
    """Answers counted by latency, in the buckets of LATENCY_BOUNDS_S and one more."""

    def __init__(self) -> None:
        self._counts = [0] * (len(LATENCY_BOUNDS_S) + 1)

    def add(self, latency_s: float) -> None:
        """One more answer."""
        self._counts[bisect_left(LATENCY_BOUNDS_S, latency_s)] += 1

    def within(self) -> tuple[float, ...]:
        """Answers so far by bound, cumulative; the last: all."""
        return tuple(accumulate(self._counts))


def increase(before: float, now: float) -> float:
    """What a counter has gained; one that is lower than before has begun anew at 0 (its process was restarted)."""
    return now - before if now >= before else now


def quantile(counts: Sequence[float], bounds_s: Sequence[float], share: float) -> float | None:
    """The latency in seconds that `share` of the answers stay below, by Prometheus' histogram_quantile.

    `counts` are cumulative, one a bound and one for all; linear within a bucket, the highest bound beyond it.
    None for no answers.
    """
    if not counts or counts[-1] <= 0:
        return None
    rank = share * counts[-1]
    bucket = next((number for number, count in enumerate(counts) if count >= rank), len(counts) - 1)
    if bucket >= len(bounds_s):
        return bounds_s[-1]
    low_s, below = (bounds_s[bucket - 1], counts[bucket - 1]) if bucket else (0.0, 0.0)
    inside = counts[bucket] - below
    return low_s + (bounds_s[bucket] - low_s) * ((rank - below) / inside if inside else 1.0)
