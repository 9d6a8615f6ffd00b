"""The verb `rung sweep`: a grid of stages, each simulated several times, as a table, Parquet and pictures."""

from __future__ import annotations

import hashlib
import math
import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stages.terminal import (
    Exit,
    JsonOption,
    PricesOption,
    SetOption,
    StageArgument,
    fail,
    out,
    overrides,
    print_json,
    progress,
    teaching,
)

if TYPE_CHECKING:
    from simulator.estimate import Estimate, Interval
    from simulator.grid import Point
    from simulator.sweep_table import Column
    from stages.calibration import Calibration
    from stages.spec import Stage

app = typer.Typer()

_SHOWN = {  # metric → (heading, factor, with its interval, how well a narrow terminal does without it)
    "latency_s_p95": ("p95, ms", 1000.0, True, 0),
    "slo_share": ("in SLO, %", 100.0, True, 1),
    "utilisation": ("busy, %", 100.0, False, 3),
    "cost_usd_per_hour": ("USD/h", 1.0, False, 2),
    "cost_usd_per_1000": ("USD/1,000", 1.0, True, 0),
}


@app.command()
def sweep(
    stage: StageArgument,
    over: Annotated[
        list[str] | None,
        typer.Option(
            "--over",
            metavar="KEY=VALUES",
            help="fleet.replicas=1..8, batching.max_batch_size=1,2,4 or device=t4,v100,a100; more of them span a grid.",
        ),
    ] = None,
    replications: Annotated[int, typer.Option(min=1, max=1000, help="Simulations of each point.")] = 10,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Of the first replication; stands in for traffic.seed.")
    ] = None,
    rate: Annotated[
        float | None, typer.Option(metavar="RPS", help="Mean arrival rate in requests per second; the shape stays.")
    ] = None,
    duration: Annotated[float | None, typer.Option(metavar="S", help="Stands in for traffic.duration_s.")] = None,
    calibration: Annotated[
        Path | None, typer.Option(metavar="FILE", help="What this machine costs, from `rung calibrate`.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, max=1024, help="Processes; as many as there are cores without it.")
    ] = None,
    folder: Annotated[
        Path | None, typer.Option("--out", metavar="FOLDER", help="Results, and the points that are done already.")
    ] = None,
    prices: PricesOption = None,
    set_: SetOption = None,
    json_: JsonOption = False,
) -> None:
    """Predict a stage at every point of a grid, with intervals, on all cores; goes on where it was broken off."""
    from simulator.cli import calibration_of, stage_of
    from simulator.grid import grid

    with teaching():
        resolved = stage_of(stage, overrides(set_), rate, duration)
        points = grid(resolved, over or ())
    measured = calibration_of(calibration)
    kept = folder or _folder(resolved, over or ())
    began = time.perf_counter()
    estimates, resumed = _simulated(points, replications, seed, measured, workers, kept)
    wall_s = time.perf_counter() - began
    result = _document(resolved, points, estimates, resumed, measured)
    result |= {"replications": replications, "wall_s": wall_s, "out": str(kept), "files": []}
    new = sum(each.requests for number, each in enumerate(estimates) if number not in resumed)
    result |= {"simulated": new, "simulated_rps": new / wall_s}
    try:
        result["files"] = _written(resolved, points, estimates, replications, kept)
    except OSError as error:
        fail(_no_place(kept, error))
    print_json(result) if json_ else _print(result, points, estimates)


def _folder(stage: Stage, over: list[str] | tuple[str, ...]) -> Path:
    """The same for the same question, so that a sweep that was broken off goes on."""
    asked = hashlib.sha256("\n".join(over).encode()).hexdigest()[:8]
    return Path(os.environ.get("RUNG_RUNS", "runs")).absolute() / f"sweep-{stage.name}-{asked}"


def _no_place(folder: Path, error: OSError) -> str:
    return (
        f"--out {folder}: must be a folder that can be written ({error.strerror}). The results have no place. "
        "Give another one."
    )


def _simulated(
    points: list[Point],
    replications: int,
    seed: int | None,
    calibration: Calibration | None,
    workers: int | None,
    folder: Path,
) -> tuple[list[Estimate], set[int]]:
    """The estimate of each point, and the numbers of those that were there already."""
    from simulator.sweep import WorkersGoneError
    from simulator.sweep import sweep as every_point

    resumed: set[int] = set()
    done = 0
    with progress("points") as shown:
        task = shown.add_task("Simulating", total=len(points))

        def each(number: int, _: Estimate, was_there: bool) -> None:
            nonlocal done
            done += 1
            if was_there:
                resumed.add(number)
            shown.advance(task)

        try:
            found = every_point(
                points, replications, seed, calibration=calibration, workers=workers, folder=folder, each=each
            )
        except ValueError as error:
            fail(str(error), Exit.MISUSED)
        except WorkersGoneError as error:
            fail(f"{error} The points that are done are in {folder}.")
        except OSError as error:
            fail(_no_place(folder, error))
        except KeyboardInterrupt:
            fail(
                f"Broken off: {done} of {len(points)} points are kept in {folder}. The same command goes on from there."
            )
    return found, resumed


def _document(
    stage: Stage,
    points: list[Point],
    estimates: list[Estimate],
    resumed: set[int],
    calibration: Calibration | None,
) -> dict[str, Any]:
    from simulator.sweep_table import cheapest, verdict

    best = cheapest(points, estimates)
    return {
        "stage": stage.name,
        "seeds": list(estimates[0].seeds) if estimates else [],
        "window_s": stage.traffic.duration_s,
        "slo": {"latency_s": stage.slo.latency_s, "share": stage.slo.share},
        "points": [
            {
                "changes": point.changes,
                "overloaded": point.overloaded or None,
                "resumed": number in resumed,
                "slo": verdict(point.stage, estimate),
                "metrics": {name: asdict(estimate[name]) for name in estimate.values},
            }
            for number, (point, estimate) in enumerate(zip(points, estimates, strict=True))
        ],
        "cheapest": None if best is None else {"point": best[0], "as_cheap": best[1]},
        "notes": _notes(stage, points, calibration),
    }


