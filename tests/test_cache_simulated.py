"""The simulator's cache: hit ratios against Che's approximation, one computation for a stampede, nobody forgotten."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from simulator import theory
from simulator.cache import kept_bytes
from simulator.run import beyond_calibration, simulate
from stages import traffic
from stages.cache import Cache
from stages.calibration import Calibration
from stages.metrics import summarise
from stages.records import Records
from stages.spec import Model, Stage, load_stage
from stages.traffic import Schedule
from tests.made import Run, a_calibration, a_stage, random_fleets
from tests.test_simulator_gateway import column, costing
from tests.test_theory import assert_agrees

ENTRY_BYTES = kept_bytes(Model(name="digits"))
ALWAYS_S = a_calibration({1: (1.0,)})
AT_ONCE = a_calibration({1: (1e-6,)})


def a_cached_stage(
    replicas: int = 1,
    *,
    queue: int = 256,
    timeout_s: float = 3600.0,
    traffic: dict[str, Any] | None = None,
    gateway: dict[str, Any] | None = None,
    **cache: Any,
) -> Stage:
    """A stage whose replicas take one request at a time, with a cache in front."""
    return a_stage(
        fleet={"replicas": replicas},
        gateway={"policy": "round-robin", "upstream_timeout_s": 3600.0, **(gateway or {})},
        cache=cache,
        admission={"max_queue_length": queue},
        traffic={"timeout_s": timeout_s, **(traffic or {})},
    )


def asked(*requests: tuple[float, int]) -> Schedule:
    """Requests as (when, for which item), in order."""
    times_s = np.array([time_s for time_s, _ in requests])
    return Schedule(times_s, np.array([item for _, item in requests]), float(times_s.max()) + 1.0)


def run(stage: Stage, *requests: tuple[float, int], calibration: Calibration = ALWAYS_S) -> Records:
    return simulate(stage, asked(*requests), calibration=calibration)


def computed(records: Records) -> int:
    return int(records.batches["batch_size"].sum())


# ---- hit, miss, and what they cost ---------------------------------------------------------------------------


def test_what_was_asked_before_is_answered_at_once_and_by_nobody() -> None:
    records = run(a_cached_stage(), (0.0, 7), (2.0, 7), (3.0, 8), (5.0, 7))
    requests = records.requests
    assert column(requests, "cache") == ["miss", "hit", "miss", "hit"]
    assert column(requests, "replied_s") == [1.0, 2.0, 4.0, 5.0]
    assert column(requests, "tries") == [1, 0, 1, 0]
    hits = requests.filter(pl.col("cache") == "hit")
    for name in ("replica", "arrived_s", "started_s", "finished_s", "batch", "batch_size"):
        assert hits[name].null_count() == 2, name
    assert set(hits["outcome"]) == {"ok"}
    assert computed(records) == 2
    found = summarise(records, slo_latency_s=0.5)
    assert (found["hit_ratio"], found["joined_ratio"], found["goodput_rps"]) == (0.5, 0.0, 2 / 6)


def test_without_a_cache_nobody_looks() -> None:
    records = simulate(a_stage(gateway={}), asked((0.0, 1), (2.0, 1)), calibration=ALWAYS_S)
    assert set(records.requests["cache"]) == {""}
    records = simulate(a_stage(), asked((0.0, 1), (2.0, 1)), calibration=ALWAYS_S)
    assert set(records.requests["cache"]) == {""}


def test_a_kept_answer_takes_the_loop_once_and_as_long_as_it_was_measured() -> None:
    hops = {"send_quantiles_s": (0.5,), "reply_quantiles_s": (2.0,), "busy_s": 0.5}
    calibration = costing(ALWAYS_S, **hops, hit_busy_s=0.75, hit_reply_quantiles_s=(4.0,))
    stage = a_cached_stage()
    requests = run(stage, (0.0, 1), (20.0, 1), (20.0, 1), calibration=calibration).requests
    # On its way 0.25 s and then 0.75 s on the loop; 4 s from there, of which the loop had 0.5 s by then.
    assert column(requests, "gateway_in_s")[1:] == column(requests, "gateway_out_s")[1:] == [21.0, 21.75]
    assert column(requests, "replied_s")[1:] == [24.5, 25.25]
    assert not [note for note in beyond_calibration(stage, calibration) if "Calibrated without a cache" in note]


def test_without_a_measurement_a_kept_answer_costs_half_of_a_computed_one() -> None:
    calibration = costing(ALWAYS_S, send_quantiles_s=(0.5,), reply_quantiles_s=(2.0,), busy_s=0.5)
    stage = a_cached_stage()
    requests = run(stage, (0.0, 1), (20.0, 1), calibration=calibration).requests
    assert (column(requests, "gateway_out_s")[1], column(requests, "replied_s")[1]) == (20.5, 22.5)
    assert [note for note in beyond_calibration(stage, calibration) if "Calibrated without a cache" in note]


def test_an_answer_that_is_too_old_is_computed_again() -> None:
    """Stored at 1 s and at 5 s; fresh for 2 s each time."""
    requests = run(a_cached_stage(ttl_s=2.0), (0.0, 1), (2.75, 1), (4.0, 1), (6.75, 1), (7.0, 1)).requests
    assert column(requests, "cache") == ["miss", "hit", "miss", "hit", "miss"]


def test_a_full_gateway_still_gives_what_it_has_kept() -> None:
    stage = a_cached_stage(gateway={"max_in_flight": 1})
    requests = run(stage, (0.0, 1), (2.0, 2), (2.5, 1), (2.5, 3), (2.5, 2)).requests
    assert column(requests, "cache") == ["miss", "miss", "hit", "miss", "joined"]
    assert column(requests, "reason") == ["", "", "", "gateway_full", "gateway_full"]
    assert column(requests, "replied_s")[2] == 2.5


@pytest.mark.parametrize("name", ["lru", "lfu", "s3-fifo"])
def test_every_policy_is_asked(name: str) -> None:
    """Room for two: of 1, 1, 2, 3 the policies keep different ones."""
    stage = a_cached_stage(policy=name, max_bytes=max(1024, 2 * ENTRY_BYTES))
    times = [(2.0 * n, item) for n, item in enumerate((1, 1, 1, 2, 3, 1, 2))]
    found = column(run(stage, *times).requests, "cache")
    assert found[:5] == ["miss", "hit", "hit", "miss", "miss"]
    assert found[5] == ("miss" if name == "lru" else "hit")


def test_a_cache_in_which_nothing_is_found_twice_changes_nothing() -> None:
    stage = load_stage("cached", {"traffic.duration_s": 3.0, "traffic.rate.rate_rps": 200.0})
    arrivals_s = traffic.schedule(stage.traffic).arrivals_s
    schedule = Schedule(arrivals_s, np.arange(arrivals_s.size), 3.0)
    calibration = costing(a_calibration(dict.fromkeys(range(1, 9), (0.01,))), busy_s=0.001, hit_busy_s=0.0004)
    plain = stage.model_copy(update={"cache": None})
    with_it, without = (simulate(each, schedule, calibration=calibration) for each in (stage, plain))
    assert set(with_it.requests["cache"]) == {"miss"}
    assert_frame_equal(with_it.requests.drop("cache"), without.requests.drop("cache"), check_exact=True)
    assert_frame_equal(with_it.batches, without.batches, check_exact=True)


# ---- stampedes -----------------------------------------------------------------------------------------------


def test_a_stampede_costs_one_computation() -> None:
    records = run(a_cached_stage(2), *[(0.0, 5)] * 50, *[(0.5, 5)] * 50, (1.0, 5))
    requests = records.requests
    assert computed(records) == 1
    assert column(requests, "cache")[:100] == ["miss"] + ["joined"] * 99
    assert set(column(requests, "replied_s")) == {1.0}
    assert set(column(requests, "outcome")) == {"ok"}
    joined = requests.filter(pl.col("cache") == "joined")
    assert joined["replica"].null_count() == joined["started_s"].null_count() == joined.height


def test_without_single_flight_everybody_computes() -> None:
    records = run(a_cached_stage(2, single_flight=False), *[(0.0, 5)] * 50)
    assert computed(records) == 50
    assert set(column(records.requests, "cache")) == {"miss"}


def test_those_who_wait_are_answered_one_after_the_other_by_the_loop() -> None:
    """The leader is back at 1 + 1/2 s; each of those who wait takes the loop for half of a hit's 1/4 s."""
    calibration = costing(ALWAYS_S, busy_s=0.5, hit_busy_s=0.25)
    requests = run(a_cached_stage(), (0.0, 5), (0.25, 5), (0.375, 5), calibration=calibration).requests
    assert column(requests, "gateway_in_s") == [0.25, 0.375, 0.5]
    assert column(requests, "gateway_out_s") == [1.5, 1.625, 1.75]


