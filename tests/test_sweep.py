"""A sweep: every point evaluated alike, the same on one process as on two, kept in files, and told as a table."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner, Result

import stages.terminal
from simulator import kept_points, sweep
from simulator.estimate import Estimate
from simulator.grid import Point, grid
from simulator.run import simulate
from simulator.sweep import METRICS, evaluate, evaluate_many, workers_pool
from simulator.sweep_cli import app
from simulator.sweep_plots import main_axis, pictures
from simulator.sweep_table import Column, cheapest, fitting, frame, verdict
from stages import bill, metrics
from stages.spec import Stage, load_stage
from stages.terminal import Exit

PRICED = {"cost.machine": "aws/g4dn.xlarge", "cost.host_machine": "aws/c5.xlarge", "traffic.duration_s": 4.0}


def a_fleet(**changes: Any) -> Stage:
    return load_stage("load-balanced", PRICED | changes)


def alike(one: Estimate, other: Estimate) -> None:
    """The same figures; how long they took may differ."""
    assert (one.seeds, one.requests, list(one.values)) == (other.seeds, other.requests, list(other.values))
    for name, values in one.values.items():
        np.testing.assert_array_equal(values, other.values[name], err_msg=name)


# ---- estimates of points -------------------------------------------------------------------------------------


def test_a_replication_is_a_run_with_its_own_seed() -> None:
    stage = a_fleet()
    found = evaluate(stage, 3, seed=11)
    assert found.seeds == (11, 12, 13)
    assert list(found.values) == list(METRICS)
    records = [simulate(stage, seed=seed) for seed in found.seeds]
    assert found.requests == sum(each.requests.height for each in records)
    for place, run in enumerate(records):
        expected = metrics.summarise(run, stage.slo.latency_s) | bill.figures(stage, run)
        told = {name: found.values[name][place] for name in expected}
        assert told == pytest.approx(expected, nan_ok=True)
    latency_s = records[0].requests["replied_s"] - records[0].requests["scheduled_s"]
    assert found.values["slo_share"][0] == pytest.approx(float((latency_s <= stage.slo.latency_s).mean() or 0.0))


def test_replications_can_be_added_later() -> None:
    stage = a_fleet()
    alike(evaluate(stage, 2).plus(evaluate(stage, 3, first=2)), evaluate(stage, 5))


def test_another_duration_and_a_stage_without_a_price() -> None:
    found = evaluate(load_stage("micro-batched"), 1, duration_s=2)
    assert found.requests == pytest.approx(900, rel=0.2)
    assert all(math.isnan(found[name].mean) for name in bill.FIGURES)


def test_common_random_numbers_show_small_differences() -> None:
    slow, fast = (evaluate(load_stage("single-vm", {"device.slowdown": factor}), 5) for factor in (1.01, 1.0))
    alone = [each["latency_s_mean"] for each in (slow, fast)]
    assert alone[0].overlaps(alone[1]), "these two intervals cannot tell"
    slower = slow.difference(fast, "latency_s_mean")
    assert slower.low > 0.0
    assert slower.half_width < 0.5 * math.hypot(*(interval.half_width for interval in alone))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [({"replications": 0}, "replications: must be 1 to"), ({"replications": 2, "first": -1}, "replications: must be")],
)
def test_bounds_of_an_estimate(arguments: dict[str, int], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        evaluate(a_fleet(), **arguments)


def test_a_stage_that_cannot_be_simulated_is_named() -> None:
    timed = load_stage("single-vm", {"device.kind": "cpu", "device.profile": None})
    with pytest.raises(ValueError, match=r"single-vm: device\.kind"):
        evaluate(timed)


# ---- all cores -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pool() -> Any:
    with workers_pool(2) as executor:
        yield executor


def test_processes_find_what_one_finds(pool: Any) -> None:
    stages = [a_fleet(**{"fleet.replicas": count}) for count in (2, 3)]
    told: dict[int, Estimate] = {}
    found = evaluate_many(stages, 5, seed=3, each=told.__setitem__, pool=pool)
    for number, stage in enumerate(stages):
        alike(found[number], evaluate(stage, 5, seed=3))
        assert told[number] is found[number]


def test_what_a_point_raises_in_a_process_is_raised_here_and_the_pool_goes_on(pool: Any) -> None:
    timed = load_stage("single-vm", {"device.kind": "cpu", "device.profile": None})
    with pytest.raises(ValueError, match=r"single-vm: device\.kind"):
        evaluate_many([a_fleet(), timed], 2, pool=pool)
    assert len(evaluate_many([a_fleet()], 1, pool=pool)) == 1


def test_one_worker_is_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "ProcessPoolExecutor", None)
    (found,) = evaluate_many([a_fleet()], 1, workers=1)
    alike(found, evaluate(a_fleet(), 1))


@pytest.mark.parametrize(
    ("points", "replications", "workers"), [(1, 10, 2), (2, 10, 4), (100, 10, 2), (1, 1, 8), (3, 7, 2)]
)
def test_parts_are_all_replications_once(points: int, replications: int, workers: int) -> None:
    parts = sweep._parts(points, replications, workers)
    assert [place for start, count in parts for place in range(start, start + count)] == list(range(replications))
    assert points * len(parts) >= min(workers, points * replications)


# ---- what is kept --------------------------------------------------------------------------------------------


def swept(points: list[Point], folder: Path | None, **arguments: Any) -> tuple[list[Estimate], list[tuple[int, bool]]]:
    told: list[tuple[int, bool]] = []
    found = sweep.sweep(
        points, 2, folder=folder, workers=1, each=lambda number, _, was: told.append((number, was)), **arguments
    )
    return found, told


def test_what_is_there_is_not_simulated_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = a_fleet()
    first, told = swept(grid(stage, ["fleet.replicas=2..3"]), tmp_path)
    assert told == [(0, False), (1, False)]
    again, told = swept(grid(stage, ["fleet.replicas=2..4"]), tmp_path)
    assert told == [(0, True), (1, True), (2, False)]
    for one, other in zip(first, again, strict=False):
        alike(one, other)
    _, told = swept(grid(stage, ["fleet.replicas=2..2"]), tmp_path, seed=9)
    assert told == [(0, False)], "another seed is another question"
    monkeypatch.setattr(kept_points, "code_digest", lambda: "other code")
    _, told = swept(grid(stage, ["fleet.replicas=2..2"]), tmp_path)
    assert told == [(0, False)], "other code may find something else"


@pytest.mark.parametrize("content", ["", "{", "[]", '{"seeds": [1], "values": {"x": []}, "requests": 1, "wall_s": 1}'])
def test_a_file_that_cannot_be_read_is_a_point_that_is_not_there(content: str, tmp_path: Path) -> None:
    points = grid(a_fleet(), [])
    swept(points, tmp_path)
    (file,) = (tmp_path / "points").iterdir()
    file.write_text(content, encoding="utf-8")
    _, told = swept(points, tmp_path)
    assert told == [(0, False)]
    _, told = swept(points, tmp_path)
    assert told == [(0, True)]


def test_a_digest_follows_from_all_that_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stage = a_fleet()
    names = {kept_points.digest(stage, 2, 1, None)}
    names.add(kept_points.digest(stage, 3, 1, None))
    names.add(kept_points.digest(stage, 2, 2, None))
    names.add(kept_points.digest(a_fleet(**{"slo.latency_s": 0.3}), 2, 1, None))
    prices = "provider,product,gpu,usd_per_hour,pricing\nAWS,g4dn.xlarge,T4 16GB,0.1,on-demand\n"
    (tmp_path / "mine.csv").write_text(prices, encoding="utf-8")
    monkeypatch.setenv("RUNG_PRICES", str(tmp_path / "mine.csv"))
    names.add(kept_points.digest(stage, 2, 1, None))
    assert len(names) == 5
    assert kept_points.digest(stage, 2, None, None) == kept_points.digest(stage, 2, stage.traffic.seed, None)


# ---- the table and the pictures ------------------------------------------------------------------------------


def made_up(share: list[float], usd: list[float]) -> Estimate:
    values = {name: (0.1,) * len(share) for name in METRICS}
    return Estimate(
        tuple(range(len(share))), values | {"slo_share": tuple(share), "cost_usd_per_1000": tuple(usd)}, 1, 1.0
    )


def test_a_promise_is_met_missed_or_either() -> None:
    stage = a_fleet()
    assert verdict(stage, made_up([0.99, 0.98, 0.99], [1.0] * 3)) == "met"
    assert verdict(stage, made_up([0.9, 0.91, 0.9], [1.0] * 3)) == "missed"
    assert verdict(stage, made_up([0.9, 0.999, 0.96], [1.0] * 3)) == "either"
    assert verdict(stage, made_up([0.96], [1.0])) == "met"
    assert verdict(stage, made_up([math.nan], [1.0])) == "missed"


def test_the_cheapest_is_of_those_that_meet_and_its_equals_are_named() -> None:
    points = [Point({"x": number}, a_fleet()) for number in range(4)]
    dear, cheap = made_up([0.99] * 3, [3.0, 3.1, 3.2]), made_up([0.99] * 3, [2.0, 2.1, 2.2])
    like, broken = made_up([0.99] * 3, [2.1, 2.05, 2.3]), made_up([0.5] * 3, [1.0, 1.0, 1.0])
    assert cheapest(points, [dear, cheap, like, broken]) == (1, [2])
    assert cheapest(points[:1], [broken]) is None
    assert cheapest(points[:1], [made_up([0.99], [math.nan])]) is None


def test_the_frame_has_a_row_a_point_and_an_interval_a_metric() -> None:
    points = grid(a_fleet(), ["fleet.replicas=2..3", "gateway.policy=random,round-robin"])
    estimates = evaluate_many([point.stage for point in points], 3, workers=1)
    table = frame(points, estimates)
    assert table["fleet.replicas"].to_list() == [2, 2, 3, 3]
    assert table["gateway.policy"].to_list() == ["random", "round-robin"] * 2
    assert {f"{name}{end}" for name in METRICS for end in ("", "_low", "_high")} <= set(table.columns)
    assert table["latency_s_p95"].to_list() == [estimate["latency_s_p95"].mean for estimate in estimates]
    assert (table["latency_s_p95_low"] <= table["latency_s_p95"]).all()
    keys = list(points[0].changes)
    assert main_axis(table, keys) == "fleet.replicas"
    files = pictures(points[0].stage, table, keys, 3)
    assert sorted(files) == ["cost.png", "cost.svg", "latency.png", "latency.svg"]
    assert all(files[name].startswith(b"\x89PNG") for name in files if name.endswith("png"))
    assert files == pictures(points[0].stage, table, keys, 3), "the same table gives the same bytes"


def test_without_dollars_and_without_an_axis_there_are_fewer_pictures() -> None:
    stage = load_stage("micro-batched", {"traffic.duration_s": 2.0})
    points = grid(stage, ["batching.batch_wait_timeout_s=0.0,0.01"])
    table = frame(points, evaluate_many([point.stage for point in points], 1, workers=1))
    assert sorted(pictures(stage, table, ["batching.batch_wait_timeout_s"], 1)) == ["latency.png", "latency.svg"]
    alone = grid(stage, [])
    assert pictures(stage, frame(alone, [evaluate(stage, 1)]), [], 1) == {}


# ---- the verb ------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def own_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RUNG_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("RUNG_PRICES", "")
    return tmp_path / "runs"


def rung_sweep(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


SET = [word for key, value in PRICED.items() if key != "traffic.duration_s" for word in ("--set", f"{key}={value}")]
ASKED = ("load-balanced", "--over", "fleet.replicas=1..3", "--replications", 2, "--duration", 3, "--workers", 1, *SET)


def test_the_verb_prints_a_table_writes_files_and_goes_on_where_it_was(
    own_runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages.terminal.out, "_width", 240)
    result = rung_sweep(*ASKED)
    assert result.exit_code == Exit.DONE, result.output
    said = " ".join(result.stdout.split())
    for part in (
        "p95, ms",
        "±",
        "missed*",
        "The cheapest that meets the SLO: fleet.replicas=",
        "sweep.parquet",
    ):
        assert part in said
    assert "1 of 3 points are offered more than they can serve" in said
    (folder,) = own_runs.iterdir()
    assert {"sweep.parquet", "cost.svg", "latency.png"} <= {file.name for file in folder.iterdir()}
    assert pl.read_parquet(folder / "sweep.parquet").height == 3
    told = json.loads(rung_sweep(*ASKED, "--json").stdout)
    assert [point["resumed"] for point in told["points"]] == [True] * 3
    assert told["simulated"] == 0
    assert told["seeds"] == [1, 2]
    assert told["points"][1]["metrics"]["cost_usd_per_hour"]["mean"] == pytest.approx(2 * 0.526 + 0.17)
    assert told["points"][0]["slo"] == "missed"
    assert told["cheapest"]["point"] in (1, 2)


def test_a_narrow_terminal_is_spared_what_it_can_do_without() -> None:
    columns = [
        Column("replicas", ["1", "2"]),
        Column("p95, ms", ["12.5 ± 0.1", "9.5 ± 0.1"]),
        Column("in SLO, %", ["98.5 ± 0.1", "99.9 ± 0.0"], 1),
        Column("busy, %", ["71.2", "35.6"], 3),
        Column("USD/h", ["0.696", "1.222"], 2),
        Column("SLO", ["met", "met"]),
    ]
    wide, nothing = fitting(columns, 8 + 10 + 10 + 7 + 5 + 3 + 5 * 3 + 2)
    assert (wide, nothing) == (columns, [])
    assert fitting(columns, 59)[1] == ["busy, %"]
    narrow, left_out = fitting(columns, 36)
    assert [column.heading for column in narrow] == ["replicas", "p95, ms", "SLO"]
    assert left_out == ["in SLO, %", "busy, %", "USD/h"]
    assert fitting(columns, 40)[1] == ["in SLO, %", "busy, %"], "a narrower one comes in where a wider one does not"
    assert fitting(columns, 10)[0] == narrow, "the rest is always shown"


def test_the_table_does_not_fold_on_eighty_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages.terminal.out, "_width", 80)
    result = rung_sweep(*ASKED, "--over", "batching.max_batch_size=4,8")
    assert result.exit_code == Exit.DONE, result.output
    lines = result.stdout.splitlines()
    head = next(number for number, line in enumerate(lines) if "replicas" in line and "p95, ms" in line)
    assert "USD/1,000" in lines[head]
    assert all(len(line) <= 80 for line in lines[head : head + 8])
    assert all("±" in line or "infinite" in line for line in lines[head + 2 : head + 8])  # a point is a line
    assert "Left out on lines of 80 characters: in SLO, %; busy, %. They are in sweep.parquet." in result.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["no-such-stage"], "single-vm, micro-batched"),
        (["load-balanced", "--over", "fleet.replicas=0..2"], "fleet.replicas: must be at least 1 replica (at"),
        (["load-balanced", "--over", "device=t5"], "must be a GPU that the catalogue has"),
        (["load-balanced", "--rate", "0"], "--rate 0"),
        (["load-balanced", "--calibration", "no-such-file"], "must be a file that `rung calibrate` wrote"),
        (
            ["load-balanced", "--set", "cost.machine=aws/g5", "--over", "device=t4"],
            "must be a machine of the price list",
        ),
        (["single-vm", "--set", "device.kind=cpu", "--set", "device.profile="], "a prediction needs a calibration"),
    ],
)
def test_mistakes_are_answered_in_words(arguments: list[str], said: str) -> None:
    result = rung_sweep(*arguments, "--workers", 1, "--replications", 1)
    assert result.exit_code == Exit.MISUSED, result.output
    assert said in result.stderr
    assert "Traceback" not in result.output


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    result = rung_sweep(*ASKED, "--out", tmp_path / "file")
    assert result.exit_code == Exit.FAILED
    assert "must be a folder that can be written" in result.stderr


def test_a_sweep_that_is_broken_off_says_what_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    done = 0

    def interrupted(*arguments: Any, **keywords: Any) -> Estimate:
        nonlocal done
        done += 1
        if done > 2:
            raise KeyboardInterrupt
        return evaluate(*arguments, **keywords)

    monkeypatch.setattr(sweep, "evaluate", interrupted)
    result = rung_sweep(*ASKED)
    assert result.exit_code == Exit.FAILED
    assert "Broken off: 2 of 3 points are kept in" in " ".join(result.stderr.split())
    monkeypatch.setattr(sweep, "evaluate", evaluate)
    told = json.loads(rung_sweep(*ASKED, "--json").stdout)
    assert [point["resumed"] for point in told["points"]] == [True, True, False]


def test_importing_the_verb_stays_cheap() -> None:
    heavy = "{'simpy', 'polars', 'numpy', 'scipy', 'torch', 'matplotlib'}"
    code = f"import sys, simulator.sweep_cli; sys.exit(', '.join({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == ""
