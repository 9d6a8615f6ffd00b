"""What a night says: measured against predicted, as rows, night.json, a table and a picture over time.

    Worked, Worked … of both worlds ──▶ document ──▶ print_table
                                            └──────▶ write ──▶ night.json  night.png

No twin: it stands above both worlds. It measures nothing and predicts nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import orjson
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from rich import box
from rich.console import Console
from rich.table import Table

from simulator.night import Worked, bill_of
from simulator.night_cli import bill_in_words
from simulator.plot_frame import captioned, framed, png, styled, svg, world_key, world_line
from stages.bill import caveats, mean_items
from stages.spec import Stage, fleet_label
from stages.timeseries import Steps, balance, lag_s, same_share

CURVE_POINTS = 500
AUTOSCALED = "autoscaled"  # in the place of a number of workers
LABELS = {
    "done_s": "all done after, s",
    "drain_s": "first result to last, s",
    "machine_s": "machine-seconds of workers",
    "workers_most": "most workers at once",
    "stored": "jobs stored",
    "dead": "dead letters",
    "interruptions": "machines taken away",
    "cost_usd": "dollars, every component",
    "cost_usd_workers": "dollars, workers alone",
    "wanted_lag_s": "workers wanted: largest lag, s",
    "ready_lag_s": "workers ready: largest lag, s",
}
LAGS = ("wanted_lag_s", "ready_lag_s")


@dataclass(frozen=True)
class Nights:
    """What a report is made of: as many nights of each world, with so many workers, or None of an autoscaler's.

    `void` says of each real night why it must not be trusted; such nights count only where all are void.
    """

    stage: Stage
    backlog: int
    workers: int | None
    spot: bool
    measured: list[Worked]
    predicted: list[Worked]
    machine: str
    command: str
    void: list[str | None] = field(default_factory=list)

    @property
    def sound(self) -> list[tuple[Worked, Worked]]:
        """The nights that may be trusted, measured and predicted."""
        pairs = list(zip(self.measured, self.predicted, strict=True))
        return [pair for pair, why in zip(pairs, self.void or [None] * len(pairs), strict=True) if why is None]

    @property
    def counted(self) -> tuple[list[Worked], list[Worked]]:
        """The nights that the figures are of, measured and predicted: the sound ones, or all where none is."""
        if not self.sound:
            return self.measured, self.predicted
        return [real for real, _ in self.sound], [ours for _, ours in self.sound]

    @property
    def title(self) -> str:
        """What was done, by whom."""
        workers = AUTOSCALED if self.workers is None else f"{self.workers} worker{'s' if self.workers > 1 else ''}"
        return f"{self.stage.title}: {self.backlog:,} jobs, {workers}"


def rows(nights: Nights) -> Iterator[dict[str, Any]]:
    """A row a metric: measured (the median of the nights), predicted, error, and the measured nights' spread.

    Of lags, which are between the worlds, the error is the largest one, and the spread is over the nights.
    """
    workers = nights.workers or AUTOSCALED
    of: dict[str, Any] = {"stage": nights.stage.name, "backlog": nights.backlog, "workers": workers}
    measured, predicted = nights.counted
    for metric, figure in _figures(nights).items():
        real, ours = sorted(map(figure, measured)), median(map(figure, predicted))
        middle = median(real)
        error = (ours - middle) / middle if middle else (0.0 if ours == middle else None)
        values: dict[str, Any] = {"metric": metric, "measured": middle, "predicted": ours, "error": error}
        yield of | values | {"spread_low": real[0], "spread_high": real[-1]}
    lags: dict[str, Callable[[Worked], Steps]] = {"ready_lag_s": ready}
    if nights.workers is None:
        lags["wanted_lag_s"] = wanted
    for metric, steps in lags.items():
        found = [_lag_s(one, other, steps) for one, other in zip(measured, predicted, strict=True)]
        values = {"metric": metric, "measured": None, "predicted": None, "error": max(found)}
        yield of | values | {"spread_low": min(found), "spread_high": max(found)}


def _figures(nights: Nights) -> dict[str, Callable[[Worked], float]]:
    figures: dict[str, Callable[[Worked], float]] = {
        "done_s": lambda each: each.done_s,
        "drain_s": lambda each: each.finished_s[-1] - each.finished_s[0] if each.finished_s else math.nan,
        "machine_s": lambda each: each.machine_s,
        "workers_most": lambda each: float(ready(each).values.max()),
        "stored": lambda each: float(each.stored),
        "dead": lambda each: float(each.dead),
        "interruptions": lambda each: float(each.interruptions),
    }
    if nights.stage.cost is not None:
        figures["cost_usd"] = lambda each: _usd(nights, each)
        figures["cost_usd_workers"] = lambda each: _usd(nights, each, "worker")
    return figures


def _usd(nights: Nights, worked: Worked, component: str | None = None) -> float:
    found = bill_of(nights.stage, worked, nights.spot)
    assert found is not None
    if component is None:
        return found.usd
    return sum(item.usd for item in found.items if item.component == component)


def ready(worked: Worked) -> Steps:
    """How many workers were there: from when each was ready until its machine was given back."""
    lives = [(each.ready_s, each.ended_s) for each in worked.machines if each.ready_s is not None]
    times_s = np.array(lives, dtype=np.float64).reshape(-1, 2)
    return balance(times_s[:, 0], times_s[:, 1], _end_s(worked))


def wanted(worked: Worked) -> Steps:
    """How many workers an autoscaler wanted; nobody before its first look."""
    times_s = np.array([0.0, *(at_s for at_s, _ in worked.wanted)])
    values = np.array([0.0, *(float(count) for _, count in worked.wanted)])
    changes = np.flatnonzero(np.insert(np.diff(values) != 0.0, 0, True))
    return Steps(times_s[changes], values[changes])


def _end_s(worked: Worked) -> float:
    return max(worked.over_s, 1e-9)


def _lag_s(measured: Worked, predicted: Worked, of: Callable[[Worked], Steps]) -> float:
    end_s = min(_end_s(measured), _end_s(predicted))
    return lag_s(_until(of(measured), end_s), _until(of(predicted), end_s), end_s)


def _until(steps: Steps, end_s: float) -> Steps:
    kept = steps.times_s < end_s
    return Steps(steps.times_s[kept], steps.values[kept])


def document(nights: Nights) -> dict[str, Any]:
    """The nights as night.json has them and `--json` prints them: plain values."""
    worlds = {"measured": nights.measured, "predicted": nights.predicted}
    pairs = list(zip(nights.measured, nights.predicted, strict=True))
    return {
        "rows": list(rows(nights)),
        "stage": nights.stage.name,
        "device": fleet_label(nights.stage),
        "machine": nights.machine,
        "command": nights.command,
        "nights": [
            {"world": world, "number": number + 1, "done_s": each.done_s, "workers_ready": _listed(ready(each))}
            | ({"workers_wanted": _listed(wanted(each))} if nights.workers is None else {})
            for world, several in worlds.items()
            for number, each in enumerate(several)
        ],
        "ready_same_share": min(
            same_share(ready(one), ready(other), min(_end_s(one), _end_s(other))) for one, other in pairs
        ),
        "bill": {world: [asdict(item) for item in _items(nights, several)] for world, several in worlds.items()},
        "void": None if nights.sound else nights.void[0],
        "void_runs": [{"repeat": n, "why": why} for n, why in enumerate(nights.void) if why is not None],
        "caveats": list(caveats(nights.stage, taken_away=True)),
    }


def _items(nights: Nights, several: Sequence[Worked]) -> Any:
    bills = [bill for each in several if (bill := bill_of(nights.stage, each, nights.spot)) is not None]
    return mean_items(bills)


def _listed(steps: Steps) -> list[list[float]]:
    return [[round(at_s, 3), value] for at_s, value in zip(steps.times_s.tolist(), steps.values.tolist(), strict=True)]


def write(nights: Nights, folder: Path) -> tuple[Path, Path]:
    """Writes night.json, night.png and night.svg into the run's folder; gives back the paths of the first two."""
    picture, path = folder / "night.png", folder / "night.json"
    figure = over_time(nights)
    picture.write_bytes(png(figure))
    (folder / "night.svg").write_bytes(svg(figure))
    options = orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE | orjson.OPT_SERIALIZE_NUMPY
    path.write_bytes(orjson.dumps(document(nights), option=options))
    return path, picture


