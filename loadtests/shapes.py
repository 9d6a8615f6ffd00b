"""The traffic of a spike run: from a base rate up to so many times it, by one of four shapes.

    spike      ▁▁███████▁▁▁▁   half of `for_s` before it and `for_s` after it
    ramp       ▁▂▃▄▅▆▇█        a straight line over `for_s`
    diurnal    ▁▃▆██▆▃▁        one day in `for_s`
    trace      ▁▃▂▆█▄▂▁        a stretch of a file, squeezed into `for_s`; its highest rate is the peak

Copies of a trace of single arrivals are laid beside each other where more must come than it has (stages/traces.py), so
that a peak shorter than a twentieth of the run stays lower.
No twin: it makes traffic tables, which stages/traffic.py turns into the same schedule for both worlds.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from stages import traces
from stages.demand import ConstantRate, SpikeRate, StepRate, TraceRate
from stages.spec import Stage, mean_rate_rps, with_overrides

ShapeName = Literal["spike", "ramp", "diurnal", "trace"]
SHAPES: tuple[str, ...] = get_args(ShapeName)

DAY_S = 86_400.0
PEAK_BINS = 50  # of a run, in which the arrivals of a trace are counted to find its highest rate


class ShapeError(ValueError):
    """A shape that cannot be made; the text is for the person who asked for it."""


@dataclass(frozen=True)
class Shape:
    """What is to come: `times` the base rate at the highest, for or within `for_s` seconds.

    Of a trace, `trace_length_s` seconds from `trace_start_s` on; without a length a day, or all of a shorter one.
    """

    name: ShapeName
    times: float
    for_s: float
    trace: Path | None = None
    trace_start_s: float = 0.0
    trace_length_s: float | None = None

    @property
    def in_words(self) -> str:
        """The shape as reports name it."""
        words = {
            "spike": f"{self.times:g} times the base rate for {self.for_s:g} s",
            "ramp": f"ramp to {self.times:g} times the base rate within {self.for_s:g} s",
            "diurnal": f"a day of {self.for_s:g} s up to {self.times:g} times the base rate",
            "trace": f"trace {self.trace.name if self.trace else ''} in {self.for_s:g} s, "
            f"up to {self.times:g} times the base rate",
        }
        return words[self.name]


def base_rate_rps(stage: Stage) -> float:
    """The rate that a stage's own traffic has without its spike: of the other shapes, the mean.

    Raises ShapeError for a closed loop, and StageError for a trace that cannot be replayed.
    """
    rate = stage.traffic.rate
    if isinstance(rate, ConstantRate | SpikeRate | StepRate) and stage.traffic.loop == "open" and rate.rate_rps > 0.0:
        return rate.rate_rps
    mean_rps = mean_rate_rps(stage.traffic)
    if not mean_rps:
        raise ShapeError(
            'traffic.loop: must be "open" for a spike, got "closed". Users who wait for replies bring no spike: they '
            "slow down with their server. Use --set traffic.loop=open with a [traffic.rate]."
        )
    return mean_rps


def under(stage: Stage, shape: Shape, base_rps: float) -> Stage:
    """The stage under that traffic; its arrival process, items and seed stay. More may come than can be served.

    Raises ShapeError when the shape cannot be made, and StageError when the stage is not sound under it.
    """
    rate, duration_s = _rate(shape, base_rps)
    changed: dict[str, Any] = {"traffic.rate": rate, "traffic.duration_s": duration_s, "overload": True}
    if shape.trace is not None and isinstance(traces.read(shape.trace), traces.Times):  # it says when each one comes
        changed |= {"traffic.arrivals": None, "traffic.coefficient_of_variation": None}
    return with_overrides(stage, changed)


def constant(stage: Stage, rate_rps: float, duration_s: float) -> Stage:
    """The stage at one rate all the time."""
    rate = {"shape": "constant", "rate_rps": rate_rps}
    return with_overrides(stage, {"traffic.rate": rate, "traffic.duration_s": duration_s, "overload": True})


def _rate(shape: Shape, base_rps: float) -> tuple[dict[str, Any], float]:
    """The table of the rate, and how many seconds the run lasts."""
    for_s, peak_rps = shape.for_s, shape.times * base_rps
    match shape.name:
        case "spike":
            spike = {"spike_factor": shape.times, "spike_start_s": for_s / 2, "spike_duration_s": for_s}
            return {"shape": "spike", "rate_rps": base_rps, **spike}, 2.5 * for_s
        case "ramp":
            return {"shape": "ramp", "rate_rps_start": base_rps, "rate_rps_end": peak_rps}, for_s
        case "diurnal":
            mean_rps = (base_rps + peak_rps) / 2
            amplitude = abs(peak_rps - base_rps) / (base_rps + peak_rps)
            return {"shape": "diurnal", "rate_rps": mean_rps, "amplitude": amplitude, "period_s": for_s}, for_s
        case "trace":
            return _squeezed(shape, peak_rps), for_s


def _squeezed(shape: Shape, peak_rps: float) -> dict[str, Any]:
    if shape.trace is None:
        raise ShapeError(
            "--trace: is required with --shape trace. Nothing says when requests come. Give a file of a format that "
            "stages/traces.py reads."
        )
    path = shape.trace.expanduser().resolve()
    left_s = traces.read(path).length_s - shape.trace_start_s
    if left_s <= 0.0:
        raise ShapeError(
            f"--trace-start: must be before the end of the trace ({left_s + shape.trace_start_s:.6g} seconds), got "
            f"{shape.trace_start_s:g}. Nothing would come. Use 0 to begin with its first request."
        )
    length_s = min(left_s, shape.trace_length_s or DAY_S)
    # A little longer than the run, so that rounding does not end it before.
    rate = TraceRate(
        shape="trace",
        path=str(path),
        start_s=shape.trace_start_s,
        time_scale=shape.for_s / length_s * (1 + 1e-9),
    )
    replayed = traces.replay(rate, shape.for_s, seed=0)
    if isinstance(replayed, traces.Times):
        counts, edges_s = np.histogram(replayed.times_s, bins=PEAK_BINS, range=(0.0, shape.for_s))
        highest_rps = float((counts / np.diff(edges_s)).max())
    else:
        highest_rps = float(replayed.rates_rps.max())
    return rate.model_dump() | {"rate_scale": peak_rps / highest_rps}
