"""The picture of a plan: cost against p95, everything that was tried, the front, the SLO and the choice.

    Plan ──▶ pareto ──▶ matplotlib Figure ──▶ pareto.svg, pareto.png

No twin. A device has its colour and its marker; what meets the SLO is filled, what may meet it half, what misses it is
hollow. Not shown: stages that refuse a twentieth of the requests and more, which are quick for the others.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from simulator.plan import Plan
from simulator.plan_words import assumptions
from simulator.plot_frame import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    SKY,
    VERMILLION,
    captioned,
    framed,
    key,
    plain_log_ticks,
    png,
    styled,
    svg,
)
from simulator.plots import DOTTED, LOG_FROM_RATIO
from simulator.search import Tried
from simulator.workload import SHARE

LOOKS = ((BLUE, "o"), (VERMILLION, "s"), (GREEN, "^"), (ORANGE, "D"), (PURPLE, "v"), (SKY, "P"), (GREY, "X"))
FILLED: dict[str, Any] = {"meets": "full", "unsure": "bottom", "misses": "none"}
LABELS_MOST = 6  # points of the front that are named


def looks(names: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Colour and marker of each name, in their order; beyond the last they begin anew."""
    return {name: LOOKS[number % len(LOOKS)] for number, name in enumerate(dict.fromkeys(names))}


@styled
def pareto(plan: Plan) -> Figure:
    """Cost an hour against p95 in ms: every stage that was tried, its 95 % interval, the front, the SLO, the choice."""
    figure = framed(5.8, "Cost against latency", plan.workload.in_words)
    axes = figure.add_subplot()
    shown = [each for each in plan.tried if each.lost < 1 - SHARE and math.isfinite(each.p95_s.mean)]
    by_gpu = looks([each.candidate.gpu for each in sorted(shown, key=lambda each: each.candidate.gpu)])
    for each in shown:
        _point(axes, each, *by_gpu[each.candidate.gpu])
    front = plan.front
    xs, ys = [each.usd_per_hour.mean for each in front], [1e3 * each.p95_s.mean for each in front]
    axes.plot(xs, ys, drawstyle="steps-post", color=BLACK, linewidth=1.1, label="_front", zorder=2)
    slo_ms = 1e3 * plan.workload.p95_s
    axes.axhline(slo_ms, color=GREY, linewidth=1.4, linestyle=DOTTED, label="_slo")
    axes.annotate(
        *(f"SLO {slo_ms:g} ms", (0.99, slo_ms)),
        xycoords=("axes fraction", "data"),
        xytext=(0, 4),
        textcoords="offset points",
        ha="right",
        color=GREY,
    )
    _scales(axes, shown, slo_ms)
    _names(axes, [each for each in front if plan.choice is None or each.candidate != plan.choice.candidate])
    if plan.choice is not None:
        _mark(axes, plan.choice)
    axes.set_xlabel("cost (US dollars an hour)")
    _key(figure, by_gpu)
    captioned(figure, list(assumptions(plan)))
    return figure


def write(plan: Plan, folder: Path) -> list[Path]:
    """Writes pareto.svg and pareto.png; gives back their paths."""
    figure = pareto(plan)
    paths = [folder / "pareto.svg", folder / "pareto.png"]
    for path, picture in zip(paths, (svg(figure), png(figure)), strict=True):
        path.write_bytes(picture)
    return paths


def short_name(tried: Tried) -> str:
    """A stage in a few words: "3 x T4, load-balanced"."""
    own = tried.candidate
    count = f"{own.replicas} x " if own.least is None else f"{own.least} to {own.replicas} x "
    return f"{'' if own.replicas == 1 else count}{own.gpu}, {own.architecture}"


