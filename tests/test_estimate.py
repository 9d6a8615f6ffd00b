"""Intervals: against scipy's own, their coverage, and how much pairing takes away."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from simulator.estimate import Estimate, Interval, interval_of

VALUES = st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=40)


def an_estimate(first: int, *values: float) -> Estimate:
    return Estimate(tuple(range(first, first + len(values))), {"x": values}, len(values), 1.0)


@given(VALUES)
def test_the_interval_is_students(values: list[float]) -> None:
    found = interval_of(values)
    assert found.mean == pytest.approx(np.mean(values), abs=1e-6)
    error = stats.sem(values)
    half = stats.t.ppf(0.975, len(values) - 1) * error
    assert found.half_width == pytest.approx(half, rel=1e-6, abs=1e-6)


def test_the_interval_holds_the_truth_19_times_of_20() -> None:
    rng = np.random.default_rng(7)
    held = [interval_of(rng.normal(3.0, 2.0, 10).tolist()) for _ in range(2000)]
    covered = np.mean([each.low <= 3.0 <= each.high for each in held])
    assert covered == pytest.approx(0.95, abs=4 * math.sqrt(0.95 * 0.05 / 2000))


def test_values_that_are_not_there_are_left_out_and_infinite_ones_stay() -> None:
    assert interval_of([1.0, math.nan, 3.0]) == interval_of([1.0, 3.0])
    alone = interval_of([2.0])
    assert alone.mean == 2.0 and math.isnan(alone.low) and math.isnan(alone.half_width)
    assert math.isnan(interval_of([math.nan]).mean)
    assert interval_of([1.0, math.inf]) == Interval(math.inf, math.inf, math.inf)


def test_a_difference_is_paired_by_seeds() -> None:
    noise = np.random.default_rng(1).normal(0.0, 50.0, 12)
    one = an_estimate(3, *(noise + 1.0))
    other = an_estimate(5, *noise[2:], 1e9, 1e9)  # two seeds later: ten in common, and two of its own
    found = one.difference(other, "x")
    assert found.mean == pytest.approx(1.0) and found.half_width == pytest.approx(0.0, abs=1e-9)
    assert one["x"].half_width > 10


def test_replications_are_joined_and_none_counts_twice() -> None:
    whole = an_estimate(1, 1.0, 2.0).plus(an_estimate(3, 6.0))
    assert whole.seeds == (1, 2, 3)
    assert whole["x"].mean == 3.0
    assert (whole.requests, whole.wall_s) == (3, 2.0)
    with pytest.raises(ValueError, match=r"got \[2\] twice"):
        an_estimate(1, 1.0, 2.0).plus(an_estimate(2, 6.0))


def test_intervals_overlap_where_they_have_a_value_in_common() -> None:
    assert Interval(1, 0, 2).overlaps(Interval(3, 2, 4))
    assert not Interval(1, 0, 2).overlaps(Interval(3, 2.1, 4))
    assert not Interval(1, math.nan, math.nan).overlaps(Interval(1, 0, 2))
