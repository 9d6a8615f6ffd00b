"""Balancing: each policy by hand, what holds for all of them, and sticky keys that stay where they are."""

from __future__ import annotations

import math
from collections import Counter
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.fleet import Policy
from stages.policies import balancing
from stages.policies.balancing import (
    Balancer,
    Latencies,
    Ring,
    latency_weighted,
    least_outstanding,
    power_of_two,
    random_choice,
    round_robin,
    sticky,
    ticket_of,
)

POLICIES: tuple[Policy, ...] = get_args(Policy)
OUTSTANDING = st.dictionaries(st.integers(0, 20), st.integers(0, 50), min_size=1, max_size=12)
DRAWS = st.floats(0.0, 1.0, exclude_max=True)
KEYS = range(2000)


def ring_of(*replicas: int) -> Ring:
    ring = Ring()
    ring.hold(replicas)
    return ring


def homes(ring: Ring, replicas: tuple[int, ...]) -> dict[int, int]:
    """Where each key belongs while nobody is busy."""
    idle = dict.fromkeys(replicas, 0)
    return {key: sticky(key, idle, ring, 1.25) for key in KEYS}


@pytest.mark.parametrize(
    ("replicas", "last", "chosen"),
    [([0, 1, 2], -1, 0), ([0, 1, 2], 0, 1), ([0, 1, 2], 2, 0), ([0, 2], 0, 2), ([5], 5, 5), ([3, 1], 7, 1)],
)
def test_round_robin_goes_by_number_and_around(replicas: list[int], last: int, chosen: int) -> None:
    assert round_robin(replicas, last) == chosen


def test_round_robin_gives_every_replica_its_share_while_one_comes_and_goes() -> None:
    balancer = Balancer("round-robin", 1)
    counts: Counter[int] = Counter()
    for number in range(300):
        replicas = (0, 1, 2) if number % 2 else (0, 1, 2, 3)
        counts[balancer.choose(0, dict.fromkeys(replicas, 0), 0.0)] += 1
    assert min(counts[0], counts[1], counts[2]) > 60


@pytest.mark.parametrize(("draw", "chosen"), [(0.0, 2), (0.33, 2), (0.34, 4), (0.67, 9), (0.9999, 9)])
def test_a_random_choice_divides_the_draw_evenly(draw: float, chosen: int) -> None:
    assert random_choice({9: 0, 2: 0, 4: 0}, draw) == chosen


@pytest.mark.parametrize("policy", ["random", "power-of-two"])
def test_the_dice_follow_the_ticket_of_a_request_whatever_came_before(policy: Policy) -> None:
    idle = dict.fromkeys(range(4), 0)
    one, other = Balancer(policy, 1), Balancer(policy, 2)
    for key in KEYS[:7]:
        other.choose(key, idle, 0.0)
    chosen = [one.choose(0, idle, 0.0, ticket_of(7, number)) for number in range(2000)]
    assert chosen == [other.choose(0, idle, 0.0, ticket_of(7, number)) for number in range(2000)]
    assert chosen != [one.choose(0, idle, 0.0, ticket_of(8, number)) for number in range(2000)]
    assert all(400 < count < 600 for count in Counter(chosen).values())


def test_the_dice_of_a_very_long_schedule_are_thrown_alike_and_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = balancing.first_dice(91, 8)
    monkeypatch.setattr(balancing, "_DICE_KEPT", 4)
    before = balancing._kept_dice.cache_info()
    assert np.array_equal(balancing.first_dice(91, 8), kept)
    assert balancing._kept_dice.cache_info() == before


def test_the_least_outstanding_are_taken_in_turn() -> None:
    assert least_outstanding({0: 3, 1: 1, 2: 2}, last=1) == 1
    assert [least_outstanding({0: 1, 1: 1, 2: 5, 3: 1}, last) for last in (-1, 0, 1, 2, 3)] == [0, 1, 3, 3, 0]


