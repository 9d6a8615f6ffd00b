"""Has something fail under load, for real and in simulation, and holds what came of it against each other.

    launcher, tended ─▶ Locust: the seeded schedule ─▶ Records ─┐
         ▲ at at_s: ask(…, "drill")   GET /replicas ─▶ looks ───┤
                                                                ├─▶ Seen ─▶ rows (drill_figures.py), one picture
    the same schedule, the same failure ─▶ drilled ─▶ the same ─┘

The prediction knows when the failure happens, and how long a replica takes to start: one of this stack was timed in an
idle moment before the run. It never sees the run. A drill is asked for through a file in the run folder, as every
command is.
"""

from __future__ import annotations

import datetime as dt
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from loadtests import drill_figures as figures
from loadtests.calibrate import Launch, Progress, machine
from loadtests.checks import why_void
from loadtests.compare import at_load, least_service_s
from loadtests.drill_figures import Look, Phases, Seen
from loadtests.drill_watch import Asked, Plan, log_kept, watching
from loadtests.load import Loaded, fire_at_stack
from loadtests.payloads import crash_positions
from loadtests.tending import start_s_of, tended
from reference_apps import rotation, supervisor
from reference_apps.launchers.launcher import Launcher
from reference_apps.launchers.process import ProcessLauncher
from simulator.drilled import Drilled, Restart, drilled
from simulator.drills import Failure
from simulator.run import beyond_calibration, capacity_rps
from stages import records
from stages.arms import replicas_of
from stages.calibration import Calibration
from stages.calibration import write as write_calibration
from stages.records import Records
from stages.spec import Stage, stage_toml, with_overrides
from stages.traffic import schedule

MARGIN_S = 3.0  # of the run, after all should be well again
PHASES = 9  # of the probes, for each of which a prediction is made
WARM_UP_S = 2.0


@dataclass(frozen=True)
class Run:
    """A run of one world: its record, and who was in rotation when, in seconds since the schedule began."""

    records: Records
    looks: list[Look]
    done_s: float = float("nan")  # from the beginning of a rolling restart to its end


@dataclass(frozen=True)
class Drill:
    """Everything a report is made of. `predicted` has a run for each phase of the probes."""

    stage: Stage  # with its traffic
    plan: Plan
    phases: Phases
    measured: Run
    predicted: list[Run]
    start_s: float  # that a replica took to be ready before the run; 0 where none is started in it
    void: str | None
    caveats: list[str]
    machine: str
    command: str
    made_at: str

    @property
    def seen(self) -> Seen:
        """The real run in figures."""
        return self._seen(self.measured)

    @property
    def rows(self) -> list[figures.Row]:
        """Measured beside predicted."""
        return figures.rows(self.seen, [self._seen(run) for run in self.predicted], restart=self.plan.restart)

    def _seen(self, run: Run) -> Seen:
        replica = None if self.plan.restart else self.plan.replica
        return figures.seen(run.records, run.looks, replica, self.phases, run.done_s)


