"""What a comparison says: rows of measured against predicted, a table for the terminal, a report for the browser.

    runs of both worlds ──▶ rows ──▶ print_table
                              └────▶ write_report ──▶ report.html  report.json  *.png

No twin: it stands above both worlds. It measures nothing and predicts nothing.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import orjson
import polars as pl
from matplotlib.figure import Figure
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from loadtests.hit_ratios import HitRatio, hit_ratios, print_hit_ratios
from loadtests.shares import Share, print_shares, shares
from loadtests.warming import Warming, print_warming, warming
from loadtests.wording import (
    METRICS,
    OF_A_BILL,
    OF_A_CACHE,
    constants,
    listed,
    number,
    shown,
    shown_error,
    shown_spread,
)
from simulator import cache_plots, plots
from simulator.plot_frame import png
from stages.arms import arms_of, records_of
from stages.bill import FIGURES, figures
from stages.calibration import Calibration
from stages.metrics import summarise
from stages.records import Records
from stages.spec import Stage, stage_toml

CLOSE, NEAR = 0.03, 0.10  # errors up to here are marked = and ~; beyond, !
SIGNS = {"=": "close", "~": "near", "!": "far", "?": "unknown", "void": "void"}
COLOURS = {"=": "green", "~": "yellow", "!": "bold red", "?": "dim", "void": "magenta"}
LEGEND = (
    f"= within {100 * CLOSE:.0f} % (pt: percentage points), or inside the spread of the repeats;  "
    f"~ within {100 * NEAR:.0f} %;  ! further off.  A plus sign: predicted above measured."
)
ARRIVALS = {"poisson": "Poisson", "gamma": "gamma", "deterministic": "evenly spaced"}
HEADLINE = ("latency_s_p50", "latency_s_p95", "latency_s_p99", "throughput_rps")
AT_A_GLANCE = (*HEADLINE, "shed_share", "batch_size_mean", "utilisation")


@dataclass(frozen=True)
class Run:
    """One real run and the prediction for its own fired schedule. `void` says why it must not be trusted.

    `repeat` counts from 0; people are shown it from 1.
    """

    load: float
    rate_rps: float
    repeat: int
    void: str | None
    measured: Records
    predicted: Records
    pace: float = 1.0  # of the device around the run, against its calibration; see loadtests/pace.py
    pace_known: bool = True  # else no reference batch came back, and it is the last one that was found


@dataclass(frozen=True)
class Row:
    """One line of the table, in the units of the metric's name.

    `measured` and `predicted` are medians over the same repeats; `spread_low` and `spread_high` the least and the
    most measured. `error` is predicted / measured - 1, and predicted - measured for shares and utilisation.
    """

    stage: str
    load: float
    rate_rps: float
    metric: str
    measured: float
    predicted: float
    error: float
    spread_low: float
    spread_high: float
    void: bool
    arm: str = ""  # of two versions in production; "" stands for all requests

    @property
    def document(self) -> dict[str, Any]:
        """The row as report.json has it: without an arm where there is none."""
        values = asdict(self)
        return values if self.arm else {name: value for name, value in values.items() if name != "arm"}

    @property
    def sign(self) -> str:
        """How far off, in a sign that reads in grey: a key of SIGNS."""
        return sign_of(self.error, self.spread_low <= self.predicted <= self.spread_high, self.void)


@dataclass(frozen=True)
class Comparison:
    """Everything a report is made of. `curve` holds predictions only, on a finer grid of loads."""

    stage: Stage
    device_label: str
    machine: str
    command: str
    capacity_rps: float
    calibration: Calibration
    runs: list[Run]
    rows: list[Row]
    curve: list[dict[str, float]]
    caveats: list[str]
    made_at: str
    short: bool

    @property
    def emulated(self) -> bool:
        return self.stage.device.kind == "emulated"

    @property
    def device(self) -> str:
        """The device's name, which says so when it is emulated."""
        unsaid = self.emulated and "emulated" not in self.device_label
        return f"emulated {self.device_label}" if unsaid else self.device_label

    @property
    def loads(self) -> list[float]:
        return sorted({run.load for run in self.runs})

    @property
    def shares(self) -> list[Share]:
        """Who served what; empty with one replica."""
        return shares(_by_load(self.runs))

    @property
    def hit_ratios(self) -> list[HitRatio]:
        """What the cache had; empty without one."""
        return hit_ratios(self.stage, _by_load(self.runs), self.capacity_rps)

    @property
    def warm_up(self) -> list[Warming]:
        """What the cache had in each stretch of the runs, which it began empty; none without one."""
        return warming(self.stage, _by_load(self.runs))

    @property
    def void_runs(self) -> list[Run]:
        return [run for run in self.runs if run.void is not None]


