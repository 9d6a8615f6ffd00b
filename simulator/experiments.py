"""Thousands of experiments at once: what peeking does to a test that is meant for one look, and how long it all takes.

    Design ─▶ requests: which arm? right? (one draw each) ─▶ counts so far ─┬─▶ z test, after every request ─▶ stops at
                                                                            └─▶ sequential, after every one ─▶ stops at
           └▶ counts at the planned size ─▶ z test, once ─▶ finds it, or not

Everything is an array of experiments by requests, worked through in blocks; an experiment that both tests have stopped
is drawn no further. What is asked of the tests is in stages/policies/. No twin: `rung ab status` asks the same of a
real experiment, one at a time. Not modelled: labels that come late or never, and users who ask more than once.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stages.policies import fixed_horizon, sequential
from stages.streams import stream

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

NEVER = 0  # in the place of the request at which a test stopped
# As many numbers at once as stay in a processor's cache: twice as fast as a hundred times as many.
_EXPERIMENTS, _REQUESTS = 250, 128
# Answers of each kind that an arm must have before anybody would believe a z test: the usual rule.
_FEW = 5
# How often the requests after which nearly all have found it: then a planned experiment is given up.
_LONGEST = 2


@dataclass(frozen=True)
class Design:
    """An experiment: shares of right answers, the challenger's share of the requests, and how long it may take."""

    baseline: float
    effect: float  # of the challenger, in truth; 0 for no difference
    share: float
    requests: int  # labelled ones of both arms, after which it is given up
    alpha: float
    tuned_at: float = sequential.TUNED_AT


@dataclass(frozen=True)
class Stops:
    """The request at which each experiment's test found a difference, NEVER where it did not: shape (experiments,)."""

    naive: Ints
    sequential: Ints
    wrong_sign: int  # experiments in which the sequential test said better for worse, or the other way


@dataclass(frozen=True)
class Plan:
    """What an experiment takes: requests are labelled ones, of both arms."""

    fixed: int  # for one look
    at_latest: int  # for the sequential test, by its formula
    tuned_at: float
    stops: Ints  # of simulated experiments
    given_up_at: int

    @property
    def found(self) -> Ints:
        """At which request the experiments stopped that did."""
        stopped: Ints = self.stops[self.stops != NEVER]
        return stopped

    def quantile(self, level: float) -> float:
        """The request by which that share of all experiments has stopped; infinite where they have not."""
        ordered = np.sort(np.where(self.stops == NEVER, np.inf, self.stops))
        return float(ordered[min(ordered.size - 1, math.ceil(level * ordered.size) - 1)])


def peek(design: Design, experiments: int, seed: int, on_progress: Callable[[float], None] = lambda _: None) -> Stops:
    """Looks after every request of every experiment. `on_progress` hears the share that is done.

    The same arguments give the same experiments.
    """
    naive, found, signs = [], [], []
    parts = [min(_EXPERIMENTS, experiments - first) for first in range(0, experiments, _EXPERIMENTS)]
    for number, size in enumerate(parts):
        part = _Part(design, size, stream(seed, "experiments", number))
        part.run(_of_whole(on_progress, number, len(parts)))
        naive.append(part.naive)
        found.append(part.sequential)
        signs.append(part.sign)
    sign = np.concatenate(signs)
    wrong = int(((sign != 0) & (sign != np.sign(design.effect))).sum()) if design.effect else 0
    return Stops(np.concatenate(naive), np.concatenate(found), wrong)


def look_once(design: Design, experiments: int, seed: int) -> NDArray[np.bool_]:
    """Whether one look at the end of each experiment finds a difference."""
    rng = stream(seed, "experiments at their end")
    n_b = rng.binomial(design.requests, design.share, experiments)
    n_a = design.requests - n_b
    ok_a = rng.binomial(n_a, design.baseline)
    ok_b = rng.binomial(n_b, design.baseline + design.effect)
    z = fixed_horizon.z_statistic(ok_a, n_a, ok_b, n_b)
    found: NDArray[np.bool_] = np.abs(z) > fixed_horizon.critical_value(design.alpha)
    return found


def plan(
    baseline: float,
    effect: float,
    share: float,
    alpha: float,
    power: float,
    experiments: int,
    seed: int,
    on_progress: Callable[[float], None] = lambda _: None,
) -> Plan:
    """What it takes to see `effect` with probability `power`, with one look and with looks all the time.

    Raises ValueError where there can be no such experiment.
    """
    fixed = fixed_horizon.sample_size(baseline, effect, share, alpha, power)
    tuned_at = sequential.tuned_for(baseline, effect, share, alpha, power)
    at_latest = sequential.requests_needed(baseline, effect, share, alpha, power, tuned_at)
    design = Design(baseline, effect, share, _LONGEST * at_latest, alpha, tuned_at)
    stops = peek(design, experiments, seed, on_progress).sequential
    return Plan(fixed, at_latest, tuned_at, stops, design.requests)


