"""Runs both worlds over the same schedules and holds them against each other.

    calibration ─▶ capacity ─▶ for each load: a seeded schedule ─┬─▶ Locust against the real stack, repeated
                                                                 └─▶ simulate
                                     Run, Run, … ─▶ rows (report.py) ─▶ table, report.json, report.html, plots

A prediction is made from the stage, the schedule and the calibration; it never sees the run that it is judged on.
"""

from __future__ import annotations

import datetime as dt
import json
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

from loadtests import report
from loadtests.calibrate import Launch, Progress, machine
from loadtests.checks import why_void
from loadtests.load import Loaded, fire_at_stack
from loadtests.pace import Pace
from loadtests.payloads import crash_positions
from reference_apps.launchers.launcher import Launcher
from reference_apps.launchers.process import ProcessLauncher
from simulator.run import beyond_calibration, capacity_rps, simulate
from simulator.timeline import write_timeline
from stages import bill, records
from stages.calibration import Calibration
from stages.calibration import read as read_calibration
from stages.calibration import write as write_calibration
from stages.demand import TraceRate
from stages.metrics import summarise
from stages.spec import Stage, fleet_label, load_stage, stage_toml, with_overrides
from stages.traffic import at_rate, schedule

# A void run is repeated at once, so many times at most for one point unless more are asked for; a short comparison has
# no time for more.
VOID_RETRIES, VOID_RETRIES_SHORT = 2, 1
CURVE_LOADS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.925, 0.95, 0.975, 1.0, 1.05, 1.1, 1.2)
CURVE_REQUESTS = 200_000
CURVE_REQUESTS_GATEWAY, CURVE_REQUESTS_GATEWAY_SHORT = 20_000, 4_000  # an event each, which takes longer
PACE_TOLD = 0.01
MEDIAN_IN_GAP = 0.01  # of the hit ratio, from a half
OF_THEIR_OWN = "Loads and capacity are by their own, and what is known of the device's pace around them is left out."
RIVALS = ("policies.json", "spike.json")  # by which `rung report` knows a folder of something else
_OF_THE_CURVE = ("latency_s_p50", "latency_s_p95", "latency_s_p99", "throughput_rps")


@dataclass(frozen=True)
class Plan:
    """What is to be run: loads as shares of capacity, repeats of each, seconds of each run."""

    loads: Sequence[float]
    repeat: int
    duration_s: float
    short: bool  # too short for the figures to be quoted
    void_retries: int | None = None  # how often a void run is made again; by its length where nothing is said

    @property
    def retries(self) -> int:
        """How often one point is tried again while its run is void."""
        if self.void_retries is not None:
            return self.void_retries
        return VOID_RETRIES_SHORT if self.short else VOID_RETRIES


def compare(
    stage: Stage,
    calibration: Calibration,
    plan: Plan,
    folder: Path,
    *,
    command: str,
    launch: Launch = ProcessLauncher,
    on_progress: Progress = lambda *_: None,
) -> report.Comparison:
    """Measures and predicts `stage` at every load of `plan`; records, timelines and logs are left in `folder`.

    The runs of an earlier comparison there go: they would pass for runs of this one.
    Raises LaunchError when the stack does not start, LoadError when the load generator fails.
    """
    capacity = capacity_rps(stage, calibration)
    clear(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "stage.toml").write_text(stage_toml(stage), encoding="utf-8")
    write_calibration(calibration, folder / "calibration.json")
    about = {
        "command": command,
        "capacity_rps": capacity,
        "short": plan.short,
        "machine": machine(),
        "made_at": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
    }
    (folder / "about.json").write_text(json.dumps(about, indent=2), encoding="utf-8")
    runs: list[report.Run] = []
    total_s = len(plan.loads) * plan.repeat * (plan.duration_s + 2.0)
    with launch(_served(stage), folder / "stack") as launcher:
        _warm_up(stage, capacity, launcher, folder / "warm-up")
        pace = Pace(_served(stage), calibration, launcher, folder / "pace")
        pace.measure()
        for repeat in range(plan.repeat):
            for load in plan.loads:
                done_s = len(runs) * (plan.duration_s + 2.0)
                point = at_load(stage, load, capacity, plan.duration_s)
                runs.append(
                    _run(
                        point,
                        calibration,
                        pace,
                        folder / f"load-{load:g}-run-{repeat + 1}",
                        launcher,
                        load=load,
                        repeat=repeat,
                        retries=plan.retries,
                        on_second=lambda s, load=load, done_s=done_s: on_progress(  # type: ignore[misc]
                            f"{stage.name} at {load:g} of capacity", done_s + s, total_s
                        ),
                    )
                )
    return _result(stage, calibration, runs, folder, about)