def drill(
    stage: Stage,
    calibration: Calibration,
    plan: Plan,
    folder: Path,
    *,
    command: str,
    launch: Launch = ProcessLauncher,
    on_progress: Progress = lambda *_: None,
) -> Drill:
    """Measures and predicts what comes of the failure; records and logs are left in `folder`.

    Raises LaunchError when the stack does not start, cannot be kept up or drilled, LoadError when the load generator
    fails.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_calibration(calibration, folder / "calibration.json")
    fixed = with_overrides(stage, {"scaling": None, "overload": True})  # nobody comes to help
    capacity = capacity_rps(fixed, calibration)
    with log_kept(folder / "stack" / "supervisor.log"), launch(fixed, folder / "stack") as launcher:
        fire_at_stack(at_load(fixed, 0.5, capacity, WARM_UP_S), launcher, folder / "warm-up")
        start_s = start_s_of(launcher) if plan.failure in ("kill", "restart") else 0.0
        phases = phases_of(fixed, plan, start_s)
        point = at_load(fixed, plan.load, capacity, duration_s(fixed, phases))
        (folder / "stage.toml").write_text(stage_toml(point), encoding="utf-8")
        loaded, measured = _measured(point, plan, launcher, folder, on_progress)
    void = why_void(loaded.check, least_service_s(calibration))
    predicted = predict(point, plan, calibration, start_s)
    _leave(folder, asdict(loaded.check) | {"void": void}, measured, predicted)
    return Drill(
        stage=point,
        plan=plan,
        phases=phases,
        measured=measured,
        predicted=predicted,
        start_s=start_s,
        void=void,
        caveats=list(dict.fromkeys([*calibration.caveats, *beyond_calibration(point, calibration)])),
        machine=machine(),
        command=command,
        made_at=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
    )


def phases_of(stage: Stage, plan: Plan, start_s: float) -> Phases:
    """From when to when the failure lasts, as far as that is known before the run."""
    if plan.failure == "kill":
        return Phases(plan.at_s, plan.at_s + back_s(start_s))
    if plan.restart:
        return Phases(plan.at_s, plan.at_s + replicas_of(stage) * joined_s(start_s))
    return Phases(plan.at_s, plan.at_s + plan.for_s)


def duration_s(stage: Stage, phases: Phases) -> float:
    """Whole seconds of a run in which everything can come to rest again: ejections and probes have their time."""
    gateway = stage.gateway
    assert gateway is not None
    recovery_s = gateway.eject_s + (gateway.healthy_after + 1) * gateway.probe_interval_s
    return float(math.ceil(phases.ends_s + recovery_s + MARGIN_S))


def noticed_s() -> float:
    """Seconds from a death until the gateway knows of it, on average: two that look at times of their own."""
    return (supervisor.LOOK_S + rotation.LOOK_S) / 2


def joined_s(start_s: float) -> float:
    """Seconds from the start of a replica until the gateway has it, on average."""
    return start_s + noticed_s()


def back_s(start_s: float) -> float:
    """Seconds from a death until another process has its place in the gateway, on average."""
    return noticed_s() + supervisor.restart_pause_s(1) + joined_s(start_s)


def predict(
    point: Stage, plan: Plan, calibration: Calibration | None, start_s: float, probes: int = PHASES
) -> list[Run]:
    """What the simulator says of the same schedule and failure, for so many phases of the gateway's probes."""
    failure: Failure | Restart
    if plan.restart:
        failure = Restart(plan.at_s, joined_s(start_s))
    else:
        lasts_s = back_s(start_s) if plan.failure == "kill" else plan.for_s
        kind: Any = plan.failure
        failure = Failure(kind, plan.replica, plan.at_s, lasts_s, plan.factor, noticed_s())
    arrivals, crashing = schedule(point.traffic), crash_positions(point)
    phases = [(n + 0.5) / probes for n in range(probes)]
    return [
        _as_run(drilled(point, arrivals, failure, calibration, probe_phase=p, crash_position=crashing), plan)
        for p in phases
    ]


def _as_run(found: Drilled, plan: Plan) -> Run:
    done_s = float("nan") if found.done_s is None else found.done_s - plan.at_s
    return Run(found.records, found.looks, done_s)


def _measured(point: Stage, plan: Plan, launcher: Launcher, folder: Path, on_progress: Progress) -> tuple[Loaded, Run]:
    """The real run."""
    assert point.gateway is not None
    total_s = point.traffic.duration_s
    with tended(launcher) as tending, watching(launcher.url, point.gateway.edge) as looks:
        asked = Asked(launcher.folder, plan, tending)

        def on_second(gone_s: float) -> None:
            tending.check()
            on_progress(f"{point.name}: {plan.failure}", gone_s, total_s)

        loaded = fire_at_stack(point, launcher, folder, on_begin=asked.begin, on_second=on_second)
        began_s, told = asked.answer()
    done_s = float("nan")
    if plan.restart:
        done_s = told["done_s"] - began_s - plan.at_s
    since = [(at_s - began_s, inside) for at_s, inside in looks]
    return loaded, Run(loaded.records, [look for look in since if look[0] >= 0.0], done_s)


def _leave(folder: Path, check: dict[str, Any], measured: Run, predicted: list[Run]) -> None:
    """The records of both worlds, who was in rotation, and the run's check of itself."""
    (folder / "check.json").write_text(json.dumps(check, indent=2), encoding="utf-8")
    middle = predicted[len(predicted) // 2]
    for name, run in (("measured", measured), ("predicted", middle)):
        records.write(run.records, folder / name)
        changes = [[at_s, sorted(inside)] for at_s, inside in turns(run.looks)]
        (folder / name / "rotation.json").write_text(json.dumps(changes), encoding="utf-8")


def turns(looks: list[Look]) -> list[Look]:
    """The looks at which somebody else was in rotation than at the one before."""
    return [look for n, look in enumerate(looks) if n == 0 or look[1] != looks[n - 1][1]]
