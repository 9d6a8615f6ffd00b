"""The tables of a stage that say who arrives, when, and for what: [traffic] and what stands below it.

    [traffic]         open loop: arrivals of a rate      closed loop: users who wait for their replies
    [traffic.rate]    one of six shapes, each of which knows its mean over a run
    [traffic.items]   what is asked for

How they become arrival times and items is in stages/traffic.py; read by stages/spec.py alone.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field

from stages.table import Table


class ConstantRate(Table):
    """The same rate all the time."""

    shape: Literal["constant"]
    rate_rps: float = Field(gt=0.0, le=1e6)

    def mean_rps(self, duration_s: float) -> float:
        """Arrivals per second, on average over a run of that length; so do all shapes."""
        del duration_s
        return self.rate_rps


class RampRate(Table):
    """A straight line from one rate to another over the whole duration."""

    shape: Literal["ramp"]
    rate_rps_start: float = Field(ge=0.0, le=1e6)
    rate_rps_end: float = Field(ge=0.0, le=1e6)

    def mean_rps(self, duration_s: float) -> float:
        del duration_s
        return (self.rate_rps_start + self.rate_rps_end) / 2


class StepRate(Table):
    """One rate until `step_at_s`, another from then on."""

    shape: Literal["step"]
    rate_rps: float = Field(ge=0.0, le=1e6)
    rate_rps_after: float = Field(ge=0.0, le=1e6)
    step_at_s: float = Field(gt=0.0, le=1e7)

    def mean_rps(self, duration_s: float) -> float:
        share = min(self.step_at_s / duration_s, 1.0)
        return self.rate_rps * share + self.rate_rps_after * (1 - share)


class SpikeRate(Table):
    """A base rate, `spike_factor` times as high from `spike_start_s` for `spike_duration_s`."""

    shape: Literal["spike"]
    rate_rps: float = Field(gt=0.0, le=1e6)
    spike_factor: float = Field(gt=0.0, le=1e4)
    spike_start_s: float = Field(ge=0.0, le=1e7)
    spike_duration_s: float = Field(gt=0.0, le=1e7)

    def mean_rps(self, duration_s: float) -> float:
        ends_s = min(self.spike_start_s + self.spike_duration_s, duration_s)
        share = max(0.0, ends_s - self.spike_start_s) / duration_s
        return self.rate_rps * (1 + (self.spike_factor - 1) * share)


class DiurnalRate(Table):
    """A day as a sine: mean `rate_rps`, swinging by `amplitude` of it, lowest at the start of each period."""

    shape: Literal["diurnal"]
    rate_rps: float = Field(gt=0.0, le=1e6)
    amplitude: float = Field(0.8, ge=0.0, le=1.0)
    period_s: float = Field(86_400.0, gt=0.0, le=1e7)

    def mean_rps(self, duration_s: float) -> float:
        turn = 2 * math.pi * duration_s / self.period_s
        return self.rate_rps * (1 - self.amplitude * math.sin(turn) / turn)


class TraceRate(Table):
    """Arrivals out of a file: times as they are, or counts a bin as a rate (formats in `stages/traces.py`)."""

    shape: Literal["trace"]
    path: str = Field(min_length=1)
    format: Literal["auto", "azure-llm", "azure-functions", "burstgpt", "counts"] = "auto"
    start_s: float = Field(0.0, ge=0.0, le=1e9)  # where in the trace the run begins
    time_scale: float = Field(1.0, gt=0.0, le=1e6)  # 0.1 replays an hour in six minutes
    rate_scale: float = Field(1.0, gt=0.0, le=1e6)  # 2.0 replays twice as many requests in the same time

    def mean_rps(self, duration_s: float) -> float:
        """As the other shapes'. Raises StageError for a trace that cannot be replayed."""
        from stages import traces  # needs polars, which takes longer to import than all the rest

        return traces.mean_rate_rps(self, duration_s)


Rate = Annotated[ConstantRate | RampRate | StepRate | SpikeRate | DiurnalRate | TraceRate, Field(discriminator="shape")]


class Items(Table):
    """What is asked for: one of `count` inputs, all alike or by Zipf's law, in which ranks may be exchanged."""

    popularity: Literal["uniform", "zipf"] = "uniform"
    count: int = Field(1000, ge=1, le=10_000_000)
    exponent: float = Field(1.0, gt=0.0, le=10.0)
    drift_interval_s: float | None = Field(None, gt=0.0, le=1e7)
    drift_share: float | None = Field(None, gt=0.0, le=1.0)  # of the items, which then exchange their ranks


class Traffic(Table):
    """Who arrives, when, and for what; all of it follows from `seed`.

    An open loop reads `rate` and `arrivals`, a closed loop `users` and `think_time_s`. Where somebody asks who sent a
    request ([split], [feedback]), an open loop has users too: each request is from one of them.
    """

    loop: Literal["open", "closed"] = "open"
    duration_s: float = Field(60.0, gt=0.0, le=1e7)
    seed: int = Field(1, ge=0, le=2**63 - 1)
    arrivals: Literal["poisson", "gamma", "deterministic"] = "poisson"
    coefficient_of_variation: float | None = Field(None, gt=0.0, le=100.0)  # of gamma gaps
    rate: Rate | None = None
    items: Items = Items()
    users: int | None = Field(None, ge=1, le=1_000_000)  # a closed loop has 10 without it
    user_popularity: Literal["uniform", "zipf"] = "uniform"  # of an open loop: how often each of them asks
    user_exponent: float = Field(1.0, gt=0.0, le=10.0)
    think_time_s: float = Field(1.0, ge=0.0, le=1e6)
    timeout_s: float = Field(10.0, gt=0.0, le=3600.0)
    input_format: Literal["raw", "json", "png"] = "raw"

    @property
    def closed_users(self) -> int:
        """How many users a closed loop has."""
        return 10 if self.users is None else self.users
