"""The fast ways give the record of the general one, bit for bit: in all that they do, and by not doing the rest."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from simulator import fast, fast_fleet, run
from stages.calibration import Calibration, GatewayCosts
from stages.fleet import NGINX_POLICIES
from stages.policies.balancing import Balancer, known_choices, ticket_of
from stages.records import Records
from stages.spec import Stage, load_stage, stage_files, with_overrides
from stages.traffic import Schedule, at_rate, schedule
from tests.made import POLICIES, Run, a_calibration, a_stage, random_fleets, random_runs

COSTS = GatewayCosts(
    send_quantiles_s=(0.0004, 0.0007, 0.003),
    forward_quantiles_s=(0.0003, 0.0005),
    back_quantiles_s=(0.0004, 0.0006, 0.0011),
    reply_quantiles_s=(0.0002, 0.0009),
    busy_s=0.0001,
)
HOST: dict[str, Any] = {
    "send_quantiles_s": (0.0003, 0.0006, 0.002),
    "reply_quantiles_s": (0.0002, 0.0004),
    "wake_s": 0.00008,
    "between_batches_s": 0.00002,
    "reply_per_item_s": 0.00003,
}


def same(one: Records, other: Records) -> None:
    assert one.window_s == other.window_s
    for name in ("requests", "batches", "replicas", "scaling"):
        assert_frame_equal(getattr(one, name), getattr(other, name), check_exact=True)


def calibrated(stage: Stage, busy_s: float | None = None) -> Calibration:
    """Sampled service times and hops for the stage's batches; a gateway of its own for `busy_s`."""
    sizes = range(1, stage.batching.max_batch_size + 1)
    service = {size: tuple(0.004 + 0.001 * size * (1 + 0.1 * place) for place in range(3)) for size in sizes}
    gateway = None if busy_s is None else COSTS.model_copy(update={"busy_s": busy_s})
    return a_calibration(service, **HOST).model_copy(update={"gateway": gateway})


@st.composite
def fleets_without_ties(draw: st.DrawFn) -> tuple[Stage, Calibration | None, int]:
    """A fleet with sampled times at any load, with refusals, retries and deadlines, and with a gateway that costs."""
    replicas, size = draw(st.integers(1, 5)), draw(st.integers(1, 6))
    rate_rps = draw(st.floats(20.0, 150.0 * replicas * size))
    gateway = {
        "policy": draw(st.sampled_from(POLICIES)),
        "retries_max": draw(st.integers(0, 3)),
        "retry_budget_share": draw(st.sampled_from([0.0, 0.1, 1.0])),
        "max_in_flight": size + draw(st.integers(0, 60)),
        "connections_per_replica": size + draw(st.integers(0, 30)),
    }
    if gateway["retries_max"] == 0:
        del gateway["retry_budget_share"]
    if gateway["policy"] == "sticky":
        gateway["sticky_load_bound"] = draw(st.sampled_from([1.0, 1.25, 10.0]))
    if gateway["policy"] in NGINX_POLICIES and draw(st.booleans()):
        unread = ("sticky_load_bound", "retry_budget_share")
        gateway = {name: value for name, value in gateway.items() if name not in unread} | {"engine": "nginx"}
    stage = a_stage(
        fleet={"replicas": replicas},
        batching={"max_batch_size": size, "batch_wait_timeout_s": draw(st.sampled_from([0.0, 0.003]))},
        admission={
            "max_queue_length": size + draw(st.integers(0, 12)),
            "deadline_s": draw(st.sampled_from([None, None, 0.03])),
        },
        gateway=gateway,
        traffic={
            "rate": {"shape": "constant", "rate_rps": rate_rps},
            "duration_s": 160.0 / rate_rps,
            "timeout_s": draw(st.sampled_from([3600.0, 3600.0, 0.05])),
        },
    )
    return stage, calibrated(stage, draw(st.sampled_from([None, 0.0, 0.0001, 0.002]))), draw(st.integers(0, 2**32))


@settings(max_examples=40, deadline=None)
@given(fleets_without_ties())
def test_any_fleet_is_the_same(fleet: tuple[Stage, Calibration | None, int]) -> None:
    stage, calibration, seed = fleet
    same(
        fast.simulate(stage, calibration=calibration, seed=seed),
        run.simulate(stage, calibration=calibration, seed=seed),
    )


@settings(max_examples=40, deadline=None)
@given(random_fleets(), st.integers(0, 2**32))
def test_fleets_with_bursts_and_ties_are_the_same(fleet: Run, seed: int) -> None:
    stage, offered, calibration = fleet
    same(
        fast.simulate(stage, offered, calibration=calibration, seed=seed),
        run.simulate(stage, offered, calibration=calibration, seed=seed),
    )


