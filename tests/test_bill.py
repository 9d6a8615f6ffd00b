"""The bill of a run: machine-seconds that can be counted by hand, and the same for records of either world."""

from __future__ import annotations

import math
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.run import simulate
from stages.bill import FIGURES, bill, figures, fleet_usd_per_hour, hosts, packed, replica_usd_per_hour
from stages.records import REPLICAS, Records
from stages.spec import Stage, load_stage
from tests.test_metrics import answered, made, request

T4, A100 = "t4-resnet50-fp16-pytorch", "a100-resnet50-fp16-tensorflow"
HOUR_S = 3600.0


def a_run(*lives: tuple[float, float], window_s: float = HOUR_S, answers: int = 4) -> Records:
    """Replicas from start to stop; answers after 0.1 s, and one after 10 s, one after the window, and one refused."""
    rows = [answered(i, 10.0 * i, 0.0, 0.098, i, 1) for i in range(answers)]
    rows += [
        answered(answers, 1.0, 9.9, 0.098, answers, 1),
        answered(answers + 1, window_s - 0.05, 0.0, 0.098, answers + 1, 1),
        request(answers + 2, 5.0, "shed", reason="queue_full", arrived_s=5.0, replied_s=5.0),
    ]
    replicas = [(number, "cpu", start, start, stop) for number, (start, stop) in enumerate(lives)]
    run = made(rows, [], [], window_s)
    return Records(run.requests, run.batches, pl.DataFrame(replicas, schema=REPLICAS, orient="row"), window_s)


def autoscaled(**cost: Any) -> Stage:
    return load_stage("autoscaled", {f"cost.{key}": value for key, value in cost.items()})


def test_replicas_are_paid_from_start_to_stop_within_the_window_and_the_gateway_all_the_time() -> None:
    found = bill(autoscaled(), a_run((-60.0, 5000.0), (900.0, 2700.0), (3000.0, 3600.0)))
    assert found is not None
    replicas, gateway = found.items
    assert (replicas.component, gateway.component) == ("replica", "gateway")
    assert replicas.machine_s == pytest.approx(3600.0 + 1800.0 + 600.0)
    assert replicas.machines_max == 2
    assert replicas.usd == pytest.approx(0.526 * 6000 / 3600)
    assert (gateway.machine_s, gateway.usd) == (3600.0, pytest.approx(0.17))
    assert found.usd == pytest.approx(0.526 * 6000 / 3600 + 0.17)
    assert found.usd_per_hour == pytest.approx(found.usd)


def test_good_answers_are_those_in_time_that_were_back_within_the_window() -> None:
    found = bill(autoscaled(), a_run((0.0, 3600.0), answers=8))
    assert found is not None and found.good == 8
    assert found.usd_per_1000 == pytest.approx(1000 * (0.526 + 0.17) / 8)
    nothing = bill(autoscaled(), made([], [], [], HOUR_S))
    assert nothing is not None and math.isinf(nothing.usd_per_1000)


def test_spot_machines_figures_and_machines_of_unequal_replicas() -> None:
    run = a_run((0.0, 3600.0), (0.0, 3600.0), (0.0, 1800.0))
    paid = {
        0.1891 * 2.5 + 0.17: {"pricing": "spot"},
        2.0 * 2.5 + 0.17: {"machine": None, "usd_per_hour": 2.0},
        0.526 * 2.5 + 0.5: {"host_machine": None, "host_usd_per_hour": 0.5},
    }
    for usd, cost in paid.items():
        assert figures(autoscaled(**cost), run)["cost_usd"] == pytest.approx(usd)
    unequal = {"fleet.profiles": [T4, A100], "cost.machine": None}
    stage = load_stage("autoscaled", {**unequal, "cost.machines": ["aws/g4dn.xlarge", "gcp/a2-highgpu-1g"]})
    found = bill(stage, run)
    assert found is not None
    assert [round(item.usd, 6) for item in found.items] == [round(0.526 * 1.5, 6), 3.67, 0.17]


def test_each_arm_is_on_its_own_machines_and_has_its_own_bill() -> None:
    """Two champions on T4s, a challenger on an A100; whoever takes a replica's place has its number modulo three."""
    changes = {
        **{"split.ramp": None, "split.guardrails": None, "split.challenger_share": 0.3, "feedback": None},
        **{"device.slowdown": 1.0, "traffic.duration_s": 20.0, "traffic.rate.rate_rps": 50.0},
        **{"split.challenger_profile": A100, "cost.challenger_machine": "gcp/a2-highgpu-1g"},
    }
    stage = load_stage("ab-test", changes)
    run = simulate(stage)
    whole, champion, challenger = (bill(stage, run, arm) for arm in (None, "champion", "challenger"))
    assert whole is not None and champion is not None and challenger is not None
    assert [(item.component, item.machines_max) for item in whole.items] == [
        *(("champion", 2), ("challenger", 1), ("gateway", 1))
    ]
    assert champion.usd_per_hour == pytest.approx(2 * 0.526)
    assert challenger.usd_per_hour == pytest.approx(3.67)
    assert whole.usd_per_hour == pytest.approx(2 * 0.526 + 3.67 + 0.17)
    assert champion.good + challenger.good == whole.good and challenger.good > 100
    own = run.requests.filter(pl.col("arm") == "challenger").height
    assert challenger.usd_per_1000 == pytest.approx(1000 * 3.67 * 20 / 3600 / own), "all of them were good"
    assert figures(stage, run, "challenger")["cost_usd_per_1000"] == challenger.usd_per_1000
    assert [replica_usd_per_hour(stage, number) for number in range(6)] == 2 * [0.526, 0.526, 3.67]
    alike = load_stage("ab-test", {**changes, "split.challenger_profile": None, "cost.challenger_machine": None})
    assert {replica_usd_per_hour(alike, number) for number in range(6)} == {0.526}
    figure = load_stage("ab-test", {**changes, "cost.challenger_machine": None, "cost.challenger_usd_per_hour": 2.5})
    assert replica_usd_per_hour(figure, 2) == 2.5