@given(outstanding=OUTSTANDING, last=st.integers(-1, 20))
def test_nobody_has_less_outstanding_than_the_chosen(outstanding: dict[int, int], last: int) -> None:
    assert outstanding[least_outstanding(outstanding, last)] == min(outstanding.values())


@given(outstanding=OUTSTANDING, first=DRAWS, second=DRAWS)
def test_of_two_choices_the_busiest_is_never_taken_where_another_is_less_busy(
    outstanding: dict[int, int], first: float, second: float
) -> None:
    busiest = max(outstanding.values())
    chosen = power_of_two(outstanding, first, second)
    if list(outstanding.values()).count(busiest) == 1 and len(outstanding) > 1:
        assert outstanding[chosen] < busiest


def test_two_choices_reach_every_replica_but_the_busiest() -> None:
    draws = [number / 20 for number in range(20)]
    chosen = Counter(power_of_two({0: 4, 1: 4, 2: 4, 3: 9}, first, second) for first in draws for second in draws)
    assert set(chosen) == {0, 1, 2}
    assert min(chosen.values()) > 100


def test_keys_stand_where_they_stood_in_any_process() -> None:
    """Pinned, because Python's own hash of a text would give other places in each process."""
    ring = ring_of(0, 1, 2)
    assert [sticky(key, {0: 0, 1: 0, 2: 0}, ring, 1.25) for key in range(20)] == HOMES_OF_20


HOMES_OF_20 = [2, 2, 0, 0, 2, 1, 0, 0, 0, 0, 2, 0, 1, 0, 2, 0, 2, 1, 0, 2]


def test_a_key_is_the_same_as_a_number_and_as_a_text() -> None:
    ring, idle = ring_of(0, 1, 2, 3), dict.fromkeys(range(4), 0)
    assert all(sticky(key, idle, ring, 1.25) == sticky(str(key), idle, ring, 1.25) for key in range(100))


def test_keys_are_spread_over_the_replicas() -> None:
    counts = Counter(homes(ring_of(*range(4)), (0, 1, 2, 3)).values())
    assert all(0.6 * len(KEYS) / 4 < counts[replica] < 1.4 * len(KEYS) / 4 for replica in range(4))


@pytest.mark.parametrize("leaver", range(5))
def test_when_a_replica_leaves_only_its_own_keys_move(leaver: int) -> None:
    ring = ring_of(*range(5))
    before = homes(ring, (0, 1, 2, 3, 4))
    left = tuple(replica for replica in range(5) if replica != leaver)
    out_of_rotation = homes(ring, left)
    ring.remove(leaver)
    gone = homes(ring, left)
    assert gone == out_of_rotation
    moved = [key for key in KEYS if gone[key] != before[key]]
    assert moved == [key for key in KEYS if before[key] == leaver]
    assert len({gone[key] for key in moved}) == 4, "its keys are spread over those that stay"
    ring.hold([leaver])
    assert homes(ring, (0, 1, 2, 3, 4)) == before


@given(outstanding=OUTSTANDING, key=st.integers(0, 1000), bound=st.floats(1.0, 4.0))
def test_a_sticky_replica_is_never_sent_more_than_its_bound(
    outstanding: dict[int, int], key: int, bound: float
) -> None:
    ring = ring_of(*outstanding, 21, 22)  # some on the ring may not be chosen just now
    chosen = sticky(key, outstanding, ring, bound)
    assert outstanding[chosen] + 1 <= math.ceil(bound * (sum(outstanding.values()) + 1) / len(outstanding))


def test_one_hot_key_fills_its_home_to_the_bound_and_then_the_next() -> None:
    balancer, outstanding = Balancer("sticky", 1, 1.5), dict.fromkeys(range(4), 0)
    for _ in range(400):
        outstanding[balancer.choose("hot", outstanding, 0.0)] += 1
    assert sorted(outstanding.values()) == [0, 100, 150, 150]


