"""A small plan from end to end in the simulator: the answer, what lies beside it, what breaks first, in words."""

from __future__ import annotations

import json
import math
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loadtests.bench_plan import both, drawn
from simulator import plan_plots, plan_words
from simulator.offers import host_of, offers
from simulator.plan import Breaks, Plan, Planner, plan_without_choice
from simulator.plot_frame import svg
from simulator.sweep import evaluate
from simulator.workload import workload
from stages.spec import load_stage
from tests.made import a_calibration
from tests.planned import T4, a_try

REPLICATIONS = 4


@pytest.fixture(scope="module")
def planned() -> Plan:
    """One T4 does not carry 1,500 requests a second."""
    work = workload(1500.0, 0.1, duration_s=1.5)
    rented = [*offers(devices=[T4]), *offers(devices=["v100-resnet50-fp16-tensorflow"])]
    return Planner(work, rented, replications=REPLICATIONS, host=host_of(0.1)).plan()


def test_the_choice_surely_meets_the_slo_and_nothing_cheaper_does(planned: Plan) -> None:
    choice = planned.choice
    assert choice is not None
    assert choice.verdict == "meets"
    assert choice.replications == REPLICATIONS
    assert choice.p95_s.mean <= 0.1
    assert all(each.verdict != "meets" or each.rank >= choice.rank for each in planned.tried)
    assert choice in planned.front or any(each.p95_s.mean <= choice.p95_s.mean for each in planned.front)


def test_the_choice_is_what_its_stage_file_says(planned: Plan, tmp_path: Path) -> None:
    text = plan_words.toml_of(planned)
    (tmp_path / "stage.toml").write_text(text, encoding="utf-8")
    stage = load_stage(tmp_path)
    assert planned.choice is not None
    assert text.startswith("# The cheapest stage that `rung plan` found.")
    again = evaluate(stage, REPLICATIONS)
    assert again.values["latency_s_p95"] == planned.choice.estimate.values["latency_s_p95"]
    assert again.values["cost_usd_per_hour"] == planned.choice.estimate.values["cost_usd_per_hour"]
    assert tomllib.loads(text)["slo"]["latency_s"] == 0.1


def test_every_neighbour_is_explained(planned: Plan) -> None:
    assert planned.choice is not None
    told = {near.what: plan_words.neighbour(planned.choice, near) for near in planned.neighbours}
    assert {"on V100 instead", "single-vm instead", "autoscaled instead", "cached instead"} <= set(told)
    assert told["autoscaled instead"] == "the rate is steady: there is nothing to follow"
    assert "say --items" in told["cached instead"]
    assert all("SLO" in words for what, words in told.items() if what.startswith("one replica"))
    fewer = [near.tried for near in planned.neighbours if near.what == "one replica fewer"]
    assert all(near is not None and near.usd_per_hour.mean < planned.choice.usd_per_hour.mean for near in fewer)


def test_it_breaks_where_more_comes_than_it_carries(planned: Plan) -> None:
    breaks = planned.breaks
    assert breaks is not None
    assert breaks.factor is not None
    assert breaks.holds < breaks.factor
    assert breaks.tried is not None
    assert breaks.tried.share.mean < 0.95
    words = plan_words.breaking(breaks, planned)
    assert plan_words.component(breaks, planned) in ("devices", "latency")
    assert "takes no time without --calibration" in words or planned.choice.candidate.replicas == 1  # type: ignore[union-attr]


def breaking_of(planned: Plan, **changes: Any) -> str:
    breaks = Breaks(1.5, 1.4, changes.pop("loads"), a_try(2, **changes))
    return plan_words.component(breaks, planned)


def test_what_is_fullest_is_what_breaks(planned: Plan) -> None:
    assert breaking_of(planned, loads={"devices": 0.97, "gateway": 0.4}) == "devices"
    assert breaking_of(planned, loads={"devices": 0.6, "gateway": 0.95}) == "gateway"
    assert breaking_of(planned, loads={"devices": 0.6}) == "latency"
    assert "Quicker devices" in plan_words.breaking(Breaks(1.5, 1.4, {"devices": 0.6}, a_try(2)), planned)


def test_a_calibrated_gateway_can_be_what_breaks() -> None:
    from stages.calibration import GatewayCosts

    measured = a_calibration({1: (0.01,)}).model_copy(update={"gateway": GatewayCosts(busy_s=0.001)})
    work = workload(850.0, 0.1, duration_s=2.0)
    found = Planner(work, offers(devices=[T4]), replications=2, calibration=measured).plan(("load-balanced",))
    assert found.calibrated
    assert found.breaks is not None
    assert plan_words.component(found.breaks, found) == "gateway"


