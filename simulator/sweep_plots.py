"""Pictures of a sweep: p95 along an axis of the grid, and what 1,000 good answers cost against p95.

    frame of simulator/sweep_table.py ──▶ latency, cost ──▶ matplotlib Figure ──▶ SVG and PNG

No twin. The axis with the most numbers is drawn along; each combination of the others is a line, the first LINES_MAX of
them. Points whose promise is broken are hollow.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from simulator.plot_frame import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    VERMILLION,
    Floats,
    captioned,
    framed,
    key,
    plain_log_ticks,
    png,
    styled,
    svg,
)
from stages.bill import caveats
from stages.spec import Stage, fleet_label

# colour, marker, dash: what one says, the others say too
LOOKS: tuple[tuple[str, str, Any], ...] = (
    (BLUE, "o", "solid"),
    (VERMILLION, "s", (0, (5, 2))),
    (BLACK, "^", (0, (1, 1.5))),
    (GREEN, "D", (0, (6, 2, 1, 2))),
    (ORANGE, "v", (0, (3, 1))),
    (PURPLE, "P", (0, (8, 3))),
)
LINES_MAX = len(LOOKS)
_LOG_FROM_RATIO = 8.0  # as in simulator/plots.py


def pictures(stage: Stage, table: pl.DataFrame, keys: Sequence[str], replications: int) -> dict[str, bytes]:
    """File name → content: the two pictures as SVG and PNG; without dollars, or without an axis, fewer."""
    told = _caption(stage, table, keys, replications)
    drawn: dict[str, Figure] = {}
    if keys:
        drawn["latency"] = latency(table, keys, stage, told)
    if table["cost_usd_per_1000"].is_finite().any():
        drawn["cost"] = cost(table, keys, stage, told)
    files = {f"{name}.png": png(figure) for name, figure in drawn.items()}
    return files | {f"{name}.svg": svg(figure) for name, figure in drawn.items()}


@styled
def latency(table: pl.DataFrame, keys: Sequence[str], stage: Stage, told: Sequence[str]) -> Figure:
    """p95 in ms along the axis with the most numbers, a line a combination of the other axes; bars are intervals."""
    figure = framed(5.6, "Latency along the grid", _about(stage, keys))
    axes = figure.add_subplot()
    along = main_axis(table, keys)
    numbers = table[along].dtype.is_numeric()
    places = {text: place for place, text in enumerate(table[along].unique(maintain_order=True).to_list())}
    for (colour, marker, dash), (_, own) in zip(LOOKS, _lines(table, keys, along), strict=False):
        values = own[along].to_numpy() if numbers else np.array([places[text] for text in own[along]], dtype=np.float64)
        order = np.argsort(values, kind="stable")
        axes.plot(values[order], own["latency_s_p95"].to_numpy()[order] * 1e3, color=colour, linestyle=dash)
        _points(axes, values, own, "latency_s_p95", 1e3, stage, colour, marker)
    axes.axhline(stage.slo.latency_s * 1e3, color=GREY, linewidth=1.4, linestyle=(0, (6, 3)))
    axes.annotate(
        f"SLO {1e3 * stage.slo.latency_s:g} ms",
        (1.0, stage.slo.latency_s * 1e3),
        xycoords=("axes fraction", "data"),
        textcoords="offset points",
        xytext=(-4, 4),
        ha="right",
        color=GREY,
    )
    _scale(axes, "y", table["latency_s_p95"].to_numpy() * 1e3)
    axes.set_xlabel(along)
    axes.set_ylabel("95th percentile of latency (ms)")
    if numbers:
        axes.xaxis.set_major_locator(MaxNLocator(integer=table[along].dtype.is_integer()))
    else:
        axes.set_xticks(range(len(places)), [str(text) for text in places])
    _key(figure, table, keys, along)
    captioned(figure, told)
    return figure


@styled
def cost(table: pl.DataFrame, keys: Sequence[str], stage: Stage, told: Sequence[str]) -> Figure:
    """Dollars per 1,000 good answers against p95 in ms, a point a point of the grid; bars are intervals."""
    figure = framed(5.6, "Cost against latency", _about(stage, keys))
    axes = figure.add_subplot()
    table = table.filter(pl.col("cost_usd_per_1000").is_finite() & pl.col("latency_s_p95").is_finite())
    along = main_axis(table, keys) if keys else ""
    for (colour, marker, dash), (_, own) in zip(LOOKS, _lines(table, keys, along), strict=False):
        latency_ms = own["latency_s_p95"].to_numpy() * 1e3
        axes.plot(latency_ms, own["cost_usd_per_1000"], color=colour, linestyle=dash, linewidth=1.0, alpha=0.7)
        _points(axes, latency_ms, own, "cost_usd_per_1000", 1.0, stage, colour, marker)
        for at_ms, usd, value in zip(latency_ms, own["cost_usd_per_1000"], own[along] if keys else [], strict=False):
            axes.annotate(str(value), (at_ms, usd), textcoords="offset points", xytext=(5, 4), fontsize=8, color=GREY)
    axes.axvline(stage.slo.latency_s * 1e3, color=GREY, linewidth=1.4, linestyle=(0, (6, 3)))
    axes.annotate(
        f"SLO {1e3 * stage.slo.latency_s:g} ms",
        (stage.slo.latency_s * 1e3, 1.0),
        xycoords=("data", "axes fraction"),
        textcoords="offset points",
        xytext=(4, -10),
        color=GREY,
    )
    _scale(axes, "x", table["latency_s_p95"].to_numpy() * 1e3)
    _scale(axes, "y", table["cost_usd_per_1000"].to_numpy())
    axes.set_xlabel("95th percentile of latency (ms)")
    axes.set_ylabel("US dollars per 1,000 good answers")
    _key(figure, table, keys, along)
    beside = [f"Beside each point: {along}."] if keys else []
    captioned(figure, [*told, *beside])
    return figure


def main_axis(table: pl.DataFrame, keys: Sequence[str]) -> str:
    """The axis that is drawn along: of those with numbers the one with the most; without any, the first."""
    numbers = [name for name in keys if table[name].dtype.is_numeric()]
    return max(numbers or keys[:1], key=lambda name: int(table[name].n_unique()))


def _lines(table: pl.DataFrame, keys: Sequence[str], along: str) -> Iterator[tuple[str, pl.DataFrame]]:
    """Each combination of the other axes, in words, and its rows."""
    others = [name for name in keys if name != along]
    if not others:
        yield "", table
        return
    for values, own in table.group_by(others, maintain_order=True):
        yield ", ".join(f"{name.rsplit('.', 1)[-1]} {value}" for name, value in zip(others, values, strict=True)), own


def _points(
    axes: Axes, at: Floats, own: pl.DataFrame, metric: str, factor: float, stage: Stage, colour: str, marker: str
) -> None:
    """Points with their intervals; hollow where less than the promised share is within the SLO."""
    values = own[metric].to_numpy() * factor
    low, high = (own[f"{metric}_{end}"].to_numpy() * factor for end in ("low", "high"))
    spread = np.nan_to_num(np.array([values - low, high - values]), nan=0.0, posinf=0.0).clip(min=0.0)
    axes.errorbar(at, values, yerr=spread, fmt="none", ecolor=colour, elinewidth=1.0, capsize=2.5)
    kept = own["slo_share"].to_numpy() >= stage.slo.share
    for which, fill in ((kept, colour), (~kept, "white")):
        axes.plot(at[which], values[which], marker, color=colour, markerfacecolor=fill, markersize=6)


def _scale(axes: Axes, which: str, values: Floats) -> None:
    values = values[np.isfinite(values) & (values > 0)]
    if values.size and values.max() > _LOG_FROM_RATIO * values.min():
        (axes.set_xscale if which == "x" else axes.set_yscale)("log")
        plain_log_ticks(axes, which, values)


def _key(figure: Figure, table: pl.DataFrame, keys: Sequence[str], along: str) -> None:
    names = [name for name, _ in _lines(table, keys, along)][:LINES_MAX]
    handles = [
        Line2D([], [], color=colour, marker=marker, linestyle=dash)
        for (colour, marker, dash), _ in zip(LOOKS, names, strict=False)
    ]
    hollow = Line2D([], [], color=GREY, marker="o", markerfacecolor="white", linestyle="none")
    labels = [name or "SLO kept" for name in names]
    key(figure, [*handles, hollow], [*labels, "SLO broken"])


def _about(stage: Stage, keys: Sequence[str]) -> str:
    """The stage, and its fleet where the grid does not change that."""
    changes_fleet = any(name.split(".")[0] in ("device", "fleet", "scaling") for name in keys)
    return f"{stage.title}, predicted" + ("" if changes_fleet else f": {fleet_label(stage)}")


def _caption(stage: Stage, table: pl.DataFrame, keys: Sequence[str], replications: int) -> list[str]:
    slo = f"{100 * stage.slo.share:g} % of the requests within {1e3 * stage.slo.latency_s:g} ms"
    told = [
        f"Simulated {replications} times a point for {stage.traffic.duration_s:g} s of traffic, with the same arrivals "
        f"at every point; bars are 95 % intervals of the mean. SLO: {slo}. Good answers are those within it.",
        *caveats(stage),
    ]
    if keys:
        lines = sum(1 for _ in _lines(table, keys, main_axis(table, keys)))
        if lines > LINES_MAX:
            told.append(f"Of {lines} lines the first {LINES_MAX} are drawn; all of them are in sweep.parquet.")
    if not table["latency_s_p95"].is_finite().any():
        told.append("No request was answered.")
    return told
