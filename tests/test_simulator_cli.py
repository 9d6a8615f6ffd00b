"""`rung simulate`: what it prints, what it writes, and what it says when it cannot."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from simulator.cli import app
from stages import calibration, metrics, records
from stages.metrics import METRICS
from tests.made import a_calibration


def rung_simulate(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def as_json(*arguments: object) -> dict[str, object]:
    result = rung_simulate(*arguments, "--json")
    assert result.exit_code == 0, result.output
    found: dict[str, object] = json.loads(result.stdout)
    return found


def test_prints_every_metric_and_says_that_the_host_counts_for_nothing() -> None:
    result = rung_simulate("micro-batched", "--duration", 2)
    assert result.exit_code == 0
    assert all(metric in result.stdout for metric in METRICS)
    assert "the host is taken to need no time at all" in result.stdout
    assert "simulated requests per second" in result.stdout
    assert "emulated t4-resnet50-fp16-pytorch" in result.stdout


def test_json_holds_the_metrics_of_the_records_that_are_written(tmp_path: Path) -> None:
    found = as_json("single-vm", "--duration", 5, "--out", tmp_path / "run", "--seed", 7)
    written = records.read(tmp_path / "run")
    summary = metrics.summarise(written, slo_latency_s=0.1)
    told = {name: math.nan if value is None else value for name, value in found["metrics"].items()}  # type: ignore[attr-defined]
    assert told == pytest.approx(summary, nan_ok=True)
    assert found["requests"] == written.requests.height
    assert (found["seed"], found["window_s"], found["out"]) == (7, 5.0, str(tmp_path / "run"))


def test_the_seed_and_the_overrides_count() -> None:
    first, again, other = (as_json("single-vm", "--duration", 2, "--seed", seed) for seed in (1, 1, 2))
    assert first["metrics"] == again["metrics"] != other["metrics"]
    batched = as_json("single-vm", "--set", "batching.max_batch_size=8", "--duration", 2)
    assert float(batched["capacity_rps"]) > float(first["capacity_rps"])  # type: ignore[arg-type]


def test_a_rate_above_capacity_is_simulated_and_said() -> None:
    found = as_json("single-vm", "--rate", 200, "--duration", 5)
    assert found["rate_rps"] == pytest.approx(200, rel=0.1)
    assert "more than the capacity of 79.0" in str(found["notes"])
    assert found["metrics"]["shed_share"] > 0.3  # type: ignore[index]


def test_what_an_autoscaler_may_start_counts_before_it_is_said_to_be_too_little() -> None:
    short = ("autoscaled", "--duration", 20, "--set", "traffic.rate.spike_start_s=5")
    followed, beyond = (as_json(*short, "--rate", rate) for rate in (150, 600))
    assert (followed["capacity_rps"], followed["capacity_most_rps"]) == pytest.approx((81.5, 489.0), abs=0.05)
    assert "more than the capacity" not in str(followed["notes"])
    assert "more than the capacity of 489.0" in str(beyond["notes"])
    assert "capacity 81.5 per second at the start, at most 489.0" in rung_simulate(*short).stdout


def test_a_calibration_is_read_and_its_limits_are_said(tmp_path: Path) -> None:
    file = tmp_path / "calibration.json"
    calibration.write(a_calibration({1: (0.02,)}, send_quantiles_s=(0.004,)), file)
    cpu = ("--set", "device.kind=cpu", "--set", "device.profile=", "--duration", 5, "--rate", 20)
    result = rung_simulate("single-vm", *cpu)
    assert result.exit_code == 2
    assert "Run `rung calibrate single-vm`" in result.stderr
    found = as_json("single-vm", *cpu, "--calibration", file)
    assert found["capacity_rps"] == pytest.approx(50.0)
    assert found["metrics"]["latency_s_p50"] >= 0.024  # type: ignore[index]
    assert "Calibrated on the stage a-stage" in str(found["notes"])
    assert "no time at all" not in str(found["notes"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["no-such-stage"], "single-vm, micro-batched"),
        (["single-vm", "--set", "batching.max_batch=2"], "Did you mean 'max_batch_size'?"),
        (["single-vm", "--rate", "0"], "--rate 0"),
        (["single-vm", "--rate", "inf"], "at most 1,000,000 requests per second, got inf"),
        (["single-vm", "--rate", "nan"], "at most 1,000,000 requests per second, got nan"),
        (["single-vm", "--rate", "1e8"], "at most 1,000,000 requests per second, got 1e+08"),
        (["single-vm", "--rate", "1e6", "--duration", "100"], "must bring at most 50,000,000 requests"),
        (["single-vm", "--rate", "0.001"], "must bring at least 1 request"),
        (["single-vm", "--duration", "0"], "traffic.duration_s"),
        (["single-vm", "--calibration", "no-such-file"], "must be a file that `rung calibrate` wrote"),
        (["single-vm", "--calibration", __file__], "must be a file that `rung calibrate` wrote"),
    ],
)
def test_mistakes_are_answered_in_words(arguments: list[str], said: str) -> None:
    result = rung_simulate(*arguments)
    assert result.exit_code == 2
    assert said in result.stderr
    assert "Traceback" not in result.output


def test_importing_the_verbs_stays_cheap() -> None:
    heavy = "{'simpy', 'polars', 'numpy', 'torch', 'matplotlib'}"
    code = f"import sys, simulator.cli; sys.exit(', '.join({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == ""


# ---- two models on one GPU ----

SHARED = ("queued", "--duration", 30, "--rate", 10, "--set", "model.memory_gib=3", "--set", "device.memory_gib=8")
LARGE = ("--beside", "queued", "--beside-set", "model.memory_gib=6", "--beside-set", "traffic.rate.rate_rps=10")


def test_two_models_take_turns_on_a_gpu_that_does_not_hold_both() -> None:
    both = as_json(*SHARED, *LARGE)
    small, large = both["stages"]  # type: ignore[misc]
    assert both["memory_gib"] == 8.0
    assert (small["stage"], large["stage"]) == ("queued", "queued-beside")
    assert (small["memory_gib"], large["memory_gib"]) == (3.0, 6.0)
    assert small["seed"] != large["seed"], "the other's requests are no copy of the first's"
    for each in (small, large):
        assert each["turns"] >= 2
        assert each["metrics"]["failed_share"] == 0.0, "nobody fails for want of room"
    fits = as_json(*SHARED, *LARGE, "--beside-set", "model.memory_gib=5")
    roomy = fits["stages"][0]  # type: ignore[index]
    assert roomy["metrics"]["latency_s_p95"] < small["metrics"]["latency_s_p95"]
    said = rung_simulate(*SHARED, *LARGE).stdout
    assert "On one GPU of 8 GiB, predicted" in said
    assert "turns on the card" in said
    assert "queued-beside, 6 GiB" in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((*SHARED, *LARGE, "--seed", 3), "--beside: takes the name of another stage, and no --seed or --out"),
        ((*SHARED, "--beside-set", "model.memory_gib=6"), "--beside: takes the name of another stage"),
        ((*SHARED, "--beside", "no-such-stage"), "no-such-stage"),
        ((*SHARED, "--beside", "queued"), "model.memory_gib: is required when device.memory_gib is given"),
        (("queued", *LARGE, "--beside-set", "device.memory_gib=8"), "must be the same in all stages"),
        (("queued", "--backlog", 10, *LARGE), "stands in for traffic"),
    ],
)
def test_who_cannot_share_a_gpu_is_told_why(arguments: tuple[object, ...], said: str) -> None:
    result = rung_simulate(*arguments)
    assert result.exit_code == 2, result.output
    assert said in " ".join(result.stderr.split())
    assert "Traceback" not in result.output


def test_a_stage_with_prices_has_its_bill_and_others_have_none() -> None:
    bill = as_json("queued", "--duration", 30)["bill"]
    assert [item["component"] for item in bill["items"]] == ["worker", "jobs API"]  # type: ignore[index]
    assert bill["cost_usd"] == pytest.approx(sum(item["usd"] for item in bill["items"]))  # type: ignore[index]
    assert bill["cost_usd_per_hour"] == pytest.approx(120 * bill["cost_usd"])  # type: ignore[index]
    assert as_json("single-vm", "--duration", 2)["bill"] is None
    result = rung_simulate("queued", "--duration", 30)
    assert "US dollars in 30 s" in result.stdout
    assert "jobs API: 0.17 US dollars an hour" in " ".join(result.stdout.split())
    assert "8 times slower than the one that is paid" in " ".join(result.stdout.split())