def share_by(stops: Ints, requests: Ints) -> Floats:
    """The share of the experiments that had stopped by each of `requests`."""
    ordered = np.sort(stops[stops != NEVER])
    counts: Floats = np.searchsorted(ordered, requests, side="right") / max(1, stops.size)
    return counts


def _of_whole(on_progress: Callable[[float], None], number: int, parts: int) -> Callable[[float], None]:
    """Hears the share of part `number` that is done, and tells that of all parts."""
    return lambda done: on_progress((number + done) / parts)


class _Part:
    """Some experiments, and where each of them is."""

    def __init__(self, design: Design, size: int, rng: np.random.Generator) -> None:
        self._design, self._rng = design, rng
        self.naive, self.sequential = np.zeros(size, dtype=np.int64), np.zeros(size, dtype=np.int64)
        self.sign = np.zeros(size)  # of the difference that the sequential test found
        self._going = np.arange(size)  # the experiments that are drawn still
        self._counts = np.zeros((3, size, 1))  # of those: right answers of a, right answers of b, requests of b
        self._z = fixed_horizon.critical_value(design.alpha)

    def run(self, on_progress: Callable[[float], None]) -> None:
        """Works the experiments through."""
        requests = self._design.requests
        for first in range(0, requests, _REQUESTS):
            self._block(first, min(_REQUESTS, requests - first))
            on_progress(min(1.0, (first + _REQUESTS) / requests))
            if not self._going.size:
                break
        on_progress(1.0)

    def _block(self, first: int, size: int) -> None:
        ok_a, ok_b, n_b = self._drawn(size)
        n_a = np.arange(first + 1.0, first + size + 1.0) - n_b
        low, high = sequential.difference_of_shares(ok_a, n_a, ok_b, n_b, self._design.alpha, self._design.tuned_at)
        self._note(self.sequential, (low > 0.0) | (high < 0.0), first, low)
        open_ = np.flatnonzero(self.naive[self._going] == NEVER)
        if open_.size:
            counts = [each[open_] for each in (ok_a, n_a, ok_b, n_b)]
            z = np.abs(fixed_horizon.z_statistic(*counts))
            believed = _believed(*counts)
            crossed = np.zeros(ok_a.shape, dtype=np.bool_)
            crossed[open_] = (z > self._z) & believed
            self._note(self.naive, crossed, first)
        kept = (self.naive[self._going] == NEVER) | (self.sequential[self._going] == NEVER)
        self._counts = np.stack([each[kept, -1:] for each in (ok_a, ok_b, n_b)])
        self._going = self._going[kept]

    def _drawn(self, size: int) -> Floats:
        """The counts after each of the next requests, shape (3, experiments, requests); one draw says arm and answer.

        Below `share` it is the challenger's request, and right in the lowest part of that; above, the same of the
        champion's.
        """
        design = self._design
        draws = self._rng.random((self._going.size, size))
        of_b = draws < design.share
        right_b = draws < design.share * (design.baseline + design.effect)
        right_a = (draws < design.share + (1.0 - design.share) * design.baseline) & ~of_b
        counts = np.stack([np.cumsum(each, axis=1, dtype=np.float64) for each in (right_a, right_b, of_b)])
        counts += self._counts
        return counts

    def _note(self, stops: Ints, crossed: NDArray[np.bool_], first: int, low: Floats | None = None) -> None:
        """Keeps the first request at which a test crossed its bound, of those that had not before."""
        hit = crossed.any(axis=1) & (stops[self._going] == NEVER)
        at = crossed[hit].argmax(axis=1)
        stops[self._going[hit]] = first + at + 1
        if low is not None:
            self.sign[self._going[hit]] = np.where(low[hit, at] > 0.0, 1.0, -1.0)


def _believed(ok_a: Floats, n_a: Floats, ok_b: Floats, n_b: Floats) -> NDArray[np.bool_]:
    """Where there are enough answers of each kind for a z test to be believed."""
    least = np.minimum(np.minimum(ok_a, n_a - ok_a), np.minimum(ok_b, n_b - ok_b))
    believed: NDArray[np.bool_] = least >= _FEW
    return believed
