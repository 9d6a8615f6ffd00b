"""The figure of what looking again and again does to a test, where there is nothing to find.

    right answers of two equal arms, so far ─┬─▶ one experiment: the difference, and both tests' intervals of it
                                             └─▶ two thousand: in how many each test finds something, by looks

No twin: a picture, of simulated experiments. Not modelled: labels that come late, and arms of unequal size.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter
from numpy.typing import NDArray

from simulator.plot_frame import BLACK, BLUE, GREY, VERMILLION, framed, in_percent, key, plain_log_ticks, styled
from stages.policies import fixed_horizon, sequential
from stages.streams import stream

Floats = NDArray[np.float64]
Found = NDArray[np.bool_]  # shape (experiments, looks): whether a test leaves out 0 there

RIGHT, ALPHA = 0.97, 0.05
EXPERIMENTS, LOOKS, BETWEEN = 2000, 1000, 4  # BETWEEN: labels of each arm from one look to the next
BY_LOOKS = (1, 2, 4, 5, 10, 20, 25, 40, 50, 100, 200, 250, 500, 1000)  # divisors of LOOKS: evenly spread over it
FIRST_SHOWN = 100  # looks of the one experiment before it, when its intervals are wider than the picture
MIDDLE = slice(300, 800)  # looks where the one experiment is to mislead: plain to see, and not for long

_USUAL: dict[str, Any] = {"color": VERMILLION, "linewidth": 1.6, "linestyle": (0, (5, 2))}
_ALWAYS: dict[str, Any] = {"color": BLUE, "linewidth": 1.8}


class Experiments(NamedTuple):
    """Right answers so far of both arms, shape (experiments, looks), and the labels of each arm at each look."""

    champion: Floats
    challenger: Floats
    labels: Floats


@styled
def peeking() -> Figure:
    """What looking does where there is no difference: one experiment, and how many go wrong by how often one looks."""
    drawn = experiments()
    usual, always = found(drawn)
    figure = framed(
        6.4,
        "Looking until something shows",
        "Two versions that are right equally often, in 97 of 100; up to 4,000 labels of each; simulated",
    )
    upper, lower = figure.subplots(2, 1)
    number = fooled(usual, always)
    _one(upper, drawn, number, usual[number])
    _by_looks(lower, usual, always)
    handles = [Line2D([], [], color=BLACK, linewidth=1.2), Line2D([], [], **_USUAL), Line2D([], [], **_ALWAYS)]
    key(figure, handles, ("difference so far", "usual test: right for one look", "sequential: right for all looks"))
    return figure


def experiments() -> Experiments:
    """Experiments without a difference. The same at each call."""
    rng = stream(1, "looks")
    size = (EXPERIMENTS, LOOKS)
    champion, challenger = (rng.binomial(BETWEEN, RIGHT, size).cumsum(axis=1, dtype=np.float64) for _ in range(2))
    return Experiments(champion, challenger, BETWEEN * np.arange(1.0, LOOKS + 1.0))


def found(drawn: Experiments) -> tuple[Found, Found]:
    """At which looks the usual test, and the sequential one, find a difference."""
    counts = (drawn.champion, drawn.labels, drawn.challenger, drawn.labels)
    usual = np.abs(fixed_horizon.z_statistic(*counts)) > fixed_horizon.critical_value(ALPHA)
    low, high = sequential.difference_of_shares(*counts, ALPHA)
    return usual, (low > 0.0) | (high < 0.0)


def fooled(usual: Found, always: Found) -> int:
    """The first experiment in whose middle the usual test finds something, and nothing at its end; the sequential test
    never does."""
    fools = usual[:, MIDDLE].any(axis=1) & ~usual[:, -1] & ~always.any(axis=1)
    return int(np.argmax(fools))


def _one(axes: Axes, drawn: Experiments, number: int, misled: Found) -> None:
    """One experiment over its labels, in points; where `misled`, 0 is struck out."""
    shown = slice(FIRST_SHOWN - 1, None, 3)
    labels = drawn.labels[shown]
    ok_a, ok_b = (arm[number, shown] for arm in (drawn.champion, drawn.challenger))
    counts = (ok_a, labels, ok_b, labels)
    for interval, line in (
        (fixed_horizon.difference_of_shares(*counts, ALPHA), _USUAL),
        (sequential.difference_of_shares(*counts, ALPHA), _ALWAYS),
    ):
        for end in interval:
            axes.plot(2.0 * labels, 100.0 * end, **line)
    axes.plot(2.0 * labels, 100.0 * (ok_b - ok_a) / labels, color=BLACK, linewidth=1.2)
    axes.axhline(0.0, color=GREY, linewidth=1.0, linestyle=":")
    struck = np.where(misled[shown], 0.0, np.nan)
    axes.plot(2.0 * labels, struck, color=VERMILLION, linewidth=5.0, alpha=0.6, solid_capstyle="butt")
    axes.set_xlim(0.0, 2.0 * labels[-1])
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:+g}" if value else "0"))
    axes.set_title("one experiment: has 0 left the interval?", loc="left")
    axes.set_xlabel("labels of both versions")
    axes.set_ylabel("difference (points)")


def _by_looks(axes: Axes, usual: Found, always: Found) -> None:
    """How many experiments a test has found something in, by the number of looks."""
    looks = np.array(BY_LOOKS, dtype=np.float64)
    for test, line, marker in ((usual, _USUAL, "o"), (always, _ALWAYS, "^")):
        shares = [float(at_looks(test, each).mean()) for each in BY_LOOKS]
        axes.plot(looks, shares, marker=marker, markersize=4, **line)
    axes.axhline(ALPHA, color=GREY, linewidth=1.0, linestyle=":")
    axes.set_xscale("log")
    plain_log_ticks(axes, "x", looks)
    axes.set_xlim(0.9, 1.1 * LOOKS)
    axes.set_ylim(bottom=0.0)
    axes.yaxis.set_major_formatter(in_percent(1.0))
    axes.set_title(f"{EXPERIMENTS:,} experiments: in how many is something found?", loc="left")
    axes.set_xlabel("looks, evenly spread")
    axes.set_ylabel("false alarms")


def at_looks(test: Found, looks: int) -> Found:
    """Which experiments a test finds something in, at any of so many looks, evenly spread up to the last."""
    every = LOOKS // looks
    return np.asarray(test[:, every - 1 :: every].any(axis=1))
