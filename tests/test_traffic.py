"""Traffic: rates and gaps keep their laws, chance comes from named streams, and a schedule is in order."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from stages.demand import Traffic
from stages.spec import mean_rate_rps
from stages.traffic import Schedule, at_rate, popularity, rate_at_rps, schedule, split, user_draws

TRACE = str(Path(__file__).parents[1] / "stages/catalogue/example.trace.csv")
TIMES = str(Path(__file__).parent / "invalid_stages/traces/times.csv")

CONSTANT = {"shape": "constant", "rate_rps": 20.0}
RAMP = {"shape": "ramp", "rate_rps_start": 0.0, "rate_rps_end": 40.0}
RAMP_DOWN = {"shape": "ramp", "rate_rps_start": 40.0, "rate_rps_end": 0.0}
STEP = {"shape": "step", "rate_rps": 10.0, "rate_rps_after": 40.0, "step_at_s": 30.0}
SPIKE = {"shape": "spike", "rate_rps": 10.0, "spike_factor": 8.0, "spike_start_s": 20.0, "spike_duration_s": 10.0}
DIURNAL = {"shape": "diurnal", "rate_rps": 20.0, "amplitude": 0.9, "period_s": 40.0}
COUNTS = {"shape": "trace", "path": TRACE, "time_scale": 0.001}
SHAPES = [CONSTANT, RAMP, RAMP_DOWN, STEP, SPIKE, DIURNAL, COUNTS]
BURSTY = {"arrivals": "gamma", "coefficient_of_variation": 3.0}


def named(value: dict[str, Any]) -> str:
    return str(value.get("shape", ""))


def traffic(rate: dict[str, Any], **keys: Any) -> Traffic:
    return Traffic.model_validate({"rate": rate, **keys})


def counts(plan: Traffic, replications: int) -> np.ndarray:
    return np.array([schedule(plan, seed=seed).arrivals_s.size for seed in range(replications)])


@pytest.mark.parametrize("rate", SHAPES, ids=named)
def test_the_number_of_poisson_arrivals_has_its_mean_and_variance(rate: dict[str, Any]) -> None:
    plan = traffic(rate)
    mean = mean_rate_rps(plan)
    assert mean is not None
    expected, n = mean * plan.duration_s, counts(plan, 300)
    low, high = stats.norm.interval(0.999, expected, np.sqrt(expected / n.size))
    assert low < n.mean() < high
    low, high = stats.chi2.ppf([0.0005, 0.9995], n.size - 1) / (n.size - 1)
    assert low < n.var(ddof=1) / expected < high


@pytest.mark.parametrize("rate", [CONSTANT, STEP, DIURNAL], ids=named)
def test_poisson_arrivals_are_uniform_in_operational_time(rate: dict[str, Any]) -> None:
    """Given their number, Λ(t) / Λ(end) of Poisson arrivals are independent and uniform."""
    plan = traffic(rate, duration_s=600.0)
    grid_s = np.linspace(0.0, plan.duration_s, 200_001)
    rates = rate_at_rps(plan, (grid_s[1:] + grid_s[:-1]) / 2)
    cumulative = np.concatenate([[0.0], np.cumsum(rates)])
    shares = np.interp(schedule(plan, seed=5).arrivals_s, grid_s, cumulative / cumulative[-1])
    assert stats.kstest(shares, "uniform").pvalue > 0.001


def test_poisson_gaps_are_exponential() -> None:
    arrivals_s = schedule(traffic(CONSTANT, duration_s=1000.0), seed=3).arrivals_s
    assert stats.kstest(np.diff(arrivals_s) * 20.0, "expon").pvalue > 0.001


@pytest.mark.parametrize("cv", [0.5, 3.0])
def test_gamma_gaps_have_their_coefficient_of_variation_and_law(cv: float) -> None:
    plan = traffic(CONSTANT, duration_s=5000.0, arrivals="gamma", coefficient_of_variation=cv)
    gaps = np.concatenate([np.diff(schedule(plan, seed=seed).arrivals_s) for seed in range(3)]) * 20.0
    assert gaps.mean() == pytest.approx(1.0, abs=4 * cv / np.sqrt(gaps.size))
    # The spread of the sample's coefficient of variation, by the delta method, is below 3 cv² / sqrt(n) for gamma.
    assert gaps.std() / gaps.mean() == pytest.approx(cv, abs=4 * 3 * cv**2 / np.sqrt(gaps.size))
    # In classes, because differences of times cannot tell gaps under a picosecond, of which bursts have many.
    edges = np.array([0.0, 1e-6, 1e-3, 0.1, 0.5, 1.0, 1.5, 2.0, 4.0, np.inf])
    shares = np.diff(stats.gamma(cv**-2, scale=cv**2).cdf(edges))
    found, likely = np.histogram(gaps, edges)[0], shares * gaps.size > 5
    assert stats.chisquare(found[likely], shares[likely] / shares[likely].sum() * found[likely].sum()).pvalue > 0.001


def test_bursty_traffic_has_the_right_mean_from_its_first_second() -> None:
    """A renewal process that began with a whole gap would have (cv² - 1) / 2 = 4 arrivals too many."""
    n = counts(traffic(CONSTANT, duration_s=1.0, **BURSTY), 2000)
    half_width = 3.3 * n.std(ddof=1) / np.sqrt(n.size)
    assert half_width < 1.5
    assert n.mean() == pytest.approx(20.0, abs=half_width)


def test_the_variance_of_bursty_counts_is_cv_squared_times_their_mean() -> None:
    """The limit of renewal theory, var N(t) / E N(t) → cv², within the interval that 300 replications leave."""
    n = counts(traffic(CONSTANT, duration_s=500.0, **BURSTY), 300)
    low, high = stats.chi2.ppf([0.0005, 0.9995], n.size - 1) / (n.size - 1)
    assert low < n.var(ddof=1) / (9 * 20.0 * 500.0) < high


@pytest.mark.parametrize("rate", SHAPES, ids=named)
def test_deterministic_arrivals_number_what_the_rate_integrates_to(rate: dict[str, Any]) -> None:
    plan = traffic(rate, arrivals="deterministic")
    mean = mean_rate_rps(plan)
    assert mean is not None
    assert abs(schedule(plan).arrivals_s.size - mean * plan.duration_s) <= 0.5 + 1e-6
    assert np.array_equal(schedule(plan, seed=1).arrivals_s, schedule(plan, seed=2).arrivals_s)


def test_deterministic_arrivals_are_evenly_spaced() -> None:
    arrivals_s = schedule(traffic(CONSTANT, duration_s=1.0, arrivals="deterministic")).arrivals_s
    assert arrivals_s == pytest.approx((np.arange(20) + 0.5) / 20)


def test_a_spike_brings_its_requests_in_its_time() -> None:
    arrivals_s = schedule(traffic(SPIKE, arrivals="deterministic")).arrivals_s
    found = np.histogram(arrivals_s, bins=[0.0, 20.0, 30.0, 60.0])[0]
    assert np.abs(found - [200, 800, 300]).max() <= 1


def test_nobody_arrives_while_the_rate_is_zero() -> None:
    rate = {"shape": "step", "rate_rps": 0.0, "rate_rps_after": 40.0, "step_at_s": 30.0}
    assert schedule(traffic(rate)).arrivals_s.min() >= 30.0
    rate = {"shape": "step", "rate_rps": 40.0, "rate_rps_after": 0.0, "step_at_s": 30.0}
    assert schedule(traffic(rate)).arrivals_s.max() <= 30.0


def test_a_day_is_quiet_at_its_start_and_busy_in_its_middle() -> None:
    plan = traffic(DIURNAL, duration_s=40.0)
    assert rate_at_rps(plan, np.array([0.0, 10.0, 20.0, 40.0])) == pytest.approx([2.0, 20.0, 38.0, 2.0])
    found = np.histogram(schedule(plan, seed=1).arrivals_s, bins=[0.0, 10.0, 30.0, 40.0])[0]
    assert found[1] > 3 * (found[0] + found[2])


@pytest.mark.parametrize("rate", SHAPES, ids=named)
@pytest.mark.parametrize("wanted_rps", [1.0, 55.5, 400.0])
def test_traffic_at_another_rate_keeps_its_shape(rate: dict[str, Any], wanted_rps: float) -> None:
    plan = traffic(rate)
    scaled = at_rate(plan, wanted_rps)
    assert mean_rate_rps(scaled) == pytest.approx(wanted_rps)
    times_s = np.linspace(0.0, 59.9, 200)
    mean = mean_rate_rps(plan)
    assert mean is not None
    assert rate_at_rps(scaled, times_s) == pytest.approx(rate_at_rps(plan, times_s) * wanted_rps / mean)


def test_a_higher_rate_squeezes_the_same_gaps() -> None:
    slow, fast = (schedule(traffic({"shape": "constant", "rate_rps": rps})).arrivals_s for rps in (10.0, 40.0))
    assert slow[:500] == pytest.approx(4 * fast[:500])


def test_the_rate_of_a_trace_of_times_is_counted_in_bins() -> None:
    plan = traffic({"shape": "trace", "path": TIMES}, duration_s=9.0)
    rates = rate_at_rps(plan, np.linspace(0.0, 9.0, 100, endpoint=False) + 0.045)
    assert rates.sum() * 0.09 == pytest.approx(schedule(plan).arrivals_s.size)


def test_the_same_seed_gives_the_same_bytes_and_another_one_others() -> None:
    plan = traffic(DIURNAL, items={"popularity": "zipf"}, **BURSTY)
    first, again, other = schedule(plan, seed=7), schedule(plan, seed=7), schedule(plan, seed=8)
    assert first.arrivals_s.tobytes() == again.arrivals_s.tobytes()
    assert first.items.tobytes() == again.items.tobytes()
    assert first.arrivals_s[:5].tolist() != other.arrivals_s[:5].tolist()
    assert schedule(traffic(CONSTANT, seed=7)).items.tobytes() == schedule(traffic(CONSTANT), seed=7).items.tobytes()


def test_items_and_arrivals_do_not_move_each_other() -> None:
    plain, skewed = (schedule(traffic(CONSTANT, items={"popularity": law})) for law in ("uniform", "zipf"))
    assert plain.arrivals_s.tobytes() == skewed.arrivals_s.tobytes()
    assert plain.items.tobytes() != skewed.items.tobytes()
    bursty = schedule(traffic(CONSTANT, **BURSTY))
    both = min(plain.items.size, bursty.items.size)
    assert plain.items[:both].tolist() == bursty.items[:both].tolist()


@pytest.mark.parametrize(("popularity", "exponent"), [("uniform", 0.0), ("zipf", 0.5), ("zipf", 1.0), ("zipf", 2.5)])
def test_items_come_as_often_as_their_law_says(popularity: str, exponent: float) -> None:
    items = {"popularity": popularity, "count": 20} | ({"exponent": exponent} if exponent else {})
    drawn = schedule(traffic(CONSTANT, duration_s=2000.0, items=items), seed=11).items
    weights = np.arange(1, 21) ** -exponent
    found = np.bincount(drawn, minlength=20)
    assert stats.chisquare(found, weights / weights.sum() * drawn.size).pvalue > 0.001


def test_a_closed_loop_has_no_schedule() -> None:
    closed = Traffic.model_validate({"loop": "closed"})
    for ask in (schedule, lambda plan: rate_at_rps(plan, np.zeros(1)), lambda plan: at_rate(plan, 1.0)):
        with pytest.raises(ValueError, match="a closed loop has no arrival rate"):
            ask(closed)


def test_a_rate_that_is_not_positive_cannot_be_scaled_to() -> None:
    with pytest.raises(ValueError, match="cannot be scaled to 0"):
        at_rate(traffic(CONSTANT), 0.0)


def test_users_think_exponentially_and_independently() -> None:
    plan = Traffic.model_validate({"loop": "closed", "think_time_s": 2.0, "items": {"count": 3}})
    draws = [list(itertools.islice(user_draws(plan, user), 2000)) for user in range(4)]
    think_s = np.array([[think for think, _ in user] for user in draws])
    assert stats.kstest(think_s.ravel() / 2.0, "expon").pvalue > 0.001
    assert len(set(think_s[:, 0])) == 4
    assert abs(np.corrcoef(think_s) - np.eye(4)).max() < 4 / np.sqrt(2000)
    assert {item for _, item in draws[0]} == {0, 1, 2}


def test_a_users_draws_depend_on_the_seed_and_on_no_other_user() -> None:
    few, many = (Traffic.model_validate({"loop": "closed", "users": users}) for users in (1, 1000))
    first, again = (list(itertools.islice(user_draws(plan, 0, seed=4), 200)) for plan in (few, many))
    assert first == again
    assert first != list(itertools.islice(user_draws(few, 0, seed=5), 200))


def test_users_who_do_not_think_ask_at_once() -> None:
    plan = Traffic.model_validate({"loop": "closed", "think_time_s": 0.0})
    assert {think for think, _ in itertools.islice(user_draws(plan, 0), 100)} == {0.0}


RATES = st.one_of(
    st.builds(lambda r: {"shape": "constant", "rate_rps": r}, st.floats(0.1, 200.0)),
    st.builds(
        lambda a, b: {"shape": "ramp", "rate_rps_start": a, "rate_rps_end": b},
        st.floats(0.0, 200.0),
        st.floats(0.0, 200.0),
    ),
    st.builds(
        lambda a, b, at: {"shape": "step", "rate_rps": a, "rate_rps_after": b, "step_at_s": at},
        st.floats(0.0, 200.0),
        st.floats(0.0, 200.0),
        st.floats(0.01, 50.0),
    ),
    st.builds(
        lambda r, f, at, d: {
            "shape": "spike",
            "rate_rps": r,
            "spike_factor": f,
            "spike_start_s": at,
            "spike_duration_s": d,
        },
        st.floats(0.1, 50.0),
        st.floats(0.01, 20.0),
        st.floats(0.0, 50.0),
        st.floats(0.01, 50.0),
    ),
    st.builds(
        lambda r, a, p: {"shape": "diurnal", "rate_rps": r, "amplitude": a, "period_s": p},
        st.floats(0.1, 200.0),
        st.floats(0.0, 1.0),
        st.floats(0.01, 100.0),
    ),
)
PROCESSES = st.one_of(
    st.just({"arrivals": "poisson"}),
    st.just({"arrivals": "deterministic"}),
    st.builds(lambda cv: {"arrivals": "gamma", "coefficient_of_variation": cv}, st.floats(0.05, 30.0)),
)


@settings(max_examples=150, deadline=None)
@given(rate=RATES, process=PROCESSES, duration_s=st.floats(0.1, 40.0), seed=st.integers(0, 2**63 - 1))
def test_arrivals_are_in_order_and_within_the_run(
    rate: dict[str, Any], process: dict[str, Any], duration_s: float, seed: int
) -> None:
    plan = traffic(rate, duration_s=duration_s, items={"count": 7}, **process)
    found = schedule(plan, seed=seed)
    assert found.arrivals_s.dtype == np.float64 and found.items.dtype == np.int64
    assert found.arrivals_s.shape == found.items.shape
    assert (np.diff(found.arrivals_s) >= 0).all()
    assert ((found.arrivals_s >= 0) & (found.arrivals_s < duration_s)).all()
    assert ((found.items >= 0) & (found.items < 7)).all()


@given(size=st.integers(0, 60), of=st.integers(1, 9))
def test_workers_share_a_schedule_without_loss(size: int, of: int) -> None:
    whole = Schedule(np.linspace(0.0, 9.0, size), np.arange(size, dtype=np.int64) * 3, 10.0)
    parts = [split(whole, index, of) for index in range(of)]
    assert sorted(np.concatenate([numbers for numbers, _ in parts]).tolist()) == list(range(size))
    for numbers, part in parts:
        assert part.arrivals_s.tolist() == whole.arrivals_s[numbers].tolist()
        assert part.items.tolist() == whole.items[numbers].tolist()
        assert part.duration_s == whole.duration_s
    assert max(part.items.size for _, part in parts) - min(part.items.size for _, part in parts) <= 1


@pytest.mark.parametrize(("index", "of"), [(-1, 2), (2, 2), (0, 0)])
def test_a_worker_that_is_not_there_gets_nothing(index: int, of: int) -> None:
    with pytest.raises(ValueError, match="below the"):
        split(schedule(traffic(CONSTANT)), index, of)


# ---- popularity that drifts ----------------------------------------------------------------------------------

DRIFT = {"popularity": "zipf", "count": 50, "drift_interval_s": 10.0, "drift_share": 0.2}


def drifting(duration_s: float = 60.0, **items: Any) -> Traffic:
    return traffic({"shape": "constant", "rate_rps": 400.0}, duration_s=duration_s, items=DRIFT | items)


def holders(plan: Traffic, interval: int, seed: int = 1) -> dict[int, int]:
    """Rank → item within one interval of the drift, as far as ranks were drawn in it."""
    still = plan.model_copy(update={"items": plan.items.model_copy(update={"drift_interval_s": None})})
    moved, ranks = schedule(plan, seed=seed), schedule(still, seed=seed).items
    within = (moved.arrivals_s // 10.0) == interval
    pairs = set(zip(ranks[within].tolist(), moved.items[within].tolist(), strict=True))
    assert len(dict(pairs)) == len(pairs), "an item keeps its rank within an interval"
    return dict(pairs)


def test_without_a_drift_the_schedule_is_what_it_was() -> None:
    """These bytes are those of schedules that were kept before there was a drift."""
    plan = traffic(CONSTANT, items={"popularity": "zipf", "count": 1000, "exponent": 1.1}, duration_s=5.0)
    assert schedule(plan, seed=7).items[:8].tolist() == [0, 0, 0, 95, 77, 0, 0, 2]


def test_a_drift_moves_neither_arrivals_nor_the_draws_of_ranks() -> None:
    plan = drifting()
    still = plan.model_copy(update={"items": plan.items.model_copy(update={"drift_interval_s": None})})
    assert schedule(plan).arrivals_s.tobytes() == schedule(still).arrivals_s.tobytes()
    assert holders(plan, 0) == {rank: rank for rank in range(50)}
    assert schedule(plan, seed=4).items.tobytes() == schedule(plan, seed=4).items.tobytes()


def test_at_the_end_of_each_interval_so_large_a_share_has_other_ranks() -> None:
    plan = drifting()
    before = holders(plan, 0)
    for interval in range(1, 6):
        now = holders(plan, interval)
        assert set(now) == set(range(50)), "4000 draws have every rank of 50"
        assert sorted(now.values()) == list(range(50)), "no item is lost, none is there twice"
        assert sum(before[rank] != now[rank] for rank in now) == 10
        before = now


def test_the_longer_it_drifts_the_less_is_left_of_the_first_order() -> None:
    plan = drifting(duration_s=300.0)
    as_first = [sum(rank == item for rank, item in holders(plan, interval).items()) for interval in (0, 5, 29)]
    assert as_first[0] == 50 > as_first[1] > as_first[2]
    assert as_first[2] < 10


def test_a_share_too_small_for_two_items_exchanges_two() -> None:
    now = holders(drifting(drift_share=1e-9), 1)
    assert sum(rank != item for rank, item in now.items()) == 2


def test_all_of_them_may_move() -> None:
    assert all(rank != item for rank, item in holders(drifting(drift_share=1.0), 1).items())


@pytest.mark.parametrize("items", [{}, {"popularity": "zipf", "count": 40, "exponent": 0.7}])
def test_shares_of_the_requests_are_those_that_are_drawn(items: dict[str, Any]) -> None:
    plan = traffic(CONSTANT, duration_s=2000.0, items={"count": 40} | items)
    shares = popularity(plan.items)
    assert shares.sum() == pytest.approx(1.0)
    found = np.bincount(schedule(plan, seed=11).items, minlength=40)
    assert stats.chisquare(found, shares * found.sum()).pvalue > 0.001
