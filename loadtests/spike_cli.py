"""The verb that runs both worlds through a spike."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
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
from stages.terminal import Exit, JsonOption, SetOption, StageArgument, fail, out, print_json, teaching

if TYPE_CHECKING:
    from loadtests.shapes import Shape
    from loadtests.spike import Spiked
    from stages.spec import Stage

app = typer.Typer()

ShapeName = Literal["spike", "ramp", "diurnal", "trace"]  # as in loadtests/shapes.py, which takes long to import

FOR_S, SHORT_FOR_S = 60.0, 20.0
QUOTABLE_FOR_S = 30.0  # shorter ones are called short, whatever they were asked as


@app.command()
def spike(
    stage: StageArgument,
    times: Annotated[float, typer.Option(help="The highest rate, as a multiple of the base rate.")] = 8.0,
    for_s: Annotated[
        float | None, typer.Option("--for", help="Seconds of the spike; of the other shapes, of the whole run.")
    ] = None,
    base_load: Annotated[
        float | None,
        typer.Option(help="The base rate as a share of the first fleet's capacity, instead of the stage's own rate."),
    ] = None,
    shape: Annotated[ShapeName, typer.Option(help="How the rate rises and falls.")] = "spike",
    trace: Annotated[Path | None, typer.Option(help="Of --shape trace: the file that is squeezed into --for.")] = None,
    trace_start_s: Annotated[
        float | None, typer.Option("--trace-start", help="Second of the trace to begin with; 0 without it.")
    ] = None,
    trace_length_s: Annotated[
        float | None, typer.Option("--trace-length", help="Seconds of the trace; a day or what there is without it.")
    ] = None,
    repeat: Annotated[int, typer.Option(min=1, max=100, help="Real runs, each on a fresh stack.")] = 1,
    device: DeviceOption = None,
    on: OnOption = "process",
    calibration_file: CalibrationOption = None,
    short: ShortOption = False,
    folder: RunFolderOption = None,
    set_: SetOption = None,
    json_: JsonOption = False,
) -> None:
    """Run a stage through a spike, for real and in simulation, and plot both on one time axis."""
    from loadtests.shapes import Shape
    from loadtests.spike import Plan
    from loadtests.spike import spike as run_both
    from reference_apps.up import fresh_folder

    _check(times, for_s, base_load, shape, trace, trace_start_s, trace_length_s)
    seconds = for_s or (SHORT_FOR_S if short else FOR_S)
    resolved = at_rest(stage_of(stage, set_, device=device), "it is the spike that is compared")
    asked = Shape(shape, times, seconds, trace, trace_start_s or 0.0, trace_length_s)
    base_rps = _base_rps(resolved)
    _point(resolved, asked, base_rps)  # so that what is wrong is said before anything is measured
    calibration = calibration_of(resolved, short, on, calibration_file)
    if base_load is not None:
        from simulator.run import capacity_rps

        base_rps = base_load * capacity_rps(resolved, calibration)
    point = _point(resolved, asked, base_rps)
    kept = folder or fresh_folder(f"spike-{resolved.name}")
    plan = Plan(repeat, asked.in_words, base_rps, short or seconds < QUOTABLE_FOR_S, on)
    command = shlex.join(["rung", *sys.argv[1:]])
    with failures(), bar() as on_progress:
        found = run_both(
            *(point, calibration, plan, kept), command=command, launch=launch_of(on), on_progress=on_progress
        )
    show(found, kept, json_)
    if all(run.void for run in found.runs):
        fail("Every run is void: see the reasons above. Quiet the machine, or lower the rates.", Exit.VOID)


def show(found: Spiked, folder: Path, json_: bool) -> None:
    """Writes the picture and spike.json, and prints the table or the JSON."""
    from loadtests import spike_report

    picture = spike_report.write(found, folder)
    if json_:
        print_json(spike_report.document(found, folder))
        return
    spike_report.print_table(found, out)
    out.print(f"Picture: {picture}")


def _check(
    times: float,
    for_s: float | None,
    base_load: float | None,
    shape: ShapeName,
    trace: Path | None,
    trace_start_s: float | None,
    trace_length_s: float | None,
) -> None:
    """Ends the command in words when an option is out of its bounds, or nothing would read it."""
    bounds: tuple[tuple[str, float | None, float, float, str], ...] = (
        ("--times", times, 0.0, 1000.0, "Use 8 for eight times the base rate."),
        ("--for", for_s, 1.0, 86_400.0, "Use 60 for a minute."),
        ("--base-load", base_load, 0.0, 10.0, "Use 0.3 for a fleet that is hardly busy before the spike."),
        ("--trace-length", trace_length_s, 0.0, 1e9, "Use 86400 for a day."),
    )
    for option, value, above, most, remedy in bounds:
        if value is not None and not above < value <= most:
            fail(
                f"{option}: must be above {above:g} and at most {most:g}, got {value:g}. No run could be made of it. "
                f"{remedy}",
                Exit.MISUSED,
            )
    if trace_start_s is not None and not 0.0 <= trace_start_s <= 1e9:
        fail(
            f"--trace-start: must be at least 0 seconds, got {trace_start_s:g}. A trace has nothing before its start. "
            "Use 0.",
            Exit.MISUSED,
        )
    given = {"--trace": trace, "--trace-start": trace_start_s, "--trace-length": trace_length_s}
    unread = [option for option, value in given.items() if value is not None]
    if shape != "trace" and unread:
        fail(
            f"{unread[0]}: belongs to --shape trace only, got --shape {shape}. Nothing would read it. Leave it out, or "
            "add --shape trace.",
            Exit.MISUSED,
        )


def _base_rps(stage: Stage) -> float:
    from loadtests.shapes import base_rate_rps

    with _taught():
        return base_rate_rps(stage)


def _point(stage: Stage, shape: Shape, base_rps: float) -> Stage:
    from loadtests.shapes import under

    with _taught():
        return under(stage, shape, base_rps)


@contextmanager
def _taught() -> Iterator[None]:
    """A shape or a stage that cannot be made ends the command in words."""
    from loadtests.shapes import ShapeError

    try:
        with teaching():
            yield
    except ShapeError as error:
        fail(str(error), Exit.MISUSED)