def again(folder: Path, calibration: Calibration | None = None) -> report.Comparison:
    """The comparison of a run folder with its real runs as they were, predicted anew by the simulator of today.

    `calibration` stands in for the folder's own, which stays. Raises OSError or ValueError when the folder holds no
    comparison.
    """
    about = json.loads((folder / "about.json").read_text(encoding="utf-8"))
    stage = load_stage(folder / "stage.toml")
    own = calibration is None
    more = [] if calibration is None else [f"{another_calibration(calibration)} {OF_THEIR_OWN}"]
    calibration = calibration or read_calibration(folder / "calibration.json")
    runs = []
    for (load, repeat), path in sorted(_last_attempts(folder).items()):
        measured = records.read(path / "measured")
        check = json.loads((path / "check.json").read_text(encoding="utf-8"))
        pace = float(check.get("pace", 1.0)) if own else 1.0  # it was measured against the folder's own
        point = at_load(stage, load, about["capacity_rps"], measured.window_s)
        at_pace, crashing = calibration.at_pace(pace), crash_positions(point)
        predicted = simulate(point, schedule(point.traffic), calibration=at_pace, crash_position=crashing)
        records.write(predicted, path / "predicted")
        rate_rps = measured.requests.height / measured.window_s
        known = bool(check.get("pace_known", True)) or not own
        runs.append(report.Run(load, rate_rps, repeat, check["void"], measured, predicted, pace, known))
    if not runs:
        raise ValueError(f"{folder}: holds no runs")
    return _result(stage, calibration, runs, folder, about, more)


def another_calibration(calibration: Calibration) -> str:
    """What is to be known of runs that are predicted with a calibration that is not theirs."""
    return (
        "Predicted with another calibration than these runs were made with: one of the stage "
        f"{calibration.stage}, made at {calibration.made_at}."
    )


def _result(
    stage: Stage,
    calibration: Calibration,
    runs: list[report.Run],
    folder: Path,
    about: dict[str, Any],
    more: Sequence[str] = (),
) -> report.Comparison:
    """What the runs of both worlds amount to, with `more` caveats; their timeline is left in `folder`."""
    write_timeline(folder / "timeline.json", _busiest(runs).measured, _busiest(runs).predicted)
    loads, duration_s = sorted({run.load for run in runs}), runs[0].measured.window_s
    capacity = about["capacity_rps"]
    caveats = [
        sentence
        for load in loads
        for sentence in beyond_calibration(at_load(stage, load, capacity, duration_s), calibration)
    ]
    rows = report.rows(stage.name, runs, stage.slo.latency_s, stage)
    return report.Comparison(
        stage=stage,
        device_label=fleet_label(stage),
        machine=about["machine"],
        command=about["command"],
        capacity_rps=capacity,
        calibration=calibration,
        runs=runs,
        rows=rows,
        curve=predicted_curve(
            stage, calibration.at_pace(_median_pace(runs)), capacity, loads, duration_s, about["short"]
        ),
        caveats=list(
            dict.fromkeys(
                [*more, *calibration.caveats, *_paces(runs), *caveats, *_in_the_gap(rows), *bill.caveats(stage)]
            )
        ),
        made_at=about["made_at"],
        short=about["short"],
    )


def _median_pace(runs: Sequence[report.Run]) -> float:
    return median(run.pace for run in runs)


def _paces(runs: Sequence[report.Run]) -> Iterator[str]:
    """What the reference batches told of a device that wanders."""
    paces = [run.pace for run in runs]
    if max(abs(pace - 1.0) for pace in paces) > PACE_TOLD:
        yield (
            f"The device's pace wandered: by reference batches before and after each run, its batches took "
            f"{min(paces):.2f} to {max(paces):.2f} times as long as at its calibration. "
            "Each run is predicted at its own pace; loads are shares of the calibrated capacity."
        )
    if unknown := sum(not run.pace_known for run in runs):
        yield (
            f"The device's pace is not known for {unknown} of {len(runs)} runs: no reference batch came back before or "
            "after them. They are predicted at the last pace that was found, or at that of the calibration."
        )


def _in_the_gap(rows: Sequence[report.Row]) -> Iterator[str]:
    """Where the median falls between the answers out of a cache and those that were computed."""
    for row in rows:
        if row.metric == "hit_ratio" and row.measured is not None and abs(row.measured - 0.5) < MEDIAN_IN_GAP:
            yield (
                f"At load {row.load:g} the hit ratio is {row.measured:.1%}: the median latency lies in the gap between "
                "the answers out of the cache and those that were computed, where one request in a thousand moves it "
                "far. Read the other percentiles."
            )


def clear(folder: Path) -> None:
    """Removes from `folder` what earlier commands left there and `again` would take for runs of the next one."""
    for _, _, path in list(_attempts(folder)):
        shutil.rmtree(path)
    for name in RIVALS:
        (folder / name).unlink(missing_ok=True)


def _last_attempts(folder: Path) -> dict[tuple[float, int], Path]:
    """Load and repeat → the folder of its last attempt, which is the one that counted."""
    found: dict[tuple[float, int], tuple[int, Path]] = {}
    for key, attempt, path in _attempts(folder):
        if (path / "measured").is_dir():
            found[key] = max(found.get(key, (-1, path)), (attempt, path))
    return {key: path for key, (_, path) in found.items()}


