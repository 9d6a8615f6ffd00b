"""A spike in both worlds: its traffic, one real autoscaled run against its prediction, and what is said of it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from rich.console import Console
from typer.testing import CliRunner

from loadtests import shapes, spike_report
from loadtests.load import fire
from loadtests.shapes import Shape, ShapeError
from loadtests.spike import Plan, Run, Spiked, spike
from loadtests.spike import again as spike_again
from loadtests.tending import tended
from reference_apps.launchers.member import LaunchError
from reference_apps.launchers.process import ProcessLauncher
from rung import app
from simulator.run import simulate
from stages import calibration, records
from stages.problems import StageError
from stages.records import Records, looks_frame
from stages.spec import Stage, device_label, load_stage, stage_toml, with_overrides
from stages.terminal import Exit
from stages.traffic import rate_at_rps, schedule
from tests.conftest import processes_of
from tests.hand_made_runs import run
from tests.made import a_calibration
from tests.no_warm_up import not_warmed_up

pytestmark = pytest.mark.usefixtures("in_numpy")

HOUR_S = 3600.0

# The stage of the ladder with all its times some ten times shorter, so that a spike of four seconds shows it all.
QUICK = {
    "device.slowdown": 4.0,
    "batching.batch_wait_timeout_s": 0.02,
    "scaling.interval_s": 0.5,
    "scaling.scrape_interval_s": 0.5,
    "scaling.window_s": 0.5,
    "scaling.max_replicas": 2,
    "scaling.up.period_s": 0.5,
    "scaling.down.period_s": 0.5,
    "scaling.down.stabilisation_window_s": 1.5,
    "scaling.cold_start.machine_s": 0.5,
    "scaling.cold_start.image_s": 0.25,
    "scaling.cold_start.model_s": 0.25,
}


def a_trace(folder: Path, lines: list[str]) -> Path:
    path = folder / "trace.csv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def counted(folder: Path, counts: list[int]) -> Path:
    """A trace of counts, one an hour."""
    rows = [f"2024-01-{1 + hour // 24:02} {hour % 24:02}:00:00,{count}" for hour, count in enumerate(counts)]
    return a_trace(folder, ["timestamp,value", *rows])


# ---- traffic ----


@pytest.mark.parametrize(
    ("name", "duration_s", "rates"),
    [
        ("spike", 50.0, [(5.0, 26.0), (15.0, 208.0), (29.0, 208.0), (31.0, 26.0), (49.0, 26.0)]),
        ("ramp", 20.0, [(0.0, 26.0), (10.0, 117.0), (20.0, 208.0)]),
        ("diurnal", 20.0, [(0.0, 26.0), (10.0, 208.0), (20.0, 26.0)]),
    ],
)
def test_a_shape_rises_from_the_base_rate_to_so_many_times_it(
    name: shapes.ShapeName, duration_s: float, rates: list[tuple[float, float]]
) -> None:
    stage = load_stage("autoscaled")
    point = shapes.under(stage, Shape(name, 8.0, 20.0), shapes.base_rate_rps(stage))
    assert point.traffic.duration_s == duration_s
    at_s, expected = np.array(rates).T
    assert rate_at_rps(point.traffic, at_s) == pytest.approx(expected)
    assert point.overload
    changed = {"traffic", "overload"}
    assert point.model_dump(exclude=changed) == stage.model_dump(exclude=changed)


def test_the_ladders_own_spike_is_the_default_one() -> None:
    stage = load_stage("autoscaled")
    point = shapes.under(stage, Shape("spike", 8.0, 60.0), shapes.base_rate_rps(stage))
    assert point.traffic == stage.traffic


@pytest.mark.parametrize(("stage", "rate_rps"), [("autoscaled", 26.0), ("load-balanced", 220.0)])
def test_the_base_rate_is_the_stages_own(stage: str, rate_rps: float) -> None:
    assert shapes.base_rate_rps(load_stage(stage)) == rate_rps


def test_the_base_rate_of_other_shapes_is_their_mean() -> None:
    ramp = {"shape": "ramp", "rate_rps_start": 10.0, "rate_rps_end": 50.0}
    assert shapes.base_rate_rps(load_stage("autoscaled", {"traffic.rate": ramp})) == 30.0


def test_a_closed_loop_has_no_spike() -> None:
    stage = load_stage("single-vm", {"traffic.loop": "closed", "traffic.rate": None})
    with pytest.raises(ShapeError, match=r'traffic\.loop: must be "open"'):
        shapes.base_rate_rps(stage)


def test_a_trace_of_counts_is_squeezed_and_its_peak_is_so_many_times_the_base(tmp_path: Path) -> None:
    path = counted(tmp_path, [10, 20, 40, 10] * 6 + [999] * 6)  # the second day does not count
    point = shapes.under(load_stage("autoscaled"), Shape("trace", 4.0, 24.0, path), 30.0)
    at_s = np.arange(24) + 0.5
    assert rate_at_rps(point.traffic, at_s) == pytest.approx([30.0, 60.0, 120.0, 30.0] * 6, rel=1e-6)
    later = Shape("trace", 4.0, 6.0, path, trace_start_s=24 * HOUR_S, trace_length_s=3 * HOUR_S)
    point = shapes.under(load_stage("autoscaled"), later, 30.0)
    assert rate_at_rps(point.traffic, np.array([0.5, 5.5])) == pytest.approx([120.0, 120.0], rel=1e-6)


def test_a_trace_of_arrivals_brings_its_own_times(tmp_path: Path) -> None:
    lines = [f"{10.0 * k},m" for k in range(100)] + [f"{500 + k / 10},m" for k in range(50)]
    path = a_trace(tmp_path, ["Timestamp,Model", *lines])
    point = shapes.under(load_stage("autoscaled"), Shape("trace", 2.0, 10.0, path), 60.0)
    arrivals_s = schedule(point.traffic).arrivals_s
    counts, edges_s = np.histogram(arrivals_s, shapes.PEAK_BINS, (0.0, 10.0))
    assert (counts / np.diff(edges_s)).max() == pytest.approx(120.0, rel=0.3)
    assert counts.argmax() == pytest.approx(500 / 990 * shapes.PEAK_BINS, abs=1)


@pytest.mark.parametrize(
    ("shape", "told"),
    [
        (Shape("trace", 8.0, 20.0), "--trace: is required with --shape trace"),
        (Shape("trace", 8.0, 20.0, Path("trace.csv"), trace_start_s=1e6), "--trace-start: must be before the end"),
        (Shape("trace", 8.0, 20.0, Path("nowhere.csv")), "must be a file that exists"),
    ],
)
def test_a_trace_that_cannot_be_squeezed(
    shape: Shape, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted(tmp_path, [1, 2, 3])
    monkeypatch.chdir(tmp_path)
    with pytest.raises((ShapeError, StageError), match=told):
        shapes.under(load_stage("autoscaled"), shape, 30.0)


# ---- what is said ----


def a_spike(*measured: Records, void: str | None = None, stage: Stage | None = None) -> Spiked:
    predicted = scaled(run([(1.0, 1.5, 2), (3.0, 3.5, 2)], shed=6), [(2.0, 1), (4.0, 2)])
    return Spiked(
        stage=stage or load_stage("autoscaled", {"scaling.scrape_interval_s": 1.5}),
        shape="8 times the base rate for 4 s",
        base_rps=1.0,
        capacity_rps=10.0,
        runs=[Run(number, void, each, predicted) for number, each in enumerate(measured)],
        caveats=["A caveat."],
        machine="none",
        command="rung spike",
        made_at="",
        short=False,
    )


def scaled(records: Records, wanted: list[tuple[float, int]]) -> Records:
    return replace(records, scaling=looks_frame([(at_s, count, 1, 0, None, "") for at_s, count in wanted]))


def by_name(spiked: Spiked) -> dict[str, spike_report.Row]:
    return {row.metric: row for row in spike_report.rows(spiked)}


def test_rows_are_medians_with_the_spread_of_the_repeats() -> None:
    runs = [run([(1.0, 1.5, 2), (3.0, 3.5, 2)], shed=shed) for shed in (4, 6, 12)]
    found = by_name(a_spike(*(scaled(each, [(2.0, 1), (5.0, 2)]) for each in runs)))
    shed = found["shed_share"]
    assert (shed.measured, shed.predicted, shed.error) == pytest.approx((0.6, 0.6, 0.0))
    assert (shed.spread_low, shed.spread_high) == pytest.approx((0.5, 0.75))
    assert found["requests"].measured == 10
    assert found["latency_s_p95"].predicted == pytest.approx(0.512)
    assert found["replica_seconds"].measured == pytest.approx(10.0)
    assert found["dollars"].measured == pytest.approx((0.526 + 0.17) * 10 / 3600)


@pytest.mark.parametrize(
    ("at_s", "lag_s", "sign"),
    [(4.0, 0.0, "="), (5.5, 1.5, "="), (5.5 + 1e-8, 1.5, "="), (7.0, 3.0, "~"), (9.0, 5.0, "!")],
)
def test_a_lag_is_held_to_the_scrape_interval(at_s: float, lag_s: float, sign: str) -> None:
    measured = scaled(run([(1.0, 1.5, 2)]), [(2.0, 1), (at_s, 2)])
    row = by_name(a_spike(measured))["wanted_lag_s"]
    assert row.error == pytest.approx(lag_s)
    assert (row.bound, row.sign) == (1.5, sign)
    document = spike_report.document(a_spike(measured), Path())
    assert document["same_count_share"] == pytest.approx([1 - lag_s / 10, 1.0])


def test_a_fixed_fleet_without_a_price_has_neither_lags_nor_dollars() -> None:
    stage = load_stage("load-balanced")
    made = run([(1.0, 1.5, 2)], replicas=2)
    found = by_name(a_spike(made, stage=stage))
    assert not {"wanted_lag_s", "ready_lag_s", "dollars"} & set(found)
    text = said(a_spike(made, stage=stage))
    assert "No dollars: the stage has no [cost]" in text


def said(spiked: Spiked) -> str:
    console = Console(file=StringIO(), width=200, record=True)
    spike_report.print_table(spiked, console)
    return console.export_text()


def test_the_table_has_units_bounds_prices_and_caveats() -> None:
    text = " ".join(said(a_spike(scaled(run([(1.0, 1.5, 2)], shed=6), [(2.0, 1)]))).split())
    for part in (
        "8 times the base rate for 4 s",
        "75.0 %",
        "+",
        " ms",
        " USD",
        "caveat: A caveat.",
        "0.526 US dollars",
    ):
        assert part in text
    assert "A lag is held to one scrape interval (1.5 s)" in text


def test_void_runs_count_only_where_there_is_no_other() -> None:
    late = scaled(run([(1.0, 1.5, 2)], shed=500), [(2.0, 1)])
    spiked = a_spike(late, void="The generator was late.")
    assert {row.sign for row in spike_report.rows(spiked)} == {"void"}
    assert "void: repeat 1: The generator was late." in said(spiked)
    sound = scaled(run([(1.0, 1.5, 2), (3.0, 3.5, 2)], shed=6), [(2.0, 1)])
    both = replace(spiked, runs=[*spiked.runs, Run(1, None, sound, spiked.runs[0].predicted)])
    assert by_name(both)["shed_share"].measured == pytest.approx(0.6)
    assert by_name(both)["shed_share"].sign == "="


def test_the_folder_has_picture_and_json(tmp_path: Path) -> None:
    picture = spike_report.write(a_spike(run([], shed=3)), tmp_path)
    assert picture.read_bytes().startswith(b"\x89PNG")
    document = json.loads((tmp_path / "spike.json").read_text())
    latency = next(row for row in document["rows"] if row["metric"] == "latency_s_p95")
    assert latency["measured"] is None
    assert not math.isnan(latency["predicted"])


def a_folder(folder: Path) -> Stage:
    """What a spike leaves that is to be predicted again."""
    point = load_stage("load-balanced", {"traffic.duration_s": 2.0, "traffic.rate.rate_rps": 20.0})
    (folder / "stage.toml").write_text(stage_toml(point))
    calibration.write(a_calibration({1: (0.01,)}), folder / "calibration.json")
    about = asdict(Plan(1, "a spike", 20.0, True)) | {"command": "rung spike", "machine": "none", "made_at": "2026"}
    (folder / "about.json").write_text(json.dumps(about))
    records.write(simulate(point, schedule(point.traffic)), folder / "run-1" / "measured")
    (folder / "run-1" / "check.json").write_text('{"void": null}')
    return point


def test_a_folder_keeps_its_own_calibration(tmp_path: Path) -> None:
    a_folder(tmp_path)
    own = (tmp_path / "calibration.json").read_text()
    other = a_calibration({1: (0.5,)}).model_copy(update={"made_at": "another day"})
    assert "another day" in spike_again(tmp_path, other).caveats[0]
    assert (tmp_path / "calibration.json").read_text() == own
    assert not any("another calibration" in caveat for caveat in spike_again(tmp_path).caveats)


def test_the_inputs_that_are_sent_say_which_requests_crash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    point = a_folder(tmp_path)
    (tmp_path / "stage.toml").write_text(stage_toml(with_overrides(point, {"model.facts": {"crash_share": 0.5}})))
    for position, answered in ((0.6, True), (0.4, False)):
        monkeypatch.setattr("loadtests.spike.crash_positions", lambda _, position=position: lambda item: position)
        predicted = spike_again(tmp_path).runs[0].predicted
        assert ((predicted.requests["outcome"] == "ok") == answered).all()


# ---- a real run ----


@pytest.fixture(scope="module")
def spiked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict[str, Any], Path]]:
    """One short spike of a quick autoscaled stage: its folder, what --json printed, and the runs folder."""
    runs = tmp_path_factory.mktemp("runs")
    stage = load_stage("autoscaled", QUICK)
    times_s = {1: (0.0253,), 8: (0.0491,)}
    made = a_calibration(times_s, send_quantiles_s=(0.001,), reply_quantiles_s=(0.001,))
    calibration.write(made.model_copy(update={"device": device_label(stage)}), runs / "calibration.json")
    words = [word for key, value in QUICK.items() for word in ("--set", f"{key}={value}")]
    words += ["--calibration", str(runs / "calibration.json"), "--out", str(runs / "spiked"), "--short", "--json"]
    with not_warmed_up() as patch:
        patch.setenv("RUNG_RUNS", str(runs))
        done = CliRunner().invoke(app, ["spike", "autoscaled", "--times", "8", "--for", "4", *words])
    # On a busy machine the run may be void, which is status 3, and is reported all the same.
    assert done.exit_code in (0, 3), done.stderr
    yield runs / "spiked", json.loads(done.stdout), runs
    assert not processes_of(runs)


def test_json_and_folder_have_everything(spiked: tuple[Path, dict[str, Any], Path]) -> None:
    folder, document, _ = spiked
    metrics = {row["metric"] for row in document["rows"]}
    assert {"shed_share", "replica_seconds", "latency_s_p95", "dollars", "wanted_lag_s", "ready_lag_s"} <= metrics
    assert Path(document["picture"]).read_bytes().startswith(b"\x89PNG")
    assert {path.name for path in folder.iterdir()} >= {"stage.toml", "calibration.json", "about.json", "spike.json"}
    assert document["base_rps"] == 26.0
    assert "aws/g4dn.xlarge" in document["price"]


def test_both_worlds_had_the_same_arrivals_and_scaled(spiked: tuple[Path, dict[str, Any], Path]) -> None:
    folder, _, _ = spiked
    measured, predicted = records.read(folder / "run-1" / "measured"), records.read(folder / "predicted")
    assert measured.requests["scheduled_s"].to_list() == predicted.requests["scheduled_s"].to_list()
    for world in (measured, predicted):
        assert world.scaling["wanted"].max() == 2
        assert world.replicas.height >= 2
        looks = world.scaling["at_s"].to_numpy() / 0.5
        assert looks == pytest.approx(np.round(looks)), "both timetables begin with the schedule"
    cold = measured.replicas.filter(pl.col("started_s") > 0.0).drop_nulls("ready_s")
    assert ((cold["ready_s"] - cold["started_s"]) >= 0.99).all()


def test_every_request_of_the_real_run_has_its_end(spiked: tuple[Path, dict[str, Any], Path]) -> None:
    requests = records.read(spiked[0] / "run-1" / "measured").requests
    assert requests["replied_s"].null_count() == 0
    assert set(requests["outcome"].cast(pl.String)) <= {"ok", "shed", "timed_out"}


def test_prediction_needs_stage_schedule_and_calibration_only(spiked: tuple[Path, dict[str, Any], Path]) -> None:
    folder, _, runs = spiked
    point, kept = load_stage(folder / "stage.toml"), calibration.read(runs / "calibration.json")
    again = simulate(point, schedule(point.traffic), calibration=kept)
    assert again.requests.equals(records.read(folder / "predicted").requests)
    assert again.scaling.equals(records.read(folder / "predicted").scaling)


def test_predicted_again_it_is_the_same(
    spiked: tuple[Path, dict[str, Any], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, document, runs = spiked
    monkeypatch.setenv("RUNG_RUNS", str(runs))
    done = CliRunner().invoke(app, ["report", str(folder), "--json"])
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout) == document


@pytest.mark.docker
@pytest.mark.timeout(900)
def test_in_containers_the_cold_start_is_the_machines_time_and_what_a_container_takes(
    engine: object, tmp_path: Path
) -> None:
    """One that is asked for waits for its machine, starts for real, and both worlds know how long that takes."""
    from reference_apps.launchers.docker import DockerLauncher

    del engine
    stage = load_stage("autoscaled", QUICK | {"scaling.cold_start.machine_s": 2.0})
    point = shapes.under(stage, Shape("spike", 8.0, 5.0), shapes.base_rate_rps(stage))
    plan = Plan(1, "a spike", shapes.base_rate_rps(stage), True, "docker")
    made = a_calibration({1: (0.01,)})
    found = spike(point, made, plan, tmp_path, command="rung spike", launch=DockerLauncher)
    assert found.stage.scaling is not None
    cold = found.stage.scaling.cold_start
    assert (cold.machine_s, cold.image_s) == (2.0, 0.0)
    assert cold.model_s > 0.2
    assert f"A container took {cold.model_s:.1f} s until it served" in " ".join(found.caveats)
    for world in (found.runs[0].measured, found.runs[0].predicted):
        grown = world.replicas.filter(pl.col("started_s") > 0.0)
        assert grown.height >= 1
        # On a busy machine the run may be over before a container serves.
        assert ((grown["ready_s"] - grown["started_s"]).drop_nulls() > 2.2).all()
    assert spike_again(tmp_path).caveats == found.caveats


def test_a_gateway_that_dies_again_and_again_ends_the_tending(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reference_apps.supervisor.RESTARTS_MAX", 0)
    stage = load_stage("load-balanced", {"fleet.replicas": 1, "overload": True})
    with (
        ProcessLauncher(stage, tmp_path) as launcher,
        pytest.raises(LaunchError, match="the gateway died 1 times in a row"),
        tended(launcher) as tending,
    ):
        assert launcher.gateway is not None
        launcher.gateway.process.kill()
        fire(
            shapes.constant(stage, 5.0, 20.0),
            launcher.url,
            tmp_path / "load",
            device=device_label(stage),
            on_second=lambda _: tending.check(),
        )


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--times", "0"], "--times: must be above 0 and at most 1000, got 0"),
        (["--for", "0.5"], "--for: must be above 1 and at most 86400, got 0.5"),
        (["--base-load", "-1"], "--base-load: must be above 0"),
        (["--shape", "trace"], "--trace: is required with --shape trace"),
        (["--trace", "x.csv"], "--trace: belongs to --shape trace only, got --shape spike"),
        (["--shape", "trace", "--trace", "x.csv"], "must be a file that exists"),
        (["--shape", "trace", "--trace", "x.csv", "--trace-start", "-1"], "--trace-start: must be at least 0 seconds"),
        (["--set", "traffic.loop=closed", "--set", "traffic.rate="], 'traffic.loop: must be "open" for a spike'),
        (["--set", "cost.machine=aws"], "cost.machine: must be a machine of the price list"),
        (["--calibration", "no.json"], "no.json: cannot be read"),
    ],
)
def test_mistakes_are_told_in_words(
    words: list[str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RUNG_RUNS", str(tmp_path))
    done = CliRunner().invoke(app, ["spike", "autoscaled", *words])
    assert done.exit_code == Exit.MISUSED
    assert isinstance(done.exception, SystemExit)
    assert told in " ".join(done.stderr.split())
    assert not any(tmp_path.iterdir()), "nothing was started"
