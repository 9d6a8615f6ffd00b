"""When are how many replicas wanted? Cases by hand, Kubernetes' own examples, and what must hold for any numbers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from stages.policies.autoscaling import timetable
from stages.policies.histogram import LATENCY_BOUNDS_S, LatencyCounts, increase, quantile
from stages.policies.scaling import (
    Seen,
    State,
    begin,
    by_mean,
    by_schedule,
    by_step,
    by_total,
    by_value,
    decide,
    leaving,
    limited,
    stabilised,
)
from stages.policies.scraping import ReplicaSample, Sample, observe, samples_of
from stages.scaling import ScaleDown, ScaleUp, Scaling

COUNTS = st.integers(1, 50)
VALUES = st.floats(0.0, 1000.0)
TARGETS = st.floats(0.1, 100.0)


def a_scaling(**keys: object) -> Scaling:
    return Scaling.model_validate({"max_replicas": 20, "target": 10.0} | keys)


@pytest.mark.parametrize(
    ("current", "ready", "starting", "missing", "value", "wanted"),
    [
        (3, 3, 0, 0, 10.0, 3),  # at the target
        (3, 3, 0, 0, 10.9, 3),  # near it
        (3, 3, 0, 0, 11.5, 4),
        (3, 3, 0, 0, 9.1, 3),
        (4, 4, 0, 0, 5.0, 2),
        (3, 2, 1, 0, 20.0, 4),  # one that starts counts as 0 where more are wanted: 40 over 3
        (3, 1, 2, 0, 30.0, 3),  # and may carry it all
        (6, 2, 4, 0, 5.0, 1),  # it counts not at all where fewer are
        (2, 2, 0, 1, 10.0, 2),  # one that tells nothing changes nothing by itself,
        (2, 2, 0, 1, 19.0, 2),  # counts as 0 where more are wanted,
        (2, 2, 0, 1, 6.0, 2),  # and as the target where fewer are
        (4, 4, 0, 1, 3.0, 2),
        (3, 3, 0, 1, 40.0, 8),
        (5, 0, 5, 0, 70.0, 5),  # nobody is ready
        (2, 2, 0, 2, 70.0, 2),  # nobody tells anything
    ],
)
def test_a_metric_of_each_replica_by_kubernetes_rule(
    current: int, ready: int, starting: int, missing: int, value: float, wanted: int
) -> None:
    assert by_mean(current, ready, starting, missing, value, 10.0, 0.1) == wanted


@pytest.mark.parametrize(
    ("current", "total", "wanted"),
    [(1, 10.0, 1), (1, 10.9, 1), (1, 11.5, 2), (4, 9.0, 1), (4, 36.5, 4), (0, 35.0, 4), (2, 0.0, 0)],
)
def test_a_total_by_kubernetes_rule(current: int, total: float, wanted: int) -> None:
    assert by_total(current, total, 10.0, 0.1) == wanted


@pytest.mark.parametrize(
    ("current", "ready", "value", "wanted"), [(4, 4, 10.5, 4), (4, 4, 15.0, 6), (6, 2, 15.0, 3), (3, 0, 99.0, 3)]
)
def test_one_value_of_the_service_by_kubernetes_rule(current: int, ready: int, value: float, wanted: int) -> None:
    assert by_value(current, ready, value, 10.0, 0.1) == wanted


@given(n=COUNTS, target=TARGETS, tolerance=st.floats(0.0, 0.9))
def test_at_the_target_nothing_changes(n: int, target: float, tolerance: float) -> None:
    assert by_mean(n, n, 0, 0, target, target, tolerance) == n
    assert by_total(n, n * target, target, tolerance) == n
    assert by_value(n, n, target, target, tolerance) == n


@given(n=COUNTS, target=TARGETS, value=VALUES, tolerance=st.floats(0.0, 0.9))
def test_within_the_tolerance_nothing_changes_and_beyond_it_the_target_is_met(
    n: int, target: float, value: float, tolerance: float
) -> None:
    wanted = by_mean(n, n, 0, 0, value, target, tolerance)
    if abs(value / target - 1) <= tolerance:
        assert wanted == n
    elif abs(value / target - 1) > tolerance + 1e-6:
        assert n * value / max(1, wanted) <= target * (1 + 1e-6)  # enough of them,
        assert (wanted - 1) * target <= n * value * (1 + 1e-6)  # and one fewer would not do


@given(
    current=COUNTS,
    ready=st.integers(0, 50),
    missing=st.integers(0, 50),
    values=st.tuples(VALUES, VALUES),
    target=TARGETS,
    tolerance=st.floats(0.0, 0.9),
)
def test_more_load_never_wants_fewer(
    current: int, ready: int, missing: int, values: tuple[float, float], target: float, tolerance: float
) -> None:
    assume(missing <= ready <= current)
    low, high = sorted(values)
    starting = current - ready
    tracked = [by_mean(current, ready, starting, missing, each, target, tolerance) for each in (low, high)]
    assert tracked == sorted(tracked)
    shared = [by_total(current, each, target, tolerance) for each in (low, high)]
    assert shared == sorted(shared)
    valued = [by_value(current, current, each, target, tolerance) for each in (low, high)]
    assert valued == sorted(valued)
    stepped = [by_step(current, each, target, 2.0, target / 4, 0.5) for each in (low, high)]
    assert stepped == sorted(stepped)


@given(current=COUNTS, desired=COUNTS, past=st.lists(st.tuples(st.floats(0.0, 100.0), COUNTS), max_size=20))
def test_stabilised_between_the_least_wish_of_one_window_and_the_greatest_of_the_other(
    current: int, desired: int, past: list[tuple[float, int]]
) -> None:
    wanted = stabilised(current, desired, past, 100.0, 30.0, 60.0)
    lows = [n for at_s, n in past if at_s > 70.0]
    highs = [n for at_s, n in past if at_s > 40.0]
    if wanted > current:
        assert wanted == min([desired, *lows])
    elif wanted < current:
        assert wanted == max([desired, *highs])
    assert stabilised(current, desired, past, 100.0, 0.0, 0.0) == desired


@given(
    current=COUNTS,
    desired=COUNTS,
    past=st.lists(st.tuples(st.floats(0.0, 100.0), st.integers(-3, 3)), max_size=10),
    replicas=st.integers(1, 5),
    share=st.floats(0.0, 1.0),
)
def test_a_limit_is_between_here_and_there(
    current: int, desired: int, past: list[tuple[float, int]], replicas: int, share: float
) -> None:
    up = ScaleUp(replicas=replicas, share=share, period_s=20.0)
    down = ScaleDown(replicas=replicas, share=share, period_s=20.0)
    wanted = limited(current, desired, past, 100.0, up, down)
    assert min(current, desired) <= wanted <= max(current, desired)
    added = sum(n for at_s, n in past if n > 0 and at_s > 80.0)
    gone = -sum(n for at_s, n in past if n < 0 and at_s > 80.0)
    if wanted > current:
        start = current - added
        assert wanted - start <= max(replicas, math.ceil(start * share))
    if wanted < current:
        start = current + gone
        assert start - wanted <= max(replicas, math.ceil(start * share))


@pytest.mark.parametrize(("value", "wanted"), [(101.0, 6), (100.0, 3), (30.0, 3), (29.0, 1), (0.0, 1)])
def test_steps(value: float, wanted: int) -> None:
    assert by_step(3, value, 100.0, 2.0, 30.0, 0.5) == wanted


def test_a_step_is_at_least_one_replica() -> None:
    assert by_step(3, 101.0, 100.0, 1.01, None, 0.5) == 4
    assert by_step(3, 1.0, 100.0, 2.0, 30.0, 0.99) == 2
    assert by_step(3, 1.0, 100.0, 2.0, None, 0.5) == 3


@pytest.mark.parametrize(
    ("now_s", "day_s", "wanted"),
    [
        (5.0, None, 7),
        (10.0, None, 1),
        (25.0, None, 3),
        (900.0, None, 3),
        (5.0, 30.0, 7),
        (35.0, 30.0, 3),
        (40.0, 30.0, 1),
    ],
)
def test_a_schedule_holds_until_its_next_entry(now_s: float, day_s: float | None, wanted: int) -> None:
    assert by_schedule(7, now_s, (10.0, 20.0), (1, 3), day_s) == wanted


def test_those_that_do_not_serve_yet_go_first_then_the_newest() -> None:
    assert leaving([7, 8], [0, 3, 5], 4) == [8, 7, 5, 3]
    assert leaving([], [0, 1], -2) == []


@st.composite
def scalings(draw: st.DrawFn, policies: Sequence[str] = ("target-tracking", "keda", "step")) -> Scaling:
    """Any sound settings of those policies, with times in whole seconds."""
    policy = draw(st.sampled_from(policies))
    seconds = st.integers(0, 60).map(float)
    least = draw(st.integers(0 if policy == "keda" else 1, 5))
    above = draw(TARGETS)
    return a_scaling(
        policy=policy,
        min_replicas=least,
        max_replicas=draw(st.integers(max(1, least), 12)),
        metric=draw(st.sampled_from(["utilisation", "concurrency", "rate", "latency-p95"])),
        interval_s=1.0,
        target=draw(TARGETS),
        tolerance=draw(st.sampled_from([0.0, 0.1, 0.3])),
        polling_interval_s=draw(st.integers(1, 10).map(float)),
        cooldown_s=draw(seconds),
        above=above,
        below=above / 4,
        up={"stabilisation_window_s": draw(seconds), "replicas": draw(st.integers(1, 5)), "period_s": 10.0},
        down={"stabilisation_window_s": draw(seconds), "replicas": draw(st.integers(1, 5)), "share": 0.5},
    )


LOADS = st.lists(
    st.tuples(st.none() | VALUES, st.sampled_from([0.0, 0.0, 1.0]), st.integers(0, 12)), min_size=1, max_size=150
)


def _run(scaling: Scaling, loads: list[tuple[float | None, float, int]], replicas: int) -> list[tuple[float, State]]:
    """The states after looks a second apart; a load is (value, arrivals a second, how many replicas serve)."""
    state, states = begin(replicas), [(0.0, begin(replicas))]
    for n, (value, rate_rps, serving) in enumerate(loads, start=1):
        seen = Seen(min(serving, state.wanted), value, rate_rps=rate_rps)
        state, why = decide(scaling, state, seen, float(n))
        assert why
        states.append((float(n), state))
    return states


@settings(max_examples=120, deadline=None)
@given(scaling=scalings(), loads=LOADS, start=st.integers(0, 11))
def test_whatever_is_seen_the_bounds_hold(
    scaling: Scaling, loads: list[tuple[float | None, float, int]], start: int
) -> None:
    first = scaling.min_replicas + start % (scaling.max_replicas - scaling.min_replicas + 1)
    for _, state in _run(scaling, loads, first):
        assert scaling.min_replicas <= state.wanted <= scaling.max_replicas


@settings(max_examples=120, deadline=None)
@given(scaling=scalings(["target-tracking"]), loads=LOADS)
def test_no_direction_is_turned_round_within_the_window(
    scaling: Scaling, loads: list[tuple[float | None, float, int]]
) -> None:
    states = _run(scaling, loads, scaling.min_replicas)
    for (_, before), (at_s, after) in itertools.pairwise(states):
        rise = after.wanted > before.wanted
        window_s = (scaling.down if rise else scaling.up).stabilisation_window_s
        if after.wanted != before.wanted:
            then = [state.wanted for later_s, state in states if at_s < later_s < at_s + window_s]
            assert all(n >= after.wanted if rise else n <= after.wanted for n in then)


@settings(max_examples=120, deadline=None)
@given(scaling=scalings(["keda"]), loads=LOADS)
def test_the_last_replica_goes_only_after_the_cool_down(
    scaling: Scaling, loads: list[tuple[float | None, float, int]]
) -> None:
    states = _run(scaling, loads, max(1, scaling.min_replicas))
    for (_, before), (at_s, after) in itertools.pairwise(states):
        if after.wanted == 0 < before.wanted:
            assert scaling.min_replicas == 0
            assert at_s - after.active_s > scaling.cooldown_s
            polls_s = {state.polled_s for t, state in states if after.active_s < t <= at_s}
            quiet = [loads[int(t) - 1][1] for t in polls_s if t > after.active_s]
            assert all(rate_rps <= scaling.activation_rps for rate_rps in quiet)
        if before.wanted == 0 < after.wanted:
            assert loads[int(at_s) - 1][1] > scaling.activation_rps


@settings(max_examples=100, deadline=None)
@given(scaling=scalings(["step"]), loads=LOADS)
def test_steps_keep_their_distance(scaling: Scaling, loads: list[tuple[float | None, float, int]]) -> None:
    states = _run(scaling, loads, scaling.min_replicas)
    changes_s = [at_s for (_, before), (at_s, after) in itertools.pairwise(states) if before.wanted != after.wanted]
    assert all(later - each >= scaling.cooldown_s for each, later in itertools.pairwise(changes_s))


def _samples(*each: dict[int, ReplicaSample] | None) -> list[Sample]:
    return [Sample(2.0 * n, arrived=10.0 * n, replicas=replicas) for n, replicas in enumerate(each)]


def test_gauges_are_means_over_the_window_and_counters_differences() -> None:
    samples = _samples(
        {0: ReplicaSample(10.0, 99.0, 5.0)}, {0: ReplicaSample(22.0, 2.0, 6.0)}, {0: ReplicaSample(34.0, 4.0, 7.0)}
    )
    assert observe("concurrency", samples, [0]) == Seen(1, 6.0, 0, 5.0)
    assert observe("queue-depth", samples, [0]) == Seen(1, 3.0, 0, 5.0)
    assert observe("utilisation", samples, [0]) == Seen(1, 0.5, 0, 5.0)
    assert observe("rate", samples, [0]) == Seen(1, 5.0, 0, 5.0)


def test_a_replica_that_is_new_tells_its_gauge_and_not_yet_its_share() -> None:
    samples = _samples({0: ReplicaSample(2.0, 2.0)}, {0: ReplicaSample(6.0, 2.0, 2.0), 1: ReplicaSample(4.0, 4.0)})
    assert observe("queue-depth", samples, [0, 1]) == Seen(2, 3.0, 0, 5.0)
    assert observe("concurrency", samples, [0, 1]) == Seen(2, 2.0, 1, 5.0)
    assert observe("utilisation", samples, [0, 1]) == Seen(2, 1.0, 1, 5.0)


def test_who_did_not_answer_the_last_scrape_is_missing_and_who_drains_does_not_count() -> None:
    both = {0: ReplicaSample(queued=2.0), 1: ReplicaSample(queued=4.0)}
    assert observe("queue-depth", _samples(both, {0: both[0]}), [0, 1]) == Seen(2, 2.0, 1, 5.0)
    assert observe("queue-depth", _samples(both, both), [1]) == Seen(1, 4.0, 0, 5.0)


def test_without_an_answer_nothing_is_known() -> None:
    assert observe("concurrency", [], [0]) == Seen(1, None, 1, None)
    assert observe("rate", _samples(None, None), [0]) == Seen(1, None, 0, None)
    assert observe("latency-p95", _samples({}, {}), [0]).value is None


def test_a_process_that_was_started_again_counts_from_nothing() -> None:
    samples = _samples({0: ReplicaSample(busy_s=50.0)}, {0: ReplicaSample(busy_s=1.0)})
    assert observe("utilisation", samples, [0]).value == 0.5
    assert increase(50.0, 1.0) == 1.0


def test_a_percentile_is_of_the_answers_of_the_window() -> None:
    counts, before = LatencyCounts(), LatencyCounts()
    for latency_s in (9.0,) * 50:
        counts.add(latency_s)
        before.add(latency_s)
    for latency_s in (0.4,) * 100:
        counts.add(latency_s)
    samples = [Sample(0.0, 0.0, before.within(), {}), Sample(1.0, 0.0, counts.within(), {})]
    assert observe("latency-p95", samples, []).value == pytest.approx(0.3 + 0.95 * 0.2)


@given(latencies_s=st.lists(st.floats(0.0, 20.0), min_size=1, max_size=200), share=st.floats(0.01, 1.0))
def test_a_quantile_lies_in_the_bucket_of_the_true_one(latencies_s: list[float], share: float) -> None:
    counts = LatencyCounts()
    for latency_s in latencies_s:
        counts.add(latency_s)
    true_s = sorted(latencies_s)[math.ceil(share * len(latencies_s)) - 1]
    found_s = quantile(counts.within(), LATENCY_BOUNDS_S, share)
    assert found_s is not None
    high_s = min((bound_s for bound_s in LATENCY_BOUNDS_S if bound_s >= true_s), default=LATENCY_BOUNDS_S[-1])
    low_s = max((bound_s for bound_s in LATENCY_BOUNDS_S if bound_s < true_s), default=0.0)
    assert min(low_s, high_s) - 1e-9 <= found_s <= high_s + 1e-9


def test_a_scrape_comes_before_the_decision_of_the_same_moment() -> None:
    looks = list(itertools.islice(timetable(a_scaling(interval_s=3.0, scrape_interval_s=2.0)), 6))
    assert looks == [
        (0.0, True, False),
        (2.0, True, False),
        (3.0, False, True),
        (4.0, True, False),
        (6.0, True, True),
        (8.0, True, False),
    ]


def test_looks_that_fall_together_but_for_their_last_bit_are_one() -> None:
    looks = list(itertools.islice(timetable(a_scaling(interval_s=0.3, scrape_interval_s=0.1)), 7))
    assert looks[3] == (0.3, True, True)  # and not a decision just before its scrape: 3 * 0.1 is above 0.3
    assert [at_s for at_s, _, _ in looks] == [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6]


@pytest.mark.parametrize(("window_s", "samples"), [(15.0, 2), (30.0, 3), (40.0, 4)])
def test_a_window_is_counted_in_scrapes(window_s: float, samples: int) -> None:
    assert samples_of(a_scaling(window_s=window_s)) == samples