@styled
def over_time(nights: Nights) -> Figure:
    """How many jobs are left, and how many workers are there, against time, in each night of both worlds."""
    figure = framed(6.8, nights.title, f"{fleet_label(nights.stage)}, {nights.machine}")
    left, workers = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    for world, several in (("measured", nights.measured), ("predicted", nights.predicted)):
        for each in several:
            at_s, count = _curve(each, nights.backlog)
            left.plot(at_s, count, drawstyle="steps-post", **world_line(world))
            _steps(workers, ready(each), _end_s(each), world)
    left.set_ylabel("jobs left")
    workers.set_ylabel("workers ready")
    workers.set_xlabel("time since the night began (s)")
    workers.yaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    for axes in (left, workers):
        axes.set_ylim(bottom=0.0)
        axes.set_xlim(left=0.0)
    world_key(figure)
    captioned(figure, list(_caption(nights)))
    return figure


def _caption(nights: Nights) -> Iterator[str]:
    """What the picture rests on."""
    several, scaling = len(nights.measured), nights.stage.scaling
    cold_s = scaling.cold_start.total_s if scaling is not None else 0.0
    yield (
        f"{'One real night beside its' if several == 1 else f'{several} real nights beside a'} prediction"
        f"{'' if several == 1 else ' each'}. The backlog is in the queue when the night begins; a new machine takes "
        f"{cold_s:g} s before its worker begins."
    )
    if told := bill_in_words(_items(nights, nights.measured)):
        yield told


