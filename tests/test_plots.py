"""Pictures show the data they were given, on axes that name their units, in lines that differ in grey."""

from __future__ import annotations

from typing import Any

import matplotlib as mpl
import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from simulator import plots
from simulator.plot_frame import png
from stages.metrics import busy_s
from stages.records import Records
from tests.hand_made_runs import run, steady

CURVE = pl.DataFrame(
    {
        "rate_rps": [90.0, 10.0, 50.0],
        "latency_s_p50": [0.040, 0.010, 0.012],
        "latency_s_p95": [0.060, 0.011, 0.020],
        "latency_s_p99": [0.070, 0.012, 0.025],
    }
)


def a_row(rate_rps: float, metric: str, measured: float, **more: Any) -> dict[str, Any]:
    row = {"rate_rps": rate_rps, "metric": metric, "measured": measured, "predicted": measured * 1.1}
    return row | {"spread_low": measured * 0.9, "spread_high": measured * 1.2, "void": False} | more


def lines(axes: Axes) -> dict[str, Line2D]:
    return {str(line.get_label()): line for line in axes.lines}


def data(line: Line2D) -> list[tuple[float, float]]:
    return [(round(float(x), 9), round(float(y), 9)) for x, y in np.asarray(line.get_xydata())]


def hockey_stick(rows: list[dict[str, Any]], curve: pl.DataFrame = CURVE) -> Figure:
    return plots.latency_against_load(curve, pl.DataFrame(rows), 100.0, 0.1, "a stage")


ROWS = [
    a_row(20.0, "latency_s_p50", 0.010),
    a_row(20.0, "latency_s_p95", 0.012),
    a_row(20.0, "latency_s_p99", 0.015),
    a_row(80.0, "latency_s_p50", 0.030),
    a_row(80.0, "latency_s_p99", 0.050, void=True),
    a_row(80.0, "latency_s_p95", float("nan")),
    a_row(80.0, "throughput_rps", 79.0),
]


def test_hockey_stick_names_units_and_both_scales_of_load() -> None:
    figure = hockey_stick(ROWS)
    axes = figure.axes[0]
    assert axes.get_xlabel() == "arrival rate (requests/s)"
    assert axes.get_ylabel().startswith("latency (ms")
    share = axes.child_axes[0]
    assert share.get_xlabel() == "load (share of capacity)"
    figure.draw_without_rendering()
    low, high = share.get_xlim()
    assert (low, high) == pytest.approx((0.0, axes.get_xlim()[1] / 100.0))


def test_hockey_stick_shows_the_curve_and_the_points_in_ms() -> None:
    drawn = lines(hockey_stick(ROWS).axes[0])
    assert data(drawn["predicted p95"]) == [(10, 11), (50, 20), (90, 60)]
    assert data(drawn["measured p50"]) == [(20, 10), (80, 30)]
    assert data(drawn["same arrivals p50"]) == [(20, 11), (80, 33)]
    assert data(drawn["measured p95"]) == [(20, 12)], "NaN is no point"


def test_hockey_stick_bars_run_from_least_to_most() -> None:
    axes = hockey_stick(ROWS).axes[0]
    spreads: dict[str, Any] = {str(bar.get_label()): bar for bar in axes.containers}
    segments = spreads["spread p50"].lines[2][0].get_segments()
    assert [segment[:, 1].tolist() for segment in segments] == [
        pytest.approx([9.0, 12.0]),
        pytest.approx([27.0, 36.0]),
    ]


def test_hockey_stick_sets_void_points_apart() -> None:
    figure = hockey_stick(ROWS)
    drawn = lines(figure.axes[0])
    assert data(drawn["void p99"]) == [(80, 50)]
    assert data(drawn["measured p99"]) == [(20, 15)]
    key = [text.get_text() for text in figure.legends[0].get_texts()]
    assert "void run" in key
    sound = [text.get_text() for text in hockey_stick(ROWS[:3]).legends[0].get_texts()]
    assert "void run" not in sound


