"""The verb that works a backlog off for real, and holds the night's prediction against it."""

from __future__ import annotations

import shlex
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from loadtests.verbs import DeviceOption, ShortOption, bar, calibration_of, failures, stage_of
from stages.terminal import Exit, JsonOption, SetOption, StageArgument, fail, out, print_json

if TYPE_CHECKING:
    from simulator.night import Worked
    from stages.night import Night
    from stages.spec import Stage

app = typer.Typer()

WORKERS_MAX = 64  # of this machine's processes


@app.command()
def night(
    stage: StageArgument,
    backlog: Annotated[int, typer.Option(help="Jobs that are there in the evening.")] = 20_000,
    workers: Annotated[int, typer.Option(min=1, max=WORKERS_MAX, help="How many work.")] = 2,
    spot: Annotated[bool, typer.Option("--spot", help="On spot machines, which are taken away: kill -9.")] = False,
    interruptions: Annotated[
        float | None, typer.Option(help="With --spot: how often an hour each machine is taken away.")
    ] = None,
    repeat: Annotated[int, typer.Option(min=1, max=100, help="Real nights, each on a fresh stack.")] = 1,
    seed: Annotated[int | None, typer.Option(help="Of the interruptions; the stage's without it.")] = None,
    device: DeviceOption = None,
    calibration_file: Annotated[
        Path | None, typer.Option("--calibration", help="Use this calibration, and make none.")
    ] = None,
    short: ShortOption = False,
    folder: Annotated[
        Path | None, typer.Option("--out", help="The run folder; by default a new one under runs/.")
    ] = None,
    set_: SetOption = None,
    json_: JsonOption = False,
) -> None:
    """Work a backlog off, for real and in simulation: when is it done, and what does it cost?"""
    from loadtests import night as nights
    from loadtests.calibrate import machine
    from reference_apps.up import fresh_folder
    from simulator.night import work_off
    from simulator.night_cli import night_of
    from simulator.plot_frame import png
    from stages.spec import fleet_label

    resolved = stage_of(stage, set_, device=device)
    asked = night_of(resolved, backlog, None, str(workers), spot, interruptions, beside=False)
    assert resolved.queue is not None
    if backlog > resolved.queue.max_depth:
        fail(
            f"queue.max_depth: must be at least the backlog ({backlog} jobs), got {resolved.queue.max_depth}. The rest "
            f"would be refused. Use --set queue.max_depth={backlog}, or a smaller --backlog.",
            Exit.MISUSED,
        )
    calibration = calibration_of(resolved, short, "process", calibration_file)
    first = resolved.traffic.seed if seed is None else seed
    kept = folder or fresh_folder(f"night-{resolved.name}")
    measured: list[Worked] = []
    predicted: list[Worked] = []
    with failures(), bar() as on_progress:
        for number in range(repeat):
            measured.append(nights.work_off(resolved, asked, workers, kept / f"night-{number + 1}", first, on_progress))
            predicted.append(
                work_off(resolved, backlog, workers, calibration, first, asked.interruptions_per_hour, keep_times=True)
            )
    rows = list(nights.document(resolved, asked, workers, measured, predicted, _dollars(resolved, asked)))
    command = shlex.join(["rung", *sys.argv[1:]])
    path = nights.write(kept, rows, machine(), command)
    title = f"{resolved.title}: {backlog:,} jobs, {workers} workers"
    picture = kept / "night.png"
    worlds = {"measured": measured, "predicted": predicted}
    picture.write_bytes(png(nights.left_over_time(worlds, backlog, title, f"{fleet_label(resolved)}, {machine()}")))
    if json_:
        print_json({"rows": rows, "report": str(path)})
        return
    _print(rows, title)
    out.print(f"Picture: {picture}", highlight=False)


def _dollars(stage: Stage, asked: Night) -> Any:
    """What a night of the stage costs; None where nothing says what a machine costs."""
    from simulator.night import usd_of
    from stages.cost import usd_per_hour
    from stages.night import spot_usd_per_hour

    if stage.cost is None:
        return None
    price = partial(spot_usd_per_hour if asked.spot else usd_per_hour, stage.cost)
    try:
        price(0)
    except ValueError as error:
        fail(str(error), Exit.MISUSED)
    return lambda worked: usd_of(worked, price)


def _print(rows: list[dict[str, Any]], title: str) -> None:
    """Prints measured beside predicted, a line a figure."""
    from rich import box
    from rich.table import Table

    names = {
        "done_s": ("done after", "{:,.1f} s"),
        "machine_s": ("machine-seconds", "{:,.0f}"),
        "stored": ("answered", "{:,.0f}"),
        "dead": ("dead letters", "{:,.0f}"),
        "interruptions": ("machines taken away", "{:,.0f}"),
        "cost_usd": ("dollars", "{:,.4f}"),
    }
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in ("", "measured", "predicted", "error", "spread"):
        table.add_column(name, justify="left" if not name else "right", no_wrap=True)
    for row in rows:
        label, form = names[row["metric"]]
        error = "-" if row["error"] is None else f"{row['error']:+.1%}"
        spread = f"{form.format(row['spread_low'])} to {form.format(row['spread_high'])}"
        table.add_row(label, form.format(row["measured"]), form.format(row["predicted"]), error, spread)
    out.print(table)
