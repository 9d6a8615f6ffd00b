"""Puts a challenger into production, for real and in simulation, until a guardrail puts it out again: how soon, at
whose cost?

    launcher ─▶ Locust: the seeded schedule, users, labels ─▶ gateway ─▶ GET /split: stopped, by what, when ─┐
         ▲ the ramp begins with the schedule                             Records: who was not answered ───────┤
                                                                                                              ├─▶ rows
    the same schedule, ramp, version ─▶ rehearsed, and with other dice ─▶ Stopped, Records ───────────────────┘

The prediction knows the versions' facts (how slow, how often they fail), as their metadata say them, on which of the
inputs that are sent a version fails, which follows from their bytes, and which of them it is right on: it is asked
beforehand (loadtests/answers.py). It never sees the run.
"""

from __future__ import annotations

import datetime as dt
import json
import math
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import polars as pl

from loadtests.answers import right_answers
from loadtests.calibrate import Launch, Progress, machine
from loadtests.checks import why_void
from loadtests.compare import least_service_s
from loadtests.drill_figures import Row
from loadtests.load import Loaded, fire_at_stack
from loadtests.payloads import crash_positions
from loadtests.shapes import constant
from reference_apps import alerts, split_file
from reference_apps.asking import open_url
from reference_apps.launchers.launcher import Launcher
from reference_apps.launchers.process import ProcessLauncher
from simulator.rehearsed import Rehearsed, rehearsed, stop_of
from simulator.run import beyond_calibration
from simulator.splitter import Stopped
from stages import records
from stages.calibration import Calibration
from stages.calibration import write as write_calibration
from stages.policies.guardrails import in_words
from stages.records import Records
from stages.spec import Stage, mean_rate_rps, stage_toml, with_overrides
from stages.traffic import schedule

DICE = 8  # further predictions, each with its own
WARM_UP_S = 2.0
# A run goes on so much longer than any prediction took to put the challenger out, in its share and in seconds.
MARGIN_SHARE, MARGIN_S = 0.5, 15.0
FAR_OFF_S = 86_400.0
ASK_TIMEOUT_S = 10.0
STACK = "stack"  # what the processes leave, in the run's folder


@dataclass(frozen=True)
class Out:
    """How one run put its challenger out; NaN for what did not happen. Seconds count from the schedule's beginning."""

    guardrail: str  # "" for none
    why: str
    at_s: float
    requests: float  # of both arms that had come to their end by then
    challenger_requests: float
    errors: float  # of the challenger's by then, those without an answer


@dataclass(frozen=True)
class Rehearsal:
    """Everything a report is made of."""

    stage: Stage  # with its traffic
    measured: Out
    predicted: Out
    dice: list[Out]
    rows: list[Row]
    void: str | None
    caveats: list[str]
    machine: str
    command: str
    made_at: str
    short: bool