def rows(stage_name: str, runs: Iterable[Run], slo_latency_s: float, stage: Stage | None = None) -> list[Row]:
    """A row for each load and metric, loads rising: medians over the sound repeats of the load.

    A load without a sound repeat gives the medians of its void ones, with `void` set. Those of a cache are there where
    there is one, those of a bill where `stage` says what its machines cost. A metric that a repeat could not show (NaN,
    as the latency of no answer) is passed over; NaN where no repeat could. A `stage` with two arms has the same for
    each of them, with its own machines on its bill.
    """
    result: list[Row] = []
    for load, of_load in _by_load(runs).items():
        result += _rows_of(stage_name, load, of_load, slo_latency_s, stage)
        if stage is None or stage.split is None:
            continue
        for arm in arms_of(stage):
            own = [
                replace(
                    run,
                    measured=records_of(run.measured, stage, arm),
                    predicted=records_of(run.predicted, stage, arm),
                )
                for run in of_load
            ]
            of_arm = _rows_of(stage_name, load, own, slo_latency_s, stage, arm)
            result += [replace(row, arm=arm) for row in of_arm]
    return result


def _rows_of(
    stage_name: str,
    load: float,
    of_load: Sequence[Run],
    slo_latency_s: float,
    stage: Stage | None,
    arm: str | None = None,
) -> list[Row]:
    """The rows of one load."""
    result: list[Row] = []

    def told(records: Records) -> dict[str, float]:
        bill = dict.fromkeys(FIGURES, math.nan) if stage is None else figures(stage, records, arm)
        return summarise(records, slo_latency_s) | bill

    measured = [told(run.measured) for run in of_load]
    predicted = [told(run.predicted) for run in of_load]
    for metric, how in METRICS.items():
        values = [m[metric] for m in measured if not math.isnan(m[metric])] or [math.nan]
        middle = float(np.median(values))
        model = float(np.median([p[metric] for p in predicted if not math.isnan(p[metric])] or [math.nan]))
        if metric in (*OF_A_CACHE, *OF_A_BILL) and math.isnan(middle) and math.isnan(model):
            continue
        result.append(
            Row(
                stage=stage_name,
                load=load,
                rate_rps=of_load[0].rate_rps,
                metric=metric,
                measured=middle,
                predicted=model,
                error=model - middle if how.is_share else relative(model, middle),
                spread_low=min(values),
                spread_high=max(values),
                void=of_load[0].void is not None,
            )
        )
    return result


def result_in_words(comparison: Comparison) -> str:
    """The result as a paragraph: the worst errors below capacity, and what happened above it."""
    every = [row for row in comparison.rows if not row.void and math.isfinite(row.error)]
    sound = [row for row in every if not row.arm]
    below = [row for row in sound if row.load < 1.0]
    if not below:
        words = "No run below capacity is sound: this comparison says nothing about the prediction there."
    else:
        loads = sorted({row.load for row in below})
        count = sum(1 for run in comparison.runs if run.void is None and run.load < 1.0)
        span = f"load {loads[0]:g}" if len(loads) == 1 else f"loads {loads[0]:g} to {loads[-1]:g}"
        worst = [_worst(below, metric) for metric in HEADLINE]
        runs = "1 sound run" if count == 1 else f"{count} sound runs"
        words = f"Below capacity ({runs}, {span}) the worst errors of the prediction are {listed(worst)}."
        for arm in dict.fromkeys(row.arm for row in every if row.arm):
            of_arm = [row for row in every if row.arm == arm and row.load < 1.0]
            words += f" Of the {arm} alone: {listed([_worst(of_arm, metric) for metric in HEADLINE])}."
    for load in sorted({row.load for row in sound if row.load >= 1.0}):
        above = {row.metric: row for row in sound if row.load == load}
        found = [
            f"{shown_error(metric, above[metric].error)} for {METRICS[metric].label}"
            for metric in ("throughput_rps", "shed_share", "latency_s_p99")
            if metric in above
        ]
        words += f" At {load:g} times capacity: {listed(found)}."
    if comparison.short:
        words += " This was a short run: its figures scatter more than those of a long one."
    return words