@settings(max_examples=40, deadline=None)
@given(random_fleets(refusing=False), st.sampled_from(["round-robin", "random", "sticky"]), st.integers(0, 2**32))
def test_fleets_whose_choices_are_known_are_the_same(fleet: Run, policy: str, seed: int) -> None:
    stage, offered, calibration = fleet
    gateway = stage.gateway.model_copy(update={"policy": policy, "sticky_load_bound": 10.0}) if stage.gateway else None
    stage = stage.model_copy(update={"gateway": gateway})
    costs = calibration.gateway.model_copy(update={"busy_s": 0.0}) if calibration.gateway else None
    calibration = calibration.model_copy(update={"gateway": costs})
    same(
        fast.simulate(stage, offered, calibration=calibration, seed=seed),
        run.simulate(stage, offered, calibration=calibration, seed=seed),
    )


METERED = {"interval_s": 0.25, "scrape_interval_s": 0.25, "window_s": 0.5}
BEHAVIOUR = {"up": {"period_s": 0.25}, "down": {"stabilisation_window_s": 0.5, "period_s": 0.25}}
SCALINGS: dict[str, dict[str, Any]] = {
    **{
        metric: {"metric": metric, "target": target, **METERED, **BEHAVIOUR}
        for metric, target in (
            ("concurrency", 3.0),
            ("utilisation", 0.6),
            ("queue-depth", 1.5),
            ("rate", 60.0),
            ("latency-p95", 0.03),
        )
    },
    "keda": {
        "policy": "keda",
        "min_replicas": 0,
        "target": 3.0,
        "polling_interval_s": 0.5,
        "cooldown_s": 0.3,
        **METERED,
        **BEHAVIOUR,
    },
    "step": {"policy": "step", "above": 4.0, "below": 1.0, "cooldown_s": 0.3, **METERED},
    "scheduled": {
        "policy": "scheduled",
        "interval_s": 0.25,
        "schedule": [{"at_s": 0.3, "replicas": 4}, {"at_s": 1.2, "replicas": 1}, {"at_s": 2.0, "replicas": 3}],
    },
}


@st.composite
def scaled_fleets(draw: st.DrawFn) -> tuple[Stage, Calibration | None, int]:
    """A fleet that comes and goes with a spike, a gateway that may cost, and few places in the queue."""
    size, scaling = draw(st.integers(1, 4)), SCALINGS[draw(st.sampled_from(sorted(SCALINGS)))]
    gateway = {"policy": draw(st.sampled_from(POLICIES)), "max_in_flight": draw(st.sampled_from([12, 1000]))}
    rate = {"shape": "spike", "rate_rps": draw(st.floats(5.0, 60.0)), "spike_factor": draw(st.floats(1.0, 8.0))}
    stage = a_stage(
        fleet={"replicas": draw(st.integers(1, 3))},
        batching={"max_batch_size": size, "batch_wait_timeout_s": draw(st.sampled_from([0.0, 0.003]))},
        admission={"max_queue_length": size + draw(st.integers(0, 12))},
        gateway=gateway,
        scaling={
            "max_replicas": draw(st.integers(4, 5)),
            "cold_start": {"machine_s": draw(st.sampled_from([0.0, 0.1, 0.7]))},
            **scaling,
        },
        traffic={
            "rate": {**rate, "spike_start_s": 0.7, "spike_duration_s": 0.8},
            "duration_s": 3.0,
            "timeout_s": draw(st.sampled_from([3600.0, 3600.0, 0.05])),
        },
    )
    return stage, calibrated(stage, draw(st.sampled_from([None, 0.0, 0.0005]))), draw(st.integers(0, 2**32))


@settings(max_examples=40, deadline=None)
@given(scaled_fleets())
def test_a_fleet_that_comes_and_goes_is_the_same(fleet: tuple[Stage, Calibration | None, int]) -> None:
    stage, calibration, seed = fleet
    same(
        fast.simulate(stage, calibration=calibration, seed=seed),
        run.simulate(stage, calibration=calibration, seed=seed),
    )


@settings(max_examples=20, deadline=None)
@given(random_runs())
def test_a_replica_without_a_gateway_is_the_same(one: Run) -> None:
    stage, offered, calibration = one
    same(fast.simulate(stage, offered, calibration=calibration), run.simulate(stage, offered, calibration=calibration))


@pytest.mark.parametrize("name", stage_files())
def test_the_projects_stages_are_the_same(name: str) -> None:
    duration_s = 40.0 if name == "autoscaled" else 20.0  # its spike begins at 30 s
    stage = with_overrides(load_stage(name), {"traffic.duration_s": duration_s})
    same(fast.simulate(stage, seed=5), run.simulate(stage, seed=5))


