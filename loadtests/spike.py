"""Runs both worlds through a spike and holds them against each other over time.

    shape ─▶ a seeded schedule ─┬─▶ Locust against the real stack, its autoscaler at work     ─▶ Records ─┐
    calibration ────────────────┴─▶ simulate                                                 ─▶ Records ─┤
                                             rows, one time axis (spike_report.py, simulator/time_plots.py) ◀┘

Every real run begins with a stack that was just started, because a fleet that has scaled is another one. A prediction
is made from the stage, the schedule and the calibration; it never sees the run that it is judged on.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from loadtests import scaling_rows
from loadtests.calibrate import Launch, Progress, machine
from loadtests.checks import why_void
from loadtests.compare import another_calibration, least_service_s
from loadtests.load import Loaded, fire_at_stack
from loadtests.payloads import crash_positions
from loadtests.shapes import constant
from loadtests.tending import start_s_of, tended
from reference_apps.launchers.process import ProcessLauncher
from simulator.run import beyond_calibration, capacity_rps, simulate
from stages import records
from stages.calibration import Calibration
from stages.calibration import read as read_calibration
from stages.calibration import write as write_calibration
from stages.records import Records
from stages.spec import Stage, load_stage, stage_toml, with_overrides
from stages.traffic import schedule

# A void run is repeated at once, so many times at most; a short one is not.
VOID_RETRIES = 1
WARM_UP_S = 2.0


@dataclass(frozen=True)
class Plan:
    """How often, and what the report is to say of it."""

    repeat: int
    shape: str  # in words
    base_rps: float
    short: bool  # too short for the figures to be quoted
    on: str = "process"  # what the replicas are: processes, or containers


@dataclass(frozen=True)
class Run:
    """One real run and the prediction for its schedule. `void` says why not to trust it; repeats count from 0."""

    repeat: int
    void: str | None
    measured: Records
    predicted: Records


@dataclass(frozen=True)
class Spiked:
    """What a report is made of. `stage` is the stage under its spike."""

    stage: Stage
    shape: str
    base_rps: float
    capacity_rps: float  # of the fleet as it starts
    runs: list[Run]
    caveats: list[str]
    machine: str
    command: str
    made_at: str
    short: bool

    @property
    def sound(self) -> list[Run]:
        """The runs that may be trusted; all of them where none may."""
        return [run for run in self.runs if run.void is None] or self.runs


def spike(
    point: Stage,
    calibration: Calibration,
    plan: Plan,
    folder: Path,
    *,
    command: str,
    launch: Launch = ProcessLauncher,
    on_progress: Progress = lambda *_: None,
) -> Spiked:
    """Measures and predicts the stage under its spike; records and logs are left in `folder`.

    Raises LaunchError when the stack does not start or cannot be kept up, LoadError when the load generator fails.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if plan.on == "docker" and point.scaling is not None:
        point = with_measured_start(point, launch, folder / "cold-start")
    (folder / "stage.toml").write_text(stage_toml(point), encoding="utf-8")
    write_calibration(calibration, folder / "calibration.json")
    about = {
        **asdict(plan),
        "command": command,
        "machine": machine(),
        "made_at": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
    }
    (folder / "about.json").write_text(json.dumps(about, indent=2), encoding="utf-8")
    predicted = _predicted(point, calibration)
    runs, duration_s = [], point.traffic.duration_s
    for repeat in range(plan.repeat):

        def on_second(gone_s: float, repeat: int = repeat) -> None:
            done_s = repeat * duration_s + min(gone_s, duration_s)
            on_progress(f"{point.name}: {plan.shape}", done_s, plan.repeat * duration_s)

        retries = 0 if plan.short else VOID_RETRIES
        measured, void = _run(point, calibration, folder / f"run-{repeat + 1}", launch, retries, on_second)
        runs.append(Run(repeat, void, measured, predicted))
    records.write(predicted, folder / "predicted")
    return _result(point, calibration, runs, about)