def _steps(axes: Axes, steps: Steps, end_s: float, world: str) -> None:
    times_s, values = np.append(steps.times_s, end_s), np.append(steps.values, steps.values[-1])
    axes.plot(times_s, values, drawstyle="steps-post", **world_line(world))


def _curve(worked: Worked, backlog: int) -> tuple[list[float], list[int]]:
    """Times and jobs left then; as many points as a picture can show."""
    every = max(1, len(worked.finished_s) // CURVE_POINTS)
    points = list(enumerate(worked.finished_s, start=1))
    shown = [(at_s, backlog - done) for done, at_s in (*points[::every], *points[-1:])]
    return [0.0, *(at_s for at_s, _ in shown)], [backlog, *(left for _, left in shown)]


def print_table(nights: Nights, console: Console) -> None:
    """Prints measured beside predicted, a line a figure, and what the dollars are of."""
    table = Table(title=nights.title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("figure", no_wrap=True)
    for name in ("measured", "predicted", "error", "spread"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows(nights):
        lag, error = row["metric"] in LAGS, row["error"]
        spread = [_shown(row[key]) for key in ("spread_low", "spread_high")]
        table.add_row(
            LABELS[row["metric"]],
            _shown(row["measured"]),
            _shown(row["predicted"]),
            "–" if error is None else f"{error:.2f} s" if lag else f"{error:+.1%}",
            spread[0] if spread[0] == spread[1] else " to ".join(spread),
        )
    console.print(table)
    for line in _notes(nights):
        console.print(line, markup=False, highlight=False)


def _notes(nights: Nights) -> Iterator[str]:
    scaling = nights.stage.scaling
    for number, why in enumerate(nights.void):
        if why is not None:
            yield f"Night {number + 1} is void{' and counts for nothing' if nights.sound else ''}. {why}"
    if nights.workers is None and scaling is not None:
        yield f"A lag is held to one scrape interval ({scaling.scrape_interval_s:g} s)."
    if told := bill_in_words(_items(nights, nights.measured)):
        yield told
    yield from caveats(nights.stage, taken_away=True)


def _shown(value: float | None) -> str:
    return "–" if value is None or not math.isfinite(value) else f"{value:.5g}"