def test_who_waited_longest_leads_when_the_leader_leaves() -> None:
    stage = a_cached_stage(timeout_s=0.5)
    records = run(stage, (0.0, 5), (0.25, 5), (0.375, 5), (1.0, 5))
    requests = records.requests
    # The first leaves at 0.5 s, the second at 0.75 s and the third at 0.875 s: each leads for a while.
    assert column(requests, "cache") == ["miss"] * 4
    assert set(column(requests, "reason")) == {"client_timeout"}
    assert computed(records) == 4, "replicas do not hear of those who leave"


def test_who_has_left_while_it_waited_leads_nobody() -> None:
    """All three leave at 0.5 s. The loop comes to the second at 0.625 s, and finds nobody."""
    calibration = costing(ALWAYS_S, hit_busy_s=0.25)
    records = run(a_cached_stage(timeout_s=0.5), (0.0, 5), (0.0, 5), (0.0, 5), (2.0, 5), calibration=calibration)
    assert column(records.requests, "cache") == ["miss", "joined", "joined", "miss"]
    assert set(column(records.requests, "reason")) == {"client_timeout"}
    assert computed(records) == 2


def test_a_leader_that_is_refused_hands_on_to_the_next() -> None:
    """Item 1 computes until 1.25 s, item 2 has the only place in the queue: item 3 is refused, twice."""
    calibration = costing(ALWAYS_S, forward_quantiles_s=(0.25,), back_quantiles_s=(0.25,))
    stage = a_cached_stage(queue=1, gateway={"retries_max": 0})
    records = run(stage, (0.0, 1), (0.0625, 2), (0.25, 3), (0.5, 3), (1.0, 3), (1.125, 3), calibration=calibration)
    requests = records.requests
    assert column(requests, "reason") == ["", "", "queue_full", "queue_full", "", ""]
    assert column(requests, "cache") == ["miss", "miss", "miss", "miss", "miss", "joined"]
    assert column(requests, "gateway_out_s")[2:4] == [0.75, 1.25]
    assert column(requests, "gateway_out_s")[4] == column(requests, "gateway_out_s")[5]
    assert computed(records) == 3


