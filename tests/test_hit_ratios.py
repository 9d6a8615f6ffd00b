"""What a cache had, in three figures beside each other: measured, simulated, and by theory where it holds."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import polars as pl
import pytest
from rich.console import Console

from loadtests import report
from loadtests.hit_ratios import hit_ratios, print_hit_ratios, theory
from loadtests.report import Run
from simulator.run import simulate
from stages.records import Records
from stages.spec import Stage, load_stage
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
    hits = [row for row in cached.rows if row.metric == "hit_ratio"]
    assert [(row.measured, row.predicted, row.error, row.sign) for row in hits] == [(0.75, 0.75, 0.0, "=")]
    console = Console(record=True, width=160)
    report.print_table(cached, console)
    told = console.export_text()
    assert "What the cache had" in told
    assert "hit ratio" in told
    print_hit_ratios([], console)
    assert np.isfinite(cached.hit_ratios[0].theory)
