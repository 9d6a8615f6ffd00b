"""A run over time, on records whose every figure can be worked out by hand."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages import metrics, timeseries
from stages.outcomes import CACHE
from stages.records import REPLICAS, Records, looks_frame
from stages.timeseries import Steps
from tests.hand_made_runs import DEVICE, run, steady

Life = tuple[float, float | None, float]  # started_s, ready_s, stopped_s


def a_fleet(*lives: Life, window_s: float = 100.0, looks: list[tuple[float, int]] | None = None) -> Records:
    """A run with those replicas, and what an autoscaler wanted; its requests do not matter."""
    rows = [(number, DEVICE, *life) for number, life in enumerate(lives)]
    made = run([(1.0, 2.0, 1)], window_s=window_s)
    replicas = pl.DataFrame(rows, schema=REPLICAS, orient="row")
    scaling = looks_frame([(at_s, wanted, 0, 0, None, "") for at_s, wanted in looks or []])
    return Records(made.requests, made.batches, replicas, window_s, scaling)


def pairs(steps: Steps | None) -> list[tuple[float, float]]:
    assert steps is not None
    return list(zip(steps.times_s.tolist(), steps.values.tolist(), strict=True))


def steps(*changes: tuple[float, float]) -> Steps:
    times_s, values = zip(*changes, strict=True)
    return Steps(np.array(times_s, dtype=np.float64), np.array(values, dtype=np.float64))


GROWN = a_fleet(
    (-3.0, -1.0, 120.0),  # there all the time
    (10.0, 28.0, 60.0),
    (10.0, 28.0, 100.0),
    (50.0, None, 60.0),  # stopped in its cold start
    (90.0, 108.0, 120.0),  # ready after the window
    looks=[(10.0, 3), (12.0, 3), (50.0, 4), (60.0, 2), (90.0, 3)],
)


def test_replicas_wanted_ready_and_paid() -> None:
    assert pairs(timeseries.wanted(GROWN)) == [(0, 1), (10, 3), (50, 4), (60, 2), (90, 3)]
    assert pairs(timeseries.ready(GROWN)) == [(0, 1), (28, 3), (60, 2)]
    assert pairs(timeseries.paid(GROWN)) == [(0, 1), (10, 3), (50, 4), (60, 2), (90, 3)]
    assert timeseries.wanted(a_fleet((0.0, 0.0, 100.0))) is None


def test_a_fleet_that_scaled_to_zero_has_none_ready() -> None:
    assert pairs(timeseries.ready(a_fleet((0.0, 0.0, 40.0)))) == [(0, 1), (40, 0)]


def test_replica_seconds_and_dollars_count_cold_starts_and_nothing_outside_the_window() -> None:
    assert metrics.replica_seconds(GROWN) == 100 + 50 + 90 + 10 + 10
    price = [0.36, 3.6, 36.0, 0.0, 0.0].__getitem__
    by_hand = (0.36 * 100 + 3.6 * 50 + 36.0 * 90) / 3600
    so_far = timeseries.dollars(GROWN, np.array([0.0, 10.0, 20.0, 100.0]), price)
    assert so_far == pytest.approx([0.0, 0.001, 0.002 + 39.6 * 10 / 3600, by_hand])
    beside = timeseries.dollars(GROWN, np.array([0.0, 50.0]), lambda _: 0.0, beside_usd_per_hour=7.2)
    assert beside == pytest.approx([0.0, 0.1])


def test_the_queue_is_those_who_have_come_and_not_begun() -> None:
    found = timeseries.queue_length(run([(1.0, 1.5, 2), (3.0, 3.5, 1)], wait_s=0.5, shed=7))
    assert pairs(found) == [(0, 0), (0.5, 2), (1.0, 0), (2.5, 1), (3.0, 0)]
    assert found.means(np.array([0.0, 1.0, 2.0, 4.0])).tolist() == pytest.approx([1.0, 0.0, 0.25])


def test_arrivals_and_refusals_are_counted_by_the_second() -> None:
    records = run([(1.0, 1.5, 3), (9.5, 9.6, 1)], wait_s=0.1, shed=20, window_s=10.0)
    edges_s, arrivals = timeseries.arrivals_rps(records, 5)
    assert edges_s.tolist() == [0, 2, 4, 6, 8, 10]
    assert arrivals.tolist() == [11.5, 0, 0, 0, 0.5]
    assert timeseries.shed_rps(records, 5)[1].tolist() == [10, 0, 0, 0, 0]


def test_the_percentile_of_the_last_seconds_forgets() -> None:
    records = run([(1.0, 1.1, 1), (2.0, 2.5, 1), (3.0, 3.1, 1)], wait_s=0.0)
    at_s = np.array([0.5, 1.2, 2.6, 3.2, 9.0])
    found = timeseries.latency_s(records, at_s, last_s=1.0, percent=100.0)
    assert found == pytest.approx([np.nan, 0.102, 0.502, 0.502, np.nan], nan_ok=True)
    assert timeseries.latency_s(records, at_s, 1.0, 0.0)[3] == pytest.approx(0.102)


def test_answers_that_were_late_do_not_come_before_their_time() -> None:
    records = steady(0.05)
    at_s = np.linspace(0.0, 10.0, 50)
    found = timeseries.latency_s(records, at_s, last_s=20.0)
    assert np.isnan(found[0])
    assert found[-1] == pytest.approx(0.062)


# ---- two step functions ----


@pytest.mark.parametrize(
    ("one", "other", "lag_s"),
    [
        ([(0, 1), (10, 3)], [(0, 1), (12, 3)], 2.0),
        ([(0, 1), (10, 2), (11, 3)], [(0, 1), (12, 3)], 2.0),  # a step over 2 takes it at its moment
        ([(0, 1), (10, 3), (50, 1)], [(0, 1), (10, 3), (47, 1)], 3.0),
        ([(0, 1)], [(0, 1)], 0.0),
        ([(0, 1), (90, 2)], [(0, 1)], 10.0),  # what has not come by the end, comes at the end
        ([(0, 1), (40, 2)], [(0, 1)], 60.0),
        ([(0, 1), (20, 2), (21, 1)], [(0, 1), (25, 2), (26, 1)], 5.0),
    ],
)
def test_the_largest_lag(one: list[tuple[float, float]], other: list[tuple[float, float]], lag_s: float) -> None:
    assert timeseries.lag_s(steps(*one), steps(*other), 100.0) == pytest.approx(lag_s)
    assert timeseries.lag_s(steps(*other), steps(*one), 100.0) == pytest.approx(lag_s)


def test_the_share_of_time_with_the_same_count() -> None:
    one, other = steps((0, 1), (10, 3)), steps((0, 1), (12, 3), (95, 1))
    assert timeseries.same_share(one, other, 100.0) == pytest.approx(0.93)
    assert timeseries.same_share(one, one, 100.0) == 1.0


@st.composite
def step_functions(draw: st.DrawFn) -> Steps:
    times_s = draw(st.lists(st.integers(1, 99), unique=True, max_size=8).map(sorted))
    values = draw(st.lists(st.integers(1, 5), min_size=len(times_s) + 1, max_size=len(times_s) + 1))
    return Steps(np.array([0, *times_s], dtype=np.float64), np.array(values, dtype=np.float64))


@given(one=step_functions(), shift_s=st.integers(0, 40))
def test_a_function_shifted_in_time_lags_no_more_than_the_shift(one: Steps, shift_s: int) -> None:
    moved = Steps(np.append(0.0, one.times_s[1:] + shift_s), one.values)
    kept = moved.times_s < 100.0
    later = Steps(moved.times_s[kept], moved.values[kept])
    assert timeseries.lag_s(one, later, 100.0) <= shift_s + 1e-9


@given(one=step_functions(), other=step_functions())
def test_no_lag_means_that_both_are_alike_at_all_times(one: Steps, other: Steps) -> None:
    at_s = np.arange(0.25, 100.0, 0.5)
    alike = bool((one.at(at_s) == other.at(at_s)).all())
    assert (timeseries.lag_s(one, other, 100.0) == 0.0) == alike
    assert (timeseries.same_share(one, other, 100.0) == pytest.approx(1.0)) == alike


@given(one=step_functions(), bins=st.integers(1, 40))
def test_means_add_up_to_the_whole(one: Steps, bins: int) -> None:
    edges_s = np.linspace(0.0, 100.0, bins + 1)
    whole = one.means(np.array([0.0, 100.0]))[0] * 100.0
    assert float(one.means(edges_s) @ np.diff(edges_s)) == pytest.approx(whole)


def test_hits_and_percentiles_are_of_those_that_were_sent_in_a_bin() -> None:
    made = steady(0.02, count=4, size=2)  # two are sent 11 ms before each tenth of a second, and take 32 ms
    looks = pl.Series("cache", ["miss", "miss", "hit", "miss", "hit", "hit", "", ""], dtype=pl.Enum(CACHE))
    found = Records(made.requests.with_columns(looks), made.batches, made.replicas, made.window_s)
    edges_s = np.array([0.0, 0.15, 0.25, 0.35, 0.45, 0.5])
    assert timeseries.hit_ratios(found, edges_s) == pytest.approx([0.0, 0.5, 1.0, np.nan, np.nan], nan_ok=True)
    expected = [0.032, 0.032, 0.032, 0.032, np.nan]
    assert timeseries.latencies_s(found, edges_s) == pytest.approx(expected, nan_ok=True)
    assert np.isnan(timeseries.hit_ratios(made, edges_s)).all()
