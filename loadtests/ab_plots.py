"""Two pictures of experiments: the effect over time of a real one, and what peeking does to a thousand simulated ones.

    Status ──▶ effect_over_time        the difference so far, the interval that holds at every look, 0
    Stops ──▶ stopped_by               the share of experiments in which a test has found something, by request

No twin. Both read in grey: what a colour says is said by a dash or a shade too.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter

from loadtests.ab_status import Effect
from simulator.experiments import Ints, Stops, share_by
from simulator.plot_frame import BLACK, BLUE, GREY, SKY, VERMILLION, framed, in_percent, key, styled

_POINTS = 400
_UNITS = ((172_800.0, "days", 86_400.0), (7200.0, "hours", 3600.0), (120.0, "minutes", 60.0), (0.0, "s", 1.0))


@styled
def effect_over_time(effect: Effect, title: str, subtitle: str) -> Figure:
    """The difference of right answers, in points, against the time since its first label."""
    figure = framed(4.6, title, subtitle)
    axes = figure.subplots()
    seconds = effect.at - effect.at[0] if effect.at.size else effect.at
    _, unit, size = next(each for each in _UNITS if not seconds.size or seconds[-1] >= each[0])
    x = seconds / size
    axes.fill_between(x, 100.0 * effect.low, 100.0 * effect.high, color=SKY, alpha=0.35, linewidth=0.0)
    axes.plot(x, 100.0 * effect.value, color=BLUE, linewidth=1.6)
    axes.axhline(0.0, color=BLACK, linewidth=1.0, linestyle=(0, (4, 1.6)))
    spread = 100.0 * max(0.01, float(np.max(np.abs(effect.value[effect.value.size // 4 :]), initial=0.0)))
    axes.set_ylim(-3.0 * spread, 3.0 * spread)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:+g}" if value else "0"))
    axes.set_xlabel(f"since the first label of both ({unit})")
    axes.set_ylabel("challenger less champion (points)")
    handles: list[Any] = [
        Line2D([], [], color=BLUE, linewidth=1.6),
        Patch(facecolor=SKY, alpha=0.35),
        Line2D([], [], color=BLACK, linewidth=1.0, linestyle=(0, (4, 1.6))),
    ]
    key(figure, handles, ("right answers so far", "interval that holds at every look", "no difference"))
    return figure


@styled
def stopped_by(null: Stops, effect: Stops, requests: int, alpha: float, title: str, subtitle: str) -> Figure:
    """How many experiments have found something by each request, without a difference and with one."""
    figure = framed(4.6, title, subtitle)
    axes = figure.subplots()
    at = np.unique(np.linspace(1, requests, _POINTS).round().astype(np.int64))
    looks: tuple[tuple[str, Ints, dict[str, Any]], ...] = (
        ("z test, peeked at", null.naive, {"color": VERMILLION, "linewidth": 2.2}),
        ("sequential", null.sequential, {"color": BLUE, "linewidth": 1.8, "linestyle": (0, (5, 1.5))}),
        (
            "sequential, with a difference",
            effect.sequential,
            {"color": BLUE, "linewidth": 1.4, "linestyle": (0, (6, 1.5, 1.5, 1.5))},
        ),
    )
    for label, stops, line in looks:
        axes.plot(at, share_by(stops, at), label=label, **line)
    axes.axhline(alpha, color=GREY, linewidth=1.0, linestyle=":")
    axes.yaxis.set_major_formatter(in_percent(1.0))
    axes.set_ylim(0.0, 1.0)
    axes.set_xlim(0.0, requests)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.set_xlabel("labelled requests, a look after each")
    axes.set_ylabel("experiments that found a difference")
    handles: list[Any] = [*axes.get_lines()[:3], Line2D([], [], color=GREY, linewidth=1.0, linestyle=":")]
    key(figure, handles, (*(label for label, _, _ in looks), "alpha"))
    return figure
