"""A cache that was empty when the run began, and fills: hits and p95 in stretches of the run, measured and predicted.

    runs of both worlds ──▶ warming ──▶ print_warming, report.html, report.json

A function of records. A stretch holds the requests that were sent in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from loadtests.shares import BothWorlds
from loadtests.wording import shown, shown_error
from stages import timeseries
from stages.spec import Stage
from stages.timeseries import Floats

# Where the stretches end, as shares of the run: most of the warming is over soon.
ENDS = (0.1, 0.25, 0.5, 1.0)


@dataclass(frozen=True)
class Warming:
    """One stretch of the runs at one load; medians over the repeats, NaN where nothing was sent.

    `hits_error` is predicted - measured, in shares; `p95_error` predicted / measured - 1.
    """

    load: float
    from_s: float
    until_s: float
    hits_measured: float
    hits_predicted: float
    hits_error: float
    p95_s_measured: float
    p95_s_predicted: float
    p95_error: float


def warming(stage: Stage, by_load: Mapping[float, Sequence[BothWorlds]]) -> list[Warming]:
    """A row a load and stretch, in their order; none where the stage has no cache."""
    if stage.cache is None:
        return []
    rows = []
    for load, runs in by_load.items():
        edges_s = runs[0].measured.window_s * np.array([0.0, *ENDS])
        worlds = [[run.measured for run in runs], [run.predicted for run in runs]]
        hits = [_median([timeseries.hit_ratios(each, edges_s) for each in world]) for world in worlds]
        p95_s = [_median([timeseries.latencies_s(each, edges_s) for each in world]) for world in worlds]
        ratio = np.divide(p95_s[1], p95_s[0], out=np.full(len(ENDS), np.nan), where=p95_s[0] > 0.0)
        columns: list[Floats] = [edges_s[:-1], edges_s[1:], *hits, hits[1] - hits[0], *p95_s, ratio - 1.0]
        rows += [Warming(load, *map(float, values)) for values in zip(*columns, strict=True)]
    return rows


def print_warming(found: Sequence[Warming], console: Console) -> None:
    """Prints the stretches, a line each; nothing where there is no cache."""
    if not found:
        return
    table = Table(title="While the cache warms up", title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in ("load", "seconds", "hits", "predicted", "error", "p95", "predicted", "error"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in found:
        table.add_row(
            f"{row.load:g}",
            f"{row.from_s:g} to {row.until_s:g}",
            shown("hit_ratio", row.hits_measured),
            shown("hit_ratio", row.hits_predicted),
            shown_error("hit_ratio", row.hits_error),
            shown("latency_s_p95", row.p95_s_measured),
            shown("latency_s_p95", row.p95_s_predicted),
            shown_error("latency_s_p95", row.p95_error),
        )
    console.print(table)


def _median(values: Sequence[Floats]) -> Floats:
    """The median over the repeats of each stretch, of those that have anything there; NaN where none has."""
    stacked = np.stack(values)
    there = np.isfinite(stacked).any(axis=0)
    found = np.full(stacked.shape[1], np.nan)
    found[there] = np.nanmedian(stacked[:, there], axis=0)
    return found
