"""Pictures of runs: latency against load, latency distributions, batch sizes, device utilisation.

    Records of both worlds, rows, a predicted curve ──▶ one function a picture ──▶ matplotlib Figure

No twin: pictures are functions of records and do not know which world these came from. Not shown: refused and
failed requests, which have no latency.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from simulator.plot_frame import (
    BLACK,
    BLUE,
    GREY,
    VERMILLION,
    Floats,
    framed,
    in_percent,
    key,
    outer_labels,
    plain_log_ticks,
    small_multiples,
    styled,
    world_bar,
    world_key,
    world_line,
)
from stages.records import Records

# percentile → colour, dash of the predicted line, marker of the measured point
PERCENTILES: dict[int, tuple[str, Any, str]] = {
    50: (BLUE, "solid", "o"),
    95: (VERMILLION, (0, (4, 2)), "s"),
    99: (BLACK, (0, (6, 2, 1, 2)), "^"),
}
LOG_FROM_RATIO = 8.0  # largest over smallest latency from which a logarithmic axis shows more
MAX_BARS = 24  # beyond that, batch sizes are counted in ranges
BINS = 40  # of a run's time, for utilisation
DOTTED = (0, (1, 1.5))


@dataclass(frozen=True)
class Panel:
    """One small picture of several: the runs of one load in both worlds. Either may be empty."""

    title: str
    measured: Sequence[Records]
    predicted: Sequence[Records]

    def worlds(self) -> tuple[tuple[str, Sequence[Records]], ...]:
        """Measured first, so that predicted is drawn upon it."""
        return (("measured", self.measured), ("predicted", self.predicted))


@styled
def latency_against_load(
    curve: pl.DataFrame, rows: pl.DataFrame, capacity_rps: float, slo_latency_s: float, subtitle: str = ""
) -> Figure:
    """The hockey stick: predicted percentiles as lines, measured ones as points with bars from least to most.

    `curve`: rate_rps, latency_s_p50, latency_s_p95, latency_s_p99, a row a predicted load. `rows`: rate_rps,
    metric, measured, predicted (for the measured run's own arrivals, drawn as a ring), spread_low, spread_high,
    void, a row a load and metric; other metrics than these percentiles are passed over. Times in seconds; the
    axis is in ms, and logarithmic where the largest is over LOG_FROM_RATIO times the smallest.
    """
    figure = framed(6.2, "Latency against load", subtitle)
    axes = figure.add_subplot()
    curve = curve.sort("rate_rps")
    named = [f"latency_s_p{p}" for p in PERCENTILES]
    points = rows.filter(pl.col("metric").is_in(named) & pl.col("measured").is_finite()).sort("rate_rps")
    _latency_axis(axes, curve, points, slo_latency_s)
    for name, (colour, dash, marker) in zip(named, PERCENTILES.values(), strict=True):
        axes.plot(
            *(curve["rate_rps"], curve[name] * 1e3),
            color=colour,
            linestyle=dash,
            linewidth=2.2,
            label=f"predicted {name[-3:]}",
        )
        of_one = points.filter(pl.col("metric") == name)
        _measured_points(axes, of_one.filter(~pl.col("void")), colour, marker, name[-3:])
        void = of_one.filter("void")
        axes.plot(*(void["rate_rps"], void["measured"] * 1e3), "x", color=GREY, label=f"void {name[-3:]}")
    _name_the_curves(axes, curve, points["rate_rps"].to_numpy())
    axes.set_xlabel("arrival rate (requests/s)")
    axes.set_xlim(0.0, 1.04 * max([capacity_rps, *curve["rate_rps"], *points["rate_rps"]]))
    _mark_limits(axes, capacity_rps, slo_latency_s)
    _hockey_stick_key(figure, has_void=bool(points["void"].any()))
    return figure


@styled
def latency_distributions(panels: Sequence[Panel], subtitle: str = "") -> Figure:
    """For each load, the share of answers that took at least so long, in both worlds; runs of a panel pooled.

    Both axes are logarithmic: the tail, where promises are broken, gets as much room as the body.
    """
    figure, grid = small_multiples([p.title for p in panels], "How many answers take longer?", subtitle)
    for axes, panel in zip(grid, panels, strict=True):
        for world, runs in panel.worlds():
            latency_ms = np.sort(_latencies_s(runs)) * 1e3
            slower = np.arange(latency_ms.size, 0, -1) / max(latency_ms.size, 1)
            axes.plot(latency_ms, slower, drawstyle="steps-pre", label=world, **world_line(world))
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_ylim(5e-4, 1.4)
        axes.yaxis.set_major_locator(FixedLocator([1, 0.5, 0.1, 0.05, 0.01, 0.001]))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:g} %"))
        axes.yaxis.set_minor_locator(NullLocator())
    pooled_s = [np.empty(0), *(_latencies_s(runs) for panel in panels for _, runs in panel.worlds())]
    pooled_ms = np.concatenate(pooled_s) * 1e3
    narrow = pooled_ms.size > 0 and pooled_ms.max() < 15 * pooled_ms.min()
    for axes in grid:
        plain_log_ticks(axes, "x", pooled_ms, (1, 2, 5) if narrow else (1, 3))
    outer_labels(figure, "latency (ms, logarithmic)", "share of answers at least as slow")
    world_key(figure)
    return figure


@styled
def batch_sizes(panels: Sequence[Panel], subtitle: str = "") -> Figure:
    """For each load, the share of batches of each size, measured beside predicted; a panel's runs are pooled.

    Above MAX_BARS, sizes are counted in ranges of equal width. Batches count that started within the window.
    """
    figure, grid = small_multiples([p.title for p in panels], "How large are the batches?", subtitle)
    sizes = [[(world, _sizes(runs)) for world, runs in panel.worlds()] for panel in panels]
    largest = max((int(of_one.max()) for both in sizes for _, of_one in both if of_one.size), default=1)
    width = math.ceil(largest / MAX_BARS)
    edges = np.arange(1, largest + width + 1, width)
    places = np.arange(edges.size - 1)
    names = [f"{low}" if width == 1 else f"{low}–{low + width - 1}" for low in edges[:-1]]
    step = math.ceil(len(names) / (8 if width == 1 else 3))
    for axes, both in zip(grid, sizes, strict=True):
        for (world, of_one), offset in zip(both, (-0.2, 0.2), strict=True):
            share = np.histogram(of_one, edges)[0] / max(of_one.size, 1)
            axes.bar(places + offset, 100 * share, width=0.4, label=world, **world_bar(world))
        axes.grid(visible=False, axis="x")
        axes.yaxis.set_major_formatter(in_percent())
        axes.set_xticks(places[::step], names[::step])
    outer_labels(figure, "batch size (requests)", "share of batches")
    world_key(figure, bars=True)
    return figure


@styled
def device_utilisation(panels: Sequence[Panel], subtitle: str = "") -> Figure:
    """For each load, the share of time that the device was busy, bin by bin; first run of both worlds."""
    figure, grid = small_multiples([p.title for p in panels], "How busy is the device?", subtitle)
    for axes, panel in zip(grid, panels, strict=True):
        for world, runs in panel.worlds():
            for run in runs[:1]:
                edges_s, share = busy_shares(run)
                axes.stairs(100 * share, edges_s, baseline=None, label=world, **world_line(world))
        axes.set_ylim(0, 105)
        axes.margins(x=0.02)
        axes.yaxis.set_major_formatter(in_percent())
        axes.xaxis.set_major_locator(MaxNLocator(nbins=4, steps=[1, 2, 5, 10]))
    outer_labels(figure, "time since the schedule began (s)", "device busy (share of each bin of time)")
    world_key(figure)
    return figure


def busy_shares(run: Records, bins: int = BINS) -> tuple[Floats, Floats]:
    """Edges in seconds (bins + 1) and, in each bin of the window, busy time over the time of ready replicas.

    NaN in a bin in which no replica was ready.
    """
    edges_s = np.linspace(0.0, run.window_s, bins + 1)
    batches, replicas = run.batches.drop_nulls(), run.replicas.drop_nulls()
    busy_s = _covered_s(batches["started_s"].to_numpy(), batches["finished_s"].to_numpy(), edges_s)
    ready_s = _covered_s(replicas["ready_s"].to_numpy(), replicas["stopped_s"].to_numpy(), edges_s)
    share = np.divide(busy_s, ready_s, out=np.full(bins, np.nan), where=ready_s > 1e-9)
    return edges_s, share


def _covered_s(starts_s: Floats, ends_s: Floats, edges_s: Floats) -> Floats:
    """Seconds of the intervals in each bin; those that overlap (several replicas) count each for itself."""

    def passed_s(points_s: Floats) -> Floats:
        """For each edge, the sum over the points before it of the time since then."""
        ordered = np.sort(points_s)
        before = np.searchsorted(ordered, edges_s)
        total: Floats = before * edges_s - np.concatenate(([0.0], np.cumsum(ordered)))[before]
        return total

    return np.diff(passed_s(starts_s) - passed_s(ends_s))


def _latencies_s(runs: Sequence[Records]) -> Floats:
    answers = [run.requests.filter(pl.col("outcome") == "ok") for run in runs]
    return np.concatenate([np.empty(0), *((ok["replied_s"] - ok["scheduled_s"]).to_numpy() for ok in answers)])


def _sizes(runs: Sequence[Records]) -> Floats:
    within = [run.batches.filter(pl.col("started_s").is_between(0.0, run.window_s, "left")) for run in runs]
    return np.concatenate([np.empty(0), *(batches["batch_size"].to_numpy() for batches in within)])


def _latency_axis(axes: Axes, curve: pl.DataFrame, points: pl.DataFrame, slo_latency_s: float) -> None:
    """Sets scale, limits and ticks of the hockey stick's y axis from everything that stands on it."""
    values = [curve[f"latency_s_p{p}"].to_numpy() for p in PERCENTILES]
    values += [points[name].to_numpy() for name in ("measured", "predicted", "spread_low", "spread_high")]
    shown_ms = np.concatenate([*values, np.array([slo_latency_s])]).astype(float) * 1e3
    shown_ms = shown_ms[np.isfinite(shown_ms) & (shown_ms > 0)]
    if shown_ms.max() > LOG_FROM_RATIO * shown_ms.min():
        axes.set_yscale("log")
        axes.set_ylim(shown_ms.min() / 1.35, shown_ms.max() * 1.35)
        plain_log_ticks(axes, "y", shown_ms)
        axes.set_ylabel("latency (ms, logarithmic)")
    else:
        axes.set_ylim(0.0, shown_ms.max() * 1.1)
        axes.set_ylabel("latency (ms)")


def _measured_points(axes: Axes, points: pl.DataFrame, colour: str, marker: str, name: str) -> None:
    """Measured medians with their spread, each in the ring of what was predicted for the same arrivals."""
    rates = points["rate_rps"].to_numpy()
    ring: dict[str, Any] = {"markersize": 13.5, "markeredgewidth": 1.3, "markerfacecolor": "none"}
    predicted_ms = points["predicted"].to_numpy() * 1e3
    axes.plot(rates, predicted_ms, marker, color=colour, zorder=2.5, label=f"same arrivals {name}", **ring)
    middle = points["measured"].to_numpy() * 1e3
    below = np.maximum(middle - points["spread_low"].to_numpy() * 1e3, 0.0)
    above = np.maximum(points["spread_high"].to_numpy() * 1e3 - middle, 0.0)
    spread = np.nan_to_num(np.stack([below, above]))
    bars: dict[str, Any] = {"capsize": 5, "elinewidth": 1.6, "capthick": 1.6, "zorder": 3}
    axes.errorbar(rates, middle, spread, color=colour, fmt="none", label=f"spread {name}", **bars)
    look: dict[str, Any] = {"markersize": 6.8, "markeredgecolor": "white", "markeredgewidth": 0.6}
    axes.plot(rates, middle, marker, color=colour, zorder=3.5, label=f"measured {name}", **look)


def _name_the_curves(axes: Axes, curve: pl.DataFrame, taken_rps: Floats) -> None:
    """Writes p50, p95, p99 on their lines where these stand furthest apart, away from measured points."""
    columns = [curve[f"latency_s_p{p}"].to_numpy() for p in PERCENTILES]
    heights = np.stack([np.log(c) if axes.get_yscale() == "log" else c for c in columns])
    gaps = np.nan_to_num(np.diff(heights, axis=0).min(axis=0), nan=-1.0)
    if not gaps.size:
        return
    rates = curve["rate_rps"].to_numpy()
    if taken_rps.size:
        distance = np.abs(rates[:, None] - taken_rps[None, :]).min(axis=1)
        gaps = np.where(distance > 0.04 * rates.max(), gaps, gaps - 1e6)
    at = int(gaps.argmax())
    for (percentile, (colour, _, _)), column in zip(PERCENTILES.items(), columns, strict=True):
        place = (float(rates[at]), float(column[at]) * 1e3)
        look: dict[str, Any] = {"color": colour, "fontsize": 12, "fontweight": "bold", "zorder": 4}
        text = axes.annotate(f"p{percentile}", place, ha="center", va="center", **look)
        text.set_path_effects([patheffects.withStroke(linewidth=4, foreground="white")])


def _mark_limits(axes: Axes, capacity_rps: float, slo_latency_s: float) -> None:
    """The line at capacity, the line of the promise, and the second x axis: load as a share of capacity."""
    slo_ms = slo_latency_s * 1e3
    axes.axvline(capacity_rps, color=GREY, linewidth=1.4, linestyle=DOTTED, label="_capacity")
    axes.axhline(slo_ms, color=GREY, linewidth=1.4, linestyle=DOTTED, label="_slo")
    shift: dict[str, Any] = {"textcoords": "offset points", "color": GREY}
    at_foot, at_left = ("data", "axes fraction"), ("axes fraction", "data")
    text = f"capacity {capacity_rps:,.0f}/s"
    axes.annotate(text, (capacity_rps, 0.03), xycoords=at_foot, xytext=(-6, 0), ha="right", **shift)
    axes.annotate(f"SLO {slo_ms:g} ms", (0.01, slo_ms), xycoords=at_left, xytext=(0, 4), **shift)

    def as_share(rate_rps: Any) -> Any:
        return rate_rps / capacity_rps

    def as_rate_rps(share: Any) -> Any:
        return share * capacity_rps

    share = axes.secondary_xaxis("top", functions=(as_share, as_rate_rps))
    share.set_xlabel("load (share of capacity)")
    share.xaxis.set_major_formatter(in_percent(1.0))
    share.spines["top"].set_color(GREY)


def _hockey_stick_key(figure: Figure, has_void: bool) -> None:
    point = figure.axes[0].errorbar([], [], [], color=GREY, fmt="o", markersize=5, capsize=3.5, label="_key")
    ring = Line2D([], [], color=GREY, marker="o", markersize=11, markerfacecolor="none", linestyle="none")
    handles = [Line2D([], [], color=GREY, linewidth=2.2), ring, point]
    labels = ["predicted", "predicted, same arrivals", "measured: median, least to most"]
    if has_void:
        handles.append(Line2D([], [], color=GREY, marker="x", linestyle="none"))
        labels.append("void run")
    key(figure, handles, labels)
