"""The search finds what brute force finds, and does not simulate what it need not."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.candidates import Candidate
from simulator.estimate import Estimate, interval_of
from simulator.search import FIRST, WAVE, Search, Tried, alike, front, in_doubt, verdict
from tests.planned import a_candidate, a_try, an_estimate


class Landscape:
    """What each candidate is like: (dollars an hour, share in time, p95 in seconds), and how often it was asked."""

    def __init__(self, points: dict[Candidate, tuple[float, float, float]], noise: float = 0.0) -> None:
        self.points, self.noise = points, noise
        self.asked: dict[Candidate, int] = {}

    def measure(self, some: Sequence[Candidate], replications: int, first: int) -> list[Estimate]:
        found = []
        for each in some:
            usd, share, p95_s = self.points[each]
            self.asked[each] = self.asked.get(each, 0) + replications
            dice = np.random.default_rng([first, each.replicas, each.max_batch_size])
            shares = share + self.noise * dice.standard_normal(replications)
            seeds = range(1 + first, 1 + first + replications)
            found.append(an_estimate(seeds, cost_usd_per_hour=usd, slo_share=shares.tolist(), latency_s_p95=p95_s))
        return found


points = st.lists(
    st.tuples(
        st.integers(1, 12),  # the least that it can cost, in tenths
        st.sampled_from([0, 0, 0, 1, 3]),  # what comes on top
        st.sampled_from([0.2, 0.92, 0.94, 0.96, 1.0]),
        st.integers(1, 50),  # p95 in ms
    ),
    min_size=1,
    max_size=60,
)


def landscape(some: Sequence[tuple[int, int, float, int]]) -> tuple[Landscape, list[Candidate]]:
    found = {
        a_candidate(number + 1, bound / 10): ((bound + more) / 10, share, p95_ms / 1e3)
        for number, (bound, more, share, p95_ms) in enumerate(some)
    }
    return Landscape(found), sorted(found, key=lambda each: each.usd_per_hour)


@settings(max_examples=200, deadline=None)
@given(points)
def test_without_noise_it_finds_what_brute_force_finds(some: list[tuple[int, int, float, int]]) -> None:
    land, candidates = landscape(some)
    choice = Search(land.measure, 5).cheapest(candidates)
    good = {each: point for each, point in land.points.items() if point[1] >= 0.95}
    if not good:
        assert choice is None
        return
    assert choice is not None
    least = min(point[0] for point in good.values())
    quickest = min(point[2] for point in good.values() if point[0] == least)
    assert (choice.usd_per_hour.mean, choice.p95_s.mean) == pytest.approx((least, quickest))


def test_what_cannot_be_cheaper_is_never_simulated() -> None:
    land, candidates = landscape([(number, 0, 1.0, 10) for number in range(1, 200)])
    choice = Search(land.measure, 10).cheapest(candidates)
    assert choice is not None
    assert choice.candidate == candidates[0]
    assert set(land.asked) == set(candidates[:WAVE])


def test_what_is_far_off_is_simulated_twice_only() -> None:
    land, candidates = landscape([(1, 0, 0.3, 10)] * 5 + [(1, 0, 1.0, 10)])
    Search(land.measure, 10).cheapest(candidates)
    assert sorted(land.asked.values()) == [FIRST] * 5 + [10]


def test_nothing_is_simulated_twice_for_the_same_replication() -> None:
    land, candidates = landscape([(1, 0, 1.0, 10), (2, 0, 1.0, 5)])
    search = Search(land.measure, 6)
    search.cheapest(candidates)
    found = search.measured(candidates, 6)
    assert [each.replications for each in found] == [6, 6]
    assert set(land.asked.values()) == {6}
    assert found[0].estimate.seeds == (1, 2, 3, 4, 5, 6)


def test_of_two_that_are_sure_and_not_the_sure_one_is_taken_and_the_other_told() -> None:
    cheap, dear = a_candidate(1, 1.0), a_candidate(2, 2.0)
    land = Landscape({cheap: (1.0, 0.951, 0.05), dear: (2.0, 1.0, 0.04)}, noise=0.01)
    land.points[dear] = (2.0, 0.999, 0.04)
    search = Search(land.measure, 10)
    choice = search.cheapest([cheap, dear])
    assert choice is not None
    assert choice.candidate == dear
    assert [each.candidate for each in in_doubt(choice, search.tried)] == [cheap]


@pytest.mark.parametrize(
    ("shares", "said"),
    [
        ([0.990, 0.989], "meets"),
        ([0.5, 0.52], "misses"),
        ([0.94, 0.96], "unsure"),
        ([0.95], "meets"),
        ([0.94], "misses"),
    ],
)
def test_a_verdict_is_as_sure_as_its_interval(shares: list[float], said: str) -> None:
    assert verdict(interval_of(shares)) == said
    assert verdict(interval_of([])) == "misses"


tries = st.lists(
    st.tuples(st.floats(0.1, 10.0), st.floats(0.001, 1.0), st.sampled_from([0.0, 0.2])), min_size=0, max_size=25
)


@given(tries)
def test_nobody_on_the_front_is_beaten_and_whoever_is_not_on_it_is(some: list[tuple[float, float, float]]) -> None:
    every = [a_try(n + 1, usd, latency_s_p95=p95, shed_share=shed) for n, (usd, p95, shed) in enumerate(some)]
    found = front(every)
    sound = [each for each in every if each.lost < 0.05]

    def beats(one: Tried, other: Tried) -> bool:
        a, b = ((each.usd_per_hour.mean, each.p95_s.mean) for each in (one, other))
        return a != b and a[0] <= b[0] and a[1] <= b[1]

    assert not any(beats(other, each) for each in found for other in sound)
    for each in sound:
        same = (each.usd_per_hour.mean, each.p95_s.mean)
        on_it = any((other.usd_per_hour.mean, other.p95_s.mean) == same for other in found)
        assert on_it or any(beats(other, each) for other in sound)
    assert len(found) == len({each.usd_per_hour.mean for each in found})


def test_alike_are_those_whose_paired_difference_may_be_nothing() -> None:
    choice = a_try(1, 1.0, (1, 2, 3), latency_s_p95=[0.050, 0.060, 0.070])
    near = a_try(2, 1.0, (1, 2, 3), latency_s_p95=[0.051, 0.059, 0.0701])
    apart = a_try(3, 1.0, (1, 2, 3), latency_s_p95=[0.055, 0.065, 0.0751])  # always 5 ms more: the dice are shared
    dearer = a_try(4, 1.1, (1, 2, 3), latency_s_p95=[0.050, 0.060, 0.070])
    late = a_try(5, 1.0, (1, 2, 3), latency_s_p95=[0.050, 0.060, 0.070], slo_share=0.5)
    assert alike(choice, [choice, near, apart, dearer, late]) == [near]
