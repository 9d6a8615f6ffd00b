"""What a cache had, in three figures beside each other: measured, simulated, and by theory where it holds."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import numpy as np
import polars as pl
import pytest
from rich.console import Console

from loadtests import report
from loadtests.hit_ratios import hit_ratios, print_hit_ratios, theory
from loadtests.report import Run
from loadtests.warming import print_warming, warming
from simulator import plots
from simulator.cache_plots import while_it_warms
from simulator.run import simulate
from stages.records import Records
from stages.spec import Stage, load_stage
from stages.traffic import Schedule
from tests.hand_made_runs import steady
from tests.test_report import a_comparison

CACHED = {"cache.policy": "lru", "overload": True}


def staged(**overrides: Any) -> Stage:
    return load_stage("load-balanced", CACHED | {name.replace("__", "."): value for name, value in overrides.items()})


def with_looks(records: Records, *found: str) -> Records:
    """The record, with what the cache had for its first requests."""
    looked = [*found, *[""] * (records.requests.height - len(found))]
    dtype = records.requests.schema["cache"]
    requests = records.requests.with_columns(pl.Series("cache", looked, dtype=dtype))
    return dataclasses.replace(records, requests=requests)


def test_ratios_are_medians_over_the_repeats() -> None:
    predicted = with_looks(steady(0.02), "hit", "miss")
    repeats = [["hit", "miss", "miss", "joined"], ["hit", "hit", "hit", "joined"], ["hit", "hit", "miss", "miss"]]
    runs = [Run(0.5, 50.0, 0, None, with_looks(steady(0.02), *looks), predicted) for looks in repeats]
    (row,) = hit_ratios(staged(), {0.5: runs}, 100.0)
    assert (row.load, row.measured, row.predicted) == (0.5, 0.5, 0.5)
    assert (row.joined_measured, row.joined_predicted) == (0.25, 0.0)
    assert hit_ratios(load_stage("load-balanced"), {0.5: runs}, 100.0) == []


def test_nobody_looked() -> None:
    (row,) = hit_ratios(staged(), {0.5: [Run(0.5, 50.0, 0, None, steady(0.02), steady(0.02))]}, 100.0)
    assert math.isnan(row.measured)
    assert math.isnan(row.joined_predicted)


@pytest.mark.parametrize(
    "other",
    [
        {"cache__policy": "lfu"},
        {"cache__ttl_s": 5.0},
        {"traffic__items": {"popularity": "zipf", "count": 100, "drift_interval_s": 1.0, "drift_share": 0.5}},
        {"traffic__rate": {"shape": "ramp", "rate_rps_start": 1.0, "rate_rps_end": 20.0}},
    ],
)
def test_there_is_no_theory_where_it_does_not_hold(other: dict[str, Any]) -> None:
    assert math.isnan(theory(staged(**other), 50.0, 60.0))


def test_theory_and_simulation_agree() -> None:
    """Slow arrivals, so that hardly anybody joins."""
    items = {"popularity": "zipf", "count": 500, "exponent": 0.9}
    rate = {"shape": "constant", "rate_rps": 10.0}
    stage = staged(
        traffic__items=items,
        traffic__rate=rate,
        traffic__duration_s=1000.0,
        cache__max_bytes=40_000,
        device__slowdown=1.0,
    )
    (row,) = hit_ratios(stage, {1.0: [Run(1.0, 10.0, 0, None, found := simulate(stage), found)]}, 10.0)
    assert 0.2 < row.theory < 0.9
    assert row.predicted + row.joined_predicted == pytest.approx(row.theory, abs=0.02)


def test_they_stand_in_the_table_and_in_the_report(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "png", lambda figure: b"a picture")
    kept = with_looks(steady(0.02), "hit", "hit", "hit", "miss")
    runs = [Run(0.5, 50.0, 0, None, kept, kept)]
    comparison = a_comparison(runs)
    assert "What the cache had" not in report.write_report(comparison, tmp_path).read_text(encoding="utf-8")
    cached = dataclasses.replace(comparison, stage=staged())
    page = report.write_report(cached, tmp_path).read_text(encoding="utf-8")
    assert "What the cache had" in page
    assert "<td>75.0 %</td>" in page
    assert "While the cache warms up" in page
    assert (tmp_path / "cache_over_time.png").exists()
    written = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert written["hit_ratios"][0]["error"] == 0.0
    assert len(written["warm_up"]) == 4
    hits = [row for row in cached.rows if row.metric == "hit_ratio"]
    assert [(row.measured, row.predicted, row.error, row.sign) for row in hits] == [(0.75, 0.75, 0.0, "=")]
    console = Console(record=True, width=160)
    report.print_table(cached, console)
    told = console.export_text()
    assert "What the cache had" in told
    assert "While the cache warms up" in told
    assert "hit ratio" in told
    print_hit_ratios([], console)
    assert np.isfinite(cached.hit_ratios[0].theory)


def test_computations_are_counted_and_errors_are_in_points() -> None:
    """A stampede: eight ask for one item at once, and one of them is computed, in both worlds."""
    stage = staged(traffic__items={"popularity": "uniform", "count": 1}, device__slowdown=1.0)
    found = simulate(stage, Schedule(np.full(8, 0.5), np.zeros(8, dtype=np.int64), 1.0))
    (row,) = hit_ratios(stage, {0.5: [Run(0.5, 8.0, 0, None, found, found)]}, 16.0)
    assert (row.computed_measured, row.computed_predicted) == (1.0, 1.0)
    assert row.joined_predicted == pytest.approx(7 / 8)
    worse = with_looks(steady(0.02), "hit", "miss")
    better = with_looks(steady(0.02), "hit", "hit", "hit", "miss")
    (row,) = hit_ratios(staged(), {0.5: [Run(0.5, 50.0, 0, None, worse, better)]}, 100.0)
    assert row.error == pytest.approx(0.25)
    assert row.computed_measured == 100.0  # all that devices worked on: 50 batches of two


def test_the_warming_is_told_in_stretches() -> None:
    """A cache of everything: hits come while it fills, and p95 with them, the same in both worlds."""
    items = {"popularity": "uniform", "count": 100}
    rate = {"shape": "constant", "rate_rps": 50.0}
    stage = staged(traffic__items=items, traffic__rate=rate, traffic__duration_s=20.0, device__slowdown=1.0)
    found, again = simulate(stage), simulate(stage, seed=9)
    rows = warming(stage, {0.5: [Run(0.5, 50.0, 0, None, found, again)]})
    assert [(row.from_s, row.until_s) for row in rows] == [(0.0, 2.0), (2.0, 5.0), (5.0, 10.0), (10.0, 20.0)]
    hits = [row.hits_measured for row in rows]
    assert hits == sorted(hits)
    assert hits[0] < 0.5 < 0.95 < hits[-1]
    assert rows[-1].p95_s_measured < rows[0].p95_s_measured, "computed at first, kept in the end"
    for row in rows:
        assert row.hits_error == pytest.approx(row.hits_predicted - row.hits_measured)
        assert abs(row.hits_error) < 0.2
    assert warming(load_stage("load-balanced"), {0.5: [Run(0.5, 50.0, 0, None, found, again)]}) == []
    empty = [Run(0.5, 50.0, 0, None, steady(0.02), found)]
    assert math.isnan(warming(stage, {0.5: empty})[0].hits_measured)
    console = Console(record=True, width=100)
    print_warming(rows, console)
    assert "While the cache warms up" in console.export_text()
    panels = [plots.Panel("load 0.5", [found], [again]), plots.Panel("load 0.8", [found], [again])]
    figure = while_it_warms(panels, "a test")
    assert len(figure.axes) == 4
    assert [len(axes.patches) for axes in figure.axes] == [2] * 4