def test_a_long_line_of_leaders_that_fail_is_worked_off() -> None:
    """A thousand wait, and every one of them is refused in turn: no replica is in rotation any more."""
    stage = a_cached_stage(gateway={"upstream_timeout_s": 2.0, "retries_max": 0, "eject_after": 1, "eject_s": 60.0})
    slow = a_calibration({1: (8.0,)})
    requests = run(stage, (0.0, 5), *[(0.5, 5)] * 1000, calibration=slow).requests
    assert column(requests, "reason") == ["upstream_timeout"] + ["no_replica"] * 1000
    assert set(column(requests, "gateway_out_s")) == {2.0}


def test_who_was_refused_while_waiting_takes_none_of_the_loops_time() -> None:
    """Six wait for the first one's answer, and five of them have no room: only one shares it, in 0.25 s at 4 s."""
    stage = a_cached_stage(gateway={"max_in_flight": 2})
    calibration = costing(a_calibration({1: (4.0,)}), hit_busy_s=0.5)
    requests = run(stage, *[(0.0, 5)] * 7, (4.125, 5), calibration=calibration).requests
    assert column(requests, "cache") == ["miss", *["joined"] * 6, "hit"]
    assert column(requests, "reason") == ["", "", *["gateway_full"] * 5, ""]
    assert column(requests, "gateway_out_s")[1] == 4.25
    assert column(requests, "gateway_out_s")[-1] == 4.75


