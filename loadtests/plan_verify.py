"""Runs the answer of a plan for real, emulated, and holds three things against each other.

    plan ─▶ stretched: all of its times longer, its rate lower, until a laptop carries it ─▶ loadtests/spike.py ─▶ rows
            planned     what the plan said, stretched too
            predicted   for the very arrivals that were fired, with this machine's calibration
            measured    the real stack, its autoscaler at work

A stage whose every time is s times longer, at a rate s times lower, is the same stage on a slower clock: as many
requests wait, and it is as full. What the host takes is not stretched, and matters s times less. Each real run has a
stack that was just started. No twin: it stands above both worlds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import orjson
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from loadtests import spike, spike_report
from loadtests.calibrate import Launch, Progress
from loadtests.report import LEGEND
from loadtests.spike_report import Figure, Row
from reference_apps.launchers.process import ProcessLauncher
from simulator.estimate import Estimate
from simulator.sweep import measures
from stages.calibration import Calibration
from stages.demand import ConstantRate, Traffic
from stages.spec import Stage, mean_rate_rps, stage_toml, with_overrides
from stages.traffic import rate_at_rps

LAPTOP_RPS = 200.0  # at the highest rate: what two cores carry beside gateway, replicas and Locust
REPLICAS_MOST = 12  # processes with a model each
STEADY_S = 60.0  # of a steady run, which is as good shorter
# Figure → the power of s that stretching by s multiplies it by; 0 for all others.
STRETCHED = {
    "throughput_rps": -1,
    "goodput_rps": -1,
    "latency_s_p50": 1,
    "latency_s_p95": 1,
    "cost_usd_per_1000": 1,
}

FIGURES = (
    Figure("throughput_rps", "throughput", "/s"),
    Figure("goodput_rps", "goodput", "/s"),
    Figure("latency_s_p50", "latency p50", " ms", 1e3),
    Figure("latency_s_p95", "latency p95", " ms", 1e3),
    Figure("slo_share", "answered in time", " %", 100.0, "share"),
    Figure("shed_share", "shed share", " %", 100.0, "share"),
    Figure("cost_usd_per_hour", "USD an hour", "", decimals=4),
    Figure("cost_usd_per_1000", "USD per 1,000 good", "", decimals=5),
)


@dataclass(frozen=True)
class Verified:
    """What `rung plan --verify` shows. `planned` has the plan's figures by name, stretched."""

    spiked: spike.Spiked
    slowdown: float
    planned: dict[str, float]
    rows: list[Row]

    @property
    def void(self) -> bool:
        """Whether no run may be trusted."""
        return all(run.void is not None for run in self.spiked.runs)


def slowdown_for(stage: Stage) -> float:
    """How many times slower a laptop has to run it: 1 where it carries the highest rate."""
    return float(max(1, math.ceil(_peak_rps(stage.traffic) / LAPTOP_RPS)))


def stretched(stage: Stage, slowdown: float) -> Stage:
    """The stage with every time of it so many times longer, and its rate so many times lower.

    A steady run is cut to STEADY_S. Raises StageError when a time then is out of its bounds.
    """
    s, traffic = slowdown, stage.traffic
    steady = isinstance(traffic.rate, ConstantRate)
    duration_s = min(STEADY_S, s * traffic.duration_s) if steady else s * traffic.duration_s
    changed: dict[str, Any] = {
        "device.slowdown": s * stage.device.slowdown,
        "batching.batch_wait_timeout_s": s * stage.batching.batch_wait_timeout_s,
        "slo.latency_s": s * stage.slo.latency_s,
        "traffic.duration_s": duration_s,
        "traffic.timeout_s": min(3600.0, s * traffic.timeout_s),
        "traffic.rate": _stretched_rate(traffic, s),
        "overload": True,  # the plan says that it is carried; in the run chance may bring a little more
    }
    if stage.gateway is not None:
        changed["gateway.upstream_timeout_s"] = min(3600.0, s * stage.gateway.upstream_timeout_s)
    if (scaling := stage.scaling) is not None:
        for name in ("interval_s", "scrape_interval_s", "window_s"):
            changed[f"scaling.{name}"] = s * getattr(scaling, name)
        for way in ("up", "down"):
            limits = getattr(scaling, way)
            changed[f"scaling.{way}.period_s"] = s * limits.period_s
            changed[f"scaling.{way}.stabilisation_window_s"] = s * limits.stabilisation_window_s
        for name in ("machine_s", "image_s", "model_s"):
            changed[f"scaling.cold_start.{name}"] = s * getattr(scaling.cold_start, name)
        if scaling.metric == "rate" and scaling.target is not None:
            changed["scaling.target"] = scaling.target / s
    return with_overrides(stage, changed)


