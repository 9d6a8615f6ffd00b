"""Thousands of experiments at once are as many single ones, and show what peeking does."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.stats import binom

from simulator import experiments
from simulator.experiments import NEVER, Design, Plan, Stops, peek, plan, share_by
from stages.policies import fixed_horizon, sequential
from stages.streams import stream

ALPHA = 0.05
DESIGN = Design(0.8, 0.1, 0.3, 700, ALPHA, tuned_at=60.0)


class _Dealt:
    """Dice that give every experiment its own row of draws, whichever of them are drawn still."""

    def __init__(self, draws: np.ndarray) -> None:
        self.draws, self.at = draws, 0
        self.part: Any = None

    def random(self, shape: tuple[int, int]) -> np.ndarray:
        rows, columns = shape
        assert rows == self.part._going.size
        dealt = self.draws[self.part._going, self.at : self.at + columns]
        self.at += columns
        return dealt


def one_by_one(design: Design, draws: np.ndarray) -> tuple[int, int]:
    """Where both tests stop in one experiment, worked through request by request."""
    naive = found = NEVER
    right, seen = {"a": 0, "b": 0}, {"a": 0, "b": 0}
    for number, draw in enumerate(draws, start=1):
        arm = "b" if draw < design.share else "a"
        within = draw / design.share if arm == "b" else (draw - design.share) / (1.0 - design.share)
        seen[arm] += 1
        right[arm] += within < design.baseline + (design.effect if arm == "b" else 0.0)
        counts = (right["a"], seen["a"], right["b"], seen["b"])
        low, high = sequential.difference_of_shares(*counts, design.alpha, design.tuned_at)
        if found == NEVER and (low > 0.0 or high < 0.0):
            found = number
        few = min(right["a"], seen["a"] - right["a"], right["b"], seen["b"] - right["b"]) < 5
        z = float(fixed_horizon.z_statistic(*counts))
        if naive == NEVER and not few and abs(z) > fixed_horizon.critical_value(design.alpha):
            naive = number
    return naive, found


def test_each_experiment_is_as_if_it_were_alone() -> None:
    draws = stream(4, "draws").random((6, DESIGN.requests))
    dealt: Any = _Dealt(draws)
    part = experiments._Part(DESIGN, 6, dealt)
    dealt.part = part
    part.run(lambda _: None)
    expected = [one_by_one(DESIGN, row) for row in draws]
    assert list(zip(part.naive.tolist(), part.sequential.tolist(), strict=True)) == expected
    assert any(naive not in (NEVER, found) for naive, found in expected)


def test_the_same_seed_gives_the_same_and_another_does_not() -> None:
    first, again, other = peek(DESIGN, 300, 1), peek(DESIGN, 300, 1), peek(DESIGN, 300, 2)
    np.testing.assert_array_equal(first.naive, again.naive)
    np.testing.assert_array_equal(first.sequential, again.sequential)
    assert (first.sequential != other.sequential).any()


def test_peeking_ruins_the_naive_test_and_not_the_other() -> None:
    null = peek(Design(0.9, 0.0, 0.5, 4000, ALPHA, tuned_at=500.0), 500, seed=3)
    assert (null.naive != NEVER).mean() > 4 * ALPHA
    assert (null.sequential != NEVER).sum() <= binom.ppf(0.9999, 500, ALPHA)


def test_progress_goes_from_nothing_to_all() -> None:
    told: list[float] = []
    peek(replace(DESIGN, requests=300), 600, 1, told.append)
    assert told == sorted(told)
    assert told[-1] == pytest.approx(1.0)


def test_a_plan_is_what_experiments_take() -> None:
    found = plan(0.9, 0.05, 0.5, ALPHA, 0.8, 300, 1)
    assert found.fixed < found.at_latest
    assert found.quantile(0.5) < found.at_latest
    assert ((found.stops != NEVER) & (found.stops <= found.at_latest)).sum() >= binom.ppf(0.0001, 300, 0.8)
    assert found.found.max() <= found.given_up_at


def test_a_quantile_over_experiments_that_never_stopped_is_infinite() -> None:
    made = Plan(10, 40, 5.0, np.array([3, NEVER, 7, 9, NEVER]), 40)
    assert [made.quantile(level) for level in (0.2, 0.4, 0.6)] == [3.0, 7.0, 9.0]
    assert made.quantile(0.8) == math.inf


def test_the_share_that_has_stopped_only_rises() -> None:
    stops = Stops(np.array([5, NEVER, 2, 9]), np.array([NEVER, NEVER, 4, 4]), 0)
    at = np.array([1, 2, 4, 5, 9, 100])
    assert share_by(stops.naive, at).tolist() == [0.0, 0.25, 0.25, 0.5, 0.75, 0.75]
    assert share_by(stops.sequential, at).tolist() == [0.0, 0.0, 0.5, 0.5, 0.5, 0.5]
