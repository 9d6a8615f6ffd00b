"""The ladder in one picture: cost and latency over users a day, cost against latency, and where stages are not enough.

    Ladder ──▶ picture ──▶ matplotlib Figure ──▶ ladder.svg, ladder.png

No twin. A stage has its colour and its marker; a cross says up to how many users it is enough. Not shown: the queued
stage's promise, which is of hours.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from simulator.ladder import Ladder, Step
from simulator.plan_plots import looks
from simulator.plot_frame import BLACK, GREY, HEAD_IN, captioned, framed, key, plain_log_ticks, png, styled, svg
from simulator.plots import DOTTED

PANEL_IN = 3.1
# Ticks of a latency from milliseconds to a day, as people say them.
TIMES_S = {
    0.001: "1 ms",
    0.003: "3 ms",
    0.01: "10 ms",
    0.03: "30 ms",
    0.1: "100 ms",
    0.3: "300 ms",
    1.0: "1 s",
    10.0: "10 s",
    60.0: "1 min",
    600.0: "10 min",
    3600.0: "1 h",
    36_000.0: "10 h",
}


@styled
def picture(ladder: Ladder, caption: Sequence[str] = ()) -> Figure:
    """Three panels: dollars a day over users a day, p95 over users a day, and p95 against dollars per 1,000 answers."""
    figure = framed(HEAD_IN + 0.4 + 3 * PANEL_IN, "The ladder", ladder.user.in_words)
    panels = figure.subplots(3, 1)
    cost, latency, against = panels
    stages = list(dict.fromkeys(step.stage for step in ladder.steps))
    own = looks(stages)
    for stage in stages:
        steps = [step for step in ladder.of(stage) if step.tried is not None]
        look: dict[str, Any] = {"color": own[stage][0], "marker": own[stage][1], "markersize": 6, "linewidth": 1.4}
        users = [step.users for step in steps]
        cost.plot(users, [step.usd_per_day for step in steps], label=stage, **look)
        latency.plot(users, [step.p95_s for step in steps], label=stage, **look)
        prices = [step.usd_per_1000 for step in steps]
        against.plot(prices, [step.p95_s for step in steps], label=stage, **look)
        if stage == max(stages, key=lambda name: sum(step.tried is not None for step in ladder.of(name))):
            _name_levels(against, steps)
    _limits(cost, latency, ladder)
    for axes in (cost, latency):
        axes.set_xlabel("users a day (logarithmic)")
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(FixedLocator([10.0**power for power in range(8)]))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _users(value)))
        axes.xaxis.set_minor_locator(NullLocator())
    cost.set_ylabel("US dollars a day\n(logarithmic)")
    cost.set_yscale("log")
    plain_log_ticks(cost, "y", _shown(cost, 1))
    against.set_xlabel("US dollars per 1,000 good answers (logarithmic)")
    against.set_xscale("log")
    plain_log_ticks(against, "x", _shown(against, 0), (1, 3))
    for axes in (latency, against):
        axes.set_ylabel("p95 of latency\n(logarithmic)")
        _times(axes, ladder.p95_s)
    handles = [Line2D([], [], color=colour, marker=marker, linewidth=1.4) for colour, marker in own.values()]
    key(figure, handles, list(own))
    captioned(figure, caption)
    return figure


def write(ladder: Ladder, folder: Path, caption: Sequence[str]) -> list[Path]:
    """Writes ladder.svg and ladder.png; gives back their paths."""
    figure = picture(ladder, caption)
    paths = [folder / "ladder.svg", folder / "ladder.png"]
    for path, drawn in zip(paths, (svg(figure), png(figure)), strict=True):
        path.write_bytes(drawn)
    return paths


def _limits(cost: Axes, latency: Axes, ladder: Ladder) -> None:
    """A cross where a stage is not enough any more, and the users up to whom it is; names are a line apart."""
    lines = 0
    for limit in ladder.limits:
        steps = [step for step in ladder.of(limit.stage) if step.tried is not None and step.users <= limit.enough]
        if limit.beyond is None or not steps:
            continue
        for axes, value in ((cost, steps[-1].usd_per_day), (latency, steps[-1].p95_s)):
            axes.plot([limit.enough], [value], "x", color=BLACK, markersize=9, zorder=4, label=f"limit {limit.stage}")
        text = cost.annotate(
            *(f"{limit.stage}: {_users(limit.enough)}", (limit.enough, steps[-1].usd_per_day)),
            xytext=(0, 8 + 12 * lines),
            textcoords="offset points",
            ha="right",
            fontsize=8.5,
            color=GREY,
        )
        text.set_in_layout(False)
        lines += 1


def _name_levels(axes: Axes, steps: Sequence[Step]) -> None:
    """The users at each step of a stage, those that have most steps."""
    for step in steps:
        text = axes.annotate(
            *(_users(step.users), (step.usd_per_1000, step.p95_s)),
            xytext=(0, 9),
            textcoords="offset points",
            ha="center",
            fontsize=8,
            color=GREY,
        )
        text.set_in_layout(False)


def _users(count: float) -> str:
    """A number of users as an axis has room for: 10, 100 k, 1 M."""
    for size, unit in ((1e6, " M"), (1e3, " k")):
        if count >= size:
            return f"{count / size:.3g}{unit}"
    return f"{count:.3g}"


def _times(axes: Axes, slo_s: float) -> None:
    """A logarithmic axis of seconds in words, and the line of the promise."""
    shown = np.append(_shown(axes, 1), slo_s)
    axes.set_yscale("log")
    axes.set_ylim(shown.min() / 1.6, shown.max() * 1.6)
    axes.yaxis.set_major_locator(FixedLocator([at for at in TIMES_S if shown.min() / 1.6 <= at <= 1.6 * shown.max()]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: TIMES_S.get(value, f"{value:g} s")))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.axhline(slo_s, color=GREY, linewidth=1.2, linestyle=DOTTED, label="_slo")
    axes.annotate(
        *(f"SLO {1e3 * slo_s:g} ms", (0.99, slo_s)),
        xycoords=("axes fraction", "data"),
        xytext=(0, 3),
        textcoords="offset points",
        ha="right",
        fontsize=8.5,
        color=GREY,
    )


def _shown(axes: Axes, column: int) -> Any:
    """All finite values on the axes that are drawn as lines."""
    drawn = [np.asarray(line.get_xydata(), dtype=np.float64).reshape(-1, 2)[:, column] for line in axes.lines]
    values = np.concatenate([np.empty(0), *drawn])
    values = values[np.isfinite(values) & (values > 0)]
    return values if values.size else np.array([1.0])