def test_a_machine_with_several_gpus_is_paid_whole_and_holds_as_many_replicas() -> None:
    changes = {"device.profile": A100, "cost.machine": "lambda/gpu-8x-a100"}
    stage = load_stage("autoscaled", changes)
    found = bill(stage, a_run(*[(0.0, 3600.0)] * 8, (900.0, 1800.0)))
    assert found is not None
    assert found.items[0].machine_s == 3600.0 + 900.0
    assert found.items[0].machines_max == 2
    assert found.items[0].usd == pytest.approx(10.32 * 1.25)
    assert fleet_usd_per_hour(stage, 8) == pytest.approx(10.32 + 0.17)
    assert fleet_usd_per_hour(stage, 9) == pytest.approx(2 * 10.32 + 0.17)


@pytest.mark.parametrize(
    ("gpus", "lives", "expected"),
    [
        (1, [(5.0, 9.0), (0.0, 10.0)], [(0.0, 10.0), (5.0, 9.0)]),
        (2, [(0.0, 10.0), (1.0, 3.0), (4.0, 12.0)], [(0.0, 12.0)]),
        (2, [(0.0, 10.0), (1.0, 3.0), (2.0, 4.0), (5.0, 6.0)], [(0.0, 10.0), (2.0, 4.0)]),
        (2, [(0.0, 2.0), (2.0, 5.0)], [(0.0, 2.0), (2.0, 5.0)]),
        (4, [], []),
    ],
)
def test_replicas_are_placed_first_come_first_placed(
    gpus: int, lives: list[tuple[float, float]], expected: list[tuple[float, float]]
) -> None:
    assert packed(lives, gpus) == expected


LIVES = st.lists(st.tuples(st.floats(0, 100), st.floats(0.1, 50)).map(lambda life: (life[0], sum(life))), max_size=30)


@given(LIVES, st.integers(1, 8))
def test_machines_hold_no_more_than_they_have_and_cost_no_more_than_one_each(
    lives: list[tuple[float, float]], gpus: int
) -> None:
    spans = packed(lives, gpus)
    paid_s, used_s = (sum(stop - start for start, stop in each) for each in (spans, lives))
    assert used_s / gpus <= paid_s + 1e-6
    assert paid_s <= used_s + 1e-6
    for at_s, _ in lives:
        running = sum(start <= at_s < stop for start, stop in lives)
        assert running <= gpus * sum(start <= at_s < stop for start, stop in spans)


def test_components_with_a_machine_of_their_own() -> None:
    assert hosts(load_stage("micro-batched")) == ()
    assert hosts(load_stage("cached")) == ("gateway",)
    assert hosts(load_stage("cached", {"cache.store": "redis"})) == ("gateway", "cache")
    assert hosts(load_stage("queued")) == ("jobs API",)
    assert hosts(load_stage("queued", {"queue.broker": "redis"})) == ("jobs API", "broker")


def test_workers_jobs_api_and_broker_are_on_the_bill_of_a_queue() -> None:
    found = bill(load_stage("queued", {"queue.broker": "redis"}), a_run((0.0, 3600.0)))
    assert found is not None
    assert [item.component for item in found.items] == ["worker", "jobs API", "broker"]
    assert found.usd == pytest.approx(0.526 + 2 * 0.17)


def test_what_has_no_price_is_told_and_counts_for_nothing() -> None:
    found = bill(autoscaled(host_machine=None), a_run((0.0, 3600.0)))
    assert found is not None
    assert found.usd == pytest.approx(0.526)
    assert math.isnan(found.items[1].usd) and found.items[1].machine_s == 3600.0
    assert any("Without the machine of gateway" in note for note in found.notes)
    assert any("8 times slower" in note for note in found.notes)
    assert any("Spot machines are taken to stay" in note for note in _notes(pricing="spot"))


def _notes(**cost: Any) -> tuple[str, ...]:
    found = bill(autoscaled(**cost), a_run((0.0, 3600.0)))
    assert found is not None
    return found.notes


def test_a_stage_without_a_price_has_no_bill() -> None:
    stage = load_stage("micro-batched")
    assert bill(stage, a_run((0.0, 3600.0))) is None
    assert list(figures(stage, a_run((0.0, 3600.0)))) == list(FIGURES)
    assert all(math.isnan(value) for value in figures(stage, a_run((0.0, 3600.0))).values())
    with pytest.raises(ValueError, match="cost: must be there"):
        fleet_usd_per_hour(stage, 1)


def test_a_predicted_run_of_a_fixed_fleet_costs_its_arithmetic() -> None:
    stage = load_stage("load-balanced", {"cost.machine": "aws/g4dn.xlarge", "cost.host_machine": "aws/c5.xlarge"})
    found = bill(stage, simulate(stage))
    assert found is not None
    assert found.usd_per_hour == pytest.approx(2 * 0.526 + 0.17) == fleet_usd_per_hour(stage, 2)