def verify(
    stage: Stage,
    planned: Estimate,
    calibration: Calibration,
    folder: Path,
    *,
    slowdown: float,
    repeat: int = 1,
    short: bool = False,
    command: str = "rung plan --verify",
    launch: Launch = ProcessLauncher,
    on_progress: Progress = lambda *_: None,
) -> Verified:
    """Measures and predicts the stretched stage; records, logs, a picture over time and verified.json stay in `folder`.

    `calibration` is of the stretched stage. Raises LaunchError when the stack does not start or cannot be kept up, and
    LoadError when the load generator fails.
    """
    point = stretched(stage, slowdown)
    folder.mkdir(parents=True, exist_ok=True)
    what = f"the planned stage{f', {slowdown:g} times slower' if slowdown > 1 else ''}"
    plan = spike.Plan(repeat, what, mean_rate_rps(point.traffic) or 0.0, short)
    spiked = spike.spike(point, calibration, plan, folder, command=command, launch=launch, on_progress=on_progress)
    spike_report.write(spiked, folder)
    (folder / "planned.toml").write_text(stage_toml(stage), encoding="utf-8")
    found = compared(spiked, planned, slowdown)
    (folder / "verified.json").write_bytes(orjson.dumps(document(found), option=_OPTIONS))
    return found


def compared(spiked: spike.Spiked, planned: Estimate, slowdown: float) -> Verified:
    """The three of them side by side: medians over the sound real runs, and their errors."""
    told = {each.name: planned[each.name].mean * slowdown ** STRETCHED.get(each.name, 0) for each in FIGURES}
    void = all(run.void is not None for run in spiked.runs)
    measured = [measures(spiked.stage, run.measured) for run in spiked.sound]
    predicted = [measures(spiked.stage, run.predicted) for run in spiked.sound]
    rows = []
    for figure in FIGURES:
        values = [each[figure.name] for each in measured]
        middle, model = median(values), median([each[figure.name] for each in predicted])
        error = spike_report.error_of(figure, middle, model)
        rows.append(Row(figure.name, middle, model, error, min(values), max(values), None, void))
    return Verified(spiked, slowdown, told, rows)


def document(found: Verified) -> dict[str, Any]:
    """The verification in plain values."""
    return {
        "slowdown": found.slowdown,
        "seconds": found.spiked.stage.traffic.duration_s,
        "rows": [asdict(row) | {"sign": row.sign, "planned": found.planned[row.metric]} for row in found.rows],
        "void_runs": [{"repeat": run.repeat, "why": run.void} for run in found.spiked.runs if run.void is not None],
        "machine": found.spiked.machine,
        "command": found.spiked.command,
        "made_at": found.spiked.made_at,
        "short": found.spiked.short,
        "caveats": found.spiked.caveats,
    }


def print_table(found: Verified, console: Console) -> None:
    """Prints planned, predicted and measured, and what was done to make a laptop carry it."""
    runs = len(found.spiked.sound)
    title = f"Verified on the real stack, emulated, {runs} run{'s' if runs > 1 else ''}"
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("figure", no_wrap=True)
    for name in ("planned", "predicted", "measured", "error", ""):
        table.add_column(name, justify="left" if name == "" else "right", no_wrap=True)
    known = {figure.name: figure for figure in FIGURES}
    for row in found.rows:
        figure = known[row.metric]
        table.add_row(
            figure.label,
            *(figure.shown(value) for value in (found.planned[row.metric], row.predicted, row.measured)),
            spike_report.shown_error(figure, row.error),
            Text(row.sign, style="magenta" if row.void else ""),
        )
    console.print(table)
    for line in notes(found):
        console.print(line, markup=False, highlight=False)


def notes(found: Verified) -> Sequence[str]:
    """What was done, and what is not to be trusted."""
    lines = []
    if found.slowdown > 1:
        lines.append(
            f"This machine does not carry the rate: every time is {found.slowdown:g} times longer and the rate "
            f"{found.slowdown:g} times lower, in the real stack, in its prediction and in the plan's figures here."
        )
    lines.append("Planned: without what this machine takes. Predicted: for the arrivals fired, with its calibration.")
    lines += [LEGEND] + [f"void: repeat {run.repeat + 1}: {run.void}" for run in found.spiked.runs if run.void]
    return [*lines, *(f"caveat: {caveat}" for caveat in found.spiked.caveats)]


def seconds_of(stage: Stage, slowdown: float, repeat: int) -> float:
    """How long the real runs last, without starts and calibration."""
    return repeat * stretched(stage, slowdown).traffic.duration_s


_OPTIONS = orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE | orjson.OPT_SERIALIZE_NUMPY
_RATES: dict[str, tuple[str, ...]] = {  # keys of a rate that are times; all its rates are divided
    "spike": ("spike_start_s", "spike_duration_s"),
    "diurnal": ("period_s",),
    "step": ("step_at_s",),
    "trace": ("time_scale",),
}


def _stretched_rate(traffic: Traffic, s: float) -> dict[str, Any]:
    assert traffic.rate is not None
    table = traffic.rate.model_dump()
    times = _RATES.get(table["shape"], ())
    for name, value in table.items():
        if name in times:
            table[name] = s * value
        elif name.startswith("rate_rps"):
            table[name] = value / s
    return table


def _peak_rps(traffic: Traffic) -> float:
    bins = 200
    at_s = (np.arange(bins) + 0.5) * traffic.duration_s / bins
    return float(rate_at_rps(traffic, at_s).max())
