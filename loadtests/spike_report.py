"""What a spike run says: measured against predicted, as a table, spike.json and a picture over time.

    Spiked ──▶ rows ──▶ print_table
                 └────▶ write ──▶ spike.json  spike.png

No twin: it stands above both worlds. It measures nothing and predicts nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import orjson
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from loadtests.report import COLOURS, LEGEND, relative, sign_of
from loadtests.spike import Run, Spiked
from loadtests.wording import NOTHING, digits
from simulator.plot_frame import png
from simulator.time_plots import over_time
from stages import timeseries
from stages.bill import beside_usd_per_hour, caveats, figures, replica_usd_per_hour
from stages.cost import described
from stages.metrics import replica_seconds, summarise
from stages.records import Records
from stages.spec import Stage, fleet_label
from stages.timeseries import Steps

# Times of two clocks that are meant to be alike differ in their last digits.
ROUNDING = 1e-6


@dataclass(frozen=True)
class Figure:
    """One figure of the table. `unit` is that of its name's end, `factor` makes of it what people are shown."""

    name: str
    label: str
    unit: str
    factor: float = 1.0
    kind: str = "relative"  # "share": the error is a difference; "lag": a time between the worlds, held to a bound
    decimals: int | None = None  # three significant digits without

    def shown(self, value: float) -> str:
        """A value as people read it, with its unit."""
        if not math.isfinite(value):
            return NOTHING
        number = value * self.factor
        return f"{digits(number) if self.decimals is None else f'{number:,.{self.decimals}f}'}{self.unit}"


FIGURES = (
    Figure("requests", "requests", "", decimals=0),
    Figure("replicas_most", "most replicas ready", "", decimals=0),
    Figure("replica_seconds", "replica-seconds paid", " s", decimals=1),
    Figure("shed_share", "shed share", " %", 100.0, "share"),
    Figure("failed_share", "timed out or failed", " %", 100.0, "share"),
    Figure("latency_s_p50", "latency p50", " ms", 1e3),
    Figure("latency_s_p95", "latency p95", " ms", 1e3),
    Figure("dollars", "dollars", " USD", decimals=5),
)
LAGS = (
    Figure("wanted_lag_s", "wanted: largest lag", " s", kind="lag", decimals=2),
    Figure("ready_lag_s", "ready: largest lag", " s", kind="lag", decimals=2),
)


@dataclass(frozen=True)
class Row:
    """One line. `error` is predicted / measured - 1; of shares their difference; of lags the lag itself, in seconds.

    `measured` is the median over the sound runs, `spread_low` and `spread_high` the least and the most. `bound` is what
    a lag is held to, in seconds; None for all else. NaN stands for what neither world has.
    """

    metric: str
    measured: float
    predicted: float
    error: float
    spread_low: float
    spread_high: float
    bound: float | None
    void: bool

    @property
    def sign(self) -> str:
        """How far off, as in a comparison: =, ~, ! or ?, and `void`."""
        if self.bound is not None and math.isfinite(self.error) and not self.void:
            intervals = self.error / self.bound - ROUNDING
            return "=" if intervals <= 1 else "~" if intervals <= 2 else "!"
        return sign_of(self.error, self.spread_low <= self.predicted <= self.spread_high, self.void)


def rows(spiked: Spiked) -> list[Row]:
    """Every figure of both worlds, and how far the replicas are apart in time where an autoscaler moves them."""
    stage, runs = spiked.stage, spiked.sound
    void = all(run.void is not None for run in runs)
    predicted = _figures(stage, runs[0].predicted)
    measured = [_figures(stage, run.measured) for run in runs]
    found = []
    for figure in FIGURES:
        values = [each[figure.name] for each in measured]
        if not math.isnan(predicted[figure.name]) or not all(math.isnan(value) for value in values):
            middle = median(values)
            error = error_of(figure, middle, predicted[figure.name])
            spread = min(values), max(values)
            found.append(Row(figure.name, middle, predicted[figure.name], error, *spread, None, void))
    if stage.scaling is not None:
        bound = stage.scaling.scrape_interval_s
        for figure, of in zip(LAGS, (timeseries.wanted, timeseries.ready), strict=True):
            lags = [_lag_s(run, of) for run in runs]
            found.append(Row(figure.name, math.nan, math.nan, max(lags), min(lags), max(lags), bound, void))
    return found


def document(spiked: Spiked, folder: Path) -> dict[str, Any]:
    """The run as spike.json has it and `--json` prints it: plain values, NaN where nothing was measured."""
    cost = spiked.stage.cost
    return {
        "rows": [asdict(row) | {"sign": row.sign} for row in rows(spiked)],
        "stage": spiked.stage.name,
        "device": fleet_label(spiked.stage),
        "shape": spiked.shape,
        "base_rps": spiked.base_rps,
        "capacity_rps": spiked.capacity_rps,
        "seed": spiked.stage.traffic.seed,
        "same_count_share": _same_shares(spiked),
        "price": None if cost is None else described(cost),
        "short": spiked.short,
        "machine": spiked.machine,
        "command": spiked.command,
        "made_at": spiked.made_at,
        "caveats": spiked.caveats,
        "void_runs": [{"repeat": run.repeat, "why": run.void} for run in spiked.runs if run.void is not None],
        "picture": str(folder / "spike.png"),
    }