def _attempts(folder: Path) -> Iterator[tuple[tuple[float, int], int, Path]]:
    """Load and repeat, which attempt at it, and its folder."""
    for path in folder.glob("load-*"):
        named = re.fullmatch(r"load-([0-9.e-]+)-run-(\d+)(?:-again-(\d+))?", path.name)
        if named and path.is_dir():
            yield (float(named[1]), int(named[2]) - 1), int(named[3] or 0), path


def at_load(stage: Stage, load: float, capacity: float, duration_s: float) -> Stage:
    """The stage under its own kind of traffic at `load` times `capacity`; every load has a seed of its own."""
    timed = with_overrides(stage, {"traffic.duration_s": duration_s, "overload": True})
    traffic = at_rate(timed.traffic, load * capacity)
    seed = stage.traffic.seed + 1000 + round(load * 1000)
    return timed.model_copy(update={"traffic": traffic.model_copy(update={"seed": seed})})


def predicted_curve(
    stage: Stage,
    calibration: Calibration,
    capacity: float,
    loads: Sequence[float],
    least_duration_s: float,
    short: bool = False,
) -> list[dict[str, float]]:
    """Predictions alone, over a finer grid of loads and longer runs than the real ones.

    A cache begins each real run empty, so that a longer one would be another experiment: there a point is the mean of
    several runs as long as the real ones, each with other dice.
    """
    points = []
    highest = max([1.0, *loads])
    requests = CURVE_REQUESTS
    if stage.gateway is not None or stage.queue is not None:
        requests = CURVE_REQUESTS_GATEWAY_SHORT if short else CURVE_REQUESTS_GATEWAY
    traced = isinstance(stage.traffic.rate, TraceRate)  # has no more to replay than it has
    for load in [x for x in CURVE_LOADS if x <= highest]:
        long_s = max(least_duration_s, requests / (load * capacity))
        cached = stage.cache is not None
        point = at_load(stage, load, capacity, least_duration_s if traced or cached else long_s)
        seeds = range(max(1, round(long_s / least_duration_s)) if cached and not traced else 1)
        found = [
            summarise(simulate(point, calibration=calibration, seed=point.traffic.seed + n), stage.slo.latency_s)
            for n in seeds
        ]
        points.append(
            {"load": load, "rate_rps": load * capacity}
            | {key: fmean(each[key] for each in found) for key in _OF_THE_CURVE}
        )
    return points


def _run(
    point: Stage,
    calibration: Calibration,
    pace: Pace,
    folder: Path,
    launcher: Launcher,
    *,
    load: float,
    repeat: int,
    retries: int,
    on_second: Callable[[float], None],
) -> report.Run:
    """One real run, repeated while it is void, and the prediction for its schedule."""
    least_s = least_service_s(calibration)
    for attempt in range(1 + retries):
        attempt_folder = folder if attempt == 0 else folder.with_name(f"{folder.name}-again-{attempt}")
        before, known = pace.last, pace.known
        loaded = _fire(point, launcher, attempt_folder, on_second)
        around = (before + pace.measure()) / 2
        known = known and pace.known
        void = why_void(loaded.check, least_s)
        if void is None:
            break
    at_pace, crashing = calibration.at_pace(around), crash_positions(point)
    predicted = simulate(point, schedule(point.traffic), calibration=at_pace, crash_position=crashing)
    check = asdict(loaded.check) | {"void": void, "pace": around, "pace_known": known}
    (attempt_folder / "check.json").write_text(json.dumps(check, indent=2), encoding="utf-8")
    records.write(loaded.records, attempt_folder / "measured")
    records.write(predicted, attempt_folder / "predicted")
    return report.Run(
        load=load,
        rate_rps=loaded.records.requests.height / point.traffic.duration_s,
        repeat=repeat,
        void=void,
        measured=loaded.records,
        predicted=predicted,
        pace=around,
        pace_known=known,
    )


def _served(stage: Stage) -> Stage:
    """What the replica is started with: its traffic does not matter to it, and overload is allowed."""
    return with_overrides(stage, {"overload": True})


def least_service_s(calibration: Calibration) -> float:
    """Mean device time in seconds of the smallest batch, on the quickest of the devices that were calibrated."""
    return min(times[0].mean_s for times in (calibration.service_times, *calibration.other_devices.values()))


def _warm_up(stage: Stage, capacity: float, launcher: Launcher, folder: Path) -> None:
    """Two seconds at half load, thrown away: first requests meet cold caches."""
    _fire(at_load(stage, 0.5, capacity, 2.0), launcher, folder, lambda _: None)


def _fire(point: Stage, launcher: Launcher, folder: Path, on_second: Callable[[float], None]) -> Loaded:
    """A real run. A cache begins it empty, as it does in the simulator."""
    if point.cache is not None:
        launcher.empty_cache()
    return fire_at_stack(point, launcher, folder, on_second=on_second)


def _busiest(runs: Sequence[report.Run]) -> report.Run:
    """The sound run at the highest load below capacity, whose timeline has the most to show."""
    return max(runs, key=lambda run: (run.void is None, run.load < 1.0, run.load))
