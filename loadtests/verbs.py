"""What the verbs of this package share: options, the stage that is meant, its calibration, failures in words."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from stages.terminal import Exit, at_asked_rate, err, fail, overrides, progress, teaching

if TYPE_CHECKING:
    from loadtests.calibrate import Launch
    from stages.calibration import Calibration
    from stages.spec import Stage

# Short runs show how it works within a minute; their figures are not to be quoted.
SHORT_DURATION_S, SHORT_ROUNDS, SHORT_REAL_SWEEP_S, SHORT_LOW_LOAD_S = 4.0, 6, 8.0, 5.0
LONG_DURATION_S, LONG_ROUNDS, LONG_REAL_SWEEP_S, LONG_LOW_LOAD_S = 30.0, 40, 60.0, 25.0
QUOTABLE_DURATION_S = 15.0  # runs below are called short, whatever they were asked as

DeviceOption = Annotated[
    Literal["cpu", "cuda", "emulated"] | None,
    typer.Option("--device", help="Run on this kind of device instead of the stage's own."),
]
On = Literal["process", "docker"]
OnOption = Annotated[On, typer.Option("--on", help="Start processes of this machine, or Docker containers.")]
ShortOption = Annotated[bool, typer.Option("--short", help="A minute instead of ten; the report says so.")]
CalibrationOption = Annotated[Path | None, typer.Option("--calibration", help="Use this calibration, and make none.")]
RunFolderOption = Annotated[
    Path | None, typer.Option("--out", help="The run folder; by default a new one under runs/.")
]


def stage_of(
    name: str,
    pairs: list[str] | None,
    *,
    device: str | None = None,
    duration_s: float | None = None,
    rate_rps: float | None = None,
    own_rate: bool = True,
    pin: bool = True,
) -> Stage:
    """The stage with the command line's changes; ends the command in words when it is not sound.

    Without `own_rate` loads are given as shares of what it carries, and its own rate may be more than that. Its aliases
    are resolved unless `pin` says otherwise: who only sends requests needs no registry.
    """
    from reference_apps.registry import pinned
    from stages.spec import load_stage

    changed: dict[str, Any] = overrides(pairs)
    if duration_s is not None:
        changed["traffic.duration_s"] = duration_s
    if rate_rps is not None or not own_rate:
        changed["overload"] = True
    with teaching():
        if device not in (None, "emulated"):  # what only an emulated device has goes with it
            changed = {"device.profile": None, "device.slowdown": None} | changed
        if device is not None:
            changed["device.kind"] = device
        resolved = load_stage(name, changed)
        if pin:
            resolved = pinned(resolved)
        return resolved if rate_rps is None else at_asked_rate(resolved, rate_rps)


def at_rest(stage: Stage, why: str) -> Stage:
    """The stage without what would change its split, or take the gateway's time, during a run; `why` is told then."""
    split = stage.split
    if split is None:
        return stage
    from stages.spec import with_overrides

    changed: dict[str, object] = {"split.ramp": None, "split.guardrails": None, "feedback": None, "overload": True}
    if split.ramp is not None:
        changed["split.challenger_share"] = split.ramp.shares[-1]
    if split.ramp is not None or split.guardrails is not None or stage.feedback is not None:
        err.print(
            f"The share stays, nobody stops the challenger or labels an answer: {why}. "
            "`rung ab rehearse` has them at work."
        )
    return with_overrides(stage, changed)


def calibrated(stage: Stage, short: bool, on: On = "process") -> tuple[Calibration, Path]:
    """A calibration of this machine for the stage, made now: it takes the place of the one that is kept."""
    from loadtests.calibrate import calibrate as measure
    from loadtests.calibrate import kept_path
    from reference_apps.up import fresh_folder
    from stages import calibration

    path = kept_path(stage, short, on)
    long = (LONG_ROUNDS, LONG_REAL_SWEEP_S, LONG_LOW_LOAD_S)
    rounds, real_sweep_s, low_load_s = (SHORT_ROUNDS, SHORT_REAL_SWEEP_S, SHORT_LOW_LOAD_S) if short else long
    with failures(), bar() as on_progress:
        made = measure(
            stage,
            fresh_folder(f"calibrate-{stage.name}"),
            rounds=rounds,
            real_sweep_s=real_sweep_s,
            low_load_duration_s=low_load_s,
            command=shlex.join(["rung", *sys.argv[1:]]),
            launch=launch_of(on),
            on_progress=on_progress,
        )
    calibration.write(made, path)
    return made, path


def calibration_of(stage: Stage, short: bool, on: On, file: Path | None) -> Calibration:
    """The calibration in `file`, or else this machine's: the one that is kept, or a new one. Ends the command in words
    when it does not fit the stage.
    """
    from loadtests.calibrate import kept_path
    from simulator.run import capacity_rps

    kept = kept_path(stage, short, on)
    if file is not None:
        found = read_calibration(file)
    elif kept.exists():
        again = f"Make it anew: `rung calibrate {stage.name}`, with this command's --short, --device, --on and --set."
        found = read_calibration(kept, again)
    else:
        found, _ = calibrated(stage, short, on)
    try:
        capacity_rps(stage, found)
    except ValueError as error:
        fail(str(error))
    return found


def read_calibration(path: Path, remedy: str = "Make one with `rung calibrate STAGE`.") -> Calibration:
    """The calibration in a file; ends the command in words, `remedy` the last of them, when it is none."""
    from pydantic import ValidationError

    from stages import calibration

    try:
        return calibration.read(path)
    except (OSError, ValidationError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not a calibration"
        fail(f"{path}: cannot be read ({reason}). {remedy}", Exit.MISUSED)


@contextmanager
def failures() -> Iterator[None]:
    """Failures of processes that we started become words and exit status 1."""
    from loadtests.load import LoadError
    from reference_apps.launchers.member import LaunchError
    from stages.problems import StageError

    try:
        yield
    except (LoadError, LaunchError) as error:
        fail(str(error))
    except StageError as error:
        fail(str(error), Exit.MISUSED)


@contextmanager
def bar() -> Iterator[Callable[[str, float, float], None]]:
    """A progress bar on stderr for work whose length in seconds is known."""
    with progress() as bar:
        task = bar.add_task("Starting", total=0.0)

        def on_progress(what: str, done_s: float, total_s: float) -> None:
            bar.update(task, description=what, completed=min(done_s, total_s), total=total_s)

        yield on_progress


def launch_of(on: On) -> Launch:
    """What starts a stage as processes, or as containers."""
    if on == "docker":
        from reference_apps.launchers.docker import DockerLauncher  # its library is an extra

        return DockerLauncher
    from reference_apps.launchers.process import ProcessLauncher

    return ProcessLauncher