def _point(axes: Axes, tried: Tried, colour: str, marker: str) -> None:
    usd, p95 = tried.usd_per_hour, tried.p95_s
    bars: dict[str, Any] = {"fmt": "none", "ecolor": colour, "elinewidth": 0.9, "capsize": 0, "zorder": 2.5}
    spreads = [
        np.nan_to_num([[max(0.0, factor * (value.mean - value.low))], [max(0.0, factor * (value.high - value.mean))]])
        for factor, value in ((1.0, usd), (1e3, p95))
    ]
    axes.errorbar([usd.mean], [1e3 * p95.mean], yerr=spreads[1], xerr=spreads[0], label="_interval", **bars)
    axes.plot(
        *([usd.mean], [1e3 * p95.mean], marker),
        color=colour,
        markersize=7.5,
        fillstyle=FILLED[tried.verdict],
        markerfacecoloralt="white",
        markeredgewidth=1.1,
        zorder=3,
        label=str(tried.candidate),
    )


def _mark(axes: Axes, choice: Tried) -> None:
    """A ring around the choice, and what it is."""
    place = (choice.usd_per_hour.mean, 1e3 * choice.p95_s.mean)
    ring: dict[str, Any] = {"markersize": 19, "markerfacecolor": "none", "markeredgewidth": 2.0, "color": BLACK}
    axes.plot([place[0]], [place[1]], "o", label="choice", zorder=4, **ring)
    text = axes.annotate(
        *(f"the choice: {short_name(choice)}", place),
        xytext=(16, 14),
        textcoords="offset points",
        fontweight="bold",
        zorder=5,
    )
    text.set_path_effects([patheffects.withStroke(linewidth=3, foreground="white")])


def _names(axes: Axes, front: Sequence[Tried]) -> None:
    """Names points of the front; of many, those that lie furthest apart in cost."""
    step = max(1, math.ceil(len(front) / LABELS_MOST))
    for each in front[::step]:
        text = axes.annotate(
            *(short_name(each), (each.usd_per_hour.mean, 1e3 * each.p95_s.mean)),
            xytext=(7, -12),
            textcoords="offset points",
            fontsize=8.5,
            color=GREY,
            zorder=4,
        )
        text.set_path_effects([patheffects.withStroke(linewidth=3, foreground="white")])


def _scales(axes: Axes, shown: Sequence[Tried], slo_ms: float) -> None:
    """Logarithmic where the largest is over LOG_FROM_RATIO times the smallest; room for names at the right."""
    usd = np.array([each.usd_per_hour.mean for each in shown] or [1.0])
    p95_ms = np.array([slo_ms, *(1e3 * each.p95_s.mean for each in shown)])
    if usd.max() > LOG_FROM_RATIO * usd.min() > 0:
        axes.set_xscale("log")
        axes.set_xlim(usd.min() / 1.2, usd.max() * 1.9)
        plain_log_ticks(axes, "x", usd)
    else:
        axes.set_xlim(0.0, 1.25 * usd.max())
    if p95_ms.max() > LOG_FROM_RATIO * p95_ms.min():
        axes.set_yscale("log")
        axes.set_ylim(p95_ms.min() / 1.35, p95_ms.max() * 1.35)
        plain_log_ticks(axes, "y", p95_ms)
        axes.set_ylabel("p95 of latency (ms, logarithmic)")
    else:
        axes.set_ylim(0.0, 1.12 * p95_ms.max())
        axes.set_ylabel("p95 of latency (ms)")


def _key(figure: Figure, by_gpu: dict[str, tuple[str, str]]) -> None:
    handles = [
        Line2D([], [], color=colour, marker=marker, linestyle="none", markersize=7.5)
        for colour, marker in by_gpu.values()
    ]
    verdicts = {"meets the SLO": "full", "may": "bottom", "misses it": "none"}
    handles += [
        Line2D(
            *([], []),
            color=GREY,
            marker="o",
            linestyle="none",
            markersize=7.5,
            fillstyle=fill,  # type: ignore[arg-type]
            markerfacecoloralt="white",
        )
        for fill in verdicts.values()
    ]
    handles.append(Line2D([], [], color=BLACK, linewidth=1.1))
    key(figure, handles, [*by_gpu, *verdicts, "front"])
