"""The whole product once: calibrate, run both worlds, and the report that comes of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import typer
from typer.testing import CliRunner

from loadtests import calibrate, compare, verbs
from loadtests.cli import _loads
from loadtests.compare import at_load
from rung import app
from simulator.run import simulate
from stages import calibration, records
from stages.spec import device_label, load_stage
from stages.traffic import schedule
from tests.conftest import Rung
from tests.made import a_calibration

pytestmark = [pytest.mark.timeout(300), pytest.mark.usefixtures("in_numpy")]


@contextmanager
def once(runs: Path) -> Iterator[None]:
    """What is busy beside a test is not waited out: nothing is run again for it, and the curve has few points."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RUNG_RUNS", str(runs))
        patch.setattr(calibrate, "FOREIGN_CPU_MAX_OF_ATTEMPT", (1.0,))
        patch.setattr(compare, "CURVE_LOADS", (0.3, 0.9, 1.2))
        patch.setattr(compare, "CURVE_REQUESTS", 20_000)
        yield


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], Path]:
    """One short comparison at two loads: its folder, what --json printed, and the runs folder."""
    runs = tmp_path_factory.mktemp("runs")
    folder = runs / "compared"
    words = ["compare", "micro-batched", "--short", "--loads", "0.3,1.2", "--repeat", "1", "--duration", "2"]
    words += ["--void-retries", "0"]
    with once(runs):
        done = CliRunner().invoke(app, [*words, "--out", str(folder), "--json"])
    # On a busy machine every run may be void, which is status 3, and is reported all the same.
    assert done.exit_code in (0, 3), done.stderr
    return folder, json.loads(done.stdout), runs


def test_json_has_the_rows(compared: tuple[Path, dict[str, Any], Path]) -> None:
    _, document, _ = compared
    keys = {
        "stage",
        "load",
        "rate_rps",
        "metric",
        "measured",
        "predicted",
        "error",
        "spread_low",
        "spread_high",
        "void",
    }
    assert all(keys <= set(row) for row in document["rows"])
    assert {row["load"] for row in document["rows"]} == {0.3, 1.2}
    assert {"throughput_rps", "latency_s_p99", "utilisation", "queue_wait_s_mean"} <= {
        row["metric"] for row in document["rows"]
    }
    assert Path(document["report"]).is_file()


def test_run_folder_holds_everything(compared: tuple[Path, dict[str, Any], Path]) -> None:
    folder, _, _ = compared
    assert {
        "stage.toml",
        "calibration.json",
        "report.json",
        "report.html",
        "timeline.json",
        "latency_against_load.png",
    } <= {path.name for path in folder.iterdir()}
    assert load_stage(folder / "stage.toml") == load_stage("micro-batched")
    assert (folder / "stack" / "replica-0.log").is_file()


def test_both_worlds_had_the_same_arrivals(compared: tuple[Path, dict[str, Any], Path]) -> None:
    folder, _, _ = compared
    for run in _runs(folder):
        measured, predicted = records.read(run / "measured").requests, records.read(run / "predicted").requests
        assert measured["scheduled_s"].to_list() == predicted["scheduled_s"].to_list()
        assert measured["item"].to_list() == predicted["item"].to_list()


def test_real_record_is_sound(compared: tuple[Path, dict[str, Any], Path]) -> None:
    folder, _, _ = compared
    for run in _runs(folder):
        found = records.read(run / "measured")
        answered = found.requests.filter(pl.col("outcome") == "ok")
        order = ["scheduled_s", "sent_s", "arrived_s", "started_s", "finished_s", "replied_s"]
        for earlier, later in pairwise(order):
            assert (answered[later] - answered[earlier]).min() >= -1e-5, (earlier, later)  # type: ignore[operator]
        assert answered["batch_size"].max() <= 8  # type: ignore[operator]
        sizes = found.batches.select("batch", "batch_size")
        joined = answered.group_by("batch").len().join(sizes, on="batch", how="left")
        assert (joined["len"] <= joined["batch_size"]).all()


def test_prediction_needs_stage_schedule_and_calibration_only(compared: tuple[Path, dict[str, Any], Path]) -> None:
    """Made again from those three, it is the same to the byte: nothing of the real run is in it."""
    folder, document, runs = compared
    kept = calibration.read(next((runs / "calibration").glob("*.json")))
    for run in _runs(folder):
        load = float(run.name.split("-")[1])
        point = at_load(load_stage("micro-batched"), load, document["capacity_rps"], 2.0)
        again = simulate(point, schedule(point.traffic), calibration=kept)
        assert again.requests.equals(records.read(run / "predicted").requests)


def test_overload_is_shed_in_both_worlds(compared: tuple[Path, dict[str, Any], Path]) -> None:
    folder, _, _ = compared
    run = next(path for path in _runs(folder) if path.name.startswith("load-1.2"))
    for world in ("measured", "predicted"):
        assert "queue_full" in records.read(run / world).requests["reason"].cast(pl.String).to_list()


def test_predicted_again_it_is_the_same(compared: tuple[Path, dict[str, Any], Path]) -> None:
    folder, document, runs = compared
    with once(runs):
        done = CliRunner().invoke(app, ["report", str(folder), "--json"])
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout) == document


def test_a_calibration_that_cannot_serve_the_stage_is_told_in_words(tmp_path: Path) -> None:
    stage = load_stage("micro-batched")
    times = {32: (0.05,)}
    made = a_calibration(times).model_copy(update={"device": device_label(stage)})
    calibration.write(made, tmp_path / "calibration.json")
    done = CliRunner().invoke(app, ["compare", "micro-batched", "--calibration", str(tmp_path / "calibration.json")])
    assert done.exit_code == 1
    assert isinstance(done.exception, SystemExit)
    assert "must be within the sweep of the calibration, batches of 32 to 32, got 8" in " ".join(done.stderr.split())


def test_loads_are_read() -> None:
    assert _loads("0.2, 0.95") == [0.2, 0.95]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["compare", "micro-batched", "--loads", "fast"], "--loads: must be shares of capacity above 0 and up to 10"),
        (["compare", "mikro-batched"], "Did you mean 'micro-batched'?"),
        (
            ["compare", "single-vm", "--set", "traffic.loop=closed", "--set", "traffic.rate="],
            'traffic.loop: must be "open"',
        ),
        (["compare", "single-vm", "--calibration", "no.json"], "no.json: cannot be read (No such file or directory)"),
        (["report", "nowhere"], "nowhere: is not a run folder that `rung compare` finished"),
        (["load", "single-vm"], "single-vm: is not up. Start it with `rung up single-vm`, or give --url."),
        (["load", "single-vm", "--rate", "-1"], "--rate"),
        (["calibrate", "single-vm", "--set", "slo"], "--set slo: must be KEY=VALUE"),
    ],
)
def test_mistakes_are_told_in_words(arguments: list[str], said: str, verb: Rung) -> None:
    done = verb(*arguments)
    assert done.returncode == 2
    assert said in " ".join(done.stderr.split())


def _runs(folder: Path) -> list[Path]:
    runs = [path for path in sorted(folder.glob("load-*")) if (path / "measured").is_dir()]
    assert len(runs) == 2
    return runs


def test_a_stages_own_rate_is_no_matter_where_loads_are_shares_of_what_it_carries() -> None:
    slow = ["device.slowdown=8"]
    assert verbs.stage_of("load-balanced", slow, own_rate=False).device.slowdown == 8.0
    with pytest.raises(typer.Exit):
        verbs.stage_of("load-balanced", slow)
