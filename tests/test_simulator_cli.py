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
