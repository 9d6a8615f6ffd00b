"""The whole product once: both worlds run by a calibration that was made up, and the report that comes of it."""

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

from loadtests import calibrate, cli, compare, verbs
from loadtests.cli import _loads
from loadtests.compare import at_load
from rung import app
from simulator.run import simulate
from stages import calibration, catalogue, records
from stages.calibration import Calibration
from stages.spec import Stage, device_label, load_stage
from stages.traffic import schedule
from tests.conftest import Rung
from tests.hand_made_runs import steady
from tests.made import a_calibration

pytestmark = [pytest.mark.timeout(300), pytest.mark.usefixtures("in_numpy")]


@contextmanager
def once(runs: Path) -> Iterator[None]:
    """Nothing is calibrated or warmed up, which tests/test_calibrate.py does for real, and the curve has few points."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RUNG_RUNS", str(runs))
        patch.setattr(calibrate, "calibrate", as_its_profile)
        patch.setattr(compare, "_warm_up", lambda *_: None)
        patch.setattr(compare, "CURVE_LOADS", (0.3, 0.9, 1.2))
        patch.setattr(compare, "CURVE_REQUESTS", 5_000)
        yield


def as_its_profile(stage: Stage, folder: Path, **_: Any) -> Calibration:
    """A calibration that says of the device what its profile says, and a millisecond for each way."""
    profile = catalogue.profiles()[str(stage.device.profile)]
    times_s = {size: (profile.service_time_s(size),) for size in range(1, stage.batching.max_batch_size + 1)}
    made = a_calibration(times_s, send_quantiles_s=(0.001,), reply_quantiles_s=(0.001,))
    return made.model_copy(update={"device": device_label(stage), "stage": stage.name})


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
    assert load_stage(folder / "stage.toml") == load_stage("micro-batched", {"overload": True})
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
    assert _loads("0.5,0.2,0.50,0.5000001") == [0.5, 0.2], "each load has a folder of its own"


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
        (["compare", "single-vm", "--duration", "0"], "traffic.duration_s: must be"),
        (["compare", "single-vm", "--duration=-3"], "traffic.duration_s: must be"),
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


def test_calibrate_measures_anew_and_compare_takes_what_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RUNG_RUNS", str(tmp_path))
    stage, made = load_stage("micro-batched"), list[calibration.Calibration]()

    def measure(*_: Any, **__: Any) -> calibration.Calibration:
        made.append(a_calibration({1: (0.01,), 8: (0.02,)}).model_copy(update={"command": f"number {len(made)}"}))
        return made[-1]

    monkeypatch.setattr(calibrate, "calibrate", measure)
    kept = calibrate.kept_path(stage, short=True)
    for number in range(2):
        assert CliRunner().invoke(app, ["calibrate", "micro-batched", "--short"]).exit_code == 0
        assert calibration.read(kept).command == f"number {number}"
    assert verbs.calibration_of(stage, True, "process", None) == made[-1]
    assert len(made) == 2
    kept.write_text("{}")
    done = CliRunner().invoke(app, ["compare", "micro-batched", "--short"])
    assert done.exit_code == 2
    assert "it is not a calibration). Make it anew: `rung calibrate micro-batched`" in " ".join(done.stderr.split())
    assert CliRunner().invoke(app, ["calibrate", "micro-batched", "--short"]).exit_code == 0
    assert verbs.calibration_of(stage, True, "process", None) == made[-1]


def test_the_curve_of_a_cache_is_of_runs_as_long_as_the_real_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache begins each of them empty."""
    asked: list[tuple[float, float, int]] = []

    def simulated(point: Stage, *, seed: int, **_: Any) -> records.Records:
        asked.append((point.traffic.duration_s, point.traffic.rate.mean_rps(1.0), seed))  # type: ignore[union-attr]
        return steady(0.01 * len(asked))

    monkeypatch.setattr(compare, "simulate", simulated)
    monkeypatch.setattr(compare, "CURVE_LOADS", (0.5, 1.0))
    monkeypatch.setattr(compare, "CURVE_REQUESTS_GATEWAY", 600)
    points = compare.predicted_curve(load_stage("cached"), a_calibration({1: (0.01,)}), 100.0, [0.5], 2.0)
    assert {duration_s for duration_s, _, _ in asked} == {2.0}
    assert [rate_rps for _, rate_rps, _ in asked] == [50.0] * 6 + [100.0] * 3, "as many requests as of any other stage"
    assert len({(rate_rps, seed) for _, rate_rps, seed in asked}) == 9
    assert points[0]["latency_s_p50"] == pytest.approx(0.012 + 0.01 * 3.5), "their mean"
    asked.clear()
    compare.predicted_curve(load_stage("load-balanced"), a_calibration({1: (0.01,)}), 100.0, [0.5], 2.0)
    assert [duration_s for duration_s, _, _ in asked] == [12.0, 6.0]


def test_the_time_beside_which_a_lag_counts_is_that_of_the_quickest_replica() -> None:
    quick, slow = "a100-resnet50-tf32-tensorflow", "t4-resnet50-fp16-pytorch"
    for profiles in ([slow, quick], [quick, slow]):
        stage = load_stage("load-balanced", {"fleet.profiles": profiles, "device.slowdown": 2.0, "overload": True})
        assert cli._least_service_s(stage) == 2.0 * catalogue.profiles()[quick].service_time_s(1)
    timed = {"device.kind": "cpu", "device.profile": None, "device.slowdown": None}
    assert cli._least_service_s(load_stage("single-vm", timed)) is None
