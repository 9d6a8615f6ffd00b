"""Finds the cheapest stage that meets its SLO without simulating all of them.

    Grid, cheapest bound first ─▶ wave ─▶ race: 2, 4, … replications ─▶ meets? ─▶ the cheapest so far
                                   ▲        │ far off, or surely not: out              │
                                   └────────┴── next wave, until a bound is above it ◀─┘

Bound and prune, with a race within each wave: what cannot cost less than the cheapest that was found is never
simulated, and what misses the SLO by far is simulated twice only (successive halving of those that are left, by
Jamieson and Talwalkar, arXiv 1502.07943). Replication k has the same streams at every point: common random numbers. No
twin. Not proven: that two replications tell what is far off; `make bench-plan` holds answers against the whole grid.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from simulator.candidates import Candidate
from simulator.estimate import Estimate, Interval
from simulator.workload import SHARE

Measure = Callable[[Sequence[Candidate], int, int], Sequence[Estimate]]  # (which, replications, the first of them)
Verdict = Literal["meets", "unsure", "misses"]

FIRST, SECOND = 2, 4  # replications of everything in a wave, and of what is not far off
FAR = 0.02  # a share of the requests in time that is lower than promised by more than that, twice, is far off
WAVE = 8  # so many points at least keep several cores busy
FINALISTS = 4  # of the cheapest in a wave that are simulated in full at a time
SAME_USD = 1e-3  # costs that differ by less, as a share, are the same


@dataclass(frozen=True)
class Tried:
    """A candidate and what its simulations came to."""

    candidate: Candidate
    estimate: Estimate

    @property
    def usd_per_hour(self) -> Interval:
        """What it costs an hour."""
        return self.estimate["cost_usd_per_hour"]

    @property
    def p95_s(self) -> Interval:
        """The 95th percentile of the latency of its answers."""
        return self.estimate["latency_s_p95"]

    @property
    def share(self) -> Interval:
        """The share of all requests that were answered in time; who is refused is not."""
        return self.estimate["slo_share"]

    @property
    def lost(self) -> float:
        """The share of the requests that had no answer."""
        return sum(self.estimate[f"{outcome}_share"].mean for outcome in ("shed", "timed_out", "failed"))

    @property
    def replications(self) -> int:
        """How often it was simulated."""
        return len(self.estimate.seeds)

    @property
    def verdict(self) -> Verdict:
        """Whether it keeps the promise: surely (all of the 95 % interval), surely not, or nobody knows."""
        return verdict(self.share)

    @property
    def rank(self) -> tuple[float, float]:
        """Cheaper is better; of what costs the same, what is quicker."""
        usd = self.usd_per_hour.mean
        step = 0.0 if usd <= 0 or not math.isfinite(usd) else round(math.log(usd) / SAME_USD)
        return step, self.p95_s.mean


def verdict(share: Interval, promised: float = SHARE) -> Verdict:
    """What an interval of the share in time says of the promise. One replication has no interval, and is believed."""
    low, high = (share.mean if math.isnan(bound) else bound for bound in (share.low, share.high))
    if math.isnan(share.mean) or high < promised:
        return "misses"
    return "meets" if low >= promised else "unsure"


class Search:
    """Simulates candidates as far as is needed, each no more than once per replication."""

    def __init__(
        self,
        measure: Measure,
        replications: int = 10,
        on_progress: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._measure, self._most, self._on_progress = measure, max(1, replications), on_progress
        self._found: dict[Candidate, Estimate] = {}

    @property
    def tried(self) -> list[Tried]:
        """All that was simulated, the cheapest first."""
        return sorted((Tried(*item) for item in self._found.items()), key=lambda each: each.rank)

    @property
    def requests(self) -> int:
        """How many requests were simulated."""
        return sum(estimate.requests for estimate in self._found.values())

    def measured(self, candidates: Sequence[Candidate], replications: int | None = None) -> list[Tried]:
        """Each with at least so many replications (all of them without), in the order in which they were given."""
        wanted = min(self._most, replications or self._most)
        have = {each: len(self._found[each].seeds) if each in self._found else 0 for each in candidates}
        for first in sorted({count for count in have.values() if count < wanted}):
            group = [each for each, count in have.items() if count == first]
            for each, more in zip(group, self._measure(group, wanted - first, first), strict=True):
                self._found[each] = self._found[each].plus(more) if first else more
        return [Tried(each, self._found[each]) for each in candidates]

    def cheapest(self, candidates: Sequence[Candidate]) -> Tried | None:
        """The cheapest that surely meets its SLO, of as cheap ones the quickest; None where none does.

        `candidates` come with the least that each can cost, cheapest first.
        """
        best: Tried | None = None
        rest = list(candidates)
        while rest and (best is None or rest[0].usd_per_hour <= best.usd_per_hour.mean * (1 + SAME_USD)):
            wave = _wave(rest)
            rest = rest[len(wave) :]
            found = self._race(wave)
            if found is not None and (best is None or found.rank < best.rank):
                best = found
            said = "" if best is None else f", the cheapest so far {best.usd_per_hour.mean:.3g} US dollars an hour"
            self._on_progress(f"{len(self._found)} stages simulated, {len(rest)} not yet{said}")
        return best

    def _race(self, wave: Sequence[Candidate]) -> Tried | None:
        """The best of a wave that surely meets its SLO."""
        near = [each for each in self.measured(wave, FIRST) if not _far_off(each)]
        left = [each for each in self.measured(_of(near), SECOND) if each.verdict != "misses"]
        left.sort(key=lambda each: each.rank)
        while left:
            # Those that cost the same as the last finalist could be quicker than it, but are not by four replications.
            finalists, left = left[:FINALISTS], left[FINALISTS:]
            sure = [each for each in self.measured(_of(finalists)) if each.verdict == "meets"]
            if sure:
                return min(sure, key=lambda each: each.rank)
        return None


def front(tried: Sequence[Tried]) -> list[Tried]:
    """The Pareto front of cost against p95, cheapest first: whoever is quicker costs more.

    Only of those that answer nearly all: who refuses a twentieth of the requests is quick for the others.
    """
    found: list[Tried] = []
    for each in sorted(tried, key=lambda each: (each.usd_per_hour.mean, each.p95_s.mean)):
        if each.lost < 1 - SHARE and (not found or each.p95_s.mean < found[-1].p95_s.mean):
            found.append(each)
    return found


def alike(choice: Tried, tried: Sequence[Tried]) -> list[Tried]:
    """Those whose cost and p95 cannot be told from the choice's: the paired 95 % interval of both has a 0 in it."""
    return [
        each
        for each in tried
        if each.candidate != choice.candidate
        and each.verdict != "misses"
        and all(_same(each, choice, metric) for metric in ("cost_usd_per_hour", "latency_s_p95"))
    ]