def with_measured_start(point: Stage, launch: Launch, folder: Path) -> Stage:
    """The stage with the cold start that it has in containers: image and model as one replica more than the first
    took them, before the runs; the machine's time stays the stage's own, because none is rented.

    Raises LaunchError when it does not start.
    """
    with launch(with_overrides(point, {"scaling": None, "overload": True}), folder) as launcher:
        start_s = start_s_of(launcher)
    return with_overrides(point, {"scaling.cold_start.image_s": 0.0, "scaling.cold_start.model_s": start_s})


def again(folder: Path, calibration: Calibration | None = None) -> Spiked:
    """A spike's run folder with its real runs as they were, predicted anew by the simulator of today.

    `calibration` stands in for the folder's own, which stays. Raises OSError or ValueError when the folder holds no
    spike.
    """
    about = json.loads((folder / "about.json").read_text(encoding="utf-8"))
    point = load_stage(folder / "stage.toml")
    more = [] if calibration is None else [another_calibration(calibration)]
    calibration = calibration or read_calibration(folder / "calibration.json")
    predicted = _predicted(point, calibration)
    runs = []
    for repeat in range(about["repeat"]):
        path = folder / f"run-{repeat + 1}"
        void = json.loads((path / "check.json").read_text(encoding="utf-8"))["void"]
        runs.append(Run(repeat, void, records.read(path / "measured"), predicted))
    records.write(predicted, folder / "predicted")
    return _result(point, calibration, runs, about, more)


def _predicted(point: Stage, calibration: Calibration) -> Records:
    """What the simulator says of the schedule that is sent, of those very inputs."""
    return simulate(point, schedule(point.traffic), calibration=calibration, crash_position=crash_positions(point))


def _result(
    point: Stage, calibration: Calibration, runs: list[Run], about: dict[str, Any], more: Sequence[str] = ()
) -> Spiked:
    caveats = [*more, *calibration.caveats, *beyond_calibration(point, calibration)]
    if about.get("on") == "docker" and point.scaling is not None:
        cold = point.scaling.cold_start
        caveats.append(
            f"A container took {cold.model_s:.1f} s until it served, as measured before the runs; its machine is given "
            f"{cold.machine_s:g} s by the stage. What a registry takes to send the image is left out."
        )
    return Spiked(
        stage=point,
        shape=about["shape"],
        base_rps=about["base_rps"],
        capacity_rps=capacity_rps(point, calibration),
        runs=runs,
        caveats=list(dict.fromkeys(caveats)),
        machine=about["machine"],
        command=about["command"],
        made_at=about["made_at"],
        short=about["short"],
    )


def _run(
    point: Stage,
    calibration: Calibration,
    folder: Path,
    launch: Launch,
    retries: int,
    on_second: Callable[[float], None],
) -> tuple[Records, str | None]:
    """The record of one real run, and why it must not be trusted. It is repeated while it is void."""
    for _ in range(1 + retries):
        loaded = _measured(point, calibration, folder, launch, on_second)
        void = why_void(loaded.check, least_service_s(calibration))
        if void is None:
            break
    check = asdict(loaded.check) | {"void": void}
    (folder / "check.json").write_text(json.dumps(check, indent=2), encoding="utf-8")
    records.write(loaded.records, folder / "measured")
    return loaded.records, void


def _measured(
    point: Stage, calibration: Calibration, folder: Path, launch: Launch, on_second: Callable[[float], None]
) -> Loaded:
    """One real run of the schedule, on a stack of its own."""
    with launch(point, folder / "stack") as launcher:
        warm_up = constant(point, 0.5 * capacity_rps(point, calibration), WARM_UP_S)
        fire_at_stack(warm_up, launcher, folder / "warm-up")
        if point.cache is not None:  # it begins empty, as in the simulator
            launcher.empty_cache()
        with tended(launcher) as tending:
            began_s = 0.0

            def on_begin(at_s: float) -> None:
                nonlocal began_s
                began_s = at_s
                tending.begin(at_s)

            def on_look(gone_s: float) -> None:
                tending.check()
                on_second(gone_s)

            loaded = fire_at_stack(point, launcher, folder, on_begin=on_begin, on_second=on_look)
        end_s = loaded.records.replicas["stopped_s"].max()
        scaling = scaling_rows.read(launcher.folder, began_s, float(end_s))  # type: ignore[arg-type]
    return Loaded(replace(loaded.records, scaling=scaling), loaded.check)