def print_table(comparison: Comparison, console: Console) -> None:
    """Prints measured against predicted, a block a load, then the result in words, void runs and caveats."""
    title = f"{comparison.stage.title} on {comparison.device}"
    title += ", short run" if comparison.short else ""
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("metric", no_wrap=True)
    for name in ("measured", "predicted", "error", "", "measured spread"):
        table.add_column(name, justify="left" if name == "" else "right", no_wrap=True)
    for load in comparison.loads:
        of_load = [row for row in comparison.rows if row.load == load]
        if not of_load:
            continue
        table.add_section()
        table.add_row(Text(f"load {load:g}, {shown('throughput_rps', of_load[0].rate_rps)}", style="bold"))
        for row in of_load:
            value = "dim" if row.void else ""
            table.add_row(
                Text(f"  {_label(row)}"),
                Text(shown(row.metric, row.measured), style=value),
                Text(shown(row.metric, row.predicted), style=value),
                Text(shown_error(row.metric, row.error), style=value),
                Text(row.sign, style=COLOURS[row.sign]),
                Text(shown_spread(row.metric, row.spread_low, row.spread_high), style="dim"),
            )
    console.print(table)
    print_shares(comparison.shares, console)
    print_hit_ratios(comparison.hit_ratios, console)
    print_warming(comparison.warm_up, console)
    for line in (LEGEND, "", result_in_words(comparison), *_notes(comparison)):
        console.print(line, markup=False, highlight=False)