def in_doubt(choice: Tried, tried: Sequence[Tried]) -> list[Tried]:
    """Those that cost less than the choice and may keep the promise too: it lies within their interval."""
    return [each for each in tried if each.verdict == "unsure" and each.rank[0] < choice.rank[0]]


def _same(one: Tried, other: Tried, metric: str) -> bool:
    apart = one.estimate.difference(other.estimate, metric)
    if math.isnan(apart.low) or math.isnan(apart.high):
        return False
    slack = SAME_USD * abs(other.estimate[metric].mean)
    return apart.low <= slack and apart.high >= -slack


def _far_off(each: Tried) -> bool:
    """Whether every replication misses the promise by far."""
    return max(each.estimate.values["slo_share"], default=math.nan) < SHARE - FAR


def _wave(candidates: Sequence[Candidate]) -> Sequence[Candidate]:
    """The next to be simulated: at least WAVE, and all that can cost as little as the last of these."""
    count = min(WAVE, len(candidates))
    limit = candidates[count - 1].usd_per_hour * (1 + 1e-9)
    while count < len(candidates) and candidates[count].usd_per_hour <= limit:
        count += 1
    return candidates[:count]


def _of(tried: Sequence[Tried]) -> list[Candidate]:
    return [each.candidate for each in tried]
