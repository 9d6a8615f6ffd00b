"""A cache that fills, in one picture: hits above p95 over time, a column a load, measured and predicted.

    Records of both worlds ──▶ stages/timeseries.py ──▶ while_it_warms ──▶ matplotlib Figure

No twin: a picture is a function of records and does not know which world these came from. Not shown: how many entries
there are, which neither world tells over time.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from simulator.plot_frame import framed, in_percent, styled, world_key, world_line
from simulator.plots import Panel
from stages import timeseries

BINS = 24  # of a run's time


@styled
def while_it_warms(panels: Sequence[Panel], subtitle: str = "") -> Figure:
    """The share of hits among those that looked, and p95 in ms, in each bin of the runs; every run is a line."""
    figure = framed(5.6, "What has the cache, while it fills?", subtitle)
    grid = figure.subplots(2, max(1, len(panels)), sharex=True, sharey="row", squeeze=False)
    for panel, hits, p95 in zip(panels, *grid, strict=True):
        hits.set_title(panel.title, loc="left", fontsize=9.5)
        for world, runs in panel.worlds():
            for run in runs:
                edges_s = np.linspace(0.0, run.window_s, BINS + 1)
                look = world_line(world)
                hits.stairs(100 * timeseries.hit_ratios(run, edges_s), edges_s, baseline=None, label=world, **look)
                p95.stairs(1e3 * timeseries.latencies_s(run, edges_s), edges_s, baseline=None, label=world, **look)
        hits.set_ylim(0.0, 100.0)
        hits.yaxis.set_major_formatter(in_percent())
        p95.xaxis.set_major_locator(MaxNLocator(nbins=4, steps=[1, 2, 5, 10]))
        for axes in (hits, p95):
            axes.tick_params(labelsize=9.5)
            axes.margins(x=0.02)
    grid[1][0].set_ylim(bottom=0.0)  # of the whole row, once all of it is there
    grid[0][0].set_ylabel("hits (share of looks)")
    grid[1][0].set_ylabel("p95 (ms)")
    figure.supxlabel("time since the schedule began, the cache empty (s)", fontsize=11)
    world_key(figure)
    return figure