def write_report(comparison: Comparison, folder: Path) -> Path:
    """Writes report.html (which needs no other file), report.json and the PNGs; gives back the page's path."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures = {name: png(figure) for name, figure in _figures(comparison).items()}
    for name, data in pictures.items():
        (folder / f"{name}.png").write_bytes(data)
    path = folder / "report.html"
    path.write_text(_page(comparison, pictures, folder), encoding="utf-8")
    options = orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE | orjson.OPT_SERIALIZE_NUMPY
    json = orjson.dumps(document(comparison, path), option=options)  # NaN, which JSON lacks, becomes null
    (folder / "report.json").write_bytes(json)
    return path


def document(comparison: Comparison, report: Path) -> dict[str, Any]:
    """The comparison as report.json has it and `--json` prints it: plain values, NaN where nothing was measured."""
    return {
        "rows": [row.document for row in comparison.rows],
        "report": str(report),
        "stage": comparison.stage.name,
        "device": comparison.device,
        "emulated": comparison.emulated,
        "short": comparison.short,
        "machine": comparison.machine,
        "command": comparison.command,
        "made_at": comparison.made_at,
        "capacity_rps": comparison.capacity_rps,
        "seed": comparison.stage.traffic.seed,
        "result": result_in_words(comparison),
        "caveats": comparison.caveats,
        "shares": [asdict(share) for share in comparison.shares],
        "hit_ratios": [asdict(row) for row in comparison.hit_ratios],
        "warm_up": [asdict(row) for row in comparison.warm_up],
        "paces": [{"load": run.load, "repeat": run.repeat, "pace": run.pace} for run in comparison.runs],
        "void_runs": [{"load": run.load, "repeat": run.repeat, "why": run.void} for run in comparison.void_runs],
        "curve": comparison.curve,
        "calibration": comparison.calibration.model_dump(),
    }


def _label(row: Row) -> str:
    """What a row is of."""
    return f"{row.arm}, {METRICS[row.metric].label}" if row.arm else METRICS[row.metric].label


def _by_load(runs: Iterable[Run]) -> dict[float, list[Run]]:
    """Load → its sound runs, or its void ones where it has no other; loads rising."""
    grouped: dict[float, list[Run]] = {}
    for run in sorted(runs, key=lambda run: (run.load, run.repeat)):
        grouped.setdefault(run.load, []).append(run)
    return {load: [run for run in group if run.void is None] or group for load, group in grouped.items()}


def sign_of(error: float, in_spread: bool, void: bool) -> str:
    """The sign of an error, a key of SIGNS; `in_spread` says that the prediction is one that the repeats had."""
    if void:
        return "void"
    if not math.isfinite(error):
        return "?"
    if abs(error) <= CLOSE or in_spread:
        return "="
    return "~" if abs(error) <= NEAR else "!"


def relative(predicted: float, measured: float) -> float:
    """predicted / measured - 1; 0 where both are 0, NaN where only nothing was measured."""
    if measured == 0.0:
        return 0.0 if predicted == 0.0 else math.nan
    return predicted / measured - 1.0


def _worst(among: Sequence[Row], metric: str) -> str:
    row = max((row for row in among if row.metric == metric), key=lambda row: abs(row.error), default=None)
    if row is None:
        return f"unknown for {METRICS[metric].label}"
    where = f"load {row.load:g}"
    if abs(row.error) > CLOSE and row.sign == "=":
        where += ", inside the spread of the repeats"
    return f"{shown_error(metric, row.error)} for {METRICS[metric].label} ({where})"


def _notes(comparison: Comparison) -> list[str]:
    void = [f"void: load {run.load:g}, repeat {run.repeat + 1}: {run.void}" for run in comparison.void_runs]
    if void:
        void.append("Void runs count for nothing; a load that has no other run shows its figures marked void.")
    return [*void, *(f"caveat: {caveat}" for caveat in comparison.caveats)]


def _figures(comparison: Comparison) -> dict[str, Figure]:
    """The pictures by their file's name. Batch sizes are left out where every batch is one request."""
    traffic, by_load = comparison.stage.traffic, _by_load(comparison.runs)
    repeats = max((len(group) for group in by_load.values()), default=0)
    window_s = max((run.measured.window_s for run in comparison.runs), default=0.0)
    arrivals = "closed loop" if traffic.loop == "closed" else f"{ARRIVALS[traffic.arrivals]} arrivals"
    about = f"{comparison.stage.title} on {comparison.device}; {arrivals}, {window_s:g} s a run"
    about += f", {repeats} repeats" if repeats > 1 else ", one run a load"
    about += "; short run" if comparison.short else ""
    panels = [
        plots.Panel(
            f"load {load:g}, {shown('throughput_rps', group[0].rate_rps)}{' (void)' if group[0].void else ''}",
            [run.measured for run in group],
            [run.predicted for run in group],
        )
        for load, group in by_load.items()
    ]
    curve = pl.DataFrame(comparison.curve, schema=dict.fromkeys(_CURVE, pl.Float64), orient="row", strict=False)
    plain = [row.document for row in comparison.rows if not row.arm]
    table = pl.DataFrame(plain, schema=_ROWS, orient="row", strict=False)
    slo_latency_s = comparison.stage.slo.latency_s
    figures = {
        "latency_against_load": plots.latency_against_load(curve, table, comparison.capacity_rps, slo_latency_s, about),
        "latency_distributions": plots.latency_distributions(panels, about),
    }
    if comparison.stage.batching.max_batch_size > 1:
        figures["batch_sizes"] = plots.batch_sizes(panels, about)
    if comparison.stage.cache is not None:
        figures["cache_over_time"] = cache_plots.while_it_warms(panels, about)
    return figures | {"device_utilisation": plots.device_utilisation(panels, about)}


_CURVE = ("rate_rps", "latency_s_p50", "latency_s_p95", "latency_s_p99")
_ROWS: dict[str, Any] = {"rate_rps": pl.Float64, "metric": pl.String, "void": pl.Boolean} | dict.fromkeys(
    ("measured", "predicted", "spread_low", "spread_high"), pl.Float64
)


def _page(comparison: Comparison, pictures: dict[str, bytes], folder: Path) -> str:
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.globals |= {"number": number, "shown": shown, "shown_error": shown_error}
    return templates.get_template("report.html").render(
        comparison=comparison,
        stage=comparison.stage,
        result=result_in_words(comparison),
        by_load={load: [r for r in comparison.rows if r.load == load] for load in comparison.loads},
        label=_label,
        pictures={name: base64.b64encode(data).decode() for name, data in pictures.items()},
        constants=constants(comparison.calibration),
        metrics=METRICS,
        at_a_glance=(*AT_A_GLANCE, *(["hit_ratio"] if comparison.hit_ratios else [])),
        signs=SIGNS,
        legend=LEGEND,
        timelines=sorted(path.name for path in folder.glob("timeline*.json")),
        stage_toml=stage_toml(comparison.stage),
    )
