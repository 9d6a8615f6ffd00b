"""One picture of a drill over time, both worlds on the same axes.

a second at a time: answered, not answered │ latency p95 │ replicas in rotation        the failure is shaded
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from loadtests.drill_figures import Look, Phases, by_second
from simulator.plot_frame import GREY, framed, plain_log_ticks, styled, world_key, world_line
from simulator.plots import LOG_FROM_RATIO
from stages.records import Records

Worlds = dict[str, tuple[Records, Sequence[Look]]]  # "measured", "predicted"


@styled
def over_time(worlds: Worlds, phases: Phases, title: str, subtitle: str) -> Figure:
    """What clients saw, second by second, and who was in rotation."""
    figure = framed(9.0, title, subtitle)
    grid: Any = figure.subplots(4, 1, sharex=True, height_ratios=(3, 2, 3, 2))
    answered, lost, slow, rotation = grid
    for world, (records, looks) in worlds.items():
        line, seconds = world_line(world), by_second(records)
        middle_s = seconds["second"] + 0.5
        answered.plot(middle_s, seconds["answered"], label=world, **line)
        lost.plot(middle_s, seconds["not_answered"], label=world, **line)
        slow.plot(middle_s, 1e3 * seconds["p95_s"], label=world, **line)
        steps = [(look_s, len(inside)) for look_s, inside in looks if look_s >= 0.0]
        rotation.step([at_s for at_s, _ in steps], [count for _, count in steps], where="post", label=world, **line)
    answered.set_ylabel("answered (1/s)")
    lost.set_ylabel("not answered (1/s)")
    slow.set_ylabel("latency p95 (ms)")
    rotation.set_ylabel("in rotation")
    for axes in (answered, lost, rotation):
        axes.set_ylim(bottom=0.0)
    lost.set_ylim(top=max(1.0, lost.get_ylim()[1]))
    rotation.set_ylim(top=rotation.get_ylim()[1] + 0.3)
    rotation.yaxis.get_major_locator().set_params(integer=True)
    _scale(slow)
    rotation.set_xlabel("time since the schedule began (s)")
    rotation.set_xlim(0.0, max(records.window_s for records, _ in worlds.values()))
    for axes in grid:
        axes.axvspan(phases.at_s, phases.ends_s, color=GREY, alpha=0.12, linewidth=0.0)
    figure.align_ylabels()
    world_key(figure)
    return figure


def _scale(axes: Axes) -> None:
    """A logarithmic axis where the slowest second is many times the quickest."""
    values = np.concatenate([np.asarray(line.get_ydata(), dtype=np.float64) for line in axes.get_lines()])
    values = values[np.isfinite(values) & (values > 0)]
    if values.size and values.max() > LOG_FROM_RATIO * values.min():
        axes.set_yscale("log")
        plain_log_ticks(axes, "y", values)
