"""`rung plan` on the command line: its files, its JSON, its words, and its proof on the real stack."""

from __future__ import annotations

import json
import math
from contextlib import nullcontext
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner, Result

from loadtests import plan_verify
from loadtests.plan_verify import slowdown_for, stretched
from rung import app
from simulator import sweep
from simulator.candidates import candidates
from simulator.offers import offers
from simulator.planned_stage import stage_of
from simulator.run import simulate
from simulator.sweep import evaluate
from simulator.workload import workload
from stages import records
from stages.spec import Stage, device_label, load_stage, mean_rate_rps
from tests.made import a_calibration
from tests.no_warm_up import no_warm_up
from tests.planned import T4

__all__ = ["no_warm_up"]
pytestmark = pytest.mark.usefixtures("in_numpy")


def rung_plan(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["plan", *(str(argument) for argument in arguments)])


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    folder = tmp_path_factory.mktemp("plan")
    words = ("--rate", 60, "--p95", 0.1, "--devices", T4, "--duration", 2, "--replications", 2, "--workers", 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweep, "workers_pool", lambda workers: nullcontext())  # in this process, as below
        result = rung_plan(*words, "--out", folder, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout), folder


def test_everything_that_is_promised_is_in_the_folder(planned: tuple[dict[str, Any], Path]) -> None:
    document, folder = planned
    assert {"stage.toml", "plan.json", "pareto.svg", "pareto.png"} <= {path.name for path in folder.iterdir()}
    assert document["choice"]["verdict"] == "meets"
    assert document["verified"] is None
    kept = json.loads((folder / "plan.json").read_text())
    assert kept["choice"] == document["choice"]
    stage = load_stage(document["files"]["stage"])
    assert stage.slo.latency_s == 0.1
    assert stage.batching.max_batch_size == document["choice"]["max_batch_size"]
    assert (folder / "pareto.svg").read_text().startswith("<?xml")


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulates without other processes, which take seconds to start."""
    monkeypatch.setattr(sweep, "workers_pool", lambda workers: nullcontext())


@pytest.mark.usefixtures("in_this_process")
def test_a_person_is_told_the_answer_its_neighbours_and_what_it_rests_on(tmp_path: Path) -> None:
    words = ("--rate", 60, "--p95", 0.1, "--devices", T4, "--duration", 2, "--replications", 2, "--workers", 1)
    result = rung_plan(*words, "--out", tmp_path)
    assert result.exit_code == 0, result.output
    for said in (
        "per 1,000 good answers",
        "Beside it",
        "It keeps its promise up to",
        "Run it: rung up",
        "No calibration",
    ):
        assert said in result.stdout


@pytest.mark.usefixtures("in_this_process")
def test_where_there_is_no_plan_it_says_so(tmp_path: Path) -> None:
    result = rung_plan("--rate", 10, "--p95", 0.001, "--workers", 1, "--out", tmp_path)
    assert result.exit_code == 1
    assert "Arithmetic leaves nothing to try." in result.stdout
    assert "No plan" in result.stderr
    assert not (tmp_path / "stage.toml").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--p95", "0.1"], "--rate: is required"),
        (["--rate", "10", "--p95", "0"], "--p95: must be above 0"),
        (["--rate", "10", "--p95", "0.1", "--devices", "t5"], "--devices: must be devices of the catalogue"),
        (["--rate", "10", "--p95", "0.1", "--provider", "awz"], "Did you mean 'aws'?"),
        (["--rate", "10", "--p95", "0.1", "--model", "gpt"], "--model: must be a model of the device catalogue"),
        (["--rate", "10", "--p95", "0.1", "--zipf", "1"], "--zipf: belongs to --items"),
        (["--rate", "10", "--p95", "0.1", "--short"], "--short: belongs to --verify only"),
        (["--rate", "10", "--p95", "0.1", "--repeat", "2"], "--repeat: belongs to --verify only"),
        (["--rate", "10", "--p95", "0.1", "--host-usd-per-hour", "0"], "--host-usd-per-hour: must be above 0"),
        (["--p95", "0.1", "--trace", "/nowhere.csv"], "must be a file that exists"),
        (["--rate", "10", "--p95", "0.1", "--calibration", "no.json"], "no.json: cannot be read"),
    ],
)
def test_mistakes_are_told_in_words(arguments: list[str], said: str) -> None:
    result = rung_plan(*arguments)
    assert result.exit_code == 2, result.output
    assert said in " ".join(result.stderr.split())
    assert "Traceback" not in result.output


# ---- on a slower clock ---------------------------------------------------------------------------------------


def some_stage(architecture: str, shape: str, **given: Any) -> Stage:
    work = workload(400.0, 0.1, shape, duration_s=10.0, items=2000 if architecture == "cached" else None, **given)
    grid = candidates(work, offers(devices=[T4]))
    return stage_of(work, next(each for each in grid.candidates if each.architecture == architecture))


@pytest.mark.parametrize(
    ("architecture", "shape"),
    [("micro-batched", "steady"), ("load-balanced", "spiky"), ("cached", "steady"), ("autoscaled", "diurnal")],
)
def test_a_slower_clock_is_the_same_stage(architecture: str, shape: str) -> None:
    """Every moment of a run is so many times later, and its dollars are so many times more."""
    stage = some_stage(architecture, shape)
    slow = stretched(stage, 4.0)
    assert slow.traffic.duration_s == 4.0 * stage.traffic.duration_s
    quick_run, slow_run = simulate(stage), simulate(slow)
    assert quick_run.requests["outcome"].to_list() == slow_run.requests["outcome"].to_list()
    for column in ("scheduled_s", "started_s", "replied_s"):
        quick_s, slow_s = (run.requests[column].to_numpy() for run in (quick_run, slow_run))
        np.testing.assert_allclose(slow_s, 4.0 * quick_s, rtol=1e-6, atol=1e-6)
    assert slow_run.replicas.height == quick_run.replicas.height
    one, other = evaluate(stage, 1), evaluate(slow, 1)
    for figure in plan_verify.FIGURES:
        expected = one[figure.name].mean * 4.0 ** plan_verify.STRETCHED.get(figure.name, 0)
        assert other[figure.name].mean == pytest.approx(expected, rel=1e-6), figure.name


def test_the_clock_is_slowed_until_the_highest_rate_is_carried() -> None:
    assert slowdown_for(some_stage("micro-batched", "steady")) == 2.0
    assert slowdown_for(some_stage("autoscaled", "diurnal")) == 4.0  # 1.8 times the mean at noon
    stage = some_stage("micro-batched", "steady")
    slow = stage.model_copy(update={"traffic": stage.traffic.model_copy(update={"duration_s": 100.0})})
    assert stretched(slow, 2.0).traffic.duration_s == plan_verify.STEADY_S
    assert mean_rate_rps(stretched(stage, 2.0).traffic) == pytest.approx(200.0)


def test_a_stretched_trace_has_the_same_requests(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text("timestamp,value\n" + "".join(f"{300 * n},{3000 + 1000 * (n % 3)}\n" for n in range(12)))
    work = workload(50.0, 0.1, trace=path, duration_s=10.0)
    grid = candidates(work, offers(devices=[T4]))
    stage = stage_of(work, next(each for each in grid.candidates if each.architecture == "micro-batched"))
    assert mean_rate_rps(stage.traffic) == pytest.approx(50.0)
    assert mean_rate_rps(stretched(stage, 5.0).traffic) == pytest.approx(10.0)
    assert simulate(stage).requests.height == simulate(stretched(stage, 5.0)).requests.height


@pytest.mark.timeout(120)
@pytest.mark.usefixtures("no_warm_up")
def test_a_plan_is_held_against_the_real_stack(tmp_path: Path) -> None:
    """One replica at 50 a second for two seconds: planned, predicted and measured stand side by side."""
    work = workload(50.0, 0.1, duration_s=2.0)
    grid = candidates(work, offers(devices=[T4]))
    stage = stage_of(work, next(each for each in grid.candidates if each.architecture == "micro-batched"))
    planned = evaluate(stage, 2)
    calibration = a_calibration({1: (0.0127,)}).model_copy(update={"device": device_label(stage)})
    calibration = replace_times(calibration, stage)
    found = plan_verify.verify(stage, planned, calibration, tmp_path, slowdown=1.0, short=True)
    rows = {row.metric: row for row in found.rows}
    assert set(rows) == {figure.name for figure in plan_verify.FIGURES}
    # On a busy machine the run may be void, which is said; its dollars are those of the machine's time either way.
    price = stage.cost and planned["cost_usd_per_hour"].mean
    assert rows["cost_usd_per_hour"].measured == pytest.approx(price, rel=0.03)
    real = records.read(tmp_path / "run-1" / "measured")
    assert real.requests.height == simulate(stage).requests.height
    in_time = (real.requests["outcome"] == "ok") & (real.requests["replied_s"] <= real.window_s)
    assert rows["throughput_rps"].measured == pytest.approx(int(in_time.sum()) / real.window_s)
    assert 0.0127 < rows["latency_s_p95"].measured < math.inf
    kept = json.loads((tmp_path / "verified.json").read_text())
    assert {row["metric"] for row in kept["rows"]} == set(rows)
    assert all(math.isfinite(row["planned"]) for row in kept["rows"])
    console = Console(file=StringIO(), width=120)
    plan_verify.print_table(found, console)
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    assert "Verified on the real stack" in printed
    assert "USD per 1,000 good" in printed
    slower = replace(found, slowdown=4.0)
    assert "4 times longer" in " ".join(plan_verify.notes(slower))


def replace_times(calibration: Any, stage: Stage) -> Any:
    """The calibration with times of this stage's batches, as the profile has them."""
    from stages.calibration import ServiceTimes
    from stages.catalogue import profiles

    profile = profiles()[str(stage.device.profile)]
    sizes = range(1, stage.batching.max_batch_size + 1)
    times = tuple(ServiceTimes(batch_size=size, quantiles_s=(profile.service_time_s(size),)) for size in sizes)
    return calibration.model_copy(update={"service_times": times})
