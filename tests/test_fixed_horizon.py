"""The test that looks once, held to SciPy, to a published example, and to dice."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, binomtest, chi2_contingency, norm

from simulator.experiments import Design, look_once
from stages.policies import fixed_horizon

ALPHA = 0.05


@settings(deadline=None)
@given(st.integers(1, 300), st.integers(1, 300), st.data())
def test_z_squared_is_chi_squared(n_a: int, n_b: int, data: st.DataObject) -> None:
    ok_a, ok_b = data.draw(st.integers(0, n_a)), data.draw(st.integers(0, n_b))
    z = float(fixed_horizon.z_statistic(ok_a, n_a, ok_b, n_b))
    if ok_a + ok_b in (0, n_a + n_b):
        assert z == 0.0
        return
    table = [[ok_a, n_a - ok_a], [ok_b, n_b - ok_b]]
    assert z**2 == pytest.approx(chi2_contingency(table, correction=False).statistic, abs=1e-9)
    assert fixed_horizon.p_value(z) == pytest.approx(2.0 * norm.sf(abs(z)), rel=1e-9)


def test_z_of_nobody_is_nothing() -> None:
    np.testing.assert_array_equal(fixed_horizon.z_statistic([0, 3], [0, 4], [1, 0], [2, 0]), [0.0, 0.0])


@settings(deadline=None)
@given(st.integers(1, 2000), st.data())
def test_a_share_has_wilsons_bounds(n: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(0, n))
    expected = binomtest(count, n).proportion_ci(1 - ALPHA, "wilson")
    low, high = fixed_horizon.wilson(count, n, fixed_horizon.critical_value(ALPHA) ** 2)
    assert (float(low), float(high)) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_a_difference_is_newcombes_example() -> None:
    """56 of 70 against 48 of 80, method 10 of Newcombe (1998): 0.0524 to 0.3339."""
    low, high = fixed_horizon.difference_of_shares(48, 80, 56, 70, ALPHA)
    assert (float(low), float(high)) == pytest.approx((0.0524, 0.3339), abs=5e-5)


@pytest.mark.parametrize(("baseline", "effect", "share"), [(0.97, 0.01, 0.5), (0.9, -0.03, 0.1), (0.6, 0.05, 0.5)])
def test_the_size_finds_the_effect_as_often_as_it_says(baseline: float, effect: float, share: float) -> None:
    size = fixed_horizon.sample_size(baseline, effect, share, ALPHA, 0.8)
    assert fixed_horizon.power(baseline, effect, share, ALPHA, size) == pytest.approx(0.8, abs=1e-3)
    experiments = 20_000
    found = look_once(Design(baseline, effect, share, size, ALPHA), experiments, seed=1).mean()
    assert found == pytest.approx(0.8, abs=0.02)
    wrong = look_once(Design(baseline, 0.0, share, size, ALPHA), experiments, seed=1).sum()
    assert binom.ppf(1e-4, experiments, 0.04) <= wrong <= binom.ppf(1 - 1e-4, experiments, 0.06)


@pytest.mark.parametrize(
    ("baseline", "effect", "share"), [(1.0, -0.1, 0.5), (0.9, 0.2, 0.5), (0.9, 0.0, 0.5), (0.9, 0.01, 0.0)]
)
def test_there_is_no_such_experiment(baseline: float, effect: float, share: float) -> None:
    with pytest.raises(ValueError, match="must be"):
        fixed_horizon.sample_size(baseline, effect, share, ALPHA, 0.8)


def test_it_takes_as_long_as_the_labels_do() -> None:
    assert fixed_horizon.duration_s(1000, 10.0) == 100.0
    assert fixed_horizon.duration_s(1000, 10.0, labelled_share=0.5, delay_s=60.0) == 260.0
