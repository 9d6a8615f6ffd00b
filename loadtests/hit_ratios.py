"""How much of what is asked a cache has: measured, simulated, and by Che's approximation where it says anything.

    runs of both worlds ──▶ hit_ratios ──▶ print_hit_ratios, report.html
    stage, rate ─▶ theory ──┘

A function of records and of the stage. The theory knows of no time that computing takes: who joins is a hit to it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from loadtests.shares import BothWorlds
from simulator.cache import kept_bytes
from simulator.theory import warming_hit_ratio
from stages.demand import ConstantRate
from stages.metrics import summarise
from stages.records import Records
from stages.spec import Stage
from stages.traffic import popularity


@dataclass(frozen=True)
class HitRatio:
    """What a cache had at one load, as shares of the requests that looked, 0 to 1: medians over the repeats.

    `error` is predicted - measured. `computed` counts the inputs that devices worked on, in the median run: of a
    stampede for one item it is one. `theory` is of hits and joined together; NaN where there is none.
    """

    load: float
    measured: float
    predicted: float
    error: float
    joined_measured: float
    joined_predicted: float
    computed_measured: float
    computed_predicted: float
    theory: float


def hit_ratios(stage: Stage, by_load: Mapping[float, Sequence[BothWorlds]], capacity_rps: float) -> list[HitRatio]:
    """A row a load; none where the stage has no cache."""
    if stage.cache is None:
        return []
    rows = []
    for load, runs in by_load.items():
        measured = _medians(stage, [run.measured for run in runs])
        predicted = _medians(stage, [run.predicted for run in runs])
        window_s = runs[0].measured.window_s
        by_theory = theory(stage, load * capacity_rps, window_s)
        computed = (_computed([run.measured for run in runs]), _computed([run.predicted for run in runs]))
        error = predicted[0] - measured[0]
        rows.append(HitRatio(load, measured[0], predicted[0], error, measured[1], predicted[1], *computed, by_theory))
    return rows


def theory(stage: Stage, rate_rps: float, window_s: float) -> float:
    """The hit ratio of the first `window_s` seconds by Che's approximation, from an empty cache on.

    NaN where it does not hold: another policy than LRU, answers that age, popularity that drifts, rates that change.
    """
    cache, traffic = stage.cache, stage.traffic
    steady = traffic.loop == "open" and isinstance(traffic.rate, ConstantRate)
    still = traffic.items.drift_interval_s is None
    if cache is None or cache.policy != "lru" or cache.ttl_s is not None or not steady or not still:
        return math.nan
    entries = cache.max_bytes / kept_bytes(stage.model)
    return warming_hit_ratio(popularity(traffic.items) * rate_rps, entries, window_s)


def print_hit_ratios(found: Sequence[HitRatio], console: Console) -> None:
    """Prints what the cache had, a line a load; nothing where there is none."""
    if not found:
        return
    title = "What the cache had; joined and computed: measured / predicted"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in ("load", "hits", "predicted", "error", "joined", "computed", "by theory"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in found:
        table.add_row(
            f"{row.load:g}",
            f"{row.measured:.1%}",
            f"{row.predicted:.1%}",
            f"{100 * row.error:+.1f} pt",
            f"{row.joined_measured:.1%} / {row.joined_predicted:.1%}",
            f"{row.computed_measured:,.0f} / {row.computed_predicted:,.0f}",
            "–" if math.isnan(row.theory) else f"{row.theory:.1%}",
        )
    console.print(table)


def _computed(runs: Sequence[Records]) -> float:
    """How many inputs devices worked on, in the median run."""
    return float(np.median([records.batches["batch_size"].sum() for records in runs]))


def _medians(stage: Stage, runs: Sequence[Records]) -> tuple[float, float]:
    """Hit ratio and joined ratio; NaN where nobody looked."""
    found = [summarise(records, stage.slo.latency_s) for records in runs]
    looked = [each for each in found if not math.isnan(each["hit_ratio"])]
    if not looked:
        return math.nan, math.nan
    hits, joined = (float(np.median([each[name] for each in looked])) for name in ("hit_ratio", "joined_ratio"))
    return hits, joined
