"""What all pictures share: size, fonts, titles, keys, and how the two worlds look.

    simulator.plots ──▶ framed / small_multiples ──▶ matplotlib Figure ──▶ png()

No twin. Every picture must read in grey, so what a colour says is said by a dash, a marker or a hatch too;
the colours are those of Okabe and Ito (https://jfly.uni-koeln.de/color/).
"""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, ParamSpec

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator, PercentFormatter
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Draw = ParamSpec("Draw")

BLUE, SKY, VERMILLION, BLACK, GREY = "#0072B2", "#56B4E9", "#D55E00", "#000000", "#595959"
ORANGE, GREEN, PURPLE = "#E69F00", "#009E73", "#CC79A7"
WIDTH_IN = 8.5
CAPTION_CHARACTERS = 118  # of a caption, on a line
CAPTION_LINE_IN = 0.19
SUBTITLE_CHARACTERS = 96  # that fit on a line at full size; a longer subtitle is set smaller
HEAD_IN = 1.0  # title, subtitle and key, above the axes
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same picture on every machine
    "font.size": 11,
    "axes.titlesize": 11,
    "axes.labelsize": 11,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.edgecolor": GREY,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E0E0E0",
    "grid.linewidth": 0.7,
    "hatch.linewidth": 0.8,
}


def styled(draw: Callable[Draw, Figure]) -> Callable[Draw, Figure]:
    """Draws under STYLE, and leaves the caller's matplotlib settings as they were."""

    @wraps(draw)
    def under_style(*args: Draw.args, **kwargs: Draw.kwargs) -> Figure:
        with rc_context(STYLE):
            return draw(*args, **kwargs)

    return under_style


def png(figure: Figure) -> bytes:
    """The figure as PNG, 1530 pixels wide; the same figure gives the same bytes."""
    buffer = io.BytesIO()
    with rc_context(STYLE):
        figure.savefig(buffer, format="png", dpi=180, metadata={"Software": None})
    return buffer.getvalue()


def svg(figure: Figure) -> bytes:
    """The figure as SVG with its letters as paths; the same figure gives the same bytes."""
    buffer = io.BytesIO()
    with rc_context(STYLE | {"svg.hashsalt": "rung", "svg.fonttype": "path"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def framed(height_in: float, title: str, subtitle: str) -> Figure:
    """An empty figure with its title and subtitle; axes lay themselves out below these and the key."""
    figure = Figure(figsize=(WIDTH_IN, height_in), layout="constrained", facecolor="white")
    figure.text(0.014, 1 - 0.12 / height_in, title, fontsize=15, fontweight="bold", va="top")
    fitting = min(10.0, 10.0 * SUBTITLE_CHARACTERS / max(len(subtitle), 1))
    figure.text(0.014, 1 - 0.45 / height_in, subtitle, fontsize=fitting, color=GREY, va="top")
    engine: Any = figure.get_layout_engine()
    engine.set(rect=(0, 0, 0.99, 1 - HEAD_IN / height_in), w_pad=0.06, h_pad=0.06)
    return figure


def captioned(figure: Figure, sentences: Sequence[str]) -> None:
    """What a picture rests on, written below its axes, which make room for it: call it after all axes are there."""
    lines = [line for sentence in sentences for line in textwrap.wrap(sentence, CAPTION_CHARACTERS)]
    height_in = figure.get_figheight()
    foot_in = CAPTION_LINE_IN * len(lines) + 0.12
    figure.set_figheight(height_in + foot_in)
    for text in figure.texts:  # placed from the top, in shares of the height
        x, y = text.get_position()
        text.set_position((x, 1 - (1 - y) * height_in / (height_in + foot_in)))
    for legend in figure.legends:
        legend.set_bbox_to_anchor((0.009, 1 - 0.68 / (height_in + foot_in)))
    engine: Any = figure.get_layout_engine()
    share = foot_in / (height_in + foot_in)
    engine.set(rect=(0, share, 0.99, 1 - share - HEAD_IN / (height_in + foot_in)))
    figure.text(0.014, 0.06 / (height_in + foot_in), "\n".join(lines), fontsize=8.5, color=GREY, va="bottom")


def small_multiples(titles: Sequence[str], title: str, subtitle: str) -> tuple[Figure, list[Axes]]:
    """A figure with one titled axes for each of `titles`, in a grid that shares its scales."""
    columns = 2 if len(titles) in (2, 4) else min(3, len(titles)) or 1
    lines = math.ceil(len(titles) / columns) or 1
    figure = framed(1.9 + 2.1 * lines, title, subtitle)
    grid: list[Axes] = list(figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).flat)
    shown, spare = grid[: len(titles)], grid[len(titles) :]
    for axes, name in zip(shown, titles, strict=True):
        axes.set_title(name, loc="left")
        axes.tick_params(labelsize=10)
    for axes in spare:
        axes.set_visible(False)
    for axes in shown[-columns:]:  # a panel above a spare place would otherwise lack its scale
        axes.tick_params(labelbottom=True)
    return figure, shown


def outer_labels(figure: Figure, x: str, y: str) -> None:
    """One label an axis for a whole grid."""
    figure.supxlabel(x, fontsize=11)
    figure.supylabel(y, fontsize=11)


def world_line(world: str) -> dict[str, Any]:
    """Measured: a broad light line. Predicted: a thin dark dashed one, which stays visible upon it."""
    if world == "measured":
        return {"color": SKY, "linewidth": 3.6}
    return {"color": BLACK, "linewidth": 1.3, "linestyle": (0, (4, 1.6))}


def world_bar(world: str) -> dict[str, Any]:
    """Measured: filled. Predicted: hatched."""
    if world == "measured":
        return {"facecolor": SKY, "edgecolor": BLUE, "linewidth": 0.8}
    return {"facecolor": "white", "edgecolor": BLACK, "linewidth": 0.8, "hatch": "/////"}


def world_key(figure: Figure, bars: bool = False) -> None:
    """Says which look is which world."""
    worlds = ("measured", "predicted")
    handles = [Patch(**world_bar(w)) if bars else Line2D([], [], **world_line(w)) for w in worlds]
    key(figure, handles, worlds)


def key(figure: Figure, handles: Sequence[Any], labels: Sequence[str]) -> None:
    """A key in one line under the subtitle, where no data can lie below it."""
    figure.legend(
        handles,
        labels,
        loc="upper left",
        bbox_to_anchor=(0.009, 1 - 0.68 / figure.get_figheight()),
        ncols=len(labels),
        frameon=False,
        fontsize=10,
        handlelength=2.4,
        columnspacing=1.6,
        borderaxespad=0.0,
        borderpad=0.2,
    )


def in_percent(largest: float = 100.0) -> PercentFormatter:
    """A formatter of shares, where `largest` stands for the whole."""
    return PercentFormatter(xmax=largest, decimals=0, symbol=" %")


def plain_log_ticks(axes: Axes, which: str, values: Floats, steps: Sequence[int] = (1, 2, 5)) -> None:
    """Ticks of a logarithmic axis at `steps` and their tens, written out: no powers of ten to decode."""
    values = values[np.isfinite(values) & (values > 0)]
    if not values.size:
        return
    exponents = range(math.floor(math.log10(values.min())) - 1, math.ceil(math.log10(values.max())) + 2)
    axis = axes.xaxis if which == "x" else axes.yaxis
    steps = steps if len(exponents) < 7 else (1,)
    axis.set_major_locator(FixedLocator([step * 10.0**exponent for exponent in exponents for step in steps]))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())