def test_hockey_stick_marks_capacity_and_slo() -> None:
    axes = hockey_stick(ROWS).axes[0]
    drawn = lines(axes)
    assert [x for x, _ in data(drawn["_capacity"])] == [100.0, 100.0]
    assert [y for _, y in data(drawn["_slo"])] == pytest.approx([100.0, 100.0])
    written = {text.get_text() for text in axes.texts}
    assert {"capacity 100/s", "SLO 100 ms", "p50", "p95", "p99"} <= written


def test_percentiles_differ_without_colour() -> None:
    drawn = lines(hockey_stick(ROWS).axes[0])
    dashes = {str(drawn[f"predicted p{p}"]._dash_pattern) for p in plots.PERCENTILES}  # type: ignore[attr-defined]
    markers = {drawn[f"measured p{p}"].get_marker() for p in plots.PERCENTILES}
    assert len(dashes) == len(markers) == 3


@pytest.mark.parametrize(("slowest_s", "scale"), [(0.079, "linear"), (0.9, "log")])
def test_latency_is_logarithmic_where_that_helps(slowest_s: float, scale: str) -> None:
    slow = CURVE.with_columns(pl.when(pl.col("rate_rps") == 90).then(slowest_s).otherwise(0.05).alias("x"))
    curve = slow.with_columns(latency_s_p50="x", latency_s_p95="x", latency_s_p99="x").drop("x")
    row = [a_row(20.0, "latency_s_p50", 0.05)]
    assert hockey_stick(row, curve).axes[0].get_yscale() == scale


def test_hockey_stick_without_any_measured_point_is_the_prediction_alone() -> None:
    none = pl.DataFrame(ROWS).clear()
    figure = plots.latency_against_load(CURVE, none, 100.0, 0.1)
    assert data(lines(figure.axes[0])["measured p50"]) == []
    assert png(figure).startswith(b"\x89PNG")


def test_distribution_is_the_share_at_least_as_slow() -> None:
    measured = run([(1.0, 1.02, 3), (2.0, 2.05, 1)], shed=4)  # three answers of 32 ms, one of 62 ms
    panel = plots.Panel("load 0.5", [measured], [steady(0.02)])
    figure = plots.latency_distributions([panel], "a stage")
    axes = figure.axes[0]
    assert figure.get_supxlabel().startswith("latency (ms")
    assert figure.get_supylabel() == "share of answers at least as slow"
    assert axes.get_title(loc="left") == "load 0.5"
    assert data(lines(axes)["measured"]) == [(32, 1.0), (32, 0.75), (32, 0.5), (62, 0.25)]
    assert data(lines(axes)["predicted"])[0] == (32, 1.0)


def test_distribution_pools_the_runs_of_a_panel() -> None:
    panel = plots.Panel("both", [steady(0.02, count=1), steady(0.05, count=1)], [])
    axes = plots.latency_distributions([panel]).axes[0]
    assert [x for x, _ in data(lines(axes)["measured"])] == pytest.approx([32, 32, 62, 62])
    assert data(lines(axes)["predicted"]) == []


def bars(axes: Axes) -> dict[str, list[Any]]:
    containers: list[Any] = list(axes.containers)
    return {str(container.get_label()): list(container.patches) for container in containers}


def test_batch_sizes_stand_side_by_side_as_shares() -> None:
    measured = run([(1, 1.1, 1), (2, 2.1, 3), (3, 3.1, 3), (4, 4.1, 3)])
    predicted = run([(1, 1.1, 2), (11, 11.1, 4)])  # the second started after the window
    figure = plots.batch_sizes([plots.Panel("load 0.5", [measured], [predicted])])
    drawn = bars(figure.axes[0])
    assert [bar.get_height() for bar in drawn["measured"]] == pytest.approx([25, 0, 75])
    assert [bar.get_height() for bar in drawn["predicted"]] == pytest.approx([0, 100, 0])
    assert [tick.get_text() for tick in figure.axes[0].get_xticklabels()] == ["1", "2", "3"]
    assert figure.get_supxlabel() == "batch size (requests)"
    edges = zip(drawn["measured"], drawn["predicted"], strict=True)
    assert all(left.get_x() + left.get_width() <= right.get_x() + 1e-9 for left, right in edges)
    assert drawn["predicted"][0].get_hatch() and not drawn["measured"][0].get_hatch()