def test_latency_weighs_what_is_outstanding() -> None:
    assert latency_weighted({0: 0, 1: 0}, {0: 0.2, 1: 0.1}, last=-1) == 1
    assert latency_weighted({0: 0, 1: 2}, {0: 0.2, 1: 0.1}, last=-1) == 0
    assert latency_weighted({0: 0, 1: 1}, {0: 0.2, 1: 0.1}, last=0) == 1, "a tie goes by turn"


def test_a_replica_without_a_latency_counts_as_the_best_of_the_others() -> None:
    assert latency_weighted({0: 0, 1: 0, 2: 0}, {0: 0.1, 1: 0.3}, last=0) == 2
    assert latency_weighted({0: 0, 1: 0, 2: 1}, {0: 0.1, 1: 0.3}, last=0) == 0
    assert latency_weighted({0: 1, 1: 0}, {}, last=-1) == 1


def test_mean_latencies_follow_and_fade() -> None:
    latencies = Latencies()
    latencies.note(0, 0.1, 0.0)
    for tenth in range(1, 301):
        latencies.note(0, 0.4, tenth / 10)
    assert latencies.at(30.0)[0] == pytest.approx(0.4, rel=0.1)
    assert latencies.at(60.0)[0] == pytest.approx(latencies.at(30.0)[0] * math.exp(-3))
    latencies.forget(0)
    assert latencies.at(60.0) == {}


_STEPS = st.lists(
    st.tuples(st.sets(st.integers(0, 6), min_size=1), st.integers(0, 50), st.booleans(), st.floats(0.0, 2.0)),
    min_size=1,
    max_size=30,
)


def _walk(policy: Policy, steps: list[tuple[set[int], int, bool, float]]) -> list[int]:
    """What a balancer chooses while replicas come and go, answer and fail."""
    balancer, chosen, now_s = Balancer(policy, 7), list[int](), 0.0
    counts: Counter[int] = Counter()
    for candidates, key, ok, took_s in steps:
        replica = balancer.choose(key, {each: counts[each] for each in candidates}, now_s)
        assert replica in candidates
        balancer.sent(replica, now_s)
        counts[replica] += 1
        chosen.append(replica)
        now_s += took_s
        if key % 3:
            counts[replica] -= 1
            balancer.done(replica, took_s, ok, now_s)
        if key % 10 == 0:
            balancer.forget(key % 7)
    return chosen


@pytest.mark.parametrize("policy", POLICIES)
@given(steps=_STEPS)
@settings(max_examples=40)
def test_the_chosen_is_a_candidate_and_follows_from_the_seed(
    policy: Policy, steps: list[tuple[set[int], int, bool, float]]
) -> None:
    assert _walk(policy, steps) == _walk(policy, steps)


@pytest.mark.parametrize("policy", POLICIES)
def test_equal_replicas_get_equal_shares_of_a_quiet_service(policy: Policy) -> None:
    balancer, counts = Balancer(policy, 3), Counter[int]()
    for number in range(1200):
        now_s = number / 10
        replica = balancer.choose(number, dict.fromkeys(range(3), 0), now_s)
        balancer.sent(replica, now_s)
        balancer.done(replica, 0.05, True, now_s + 0.05)
        counts[replica] += 1
    assert all(250 < counts[replica] < 550 for replica in range(3)), counts


@pytest.mark.parametrize("policy", POLICIES)
def test_without_a_replica_there_is_nothing_to_choose(policy: Policy) -> None:
    with pytest.raises(ValueError, match="no replica to choose"):
        Balancer(policy, 1).choose("key", {}, 0.0)


def test_an_unknown_policy_is_told() -> None:
    with pytest.raises(ValueError, match="'fastest' is no balancing policy"):
        Balancer("fastest", 1).choose(0, {0: 0}, 0.0)  # type: ignore[arg-type]
