"""What is planned for: how many requests come when, for what, and how soon an answer must be back.

    --rate --traffic --trace --p95 --items ──▶ Workload ─▶ traffic()          the table [traffic] of a stage
                                                        ├▶ rates_rps()        the rate over time, for arithmetic
                                                        └▶ autoscaler_times() seconds of an autoscaler, squeezed alike

A day is squeezed into some minutes, a spike of ten minutes into one: `compression` seconds of the world pass in one of
the run. What an autoscaler takes is squeezed too, though not below what the running stack can do; what a request takes
is not. No twin. Not here: users who come back after a failure, and weekends.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from simulator.draws import Floats
from stages import traces
from stages.demand import TraceRate, Traffic
from stages.problems import Problem, StageError, shown
from stages.traffic import rate_at_rps

Shape = Literal["steady", "diurnal", "spiky", "trace"]
SHAPES: tuple[str, ...] = get_args(Shape)

DAY_S = 86_400.0
AMPLITUDE = 0.8  # of a day's rate: at noon 1.8 times the mean, at midnight a fifth of it
SPIKE_FACTOR, SPIKE_START, SPIKE_SHARE = 4.0, 0.2, 0.4  # so many times the base rate, from and for a share of the run
SPIKE_COMPRESSION = 10.0  # a spike of ten minutes within 25 is run as one of one minute within 150 s
SHARE = 0.95  # of all requests: p95 is what is promised
BINS = 480  # of a run's time, in which its rate is looked at

# What Kubernetes and a cloud take, in seconds of the world; stages/scaling.py has the sources of the first two.
INTERVAL_S, STABILISATION_S = 15.0, 300.0
COLD_START_S = {"machine_s": 120.0, "image_s": 40.0, "model_s": 20.0}

_RATE_MAX_RPS, _P95_MAX_S, _DURATION_MAX_S, _ITEMS_MAX = 100_000.0, 60.0, DAY_S, 10_000_000
_REQUESTS_MAX = 5_000_000  # of one run: each point of a plan is run several times


@dataclass(frozen=True)
class Workload:
    """What comes: `rate_rps` in the mean over a run of `duration_s` seconds, 95 % of it to be answered in `p95_s`.

    Without `items` no two requests are for the same, and a cache has nothing to keep.
    """

    rate_rps: float
    p95_s: float
    shape: Shape
    duration_s: float
    compression: float = 1.0  # seconds of the world in one of the run
    model: str = "resnet50"
    items: int | None = None
    zipf: float = 1.0
    trace: Path | None = None
    seed: int = 1
    least_interval_s: float = 1.0  # of an autoscaler in the run: a process here is started and scraped no quicker
    least_cold_start_s: float = 2.0

    @property
    def in_words(self) -> str:
        """The workload in a line."""
        rate = f"{self.rate_rps:g} requests per second"
        squeezed = f"of {self.compression * self.duration_s / 3600:.3g} hours squeezed into {self.duration_s:g} s"
        how = {
            "steady": f"{rate}, steady",
            "diurnal": f"{rate} in the mean of a day, {1 + AMPLITUDE:g} times that at noon ({squeezed})",
            "spiky": f"{rate} in the mean, with a spike of {SPIKE_FACTOR:g} times the base rate for "
            f"{SPIKE_SHARE * self.duration_s * self.compression / 60:.3g} minutes ({squeezed})",
            "trace": f"{rate} in the mean of {self.trace.name if self.trace else 'a trace'} ({squeezed})",
        }
        return f"{how[self.shape]}; 95 % within {1e3 * self.p95_s:g} ms"

    def traffic(self, timeout_s: float | None = None) -> dict[str, Any]:
        """The table [traffic] of a stage under it; clients give up after `timeout_s`, by default long after p95."""
        table: dict[str, Any] = {
            "duration_s": self.duration_s,
            "seed": self.seed,
            "timeout_s": min(3600.0, timeout_s or max(10.0, 4 * self.p95_s)),
            "rate": self._rate(),
            "items": {"popularity": "uniform", "count": _ITEMS_MAX},
        }
        if self.items is not None:
            table["items"] = {"popularity": "zipf", "count": self.items, "exponent": self.zipf}
        return table

    def rates_rps(self) -> Floats:
        """The arrival rate in each of BINS bins of the run."""
        return _rates_rps(self)

    @property
    def peak_rps(self) -> float:
        """The highest rate of the run."""
        return float(self.rates_rps().max())

    def autoscaler_times(self) -> dict[str, Any]:
        """Seconds of the run for the tables [scaling] of a stage: as much shorter as the day is, within bounds."""
        interval_s = max(INTERVAL_S / self.compression, self.least_interval_s)
        cold_s = sum(COLD_START_S.values())
        squeeze = max(cold_s / self.compression, self.least_cold_start_s) / cold_s
        window_s = max(STABILISATION_S / self.compression, 2 * interval_s)
        return {
            **dict.fromkeys(("interval_s", "scrape_interval_s", "window_s"), interval_s),
            "up": {"period_s": interval_s},
            "down": {"period_s": interval_s, "stabilisation_window_s": window_s},
            "cold_start": {name: squeeze * seconds for name, seconds in COLD_START_S.items()},
        }

    def _rate(self) -> dict[str, Any]:
        match self.shape:
            case "steady":
                return {"shape": "constant", "rate_rps": self.rate_rps}
            case "diurnal":
                sine = {"amplitude": AMPLITUDE, "period_s": min(self.duration_s, DAY_S)}
                return {"shape": "diurnal", "rate_rps": self.rate_rps, **sine}
            case "spiky":
                base_rps = self.rate_rps / (1 + (SPIKE_FACTOR - 1) * SPIKE_SHARE)
                start_s, for_s = SPIKE_START * self.duration_s, SPIKE_SHARE * self.duration_s
                spike = {"spike_factor": SPIKE_FACTOR, "spike_start_s": start_s, "spike_duration_s": for_s}
                return {"shape": "spike", "rate_rps": base_rps, **spike}
            case "trace":
                assert self.trace is not None
                plain = _squeezed(self.trace, self.compression)
                return plain.model_dump() | {"rate_scale": self.rate_rps / _replayed_rps(plain, self.duration_s)}


def workload(
    rate_rps: float | None,
    p95_s: float,
    shape: str = "steady",
    *,
    duration_s: float | None = None,
    model: str = "resnet50",
    items: int | None = None,
    zipf: float | None = None,
    trace: Path | None = None,
    seed: int = 1,
) -> Workload:
    """The workload that the options of `rung plan` mean; without a rate a trace keeps its own.

    Raises StageError with everything that is wrong with them.
    """
    problems = list(_wrong(rate_rps, p95_s, shape, duration_s, items, zipf, trace))
    if problems:
        raise StageError("rung plan", problems)
    shape = "trace" if trace is not None else shape
    plain = Workload(rate_rps or 1.0, p95_s, "steady", 1.0, model=model, items=items, zipf=zipf or 1.0, seed=seed)
    if trace is not None:
        return _checked(_of_trace(plain, trace.expanduser().resolve(), rate_rps, duration_s))
    assert rate_rps is not None
    seconds = duration_s or _duration_s(shape, rate_rps)
    squeezed = {"diurnal": DAY_S / seconds, "spiky": SPIKE_COMPRESSION * 150.0 / seconds}
    squeeze = max(1.0, squeezed.get(shape, 1.0))  # what lasts longer than in life is not stretched
    return _checked(replace(plain, shape=shape, duration_s=seconds, compression=squeeze))  # type: ignore[arg-type]


def fluid_share(rates_rps: Sequence[float] | Floats, step_s: float, capacity_rps: float, patience_s: float) -> float:
    """The most of the requests that servers of `capacity_rps` together can answer within `patience_s`, 0 to 1.

    Derived: requests as a fluid that comes at each of `rates_rps` for `step_s` seconds. What is ahead of a request in
    the queue is worked off at the capacity, so that whatever lies deeper than capacity * patience is late. Chance,
    and batches that are not full, only make it less.
    """
    backlog, late = 0.0, 0.0
    for rate in rates_rps:
        backlog = max(0.0, backlog + (float(rate) - capacity_rps) * step_s)
        over = max(0.0, backlog - capacity_rps * patience_s)
        backlog, late = backlog - over, late + over
    total = float(np.sum(rates_rps)) * step_s
    return 1.0 - late / total if total else 1.0


def _duration_s(shape: str, rate_rps: float) -> float:
    """Long enough for a 95th percentile, and no longer than what is to be seen takes."""
    if shape == "spiky":
        return 150.0
    if shape == "diurnal":
        return float(round(min(600.0, max(120.0, 60_000 / rate_rps))))
    return float(round(min(600.0, max(10.0, 15_000 / rate_rps))))


def _of_trace(plain: Workload, path: Path, rate_rps: float | None, duration_s: float | None) -> Workload:
    """The first day of a trace, or all of a shorter one, in `duration_s` seconds."""
    length_s = min(traces.read(path).length_s, DAY_S)
    own_rps = _replayed_rps(_squeezed(path, 1.0), length_s * (1 - 1e-9))
    rate_rps = own_rps if rate_rps is None else rate_rps
    seconds = min(length_s, duration_s or _duration_s("diurnal", rate_rps))
    return replace(
        plain, shape="trace", rate_rps=rate_rps, duration_s=seconds, compression=length_s / seconds, trace=path
    )


def _squeezed(path: Path, compression: float) -> TraceRate:
    # A little longer than the run, so that rounding does not end it before.
    return TraceRate(shape="trace", path=str(path), time_scale=(1 + 1e-9) / compression)


@lru_cache(maxsize=64)
def _replayed_rps(rate: TraceRate, duration_s: float) -> float:
    return traces.mean_rate_rps(rate, duration_s)


@lru_cache(maxsize=64)
def _rates_rps(given: Workload) -> Floats:
    at_s = (np.arange(BINS) + 0.5) * given.duration_s / BINS
    return np.maximum(rate_at_rps(Traffic.model_validate(given.traffic()), at_s), 0.0)


def _checked(given: Workload) -> Workload:
    """The workload, where a run of it has requests, and not too many. Raises StageError."""
    requests = given.rate_rps * given.duration_s
    if not 1.0 <= requests <= _REQUESTS_MAX:
        rule = f"must bring 1 to {_REQUESTS_MAX:,} requests within --duration ({given.duration_s:g} seconds)"
        what = "A plan runs each stage several times, and would take hours." if requests > 1 else "Nothing would come."
        remedy = (
            "Shorten --duration, or plan for a part of it." if requests > 1 else "Raise it, or lengthen --duration."
        )
        raise StageError("rung plan", [Problem("--rate", rule, f"{requests:,.3g}", what, remedy)])
    return given


def _wrong(
    rate_rps: float | None,
    p95_s: float,
    shape: str,
    duration_s: float | None,
    items: int | None,
    zipf: float | None,
    trace: Path | None,
) -> Iterator[Problem]:
    if rate_rps is None and trace is None:
        yield Problem("--rate", "is required", None, "Nothing says how much comes.", "Use --rate 800, or --trace FILE.")
    if shape not in SHAPES[:3]:
        choices = "steady, diurnal or spiky"
        yield Problem(
            "--traffic", f"must be {choices}", shown(shape), "No other shape is known.", "For your own use --trace."
        )
    if trace is not None and shape != "steady":
        yield Problem(
            "--traffic", "must not stand beside --trace", shape, "A trace has its own shape.", "Leave one out."
        )
    bounds: tuple[tuple[str, float | None, float, str, str], ...] = (
        ("--rate", rate_rps, _RATE_MAX_RPS, "requests per second", "Use 800."),
        ("--p95", p95_s, _P95_MAX_S, "seconds", "Use 0.15 for 150 ms."),
        ("--duration", duration_s, _DURATION_MAX_S, "seconds", "Leave it out for some minutes."),
        ("--zipf", zipf, 10.0, "", "Use 1.0."),
    )
    for option, value, most, unit, remedy in bounds:
        if value is not None and not (math.isfinite(value) and 0.0 < value <= most):
            rule = f"must be above 0 and at most {most:g} {unit}".rstrip()
            yield Problem(option, rule, f"{value:g}", "No stage could be planned for it.", remedy)
    if items is not None and not 1 <= items <= _ITEMS_MAX:
        yield Problem(
            "--items", f"must be 1 to {_ITEMS_MAX:,}", str(items), "Nothing could be asked for.", "Use 10000."
        )
    if zipf is not None and items is None:
        yield Problem(
            "--zipf", "belongs to --items", f"{zipf:g}", "Without it no two requests are for the same.", "Add --items."
        )