def test_many_batch_sizes_are_counted_in_ranges() -> None:
    sizes = run([(n / 100, n / 100 + 0.01, n) for n in range(1, 65)])
    axes = plots.batch_sizes([plots.Panel("load 0.5", [sizes], [sizes])]).axes[0]
    heights = [bar.get_height() for bar in bars(axes)["measured"]]
    assert len(heights) <= plots.MAX_BARS
    assert sum(heights) == pytest.approx(100.0)
    assert axes.get_xticklabels()[0].get_text() == "1–3"


def test_utilisation_is_busy_time_over_ready_time_bin_by_bin() -> None:
    edges_s, share = plots.busy_shares(run([(0.5, 1.5, 1), (3.0, 4.0, 1), (9.5, 12.0, 1)]), bins=10)
    assert edges_s.tolist() == pytest.approx(list(range(11)))
    assert share.tolist() == pytest.approx([0.5, 0.5, 0, 1, 0, 0, 0, 0, 0, 0.5])


def test_utilisation_of_two_replicas_is_of_both() -> None:
    _, share = plots.busy_shares(run([(0.0, 5.0, 1), (0.0, 10.0, 1)], replicas=2), bins=2)
    assert share.tolist() == pytest.approx([1.0, 0.5])


def test_utilisation_is_unknown_where_no_replica_was_ready() -> None:
    records = run([(6.0, 7.0, 1)])
    late = records.replicas.with_columns(ready_s=pl.lit(5.0))
    records = Records(records.requests, records.batches, late, records.window_s)
    _, share = plots.busy_shares(records, bins=2)
    assert np.isnan(share[0])
    assert share[1] == pytest.approx(0.2)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.floats(0.0, 2.0), st.floats(1e-4, 1.0)), min_size=1, max_size=20))
def test_bins_of_utilisation_add_up_to_the_busy_time(gaps: list[tuple[float, float]]) -> None:
    batches, now_s = [], 0.0
    for idle_s, service_s in gaps:
        batches.append((now_s + idle_s, now_s + idle_s + service_s, 1))
        now_s += idle_s + service_s
    records = run(batches)
    edges_s, share = plots.busy_shares(records)
    assert float((share * np.diff(edges_s)).sum()) == pytest.approx(busy_s(records.batches, 0.0, 10.0))
    assert share.min() >= -1e-9
    assert share.max() <= 1 + 1e-9


def test_utilisation_draws_the_first_run_of_both_worlds() -> None:
    panel = plots.Panel("load 0.5", [run([(0.0, 5.0, 1)]), run([])], [run([(5.0, 10.0, 1)])])
    figure = plots.device_utilisation([panel])
    stairs: list[Any] = list(figure.axes[0].patches)
    drawn = {str(patch.get_label()): patch.get_data() for patch in stairs}
    half = plots.BINS // 2
    assert drawn["measured"].values.tolist() == pytest.approx([100.0] * half + [0.0] * half)
    assert drawn["predicted"].values.tolist() == pytest.approx([0.0] * half + [100.0] * half)
    assert figure.get_supxlabel() == "time since the schedule began (s)"


@pytest.mark.parametrize("count", [0, 1, 4, 5])
def test_any_number_of_loads_makes_a_picture(count: int) -> None:
    panels = [plots.Panel(f"load {n}", [steady(0.02)], [steady(0.03)]) for n in range(count)]
    for draw in (plots.latency_distributions, plots.batch_sizes, plots.device_utilisation):
        figure = draw(panels, "a stage")
        assert [axes.get_title(loc="left") for axes in figure.axes if axes.get_visible()] == [
            panel.title for panel in panels
        ]
        figure.draw_without_rendering()


def test_a_picture_leaves_matplotlib_as_it_was_and_gives_the_same_bytes() -> None:
    before = dict(mpl.rcParams)
    first, second = png(hockey_stick(ROWS)), png(hockey_stick(ROWS))
    assert first == second
    assert dict(mpl.rcParams) == before