def write(spiked: Spiked, folder: Path) -> Path:
    """Writes spike.png and spike.json; gives back the picture's path."""
    path = folder / "spike.png"
    stage, runs = spiked.stage, [run.measured for run in spiked.sound]
    about = f"{spiked.shape}; base rate {digits(spiked.base_rps)}/s; {fleet_label(stage)}"
    about += f", {len(runs)} real runs" if len(runs) > 1 else ""
    about += "; void" if all(run.void for run in spiked.sound) else ""
    about += "; short run" if spiked.short else ""
    title = f"{stage.title}, over time"
    beside = beside_usd_per_hour(stage)
    predicted, price = spiked.runs[0].predicted, _price(stage)
    path.write_bytes(png(over_time(runs, predicted, stage.slo.latency_s, price, title, about, beside)))
    options = orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE | orjson.OPT_SERIALIZE_NUMPY
    (folder / "spike.json").write_bytes(orjson.dumps(document(spiked, folder), option=options))
    return path


def print_table(spiked: Spiked, console: Console) -> None:
    """Prints measured against predicted, how long replicas were apart, and what to make of it."""
    title = f"{spiked.stage.title} on {fleet_label(spiked.stage)}: {spiked.shape}"
    title += ", short run" if spiked.short else ""
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("figure", no_wrap=True)
    for name in ("measured", "predicted", "error", "", "spread"):
        table.add_column(name, justify="left" if name == "" else "right", no_wrap=True)
    known = {figure.name: figure for figure in (*FIGURES, *LAGS)}
    for row in rows(spiked):
        figure = known[row.metric]
        spread = (figure.shown(row.spread_low), figure.shown(row.spread_high))
        table.add_row(
            figure.label,
            figure.shown(row.measured),
            figure.shown(row.predicted),
            shown_error(figure, row.error),
            Text(row.sign, style=COLOURS[row.sign]),
            Text(spread[0] if spread[0] == spread[1] else " to ".join(spread), style="dim"),
        )
    console.print(table)
    for line in _notes(spiked):
        console.print(line, markup=False, highlight=False)


def _notes(spiked: Spiked) -> list[str]:
    stage, notes = spiked.stage, [LEGEND]
    if stage.scaling is not None:
        shares = " and ".join(f"{100 * share:.1f} %" for share in _same_shares(spiked))
        notes.append(
            f"A lag is held to one scrape interval ({stage.scaling.scrape_interval_s:g} s). Wanted and ready replicas "
            f"were as many in both worlds for {shares} of the time."
        )
    if stage.cost is not None:
        notes.append(f"A replica costs {described(stage.cost)}, from its start to its stop, the cold start included.")
        notes += caveats(stage)
    else:
        notes.append("No dollars: the stage has no [cost]. Add --set cost.machine=…, out of `rung prices`.")
    if spiked.short:
        notes.append("This was a short run: its figures scatter more than those of a long one.")
    notes += [f"void: repeat {run.repeat + 1}: {run.void}" for run in spiked.runs if run.void is not None]
    return [*notes, *(f"caveat: {caveat}" for caveat in spiked.caveats)]


def _figures(stage: Stage, records: Records) -> dict[str, float]:
    found = summarise(records, stage.slo.latency_s)
    return {
        "requests": float(records.requests.height),
        "replicas_most": float(timeseries.ready(records).values.max()),
        "replica_seconds": replica_seconds(records),
        "shed_share": found["shed_share"],
        "failed_share": found["timed_out_share"] + found["failed_share"],
        "latency_s_p50": found["latency_s_p50"],
        "latency_s_p95": found["latency_s_p95"],
        "dollars": figures(stage, records)["cost_usd"],
    }


def _price(stage: Stage) -> Callable[[int], float] | None:
    return None if stage.cost is None else partial(replica_usd_per_hour, stage)


def _lag_s(run: Run, of: Callable[[Records], Steps | None]) -> float:
    measured, predicted = of(run.measured), of(run.predicted)
    if measured is None or predicted is None:
        return math.nan
    return timeseries.lag_s(measured, predicted, run.predicted.window_s)


def _same_shares(spiked: Spiked) -> list[float]:
    """The least share of time with as many replicas wanted, and ready, in both worlds; none without an autoscaler."""
    if spiked.stage.scaling is None:
        return []
    shares = []
    for of in (timeseries.wanted, timeseries.ready):
        pairs = [(of(run.measured), of(run.predicted), run.predicted.window_s) for run in spiked.sound]
        found = [timeseries.same_share(one, other, end_s) for one, other, end_s in pairs if one and other]
        shares.append(min(found, default=math.nan))
    return shares


def error_of(figure: Figure, measured: float, predicted: float) -> float:
    """Predicted against measured: a difference of shares, a share of all else; NaN where nothing was measured."""
    if figure.kind == "share":
        return predicted - measured
    return relative(predicted, measured)


def shown_error(figure: Figure, error: float) -> str:
    """An error with its sign and unit."""
    if not math.isfinite(error):
        return NOTHING
    if figure.kind == "lag":
        return figure.shown(error)
    percent = round(100 * error, 1)
    return f"{f'{percent:+.1f}' if percent else '0.0'} {'pt' if figure.kind == 'share' else '%'}"