def _notes(stage: Stage, points: list[Point], calibration: Calibration | None) -> list[str]:
    from simulator.cli import NO_CALIBRATION
    from simulator.run import beyond_calibration
    from stages.bill import caveats

    notes = [NO_CALIBRATION] if calibration is None else []
    for point in points:
        notes += beyond_calibration(point.stage, calibration) if calibration else []
        notes += caveats(point.stage)
    if stage.cost is None:
        notes.append("No dollars: the stage has no [cost]. Add --set cost.machine=…, out of `rung prices`.")
    overloaded = sum(bool(point.overloaded) for point in points)
    if overloaded:
        notes.append(
            f"{overloaded} of {len(points)} points are offered more than they can serve: they refuse some (*)."
        )
    notes.append("Every run begins with empty queues; a short one knows little of the long.")
    return list(dict.fromkeys(notes))


def _written(
    stage: Stage, points: list[Point], estimates: list[Estimate], replications: int, folder: Path
) -> list[str]:
    """Writes the table as Parquet and the pictures; gives the files' names."""
    from simulator.sweep_plots import pictures
    from simulator.sweep_table import frame

    folder.mkdir(parents=True, exist_ok=True)
    table = frame(points, estimates)
    table.write_parquet(folder / "sweep.parquet")
    names = ["sweep.parquet"]
    for name, content in pictures(stage, table, list(points[0].changes), replications).items():
        (folder / name).write_bytes(content)
        names.append(name)
    return names


def _print(result: dict[str, Any], points: list[Point], estimates: list[Estimate]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from simulator.sweep_table import fitting

    columns, left_out = fitting(_columns(result, points, estimates), out.width)
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column.heading, justify="left" if column.heading == "SLO" else "right", overflow="fold")
    for cells in zip(*(column.cells for column in columns), strict=True):
        table.add_row(*cells)
    out.print(
        f"[bold]{result['stage']}[/bold], predicted; ± is a 95 % interval of {result['replications']} runs a point"
    )
    out.print(table, soft_wrap=False)
    if left_out:
        out.print(
            f"Left out on lines of {out.width} characters: {'; '.join(left_out)}. They are in sweep.parquet.",
            highlight=False,
        )
    _print_best(result, points, estimates)
    for note in result["notes"]:
        out.print(f"[yellow]![/yellow] {note}")
    kept = sum(told["resumed"] for told in result["points"])
    there = f"; {kept} points were there already" if kept else ""
    out.print(
        f"{result['simulated']:,} requests simulated in {result['wall_s']:.1f} s, "
        f"{result['simulated_rps']:,.0f} a second{there}.",
        highlight=False,
    )
    out.print(f"{', '.join(result['files'])} are in {result['out']}", highlight=False)


def _columns(result: dict[str, Any], points: list[Point], estimates: list[Estimate]) -> list[Column]:
    """The table's columns: what was varied, what came of it, and whether the promise is kept."""
    from simulator.sweep_table import Column, text_of

    axes = _short(list(points[0].changes))
    varied = [
        Column(name, [text_of(list(point.changes.values())[number]) for point in points])
        for number, name in enumerate(axes)
    ]
    found = [
        Column(heading, [_figure(estimate[name], factor, bounds) for estimate in estimates], spare)
        for name, (heading, factor, bounds, spare) in _SHOWN.items()
        if any(not math.isnan(estimate[name].mean) for estimate in estimates)
    ]
    verdicts = [
        told["slo"] + ("*" if point.overloaded else "") for told, point in zip(result["points"], points, strict=True)
    ]
    return [*varied, *found, Column("SLO", verdicts)]


def _short(keys: list[str]) -> list[str]:
    """The last part of each dotted key, where that tells them apart."""
    short = [key.rsplit(".", 1)[-1] for key in keys]
    return short if len(set(short)) == len(short) else keys


def _print_best(result: dict[str, Any], points: list[Point], estimates: list[Estimate]) -> None:
    if (best := result["cheapest"]) is None:
        if any(not math.isnan(estimate["cost_usd_per_1000"].mean) for estimate in estimates):
            out.print("No point is sure to meet the SLO.")
        return
    usd = estimates[best["point"]]["cost_usd_per_1000"].mean
    out.print(f"The cheapest that meets the SLO: {points[best['point']]}, {usd:.3g} dollars per 1,000 good answers.")
    if best["as_cheap"]:
        others = "; ".join(str(points[number]) for number in best["as_cheap"])
        out.print(f"Cannot be told from it by these runs: {others}.")


def _figure(interval: Interval, factor: float, bounds: bool) -> str:
    """A mean of four digits, or fewer where its interval lets no more than two of its own count."""
    if not math.isfinite(interval.mean):
        return "-" if math.isnan(interval.mean) else "infinite"
    mean, half = factor * interval.mean, factor * interval.half_width
    if not bounds or not math.isfinite(half) or half <= 1e-6 * abs(mean):
        return f"{mean:.4g}"
    digits = max(0, min(1 - math.floor(math.log10(half)), 3 - math.floor(math.log10(abs(mean)))))
    return f"{mean:.{digits}f} ± {half:.{digits}f}"
