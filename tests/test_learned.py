"""The balancer that learns: it finds slow and failing replicas, forgets them, and floods nobody."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.fleet import Policy
from stages.policies.balancing import Balancer
from stages.policies.learned import LEAST, Moments, latency_drawn_s, line

SERVICE_S = 0.05
REPLICAS = 4


class Run:
    """Requests through a balancer to replicas that serve one at a time, first come first served."""

    def __init__(
        self,
        policy: Policy,
        slowness: Callable[[int, float], float] = lambda replica, now_s: 1.0,
        fails: Callable[[int, float], bool] = lambda replica, now_s: False,
        load: float = 0.6,
        duration_s: float = 80.0,
        seed: int = 1,
    ) -> None:
        balancer, free_s = Balancer(policy, seed), [0.0] * REPLICAS
        self.outstanding = dict.fromkeys(range(REPLICAS), 0)
        self.most = dict.fromkeys(range(REPLICAS), 0)  # outstanding at any time
        back: list[tuple[float, float, int, bool]] = []
        rate_rps = load * REPLICAS / SERVICE_S
        gaps_s = np.random.default_rng(seed).exponential(1 / rate_rps, int(rate_rps * duration_s))
        self.rows: list[tuple[float, int, float, bool]] = []  # when, where, latency, answered
        for now_s in np.cumsum(gaps_s).tolist():
            while back and back[0][0] <= now_s:
                at_s, latency_s, replica, ok = heapq.heappop(back)
                self.outstanding[replica] -= 1
                balancer.done(replica, latency_s, ok, at_s)
            replica = balancer.choose(0, self.outstanding, now_s)
            balancer.sent(replica, now_s)
            self.outstanding[replica] += 1
            self.most[replica] = max(self.most[replica], self.outstanding[replica])
            ok = not fails(replica, now_s)
            if ok:
                free_s[replica] = max(free_s[replica], now_s) + SERVICE_S * slowness(replica, now_s)
            end_s = free_s[replica] if ok else now_s + 0.001
            heapq.heappush(back, (end_s, end_s - now_s, replica, ok))
            self.rows.append((now_s, replica, end_s - now_s, ok))

    def share(self, replica: int, from_s: float, to_s: float = 1e9) -> float:
        """The share of the requests of that time that went to the replica."""
        there = [row[1] == replica for row in self.rows if from_s <= row[0] < to_s]
        return sum(there) / len(there)

    def p95_s(self, from_s: float, to_s: float = 1e9) -> float:
        """The 95th percentile of the latencies of that time."""
        return float(np.percentile([row[2] for row in self.rows if from_s <= row[0] < to_s and row[3]], 95))


def slow_from_40s(replica: int, now_s: float) -> float:
    return 4.0 if replica == 3 and now_s >= 40 else 1.0


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_when_a_replica_becomes_slow_by_4_it_beats_the_policies_that_do_not_look(seed: int) -> None:
    p95_s = {policy: Run(policy, slow_from_40s, seed=seed).p95_s(from_s=40.0) for policy in COMPARED}
    assert p95_s["learned"] < 0.2 * p95_s["round-robin"]
    assert p95_s["learned"] < p95_s["least-outstanding"]


COMPARED: tuple[Policy, ...] = ("learned", "least-outstanding", "round-robin")


@pytest.mark.parametrize("load", [0.3, 0.6, 0.9])
def test_among_equals_learning_costs_little(load: float) -> None:
    learned, least = (Run(policy, load=load).p95_s(from_s=5.0) for policy in ("learned", "least-outstanding"))
    assert learned < 1.25 * least


def test_a_replica_that_fails_at_once_draws_no_traffic() -> None:
    """To those that count outstanding requests a replica that fails at once looks idle."""
    runs = {policy: Run(policy, fails=lambda replica, now_s: replica == 3 and now_s >= 40) for policy in COMPARED}
    assert runs["learned"].share(3, from_s=40.0) < 0.03
    assert runs["least-outstanding"].share(3, from_s=40.0) > 0.3


def test_one_that_fails_half_of_its_requests_is_found_too() -> None:
    draws = np.random.default_rng(5)
    run = Run("learned", fails=lambda replica, now_s: replica == 3 and draws.random() < 0.5)
    assert run.share(3, from_s=5.0) < 0.05


@pytest.mark.parametrize("load", [0.2, 0.6])
def test_a_replica_that_recovers_gets_traffic_again(load: float) -> None:
    run = Run("learned", lambda replica, now_s: 4.0 if replica == 3 and now_s < 20 else 1.0, load=load)
    assert run.share(3, 5.0, 20.0) < 0.12
    assert run.share(3, 60.0) > 0.17


def test_a_replica_that_failed_gets_traffic_again() -> None:
    run = Run("learned", fails=lambda replica, now_s: replica == 3 and now_s < 20)
    assert run.share(3, 60.0) > 0.17


def test_the_best_replica_is_not_flooded() -> None:
    """Replica 0 is three times as fast as the others; two thirds of the fleet's capacity are asked for."""

    def slowness(replica: int, now_s: float) -> float:
        return 1 / 3 if replica == 0 else 1.0

    learned, least = (Run(policy, slowness, load=1.0) for policy in ("learned", "least-outstanding"))
    assert learned.p95_s(10.0) < 0.9 * least.p95_s(10.0)
    assert learned.most[0] <= 3 * (learned.most[1] + 1)


