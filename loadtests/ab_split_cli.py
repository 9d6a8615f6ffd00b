"""The verbs that change the share of a challenger, and that rehearse what becomes of one."""

from __future__ import annotations

import http.client
import json
import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from loadtests.verbs import (
    CalibrationOption,
    OnOption,
    RunFolderOption,
    ShortOption,
    bar,
    calibration_of,
    failures,
    launch_of,
    stage_of,
)
from stages.terminal import Exit, JsonOption, SetOption, StageArgument, fail, out, print_json

if TYPE_CHECKING:
    from reference_apps.split_file import Told
    from reference_apps.up import Up
    from stages.spec import Stage

app = typer.Typer()

IN_FORCE_TIMEOUT_S = 10.0  # nginx lets its old workers finish
POLL_S = 0.05
QUOTABLE_DURATION_S = 60.0  # shorter rehearsals are called short, whatever they were asked as


@app.command()
def share(
    stage: StageArgument,
    challenger: Annotated[
        str, typer.Argument(metavar="SHARE|ramp", help="0 to 1: 0.2 gives it a fifth. ramp: the stage's steps, anew.")
    ],
    again: Annotated[
        bool, typer.Option("--again", help="Try a challenger again that a guardrail has stopped.")
    ] = False,
    json_: JsonOption = False,
) -> None:
    """Change the challenger's share of a stage that is up, without a restart. It outlives the gateway."""
    from reference_apps import split_file
    from reference_apps.up import split_folder

    up = _up(stage)
    asked = _served(up)
    wanted = _share(asked, challenger)
    folder = split_folder(up.stage)
    try:
        if wanted is None:
            told = split_file.begin_ramp(folder, time.monotonic(), again)
        else:
            told = split_file.set_share(folder, wanted, again)
    except split_file.SplitError as error:
        fail(f"{asked.name}: {error}")
    in_force = _in_force(asked, up, told)
    words = "its ramp begins" if wanted is None else f"the challenger gets {100 * wanted:g} %"
    if json_:
        print_json({"stage": asked.name, **told._asdict(), "in_force": in_force})
    else:
        out.print(f"{asked.name}: {words}{'' if in_force else ', once its gateway is back'}.", highlight=False)


@app.command()
def rehearse(
    stage: StageArgument,
    challenger: Annotated[
        str | None, typer.Option(help="Its version or alias, like worse, slower, crashing; the stage's own without it.")
    ] = None,
    duration_s: Annotated[float | None, typer.Option("--duration", help="Seconds of the run, at most.")] = None,
    on: OnOption = "process",
    calibration_file: CalibrationOption = None,
    short: ShortOption = False,
    folder: RunFolderOption = None,
    set_: SetOption = None,
    json_: JsonOption = False,
) -> None:
    """Put a challenger into production, for real and in simulation, until a guardrail puts it out again."""
    from loadtests import rehearse_report
    from loadtests.rehearse import rehearse as run_both
    from reference_apps.up import fresh_folder

    pairs = [*(set_ or []), *([f"split.challenger={challenger}"] if challenger is not None else [])]
    resolved = stage_of(stage, pairs, duration_s=duration_s)
    _check(resolved)
    calibration = calibration_of(resolved, short, on, calibration_file)
    kept = folder or fresh_folder(f"rehearse-{resolved.name}-{challenger or 'challenger'}")
    is_short = short or resolved.traffic.duration_s < QUOTABLE_DURATION_S
    command = shlex.join(["rung", *sys.argv[1:]])
    with failures(), bar() as on_progress:
        found = run_both(
            *(resolved, calibration, kept),
            command=command,
            short=is_short,
            launch=launch_of(on),
            on_progress=on_progress,
        )
    report = rehearse_report.write(found, kept)
    if json_:
        print_json(rehearse_report.document(found))
    else:
        rehearse_report.print_table(found, out)
        out.print(f"Report: {report}")
    if found.void:
        fail(f"This run is void. {found.void}", Exit.VOID)


def _up(name: str) -> Up:
    """The stage of that name, or of that file, that is up."""
    from reference_apps.up import list_up

    there = list_up()
    for up in there:
        if up.stage == name or Path(up.folder) == Path(name).absolute():
            return up
    listed = ", ".join(up.stage for up in there) or "none"
    text = f"{name}: must be a stage that is up, which are: {listed}. Start it with `rung up {name}`."
    return fail(text, Exit.MISUSED)


def _served(up: Up) -> Stage:
    """The stage as it was started; ends the command where it has no split."""
    from stages.spec import load_stage

    stage = load_stage(Path(up.folder) / "stage.toml")
    if stage.split is None:
        fail(f"{stage.name}: has no [split]. One version of its model answers everybody. Try ab-test.", Exit.MISUSED)
    return stage


def _share(stage: Stage, text: str) -> float | None:
    """The share in an argument; None for the ramp."""
    assert stage.split is not None
    if text == "ramp":
        if stage.split.ramp is None:
            fail(f"{stage.name}: has no [split.ramp]. There are no steps to take. Give a share, 0.2 say.", Exit.MISUSED)
        return None
    try:
        found = float(text)
    except ValueError:
        found = -1.0
    if not 0.0 <= found <= 1.0:
        fail(
            f"SHARE: must be 0 to 1, or ramp, got {text}. It is a part of all users. Use 0.2 for a fifth.", Exit.MISUSED
        )
    return found


def _in_force(stage: Stage, up: Up, told: Told) -> bool:
    """Waits until the gateway says that it goes by the change; False where it does not answer in time.

    Nginx does not say by which share it goes: its launcher has it read the new one at its next look.
    """
    assert stage.gateway is not None
    if stage.gateway.engine != "rung":
        return True
    deadline_s = time.monotonic() + IN_FORCE_TIMEOUT_S
    while time.monotonic() < deadline_s:
        if _generation(stage, up) >= told.generation:
            return True
        time.sleep(POLL_S)
    return False


def _generation(stage: Stage, up: Up) -> int:
    """Of the control file, by which the gateway goes; -1 where it does not say."""
    from reference_apps.asking import open_url

    assert stage.gateway is not None
    try:
        with open_url(f"{up.url}/split", 1.0, stage.gateway.edge) as response:
            told: dict[str, Any] = json.load(response)
        return int(told["generation"])
    except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError):
        return -1


def _check(stage: Stage) -> None:
    """Ends the command in words when there is nothing to rehearse."""
    if stage.split is None:
        fail(f"{stage.name}: has no [split]: there is no challenger to rehearse. Try ab-test.", Exit.MISUSED)
    if stage.split.guardrails is None:
        fail(
            f"{stage.name}: has no [split.guardrails]. Nothing would ever put the challenger out. Write some, "
            "errors_share_max = 0.01 for instance.",
            Exit.MISUSED,
        )
    if stage.traffic.loop == "closed":
        fail(
            'traffic.loop: must be "open" to rehearse, got "closed". Users who wait hide what a challenger costs. '
            "Use an open loop, like that of ab-test.",
            Exit.MISUSED,
        )
