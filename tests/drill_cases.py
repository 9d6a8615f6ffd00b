"""What the tests of drills share: a fleet, a failure, a drill whose real run the simulator plays, figures of them."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import polars as pl

from loadtests import drill_figures as figures
from loadtests.drill import Drill, phases_of, predict
from loadtests.drill_figures import Row
from loadtests.drill_watch import Plan
from simulator.drilled import Drilled
from simulator.drills import Failure
from stages.spec import Stage, load_stage
from stages.traffic import Schedule, schedule

INPUT = {"input": [[[0.5] * 8] * 8]}
AT_S, FOR_S = 4.0, 5.0


def a_fleet(**overrides: Any) -> tuple[Stage, Schedule]:
    """Two emulated replicas at half their capacity for 20 s, and the arrivals."""
    stage = load_stage("load-balanced", {"traffic.duration_s": 20.0, "traffic.rate.rate_rps": 163.0} | overrides)
    return stage, schedule(stage.traffic)


def a_failure(kind: Any, **changes: Any) -> Failure:
    return replace(Failure(kind, 0, AT_S, FOR_S, noticed_s=0.05), **changes)


def reasons(found: Drilled) -> dict[str, int]:
    return dict(found.records.requests["reason"].cast(pl.String).value_counts().iter_rows())


def retries(found: Drilled) -> int:
    return int((found.records.requests["tries"] - 1).clip(0).sum())


def outage(found: Drilled, replica: int = 0) -> tuple[float, float]:
    return figures.outage_s(found.looks, replica, AT_S)


def a_drill(kind: str, void: str | None = None) -> Drill:
    """A drill whose real run was the prediction for one of three phases of the probes."""
    return replace(_drilled(kind), void=void)


@cache
def _drilled(kind: str) -> Drill:
    stage, _ = a_fleet()
    plan = Plan(kind, 0, AT_S, FOR_S, 10.0, 0.5, True)
    phases = phases_of(stage, plan, 2.0)
    predicted = predict(stage, plan, None, 2.0, probes=3)
    return Drill(stage, plan, phases, predicted[0], predicted, 2.0, None, [], "a machine", "rung drill", "today")


def row(found: Drill, name: str) -> Row:
    return next(each for each in found.rows if each.name == name)


# So that a machine that does much else carries it: devices at an eighth of their pace, probes that are patient.
QUICK = {
    "device.slowdown": 8.0,
    "gateway.probe_interval_s": 0.5,
    "gateway.probe_timeout_s": 0.4,
    "gateway.eject_s": 1.0,
    "slo.latency_s": 1.0,
    "overload": True,
}
