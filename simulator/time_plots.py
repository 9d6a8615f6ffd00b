"""A run over time, one panel below the other: arrivals, replicas, queue, latency, refusals, dollars.

    Records of both worlds ──▶ stages/timeseries.py ──▶ over_time ──▶ matplotlib Figure

No twin: a picture is a function of records and does not know which world these came from. Not shown: requests that
timed out or failed, and the queue of those that were not answered.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from simulator.plot_frame import (
    BLACK,
    BLUE,
    GREY,
    HEAD_IN,
    Floats,
    framed,
    key,
    plain_log_ticks,
    styled,
    world_line,
)
from simulator.plots import LOG_FROM_RATIO
from stages import timeseries
from stages.records import Records
from stages.timeseries import Steps

PANEL_IN = 1.45
BINS = 75  # of a run's time, in which arrivals and refusals are counted; the queue is the mean of half a bin
POINTS = 400  # of a run's time, at which latency and dollars are looked at
LAST_S, LAST_SHARE = 1.0, 0.02  # how far a percentile looks back: so many seconds, and no less than that share of a run
Price = Callable[[int], float]  # replica → US dollars an hour


@styled
def over_time(
    measured: Sequence[Records],
    predicted: Records,
    slo_latency_s: float,
    price: Price | None = None,
    title: str = "Over time",
    subtitle: str = "",
    beside_usd_per_hour: float = 0.0,
) -> Figure:
    """Every panel over the same seconds since the schedule began; each measured run is a line of its own.

    `beside_usd_per_hour` is of what is paid beside the replicas. Without a `price` the last panel has the seconds for
    which replicas were paid. Latency is in ms, and on a logarithmic axis where the largest is over LOG_FROM_RATIO times
    the smallest.
    """
    worlds = [*(("measured", run) for run in measured), ("predicted", predicted)]
    figure = framed(HEAD_IN + 0.5 + 6 * PANEL_IN, title, subtitle)
    panels = figure.subplots(6, 1, sharex=True)
    arrivals, replicas, queue, latency, shed, paid = panels
    for world, run in worlds:
        look = world_line(world)
        edges_s, rates = timeseries.arrivals_rps(run, BINS)
        arrivals.stairs(rates, edges_s, baseline=None, label=world, **look)
        _wanted_and_ready(replicas, world, run)
        edges_s = np.linspace(0.0, run.window_s, 2 * BINS + 1)
        queue.stairs(timeseries.queue_length(run).means(edges_s), edges_s, baseline=None, label=world, **look)
        at_s = np.linspace(0.0, run.window_s, POINTS + 1)
        p95_ms = 1e3 * timeseries.latency_s(run, at_s, _last_s(run))
        latency.plot(at_s, p95_ms, label=world, **look)
        edges_s, rates = timeseries.shed_rps(run, BINS)
        shed.stairs(rates, edges_s, baseline=None, label=world, **look)
        paid.plot(at_s, timeseries.dollars(run, at_s, price or _seconds, beside_usd_per_hour), label=world, **look)
    _latency_axis(latency, slo_latency_s)
    last_s = _last_s(predicted)
    money = "dollars so far\n(US dollars)" if price else "paid so far\n(replica-seconds)"
    names = (
        "arrivals\n(requests/s)",
        "replicas\n(count)",
        "mean queue\n(requests)",
        f"p95 of the last\n{last_s:.2g} s (ms)",
        "refused\n(requests/s)",
        money,
    )
    for axes, name in zip(panels, names, strict=True):
        axes.set_ylabel(name, fontsize=9.5)
        axes.tick_params(labelsize=9.5)
        axes.margins(x=0.0)
        if axes is not latency:
            axes.set_ylim(0.0, axes.get_ylim()[1] if axes is paid else max(1.0, axes.get_ylim()[1]))
            axes.yaxis.set_major_locator(MaxNLocator(nbins=4, integer=axes in (replicas, queue)))
    paid.set_xlabel("time since the schedule began (s)")
    figure.align_ylabels(panels)
    _key(figure, has_wanted=any(run.scaling.height for _, run in worlds))
    return figure


def wanted_line(world: str) -> dict[str, Any]:
    """Wanted is finer than ready: measured a thin dark line, predicted dots upon it."""
    if world == "measured":
        return {"color": BLUE, "linewidth": 1.0}
    return {"color": BLACK, "linewidth": 1.6, "linestyle": (0, (1, 2.2))}


def _wanted_and_ready(axes: Axes, world: str, run: Records) -> None:
    _steps(axes, timeseries.ready(run), run.window_s, label=f"{world} ready", **world_line(world))
    wanted = timeseries.wanted(run)
    if wanted is not None:
        _steps(axes, wanted, run.window_s, label=f"{world} wanted", **wanted_line(world))


def _steps(axes: Axes, steps: Steps, end_s: float, **look: Any) -> None:
    times_s, values = np.append(steps.times_s, end_s), np.append(steps.values, steps.values[-1])
    axes.plot(times_s, values, drawstyle="steps-post", **look)


def _last_s(run: Records) -> float:
    return max(LAST_S, LAST_SHARE * run.window_s)


def _seconds(replica: int) -> float:
    """A price at which an hour's dollars are its seconds."""
    del replica
    return 3600.0


def _latency_axis(axes: Axes, slo_latency_s: float) -> None:
    """The promise as a line, and a scale on which both the calm and the spike can be read."""
    shown: Floats = np.concatenate([np.asarray(line.get_ydata(), dtype=np.float64) for line in axes.lines])
    shown = shown[np.isfinite(shown) & (shown > 0)]
    slo_ms = 1e3 * slo_latency_s
    axes.axhline(slo_ms, color=GREY, linewidth=0.9, label="_slo")
    axes.annotate(
        f"SLO {slo_ms:g} ms",
        (1.0, slo_ms),
        xycoords=("axes fraction", "data"),
        xytext=(-3, 2),
        textcoords="offset points",
        ha="right",
        fontsize=8.5,
        color=GREY,
    )
    if shown.size and shown.max() > LOG_FROM_RATIO * shown.min():
        axes.set_yscale("log")
        plain_log_ticks(axes, "y", np.append(shown, slo_ms), (1, 3))
        axes.set_ylim(0.8 * min(shown.min(), slo_ms), 1.5 * max(shown.max(), slo_ms))
    else:
        axes.set_ylim(bottom=0.0, top=1.15 * max([slo_ms, *shown]))


def _key(figure: Figure, has_wanted: bool) -> None:
    worlds = ("measured", "predicted")
    looks, names = [world_line(world) for world in worlds], list(worlds)
    if has_wanted:
        looks += [wanted_line(world) for world in worlds]
        names += [f"replicas wanted, {world}" for world in worlds]
    key(figure, [Line2D([], [], **look) for look in looks], names)