A100 = "a100-resnet50-fp16-tensorflow"
WAYS = [
    ("round-robin", {}, None, "apart"),
    ("random", {}, None, "apart"),
    ("sticky", {"gateway.sticky_load_bound": 3.0}, None, "apart"),
    ("sticky", {}, None, "together"),
    ("least-outstanding", {}, None, "together"),
    ("power-of-two", {}, None, "together"),
    ("latency-weighted", {}, None, "together"),
    ("learned", {}, None, "together"),
    ("random", {}, 0.0001, "together"),
    ("least-outstanding", {}, 0.0001, "together"),
    ("round-robin", {"batching.max_batch_size": 1, "device.profile": A100}, None, "apart"),
    ("random", {"admission.max_queue_length": 8, "gateway.retries_max": 1}, None, "together"),
    ("random", {"admission.max_queue_length": 8, "gateway.retries_max": 0}, None, "apart"),
    ("random", {"admission.deadline_s": 0.01}, None, "general"),
    ("random", {"traffic.timeout_s": 0.03}, None, "general"),
    ("random", {"gateway.connections_per_replica": 8}, None, "general"),
]


@pytest.mark.parametrize(("policy", "changes", "busy_s", "way"), WAYS)
def test_each_way_is_taken_where_it_is_meant(
    policy: str, changes: dict[str, Any], busy_s: float | None, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    took: list[str] = []

    def watched(name: str, call: Any) -> Any:
        def calls(*arguments: Any, **keywords: Any) -> Any:
            found = call(*arguments, **keywords)
            took.append(name if found is not None else f"{name} gave up")
            return found

        return calls

    given = {"fleet.replicas": 3, "gateway.policy": policy, "device.slowdown": 1.0, "overload": True, **changes}
    stage = load_stage("load-balanced", {"batching.batch_wait_timeout_s": 0.005, "traffic.duration_s": 1.5, **given})
    stage = stage.model_copy(update={"traffic": at_rate(stage.traffic, 0.8 * run.capacity_rps(stage))})
    calibration = None if busy_s is None else calibrated(stage, busy_s)
    expected = run.simulate(stage, calibration=calibration)
    monkeypatch.setattr(fast, "_apart", watched("apart", fast._apart))
    monkeypatch.setattr(fast_fleet, "serve", watched("together", fast_fleet.serve))
    monkeypatch.setattr(run, "simulate", watched("general", run.simulate))
    same(fast.simulate(stage, calibration=calibration), expected)
    assert took[-1] == way


def test_an_autoscaled_stage_takes_the_fast_way(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = load_stage("autoscaled")
    expected = run.simulate(stage)
    assert expected.replicas.height > 3 and expected.scaling.height > 50
    monkeypatch.delattr(run, "simulate")
    same(fast.simulate(stage), expected)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("replicas", [1, 2, 5])
@pytest.mark.parametrize("bound", [1.25, 5.0])
def test_known_choices_are_those_of_the_balancer(policy: Any, replicas: int, bound: float) -> None:
    keys = np.random.default_rng(1).integers(0, 40, 300)
    balancer, outstanding = Balancer(policy, 9, bound), dict.fromkeys(range(replicas), 0)
    found = known_choices(policy, keys, replicas, 9, bound)
    stateless = policy in ("round-robin", "random") or (policy == "sticky" and bound >= replicas)
    assert (found is not None) == (replicas == 1 or stateless)
    if found is not None:
        chosen = []
        for number, key in enumerate(keys.tolist()):
            chosen.append(balancer.choose(key, outstanding, 0.01 * number, ticket_of(9, number)))
            outstanding[chosen[-1]] += 1
        assert found.tolist() == chosen
    nobody = known_choices(policy, [], replicas, 9, bound)
    assert nobody is None or nobody.size == 0


def test_a_schedule_is_kept_for_the_points_that_share_it() -> None:
    stage = load_stage("load-balanced")
    first = fast.schedule_of(stage.traffic, 3)
    assert fast.schedule_of(load_stage("load-balanced", {"fleet.replicas": 4}).traffic, 3) is first
    assert fast.schedule_of(stage.traffic, 4) is not first
    wanted = schedule(stage.traffic, seed=3)
    assert np.array_equal(first.arrivals_s, wanted.arrivals_s) and np.array_equal(first.items, wanted.items)


def test_an_empty_schedule_is_the_same() -> None:
    stage, nobody = load_stage("load-balanced"), Schedule(np.empty(0), np.empty(0, dtype=np.int64), 5.0)
    for policy in ("random", "least-outstanding"):
        changed = with_overrides(stage, {"gateway.policy": policy})
        same(fast.simulate(changed, nobody), run.simulate(changed, nobody))


def test_what_cannot_be_simulated_is_refused_as_ever() -> None:
    stage = load_stage("load-balanced", {"device.kind": "cpu", "device.profile": None, "device.slowdown": None})
    with pytest.raises(ValueError, match="a prediction needs a calibration"):
        fast.simulate(stage)