def rehearse(
    stage: Stage,
    calibration: Calibration,
    folder: Path,
    *,
    command: str,
    short: bool = False,
    launch: Launch = ProcessLauncher,
    on_progress: Progress = lambda *_: None,
) -> Rehearsal:
    """Measures and predicts what becomes of the stage's challenger; records and logs are left in `folder`.

    What an earlier rehearsal left there goes: its challenger was stopped, and its labels are another run's.
    The run ends with the stage's own duration, or sooner where every prediction has the challenger
    out long before: the one for the inputs that are sent, and those for others.
    Raises LaunchError when the stack does not start, LoadError when the load generator fails.
    """
    shutil.rmtree(folder / STACK, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    write_calibration(calibration, folder / "calibration.json")
    dice = _thrown(stage, calibration, on_progress)
    crashes_at, right = crash_positions(stage), right_answers(stage)
    foreseen = stop_of(stage, schedule(stage.traffic), calibration, crash_position=crashes_at, right=right)
    ends_s = duration_s(stage, [out_of(stage, foreseen), *dice])
    point = with_overrides(stage, {"traffic.duration_s": ends_s, "overload": True})
    (folder / "stage.toml").write_text(stage_toml(point), encoding="utf-8")
    arrivals = schedule(point.traffic)
    loaded, measured = _measured(point, calibration, folder, launch, on_progress)
    predicted = rehearsed(point, arrivals, calibration, crash_position=crashes_at, right=right)
    void = _why_void(point, loaded, calibration)
    _leave(folder, asdict(loaded.check) | {"void": void}, loaded.records, predicted)
    expected = out_of(point, predicted.stopped)
    return Rehearsal(
        stage=point,
        measured=measured,
        predicted=expected,
        dice=dice,
        rows=rows(measured, expected, dice, loaded.records, predicted.records),
        void=void,
        caveats=list(dict.fromkeys([*calibration.caveats, *beyond_calibration(point, calibration)])),
        machine=machine(),
        command=command,
        made_at=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        short=short,
    )


def duration_s(stage: Stage, dice: list[Out]) -> float:
    """Whole seconds of a run at whose end the challenger is out if it is ever to be; at most the stage's own."""
    if not all(out.guardrail for out in dice):
        return stage.traffic.duration_s
    last_s = max(out.at_s for out in dice)
    return min(stage.traffic.duration_s, float(math.ceil(last_s * (1.0 + MARGIN_SHARE) + MARGIN_S)))


def rows(measured: Out, predicted: Out, dice: list[Out], real: Records, model: Records) -> list[Row]:
    """Measured beside predicted, a row a figure; ranges are over the prediction and all other dice."""
    every = [predicted, *dice]
    figures: tuple[tuple[str, str, Callable[[Out], float]], ...] = (
        ("out after", "s", lambda out: out.at_s),
        ("requests by then", "", lambda out: out.requests),
        ("of them the challenger's", "", lambda out: out.challenger_requests),
        ("of these not answered", "", lambda out: out.errors),
    )
    found = []
    for name, unit, of in figures:
        values = [of(out) for out in every if math.isfinite(of(out))] or [math.nan]
        found.append(Row(name, unit, of(measured), of(predicted), min(values), max(values)))
    for arm in ("challenger", "champion"):
        there, foreseen = _not_answered(real, arm), _not_answered(model, arm)
        found.append(Row(f"{arm}: not answered in all", "", there, foreseen, foreseen, foreseen))
    return found


def _thrown(stage: Stage, calibration: Calibration, on_progress: Progress) -> list[Out]:
    """What other dice make of it: labels, hops, and the inputs, those that a version fails on or is wrong on."""
    arrivals, found = schedule(stage.traffic), []
    for number in range(DICE):
        on_progress(f"{stage.name}: predictions", float(number), float(DICE))
        seed = stage.traffic.seed + 1000 * (number + 1)
        right = right_answers(stage, seed)
        found.append(out_of(stage, stop_of(stage, arrivals, calibration, seed=seed, right=right)))
    return found


def out_of(stage: Stage, stopped: Stopped | None) -> Out:
    """What a prediction says of the challenger's end."""
    if stopped is None:
        return Out("", "it was not stopped", math.nan, math.nan, math.nan, math.nan)
    guardrails = stage.split.guardrails if stage.split is not None else None
    broken = stopped.broken
    why = in_words(broken, None if guardrails is None else guardrails.latency_s)
    return Out(broken.guardrail, why, stopped.at_s, stopped.requests, broken.requests, stopped.errors)


def _measured(
    point: Stage, calibration: Calibration, folder: Path, launch: Launch, on_progress: Progress
) -> tuple[Loaded, Out]:
    """The real run."""
    total_s, began_s = point.traffic.duration_s, math.nan
    with launch(point, folder / STACK) as launcher, alerts.watching(launcher):
        _wait_for_begin(point, launcher)
        rate_rps = mean_rate_rps(point.traffic)
        assert rate_rps is not None  # of an open loop
        warm_up = with_overrides(
            constant(point, rate_rps, WARM_UP_S), {"feedback.share": 0.0, "feedback.delay_s": None}
        )
        fire_at_stack(warm_up, launcher, folder / "warm-up")

        def on_begin(at_s: float) -> None:
            nonlocal began_s
            began_s = at_s
            _begin(point, launcher, at_s)

        def on_second(gone_s: float) -> None:
            on_progress(f"{point.name}: the challenger is in production", gone_s, total_s)

        loaded = fire_at_stack(point, launcher, folder, on_begin=on_begin, on_second=on_second)
        told = _told(launcher)
    return loaded, _seen(told, began_s, loaded.records)


def _why_void(point: Stage, loaded: Loaded, calibration: Calibration) -> str | None:
    """A lag counts where the guardrails can see it: beside the latency that an answer may take."""
    guardrails = point.split.guardrails if point.split is not None else None
    if guardrails is None or guardrails.latency_s is None:
        return why_void(loaded.check, least_service_s(calibration))
    return why_void(loaded.check, guardrails.latency_s, "guardrail's latency")


def _wait_for_begin(point: Stage, launcher: Launcher) -> None:
    """Nobody gets the challenger while the stack warms up."""
    if point.split is not None and point.split.ramp is not None:
        split_file.begin_ramp(launcher.split_folder, time.monotonic() + FAR_OFF_S)
    else:
        split_file.set_share(launcher.split_folder, 0.0)


def _begin(point: Stage, launcher: Launcher, at_s: float) -> None:
    """The challenger's share is the stage's from the schedule's beginning on."""
    assert point.split is not None
    if point.split.ramp is not None:
        split_file.begin_ramp(launcher.split_folder, at_s)
    else:
        split_file.set_share(launcher.split_folder, point.split.challenger_share)


def _told(launcher: Launcher) -> dict[str, Any]:
    """What the gateway says of its experiment."""
    gateway = launcher.stage.gateway
    assert gateway is not None
    with open_url(f"{launcher.url}/split", ASK_TIMEOUT_S, gateway.edge) as response:
        told: dict[str, Any] = json.load(response)
    return told


def _seen(told: dict[str, Any], began_s: float, found: Records) -> Out:
    """How the real run put its challenger out."""
    if not told["stopped"] or told["stopped_s"] is None:
        return Out("", "it was not stopped", math.nan, math.nan, math.nan, math.nan)
    at_s = float(told["stopped_s"]) - began_s
    over = found.requests.filter(pl.col("replied_s") <= at_s)
    errors = over.filter((pl.col("arm") == "challenger") & (pl.col("outcome") != "ok")).height
    return Out(told["stopped"], told["why"], at_s, over.height, float(told["requests"]), errors)


def _not_answered(found: Records, arm: str) -> float:
    return float(found.requests.filter((pl.col("arm") == arm) & (pl.col("outcome") != "ok")).height)


def _leave(folder: Path, check: dict[str, Any], measured: Records, predicted: Rehearsed) -> None:
    """The records of both worlds, and the run's check of itself."""
    (folder / "check.json").write_text(json.dumps(check, indent=2), encoding="utf-8")
    records.write(measured, folder / "measured")
    records.write(predicted.records, folder / "predicted")