def test_the_day_is_followed_where_that_is_cheaper(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("simulator.candidates.BATCHES", (8,))
    quick = {"least_interval_s": 0.2, "least_cold_start_s": 0.1}  # what no process here does
    work = replace(workload(300.0, 0.2, "diurnal", duration_s=12.0), **quick)
    planner = Planner(work, offers(devices=["t4-resnet50-fp32-pytorch"]), replications=2)
    best = {}
    for architecture in ("load-balanced", "autoscaled"):
        found = planner.search.cheapest(planner.grid((architecture,)).candidates)
        assert found is not None
        assert found.verdict == "meets"
        best[architecture] = found
    follows = best["autoscaled"]
    assert follows.usd_per_hour.mean < best["load-balanced"].usd_per_hour.mean
    plan = Plan(work, planner.grid(), follows, tuple(planner.search.tried))
    assert any("Time is squeezed" in line for line in plan_words.assumptions(plan))
    load = Breaks(1.5, 1.4, {"devices": 0.7}, follows)
    assert plan_words.component(load, plan) == "autoscaler"
    assert "its autoscaler is too slow" in plan_words.breaking(load, plan)


def test_where_nothing_can_be_in_time_it_says_what_came_nearest() -> None:
    work = workload(50.0, 0.004, duration_s=2.0)  # less than one request takes on any T4
    found = Planner(work, offers(devices=["t4"]), replications=2).plan()
    assert found.choice is None
    words = " ".join(plan_words.answer(found))
    assert "Arithmetic leaves nothing to try." in words
    assert "a full batch alone takes longer than p95" in words
    assert plan_without_choice(found) is None
    assert not any("Student's t" in line for line in plan_words.assumptions(found))
    tight = Planner(workload(79.0, 0.0135, duration_s=2.0), offers(devices=[T4]), replications=2).plan(("single-vm",))
    assert tight.choice is None
    assert "The nearest: single-vm" in " ".join(plan_words.answer(tight))
    nearest = plan_without_choice(tight)
    assert nearest is not None
    assert f"over {nearest.replications} replications" in " ".join(plan_words.assumptions(tight))


def test_the_plan_in_plain_values_is_json(planned: Plan) -> None:
    document = json.loads(json.dumps(plan_words.document(planned)))
    assert document["choice"]["verdict"] == "meets"
    assert len(document["tried"]) == len(planned.tried)
    assert document["front"]
    assert {each["what"] for each in document["neighbours"]} == {near.what for near in planned.neighbours}


def test_the_picture_shows_every_point_the_slo_and_the_choice(planned: Plan) -> None:
    figure = plan_plots.pareto(planned)
    axes = figure.axes[0]
    lines = {str(line.get_label()): np.asarray(line.get_xydata()) for line in axes.lines}
    choice = planned.choice
    assert choice is not None
    for each in planned.tried:
        if each.lost < 0.05:
            assert lines[str(each.candidate)][0] == pytest.approx([each.usd_per_hour.mean, 1e3 * each.p95_s.mean])
    assert lines["choice"][0] == pytest.approx([choice.usd_per_hour.mean, 1e3 * choice.p95_s.mean])
    assert [y for _, y in lines["_slo"]] == pytest.approx([100.0, 100.0])
    assert lines["_front"].shape[0] == len(planned.front)
    written = {text.get_text() for text in axes.texts}
    assert "SLO 100 ms" in written
    assert any(text.startswith("the choice: ") for text in written)
    assert axes.get_xlabel() == "cost (US dollars an hour)"
    assert axes.get_ylabel().startswith("p95 of latency (ms")
    caption = " ".join(text.get_text() for text in figure.texts)
    assert "Poisson arrivals" in caption
    assert "US dollars an hour for" in caption
    markers = {line.get_marker() for line in figure.legends[0].get_lines()}
    assert len(markers) >= 2, "devices differ in their markers, not in their colours alone"


def test_the_same_picture_gives_the_same_bytes(planned: Plan) -> None:
    first, second = (svg(plan_plots.pareto(planned)) for _ in range(2))
    assert first == second
    assert first.startswith(b"<?xml")


def test_a_random_workload_has_the_answer_of_brute_force(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("simulator.candidates.BATCHES", (1, 4, 16))
    work = workload(75.0, 0.06, duration_s=4.0)
    found = both(work, (T4,), 4, None)
    assert found.verdict in ("same", "alike")
    assert found.simulated < found.whole


def test_the_random_workloads_are_the_same_each_time() -> None:
    assert drawn(3) == drawn(3)
    assert drawn(3) != drawn(4)
    rates = [drawn(seed)[0].rate_rps for seed in range(30)]
    assert 60.0 <= min(rates) < 150.0
    assert 300.0 < max(rates) <= 720.0
    assert all(math.isfinite(rate) for rate in rates)