# ---- against theory ------------------------------------------------------------------------------------------

RATE_RPS, ITEMS, DURATION_S = 100.0, 400, 24.0


def zipf_stage(entries: int, exponent: float = 1.0, **cache: Any) -> tuple[Stage, np.ndarray]:
    """A stage with room for so many entries, and the rate of each of its items."""
    plan = {
        "rate": {"shape": "constant", "rate_rps": RATE_RPS},
        "items": {"popularity": "zipf", "count": ITEMS, "exponent": exponent},
        "duration_s": DURATION_S,
    }
    stage = a_cached_stage(traffic=plan, max_bytes=entries * ENTRY_BYTES, **cache)
    return stage, traffic.popularity(stage.traffic.items) * RATE_RPS


def hits_of(stage: Stage, seed: int, part: slice) -> float:
    """The hit ratio of that part of a run's requests, in order."""
    schedule = traffic.schedule(stage.traffic, seed=seed)
    requests = simulate(stage, schedule, calibration=AT_ONCE, seed=seed).requests
    return float((requests["cache"] == "hit").to_numpy()[part].mean())


@pytest.mark.parametrize(("entries", "exponent", "about"), [(8, 0.8, 0.2), (60, 1.0, 0.6), (150, 1.4, 0.95)])
def test_hit_ratio_of_lru_is_ches(entries: int, exponent: float, about: float) -> None:
    stage, rates_rps = zipf_stage(entries, exponent)
    closed_form = theory.lru_hit_ratio(rates_rps, entries)
    assert closed_form == pytest.approx(about, abs=0.1)
    assert_agrees(lambda seed: hits_of(stage, seed, slice(1000, None)), closed_form)


def test_hit_ratio_of_lru_with_a_ttl_is_what_was_derived() -> None:
    """A ttl of about the characteristic time, so that both count."""
    _, rates_rps = zipf_stage(60)
    ttl_s = 1.5 * theory.characteristic_time_s(rates_rps, 60)
    stage, _ = zipf_stage(60, ttl_s=ttl_s)
    closed_form = theory.lru_hit_ratio(rates_rps, 60, ttl_s)
    assert closed_form < 0.95 * theory.lru_hit_ratio(rates_rps, 60)
    assert_agrees(lambda seed: hits_of(stage, seed, slice(1000, None)), closed_form)


def test_hit_ratio_while_the_cache_warms_up() -> None:
    stage, rates_rps = zipf_stage(200)
    closed_form = theory.warming_hit_ratio(rates_rps, 200, DURATION_S)
    assert closed_form < 0.97 * theory.lru_hit_ratio(rates_rps, 200)
    assert_agrees(lambda seed: hits_of(stage, seed, slice(None)), closed_form)


def test_popularity_that_drifts_costs_hits() -> None:
    stage, _ = zipf_stage(60)
    items = stage.traffic.items.model_copy(update={"drift_interval_s": 0.5, "drift_share": 1.0})
    drifting = stage.model_copy(update={"traffic": stage.traffic.model_copy(update={"items": items})})
    still, moved = (hits_of(each, 1, slice(1000, None)) for each in (stage, drifting))
    assert moved < still - 0.05


# ---- nobody is forgotten -------------------------------------------------------------------------------------


def with_items(schedule: Schedule, distinct: int, seed: int) -> Schedule:
    items = np.random.default_rng(seed).integers(0, distinct, schedule.arrivals_s.size)
    return Schedule(schedule.arrivals_s, items, schedule.duration_s)


def cached(stage: Stage, **cache: Any) -> Stage:
    return stage.model_copy(update={"cache": Cache(**cache)})