def test_a_replica_that_hangs_holds_few_requests() -> None:
    run = Run("learned", lambda replica, now_s: 1e9 if replica == 3 and now_s >= 40 else 1.0)
    least = Run("least-outstanding", lambda replica, now_s: 1e9 if replica == 3 and now_s >= 40 else 1.0)
    assert run.outstanding[3] <= 2 * least.outstanding[3] + 5


def test_one_that_is_forgotten_begins_anew() -> None:
    balancer = Balancer("learned", 1)
    for number in range(200):
        for replica, latency_s in ((0, 0.1), (1, 10.0)):
            balancer.sent(replica, number / 100)
            balancer.done(replica, latency_s, True, number / 100 + latency_s)
    counts = Counter(balancer.choose(0, {0: 0, 1: 0}, 2.0) for _ in range(200))
    assert counts[1] < 20
    balancer.forget(1)
    assert Counter(balancer.choose(0, {0: 0, 1: 0}, 2.0) for _ in range(200))[1] > 20


def test_without_any_evidence_it_takes_the_least_outstanding() -> None:
    balancer = Balancer("learned", 1)
    chosen = Counter(balancer.choose(0, {0: 8, 1: 1, 2: 8}, 0.0) for _ in range(200))
    assert chosen[1] > 150


ANSWERS = st.lists(st.tuples(st.integers(0, 100), st.floats(1e-4, 100.0)), max_size=30)


@given(answers=ANSWERS, x=st.integers(0, 200), draw=st.floats(-6.0, 6.0), mean_x=st.floats(0.0, 100.0))
def test_a_believed_latency_is_positive_and_grows_with_what_is_outstanding(
    answers: list[tuple[int, float]], x: int, draw: float, mean_x: float
) -> None:
    own = Moments()
    for outstanding, latency_s in answers:
        own = own.and_answer(outstanding, latency_s)
    assert latency_drawn_s(own, 0.1, mean_x, x, draw) > 0
    assert latency_drawn_s(own, 0.1, mean_x, x, 0.0) < latency_drawn_s(own, 0.1, mean_x, x + 1, 0.0)


@given(a=st.floats(0.001, 1.0), b=st.floats(0.001, 1.0), xs=st.lists(st.integers(0, 50), min_size=2, unique=True))
def test_a_line_is_found_where_the_answers_lie_on_one(a: float, b: float, xs: list[int]) -> None:
    moments = Moments()
    for x in xs:
        moments = moments.and_answer(x, a + b * x)
    if min(a, b) >= LEAST * moments.y / moments.n:
        assert line(moments) == pytest.approx((a, b), rel=1e-3, abs=1e-6)


def test_answers_that_get_faster_with_more_outstanding_are_not_believed() -> None:
    moments = Moments()
    for x in range(10):
        moments = moments.and_answer(x, 1.0 - 0.05 * x)
    _, b = line(moments)
    assert b > 0


def test_old_evidence_weighs_less() -> None:
    moments = Moments().and_answer(0, 1.0).and_answer(4, 2.0)
    assert moments.times(0.5) == Moments(1.0, 2.0, 1.5, 8.0, 4.0, 2.5)
