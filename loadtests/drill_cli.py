"""The verb that has something fail under load."""

from __future__ import annotations

import shlex
import sys
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from loadtests.verbs import (
    CalibrationOption,
    DeviceOption,
    OnOption,
    RunFolderOption,
    ShortOption,
    at_rest,
    bar,
    calibration_of,
    failures,
    launch_of,
    stage_of,
)
from stages.terminal import Exit, JsonOption, SetOption, StageArgument, fail, out, print_json

if TYPE_CHECKING:
    from loadtests.drill_watch import Plan
    from stages.spec import Stage

app = typer.Typer()

AT_S, FOR_S = 8.0, 8.0
SHORT_AT_S, SHORT_FOR_S = 4.0, 5.0
FACTOR = 10.0
QUOTABLE_FOR_S = 6.0  # shorter ones are called short, whatever they were asked as
_Failure = Literal["kill", "hang", "slow", "refuse", "cut", "restart"]


@app.command()
def drill(
    stage: StageArgument,
    failure: Annotated[
        _Failure,
        typer.Argument(
            help="kill: kill -9. hang: SIGSTOP. slow: its device. refuse: its connections. cut: off its network "
            "(containers). restart: nothing fails, every replica is replaced."
        ),
    ],
    at_s: Annotated[float | None, typer.Option("--at", help="Second of the run at which it happens.")] = None,
    for_s: Annotated[float | None, typer.Option("--for", help="Seconds that it lasts.")] = None,
    load: Annotated[float, typer.Option(help="The load as a share of the fleet's capacity.")] = 0.5,
    replica: Annotated[int | None, typer.Option(help="The number of the replica; 0 without it.")] = None,
    factor: Annotated[float | None, typer.Option(help="Of slow: how many times as slow; 10 without it.")] = None,
    on: OnOption = "process",
    device: DeviceOption = None,
    calibration_file: CalibrationOption = None,
    short: ShortOption = False,
    folder: RunFolderOption = None,
    set_: SetOption = None,
    json_: JsonOption = False,
) -> None:
    """Have a replica of a stage fail under load, for real and in simulation: who notices, what do clients see?"""
    from loadtests import drill_report
    from loadtests.drill import drill as run_both
    from loadtests.drill_watch import Plan
    from reference_apps.up import fresh_folder

    resolved = stage_of(stage, set_, device=device, own_rate=False)
    plan = Plan(
        failure=failure,
        replica=replica or 0,
        at_s=at_s if at_s is not None else SHORT_AT_S if short else AT_S,
        for_s=for_s if for_s is not None else SHORT_FOR_S if short else FOR_S,
        factor=factor if factor is not None else FACTOR,
        load=load,
        short=short or (for_s is not None and for_s < QUOTABLE_FOR_S),
    )
    _refuse_what_nothing_reads(failure, for_s, replica, factor)
    _check(resolved, plan, on)
    resolved = at_rest(resolved, "it is the failure that is compared")
    calibration = calibration_of(resolved, short, on, calibration_file)
    kept = folder or fresh_folder(f"drill-{resolved.name}-{failure}")
    command = shlex.join(["rung", *sys.argv[1:]])
    with failures(), bar() as on_progress:
        found = run_both(
            *(resolved, calibration, plan, kept), command=command, launch=launch_of(on), on_progress=on_progress
        )
    picture = drill_report.write(found, kept)
    if json_:
        print_json(drill_report.document(found, picture))
    else:
        drill_report.print_table(found, out)
        out.print(f"Picture: {picture}")
    if found.void:
        fail(f"This run is void. {found.void}", Exit.VOID)


def _refuse_what_nothing_reads(failure: str, for_s: float | None, replica: int | None, factor: float | None) -> None:
    """Ends the command when an option was given that means nothing for this failure."""
    unread = {
        "--for": for_s is not None and failure in ("kill", "restart"),
        "--replica": replica is not None and failure == "restart",
        "--factor": factor is not None and failure != "slow",
    }
    for option, given in unread.items():
        if given:
            fail(f"{option}: must not be given with {failure}, which would not read it. Leave it out.", Exit.MISUSED)


def _check(stage: Stage, plan: Plan, on: str) -> None:
    """Ends the command in words when the stage, or an option, does not allow this drill."""
    from reference_apps.obeying import FACTOR_MAX, LENGTH_MAX_S

    if stage.gateway is None:
        fail(
            f"{stage.name}: must have a [gateway] to be drilled. Without one clients go to the replica itself, "
            "and there is no rotation that it could leave. Try load-balanced.",
            Exit.MISUSED,
        )
    if stage.gateway.engine != "rung":
        fail(
            f'gateway.engine: must be "rung" to be drilled, got "{stage.gateway.engine}". It does not tell who is in '
            "rotation. Use --set gateway.engine=rung.",
            Exit.MISUSED,
        )
    if stage.traffic.loop == "closed":
        fail(
            'traffic.loop: must be "open" to be drilled, got "closed". Users who wait hide what a failure costs. '
            "Use a stage with an open loop, like load-balanced.",
            Exit.MISUSED,
        )
    if plan.failure == "cut" and on != "docker":
        fail(
            "cut: takes a replica off its network, and processes share this machine's. Nothing was started. "
            "Use --on docker, or drill refuse or hang.",
            Exit.MISUSED,
        )
    if not 0 <= plan.replica < stage.fleet.replicas:
        fail(
            f"--replica: must be 0 to {stage.fleet.replicas - 1}, got {plan.replica}. {stage.name} starts with "
            f"{stage.fleet.replicas}. Choose one of them.",
            Exit.MISUSED,
        )
    bounds: tuple[tuple[str, float, float, float], ...] = (
        ("--at", plan.at_s, 1.0, LENGTH_MAX_S),
        ("--for", plan.for_s, 0.5, LENGTH_MAX_S),
        ("--load", plan.load, 0.01, 10.0),
        ("--factor", plan.factor, 1.0, FACTOR_MAX),
    )
    for option, value, least, most in bounds:
        if not least <= value <= most:
            fail(
                f"{option}: must be {least:g} to {most:g}, got {value:g}. There would be nothing to see, or no end. "
                "Choose one between.",
                Exit.MISUSED,
            )
