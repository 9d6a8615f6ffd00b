"""The twins decide alike: the same arrivals give the same batches in the running stack's code and in the simulator's.

                ┌─▶ reference_apps.batcher on a fake clock ─▶ batches, who is shed, who expires and when ─┐
    arrivals ───┤                                                                                         ├─ equal
                └─▶ simulator, host and network free ───────▶ batches, who is shed, who expires and when ─┘

Exactly, to the last bit: times are multiples of 1/64 s. Likewise the gateways, before replicas that answer by a script
(tests/gateways.py). That twins have the same names is in test_imports.py.
"""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reference_apps import device as running_device
from reference_apps.models import load_model
from simulator import ahead
from simulator import device as simulated_device
from simulator.host import Host
from simulator.outcomes import ReplicaLog
from simulator.run import Serve, serve_by_event
from stages.arms import arm_of
from stages.calibration import HostCosts
from stages.policies.splitting import bucket
from stages.spec import Stage, load_stage, stage_files
from tests import gateways
from tests.cases import GATEWAY_CASES, GatewayCase
from tests.fake_clock import Replayed, replay
from tests.made import POLICIES, Run, a_stage, random_runs


def as_replayed(log: ReplicaLog) -> Replayed:
    served = iter(log.served.tolist())
    members = [tuple(islice(served, size)) for size in log.sizes.tolist()]
    return Replayed(
        list(zip(log.started_s.tolist(), members, strict=True)),
        log.finished_s.tolist(),
        log.shed.tolist(),
        list(zip(log.expired.tolist(), log.expired_s.tolist(), strict=True)),
    )


@pytest.mark.parametrize("serve", [ahead.serve, serve_by_event], ids=["ahead", "by event"])
@settings(max_examples=60, deadline=None)
@given(run=random_runs())
def test_both_batchers_make_the_same_batches(run: Run, serve: Serve) -> None:
    stage, schedule, calibration = run
    device = simulated_device.open_device(stage, calibration)
    predicted = as_replayed(serve(stage, schedule.arrivals_s, device, Host(HostCosts(), seed=1)))
    arrivals_s = schedule.arrivals_s.tolist()
    assert replay(stage.batching, stage.admission, arrivals_s, calibration.service_time_s) == predicted


def a_fleet(replicas: int, gateway: dict[str, Any]) -> Stage:
    plain = {"policy": "round-robin", "eject_after": 1000}
    return a_stage(fleet={"replicas": replicas}, gateway=plain | gateway)


@pytest.mark.parametrize("world", ["simulated", "running"])
@pytest.mark.parametrize("case", GATEWAY_CASES, ids=lambda case: case.name)
def test_a_gateway_in_a_case_worked_by_hand(
    case: GatewayCase, world: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = a_fleet(len(case.scripts), case.gateway)
    keys = case.keys or tuple(str(number) for number in range(len(case.ends)))
    if world == "simulated":
        ends = gateways.simulate(stage, case.scripts, keys, 1, monkeypatch)
    else:
        ends = gateways.serve(stage, case.scripts, keys, 1, tmp_path, monkeypatch)
    assert ends == list(case.ends)


REPLIES = st.sampled_from(
    ["", "", "", "queue_full", "draining", "deadline", "model_error", "connection", "upstream_lost"]
)
GATEWAYS = st.fixed_dictionaries(
    {
        "policy": st.sampled_from(POLICIES),
        "retries_max": st.integers(0, 3),
        "retry_budget_share": st.sampled_from([0.0, 0.2, 1.0]),
        "eject_after": st.integers(1, 4),
        "eject_s": st.sampled_from([0.5, 3.0, 20.0]),
    }
)


@settings(max_examples=40, deadline=None)
@given(
    scripts=st.lists(st.lists(REPLIES, min_size=1, max_size=12), min_size=1, max_size=4),
    gateway=GATEWAYS,
    keys=st.lists(st.sampled_from("abcdef"), min_size=1, max_size=30),
    seed=st.integers(0, 2**32),
)
def test_both_gateways_try_the_same_replicas_and_tell_the_same(
    scripts: list[list[str]], gateway: dict[str, Any], keys: list[str], seed: int
) -> None:
    """Draws, budgets, ejections and what was learnt included."""
    own = gateway if gateway["retries_max"] else {k: v for k, v in gateway.items() if k != "retry_budget_share"}
    stage = a_fleet(len(scripts), own)
    with pytest.MonkeyPatch.context() as patch, TemporaryDirectory() as folder:
        predicted = gateways.simulate(stage, scripts, keys, seed, patch)
        assert gateways.serve(stage, scripts, keys, seed, Path(folder), patch) == predicted


SPLITS = st.fixed_dictionaries(
    {
        "challenger_share": st.sampled_from([0.0, 0.1, 0.5, 1.0]),
        "challenger_replicas": st.integers(1, 2),
        "salt": st.sampled_from(["", "again"]),
        "guardrails": st.none() | st.just({"requests_min": 3, "errors_share_max": 0.1}),
    }
)


@settings(max_examples=30, deadline=None)
@given(
    scripts=st.lists(st.lists(REPLIES, min_size=1, max_size=12), min_size=3, max_size=4),
    gateway=GATEWAYS,
    split=SPLITS,
    requests=st.integers(1, 40),
    seed=st.integers(0, 2**32),
)
def test_both_gateways_split_alike_and_stop_the_challenger_at_the_same_request(
    scripts: list[list[str]], gateway: dict[str, Any], split: dict[str, Any], requests: int, seed: int
) -> None:
    """By the number of each request; retries stay within its arm."""
    own = gateway if gateway["retries_max"] else {k: v for k, v in gateway.items() if k != "retry_budget_share"}
    replicas = len(scripts) - split["challenger_replicas"]
    given = {key: value for key, value in split.items() if value is not None}
    stage = a_stage(fleet={"replicas": replicas}, gateway=own, split=given)
    keys = [str(number) for number in range(requests)]
    with pytest.MonkeyPatch.context() as patch, TemporaryDirectory() as folder:
        predicted = gateways.simulate(stage, scripts, keys, seed, patch)
        assert gateways.serve(stage, scripts, keys, seed, Path(folder), patch) == predicted
    for number, (tried, _) in enumerate(predicted):
        arms = {arm_of(stage, replica) for replica in tried}
        assert len(arms) <= 1
        if arms == {"challenger"}:
            assert bucket(str(number), split["salt"]) < split["challenger_share"]


@pytest.mark.parametrize("name", stage_files())
@pytest.mark.parametrize("slowdown", [1.0, 8.0])
def test_both_devices_are_called_the_same_and_take_the_same_time(name: str, slowdown: float) -> None:
    stage = load_stage(name, {"device.slowdown": slowdown, "overload": True})
    running = running_device.open_device(stage, load_model(stage.model, "cpu"))
    simulated = simulated_device.open_device(stage)
    assert running.label == simulated.label
    for batch_size in range(1, stage.batching.max_batch_size + 1):
        assert running.service_time_s is not None
        assert running.service_time_s(batch_size) == simulated.service_time_s(batch_size)
