"""The verb that works a backlog off for real, and holds the night's prediction against it."""

from __future__ import annotations

import shlex
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from loadtests.verbs import (
    CalibrationOption,
    DeviceOption,
    RunFolderOption,
    ShortOption,
    bar,
    calibration_of,
    failures,
    stage_of,
)
from stages.terminal import Exit, JsonOption, SetOption, StageArgument, fail, out, print_json

if TYPE_CHECKING:
    from stages.night import Night
    from stages.spec import Stage

app = typer.Typer()

WORKERS, WORKERS_MAX = 2, 64  # of this machine's processes


@app.command()
def night(
    stage: StageArgument,
    backlog: Annotated[int, typer.Option(help="Jobs that are there in the evening.")] = 20_000,
    workers: Annotated[
        int | None, typer.Option(min=1, max=WORKERS_MAX, help=f"How many work; {WORKERS} where nothing is said.")
    ] = None,
    autoscaled: Annotated[
        bool, typer.Option("--autoscaled", help="As many work as the stage's [scaling] wants, from none on.")
    ] = False,
    spot: Annotated[bool, typer.Option("--spot", help="On spot machines, which are taken away: kill -9.")] = False,
    interruptions: Annotated[
        float | None, typer.Option(help="With --spot: how often an hour each machine is taken away.")
    ] = None,
    repeat: Annotated[int, typer.Option(min=1, max=100, help="Real nights, each on a fresh stack.")] = 1,
    seed: Annotated[int | None, typer.Option(help="Of the interruptions; the stage's without it.")] = None,
    device: DeviceOption = None,
    calibration_file: CalibrationOption = None,
    short: ShortOption = False,
    folder: RunFolderOption = None,
    set_: SetOption = None,
    json_: JsonOption = False,
) -> None:
    """Work a backlog off, for real and in simulation: when is it done, and what does it cost?"""
    from loadtests import night as nights
    from loadtests import night_report
    from loadtests.calibrate import machine
    from loadtests.checks import host_was_busy
    from loadtests.night_scaled import work_off_scaled
    from reference_apps.up import fresh_folder
    from simulator.night import Worked, work_off
    from simulator.night_cli import night_of
    from simulator.night_scaled import work_off_scaled as predicted_scaled

    resolved = stage_of(stage, set_, device=device)
    if autoscaled:
        _check_autoscaled(resolved, workers, spot)
    count = None if autoscaled else workers or WORKERS
    asked = night_of(resolved, backlog, None, str(count or WORKERS), spot, interruptions, beside=False)
    _check(resolved, asked)
    calibration = calibration_of(resolved, short, "process", calibration_file)
    first = resolved.traffic.seed if seed is None else seed
    kept = folder or fresh_folder(f"night-{resolved.name}")
    measured: list[Worked] = []
    foreign: list[float] = []
    predicted: list[Worked] = []
    with failures(), bar() as on_progress:
        for number in range(repeat):
            own = kept / f"night-{number + 1}"
            if count is None:
                measured.append(work_off_scaled(resolved, asked, own, on_progress, foreign.append))
                predicted.append(predicted_scaled(resolved, backlog, calibration, first, keep_times=True))
            else:
                rate = asked.interruptions_per_hour
                measured.append(nights.work_off(resolved, asked, count, own, first, on_progress, foreign.append))
                predicted.append(work_off(resolved, backlog, count, calibration, first, rate, keep_times=True))
    command = shlex.join(["rung", *sys.argv[1:]])
    void = [host_was_busy(share) for share in foreign]
    found = night_report.Nights(resolved, backlog, count, asked.spot, measured, predicted, machine(), command, void)
    path, picture = night_report.write(found, kept)
    if json_:
        print_json(night_report.document(found) | {"report": str(path)})
    else:
        night_report.print_table(found, out)
        out.print(f"Picture: {picture}", highlight=False)
    if not found.sound:
        fail("Every night is void: see the reasons above. Quiet the machine.", Exit.VOID)


def _check(stage: Stage, asked: Night) -> None:
    """Ends the command in words where the queue does not hold the backlog, or a machine has no price."""
    from stages.night import contracted

    assert stage.queue is not None
    if asked.backlog > stage.queue.max_depth:
        fail(
            f"queue.max_depth: must be at least the backlog ({asked.backlog} jobs), got {stage.queue.max_depth}. The "
            f"rest would be refused. Use --set queue.max_depth={asked.backlog}, or a smaller --backlog.",
            Exit.MISUSED,
        )
    if stage.cost is not None:
        try:
            contracted(stage.cost, asked.spot)
        except ValueError as error:
            fail(str(error), Exit.MISUSED)


def _check_autoscaled(stage: Stage, workers: int | None, spot: bool) -> None:
    """Ends the command in words where nobody, or somebody else, says how many work."""
    if workers is not None or spot:
        fail(
            f"--autoscaled: stands alone, got {'--workers' if workers is not None else '--spot'} beside it. The "
            "autoscaler says how many work, and its machines stay. Leave one of them out.",
            Exit.MISUSED,
        )
    if stage.scaling is None:
        fail(
            f"--autoscaled: needs a stage with [scaling], got {stage.name} without. Nobody would come. Use the stage "
            "queued, or --workers.",
            Exit.MISUSED,
        )
