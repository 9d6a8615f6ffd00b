"""Intervals that hold at every look: exact where they say so, and held to SciPy, to published figures and to dice."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import betaln
from scipy.stats import binom

from simulator.experiments import Design, peek
from stages.policies import sequential
from stages.policies.fixed_horizon import sample_size, squared_and_added
from stages.streams import stream

ALPHA = 0.05
SHARES = st.floats(0.001, 0.999)


@st.composite
def counted(draw: st.DrawFn) -> tuple[int, int]:
    n = draw(st.integers(0, 5000))
    return draw(st.integers(0, n)), n


def most(experiments: int, alpha: float) -> int:
    """As many experiments as are wrong once in ten thousand such tests, where each is with probability alpha."""
    return int(binom.ppf(0.9999, experiments, alpha))


def test_the_bound_is_that_of_confseq() -> None:
    """Their test of normal_mixture_bound(100, 0.05, 100, 0.05, false): the bound of a sum of variance 100."""
    found = math.sqrt(100.0 * float(sequential.threshold(100.0, 0.05, 100.0)))
    assert found == pytest.approx(30.35209, abs=1e-5)


def test_the_bound_is_the_smallest_where_it_is_tuned_and_infinite_without_information() -> None:
    tuned = np.geomspace(100.0, 10_000.0, 201)
    bounds = [float(sequential.threshold(1000.0, ALPHA, each)) for each in tuned]
    assert tuned[int(np.argmin(bounds))] == pytest.approx(1000.0, rel=0.06)
    assert float(sequential.threshold(5000.0, ALPHA, 1000.0)) < 1.25 * min(bounds)
    assert sequential.threshold(0.0, ALPHA) == math.inf


# ---- one share, exactly ----


@settings(deadline=None)
@given(counted(), SHARES, st.floats(0.001, 0.3))
def test_the_ends_of_a_share_are_where_the_mixture_outweighs_it(
    counts: tuple[int, int], limit: float, alpha: float
) -> None:
    (count, n), (low, high) = counts, (float(end) for end in sequential.share_above(*counts, limit, alpha))
    assert low <= (count / n if n else 0.5) <= high
    a, b = max(1.0, limit / (1.0 - limit)), max(1.0, (1.0 - limit) / limit)
    anywhere, near = (betaln(count + x, n - count + y) - betaln(x, y) for x, y in ((1.0, 1.0), (a, b)))
    mixture = np.logaddexp(anywhere, near) - math.log(2.0)
    for end, never in ((low, 0.0), (high, 1.0)):
        if end != never:
            likelihood = count * math.log(end) + (n - count) * math.log1p(-end)
            assert mixture - likelihood == pytest.approx(math.log(1.0 / alpha), abs=1e-4)


@settings(deadline=None)
@given(counted(), SHARES)
def test_a_limit_is_ruled_out_where_it_is_outside(counts: tuple[int, int], limit: float) -> None:
    low, high = sequential.share_above(*counts, limit, ALPHA)
    assert bool(sequential.ruled_out(*counts, limit, ALPHA)) == (not low <= limit <= high)


@pytest.mark.parametrize("share", [0.002, 0.05, 0.5])
def test_a_share_is_missed_no_more_often_than_alpha_at_any_look(share: float) -> None:
    streams, looks = 300, 500
    counts = np.cumsum(stream(3, "shares").random((streams, looks)) < share, axis=1)
    out = sequential.ruled_out(counts, np.arange(1, looks + 1), share, ALPHA)
    assert out.any(axis=1).sum() <= most(streams, ALPHA)


def test_a_limit_without_two_sides_is_refused() -> None:
    for limit in (0.0, 1.0):
        with pytest.raises(ValueError, match="every share is on one side"):
            sequential.share_above(1, 2, limit, ALPHA)


def test_errors_far_over_their_limit_are_seen_within_a_few() -> None:
    seen = next(n for n in range(1, 100) if float(sequential.share_above(n, n, 0.01, ALPHA)[0]) > 0.01)
    assert seen <= 3
    half = next(n for n in range(2, 100, 2) if float(sequential.share_above(n // 2, n, 0.01, ALPHA)[0]) > 0.01)
    assert half <= 8


# ---- quantiles ----


@settings(deadline=None)
@given(st.integers(0, 3000), st.floats(0.01, 0.99), st.floats(0.001, 0.3))
def test_ranks_of_a_quantile_are_those_that_its_level_is_not_ruled_out_at(n: int, level: float, alpha: float) -> None:
    below = np.arange(n + 1)
    possible = below[~sequential.ruled_out(below, n, level, alpha)]
    assert sequential.quantile_ranks(n, level, alpha) == (possible[0], possible[-1] + 1)


def test_a_quantile_is_missed_no_more_often_than_alpha() -> None:
    streams, looks = 400, range(5, 400, 5)
    below = np.cumsum(stream(5, "quantiles").random((streams, 400)) <= 0.9, axis=1)
    ranks = {n: sequential.quantile_ranks(n, 0.9, ALPHA) for n in looks}
    missed = [(below[:, n - 1] < low) | (below[:, n - 1] >= high) for n, (low, high) in ranks.items()]
    assert np.any(missed, axis=0).sum() <= most(streams, ALPHA)


def test_a_quantile_lies_between_the_values_of_its_ranks() -> None:
    values = np.sort(stream(5, "values").exponential(size=1000))
    low, high = sequential.quantile_ranks(1000, 0.9, ALPHA)
    assert sequential.quantile(values, 0.9, ALPHA) == (values[low - 1], values[high - 1])
    assert values[low - 1] < values[899] < values[high - 1]


def test_a_quantile_of_nothing_is_anywhere() -> None:
    assert sequential.quantile(np.array([]), 0.95, ALPHA) == (-math.inf, math.inf)


# ---- differences ----


@settings(deadline=None)
@given(counted(), counted(), st.floats(0.001, 0.3), st.floats(1.0, 1e5))
def test_a_difference_is_between_its_ends_and_turns_with_its_arms(
    a: tuple[int, int], b: tuple[int, int], alpha: float, tuned_at: float
) -> None:
    low, high = sequential.difference_of_shares(*a, *b, alpha, tuned_at)
    assert -1.0 <= low <= high <= 1.0
    if not a[1] or not b[1]:
        assert (low, high) == (-1.0, 1.0)
        return
    assert low - 1e-12 <= b[0] / b[1] - a[0] / a[1] <= high + 1e-12
    turned = sequential.difference_of_shares(*b, *a, alpha, tuned_at)
    wrong = sequential.difference_of_shares(a[1] - a[0], a[1], b[1] - b[0], b[1], alpha, tuned_at)
    for other in (turned, wrong):
        assert (float(-other[1]), float(-other[0])) == pytest.approx((float(low), float(high)), abs=1e-9)
    one_look = squared_and_added(*a, *b, 1.96**2)
    if alpha <= 0.05:
        assert low <= one_look[0] + 1e-12
        assert high >= one_look[1] - 1e-12


def test_many_at_once_are_as_one_by_one() -> None:
    rng = stream(1, "counts")
    n_a, n_b = rng.integers(0, 400, (2, 50))
    ok_a, ok_b = rng.integers(0, n_a + 1), rng.integers(0, n_b + 1)
    together = np.array(sequential.difference_of_shares(ok_a, n_a, ok_b, n_b, ALPHA))
    single = [sequential.difference_of_shares(*row, ALPHA) for row in zip(ok_a, n_a, ok_b, n_b, strict=True)]
    np.testing.assert_allclose(together, np.array(single, dtype=float).T)
    together = np.array(sequential.share_above(ok_a, n_a, 0.3, ALPHA))
    single = [sequential.share_above(k, n, 0.3, ALPHA) for k, n in zip(ok_a, n_a, strict=True)]
    np.testing.assert_allclose(together, np.array(single, dtype=float).T)


@pytest.mark.parametrize(("baseline", "share"), [(0.97, 0.5), (0.97, 0.1), (0.7, 0.5)])
def test_peeking_finds_nothing_where_nothing_is(baseline: float, share: float) -> None:
    stops = peek(Design(baseline, 0.0, share, 3000, ALPHA, tuned_at=500.0), 500, seed=11)
    assert (stops.sequential != 0).sum() <= most(500, ALPHA)


def test_means_are_missed_no_more_often_than_alpha() -> None:
    streams, looks = 400, 500
    values = stream(7, "means").exponential(size=(2, streams, looks))
    n = np.arange(1.0, looks + 1.0)
    means = np.cumsum(values, axis=2) / n
    variances = np.maximum(np.cumsum(values**2, axis=2) / n - means**2, 0.0) * n / np.maximum(n - 1.0, 1.0)
    low, high = sequential.difference_of_means(means[0], variances[0], n, means[1], variances[1], n, ALPHA, 100.0)
    assert ((low > 0.0) | (high < 0.0)).any(axis=1).sum() <= most(streams, ALPHA)
    low, high = sequential.mean(means[0], variances[0], n, ALPHA, 100.0)
    assert ((low > 1.0) | (high < 1.0)).any(axis=1).mean() <= 0.15  # a skewed law of few values is its weak place


def test_a_mean_of_few_values_says_nothing() -> None:
    assert tuple(map(float, sequential.mean(3.0, 1.0, 9, ALPHA))) == (-math.inf, math.inf)
    assert tuple(map(float, sequential.difference_of_means(1.0, 1.0, 9, 2.0, 1.0, 500, ALPHA))) == (-math.inf, math.inf)
    low, high = sequential.difference_of_means(1.0, 1.0, 500, 2.0, 1.0, 500, ALPHA)
    assert low < 1.0 < high


# ---- how long ----


@settings(max_examples=30, deadline=None)
@given(st.floats(0.5, 0.98), st.floats(0.002, 0.02), st.floats(0.05, 0.5))
def test_always_looking_takes_longer_than_one_look_and_less_than_four_times(
    baseline: float, effect: float, share: float
) -> None:
    tuned_at = sequential.tuned_for(baseline, effect, share, ALPHA, 0.8)
    needed = sequential.requests_needed(baseline, effect, share, ALPHA, 0.8, tuned_at)
    once = sample_size(baseline, effect, share, ALPHA, 0.8)
    assert once < needed < 4 * once
    assert sequential.requests_needed(baseline, effect / 2, share, ALPHA, 0.8, tuned_at) > needed


def test_the_effect_is_found_by_then() -> None:
    needed = sequential.requests_needed(0.9, 0.05, 0.5, ALPHA, 0.8, 300.0)
    stops = peek(Design(0.9, 0.05, 0.5, needed, ALPHA, 300.0), 500, seed=2)
    assert (stops.sequential != 0).sum() >= int(binom.ppf(0.0001, 500, 0.8))
    assert stops.wrong_sign <= most(500, ALPHA / 2)