def check(records: Records) -> None:
    """Every request has one end; hits and joined ones were nowhere, and what was given had been computed."""
    requests = records.requests
    assert requests["request"].to_list() == list(range(requests.height))
    for name in ("outcome", "reason", "replied_s", "gateway_in_s"):
        assert requests[name].null_count() == 0
    assert not requests.filter(pl.col("reason") == "unfinished").height
    started = requests.filter(pl.col("started_s").is_not_null())
    assert started.height == computed(records)
    assert set(started["cache"]) <= {"miss"}
    first_s = _first_answer_s(requests)
    for item, found, reason, in_s, out_s in requests.select(
        "item", "cache", "reason", "gateway_in_s", "gateway_out_s"
    ).iter_rows():
        if found == "hit":
            assert first_s[item] <= in_s == out_s
        elif found == "joined" and reason == "":
            assert first_s[item] <= out_s >= in_s


def _first_answer_s(requests: pl.DataFrame) -> dict[int, float]:
    """When the first computed answer of each item was at the gateway, whether or not its client had left."""
    answered = requests.filter(pl.col("cache") == "miss", pl.col("finished_s").is_not_null())
    answered = answered.filter(pl.col("gateway_out_s").is_not_null(), pl.col("reason").is_in(["", "client_timeout"]))
    return dict(answered.group_by("item").agg(pl.col("gateway_out_s").min()).iter_rows())


@settings(max_examples=60, deadline=None)
@given(
    run=random_fleets(),
    distinct=st.integers(1, 8),
    seed=st.integers(0, 2**32),
    entries=st.integers(2, 6),
    policy=st.sampled_from(["lru", "lfu", "s3-fifo"]),
    ttl_s=st.none() | st.sampled_from([0.25, 1.0]),
    single_flight=st.booleans(),
)
def test_random_fleets_with_a_cache_forget_nobody(
    run: Run, distinct: int, seed: int, entries: int, policy: Any, ttl_s: float | None, single_flight: bool
) -> None:
    stage, schedule, calibration = run
    stage = cached(
        stage, policy=policy, max_bytes=max(1024, entries * ENTRY_BYTES), ttl_s=ttl_s, single_flight=single_flight
    )
    records = simulate(stage, with_items(schedule, distinct, seed), calibration=calibration, seed=seed)
    check(records)
    assert single_flight or not records.requests.filter(pl.col("cache") == "joined").height


@settings(max_examples=30, deadline=None)
@given(run=random_fleets(refusing=False), distinct=st.integers(1, 8), seed=st.integers(0, 2**32))
def test_where_nobody_is_refused_each_item_is_computed_once(run: Run, distinct: int, seed: int) -> None:
    stage, schedule, calibration = run
    schedule = with_items(schedule, distinct, seed)
    records = simulate(cached(stage), schedule, calibration=calibration, seed=seed)
    check(records)
    assert computed(records) == np.unique(schedule.items).size
    assert set(records.requests["outcome"]) <= {"ok"}


def test_a_closed_loop_finds_what_its_users_asked_before() -> None:
    stage = a_cached_stage(
        traffic={
            "loop": "closed",
            "users": 5,
            "think_time_s": 0.5,
            "duration_s": 30.0,
            "items": {"count": 4},
            "rate": None,
        }
    )
    records = simulate(stage, calibration=ALWAYS_S)
    check(records)
    assert computed(records) == 4
    assert summarise(records, 1.0)["hit_ratio"] > 0.9


def test_the_projects_stage_answers_more_than_its_devices_could() -> None:
    stage = load_stage("cached", {"traffic.duration_s": 20.0})
    plain = stage.model_copy(update={"cache": None})
    with_it, without = simulate(stage), simulate(plain)
    assert summarise(with_it, stage.slo.latency_s)["hit_ratio"] > 0.5
    assert summarise(without, stage.slo.latency_s)["shed_share"] > 0.05
    assert summarise(with_it, stage.slo.latency_s)["shed_share"] == 0.0
