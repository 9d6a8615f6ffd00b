"""The verbs of the simulator: simulate."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stages.terminal import (
    Exit,
    JsonOption,
    SetOption,
    StageArgument,
    at_asked_rate,
    err,
    fail,
    out,
    overrides,
    print_json,
    teaching,
)

if TYPE_CHECKING:
    from stages.bill import Bill
    from stages.calibration import Calibration
    from stages.spec import Stage

app = typer.Typer()

NO_CALIBRATION = (
    "No calibration: the host is taken to need no time at all, so that latencies are too low by what sockets, "
    "decoding and threads cost. Give one with --calibration; `rung calibrate` makes it."
)


@app.command()
def simulate(
    stage: StageArgument,
    set_: SetOption = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Stands in for traffic.seed.")] = None,
    calibration: Annotated[
        Path | None, typer.Option(metavar="FILE", help="What this machine costs, from `rung calibrate`.")
    ] = None,
    rate: Annotated[
        float | None, typer.Option(metavar="RPS", help="Mean arrival rate in requests per second; the shape stays.")
    ] = None,
    duration: Annotated[float | None, typer.Option(metavar="S", help="Stands in for traffic.duration_s.")] = None,
    backlog: Annotated[
        int | None,
        typer.Option(metavar="JOBS", help="A night's work instead of traffic: when is it done, for how much?"),
    ] = None,
    deadline: Annotated[str | None, typer.Option(metavar="TIME", help="Of the backlog: 8h, 30m, 45s.")] = None,
    workers: Annotated[
        str | None,
        typer.Option(metavar="N..M", help="For the backlog: 4, or 1..8. Without it, up to the stage's most."),
    ] = None,
    spot: Annotated[bool, typer.Option("--spot", help="Work the backlog off on spot machines, too.")] = False,
    interruptions: Annotated[
        float | None, typer.Option(metavar="PER_HOUR", help="How often a spot machine is taken away. Assumed: 0.05.")
    ] = None,
    beside: Annotated[
        str | None,
        typer.Option(metavar="STAGE", help="Another queued stage, a name or a file, whose workers share the GPU."),
    ] = None,
    beside_set: Annotated[
        list[str] | None, typer.Option("--beside-set", metavar="KEY=VALUE", help="Override a key of the stage beside.")
    ] = None,
    out_: Annotated[
        Path | None, typer.Option("--out", metavar="FOLDER", help="Write the records there, as Parquet.")
    ] = None,
    json_: JsonOption = False,
) -> None:
    """Predict a run of a stage: its traffic through its policies on a virtual clock."""
    from simulator import alerts, fast, run
    from stages import bill, metrics, records
    from stages.spec import fleet_label

    with teaching():
        resolved = stage_of(stage, overrides(set_), rate, duration)
    measured = calibration_of(calibration)
    if (backlog, deadline, workers, spot, interruptions) != (None, None, None, False, None):
        from simulator import night_cli

        others = rate is not None or duration is not None or out_ is not None or beside is not None or bool(beside_set)
        night = night_cli.night_of(resolved, backlog, deadline, workers, spot, interruptions, others)
        night_cli.tell(resolved, night, measured, seed, json_)
        return
    if beside is not None or beside_set:
        from simulator import one_gpu_cli

        if beside is None or out_ is not None or seed is not None:
            fail(
                "--beside: takes the name of another stage, and no --seed or --out, got "
                f"{'none' if beside is None else 'one of them'}. Nothing would read it. Use --beside queued, and --set "
                "traffic.seed=5 for other draws.",
                Exit.MISUSED,
            )
        with teaching():
            card = {"device.memory_gib": resolved.device.memory_gib}
            other = stage_of(beside, card | overrides(beside_set), None, duration)
        one_gpu_cli.tell(resolved, other, measured, json_)
        return
    try:
        capacity_rps, most_rps = run.capacity_rps(resolved, measured), _most_rps(resolved, measured)
    except ValueError as error:
        fail(f"{resolved.name}: {error}", Exit.MISUSED)
    started = time.perf_counter()
    with teaching(), err.status(f"Simulating {resolved.name} …"):  # a trace is read only now
        predicted = fast.simulate(resolved, calibration=measured, seed=seed)
    wall_s = time.perf_counter() - started
    count = predicted.requests.height
    paid = bill.bill(resolved, predicted)
    result: dict[str, Any] = {
        "stage": resolved.name,
        "device": fleet_label(resolved),
        "seed": resolved.traffic.seed if seed is None else seed,
        "window_s": predicted.window_s,
        "requests": count,
        "rate_rps": count / predicted.window_s,
        "capacity_rps": capacity_rps,
        "capacity_most_rps": most_rps,
        "metrics": metrics.summarise(predicted, resolved.slo.latency_s),
        "bill": bill.document(paid),
        "notes": _notes(resolved, measured, count / predicted.window_s, most_rps),
        "wall_s": wall_s,
        "simulated_rps": count / wall_s,
        "alerts": [asdict(change) for change in alerts.watch(resolved, predicted)],
        "out": None if out_ is None else str(out_),
    }
    if out_ is not None:
        records.write(predicted, out_)
    print_json(result) if json_ else _print(resolved, result, paid)


def stage_of(name: str, given: dict[str, Any], rate_rps: float | None, duration_s: float | None) -> Stage:
    """The stage with an option's rate and duration. Raises StageError."""
    from stages.spec import load_stage

    if duration_s is not None:
        given["traffic.duration_s"] = duration_s
    stage = load_stage(name, given)
    return stage if rate_rps is None else at_asked_rate(stage, rate_rps)


def calibration_of(path: Path | None) -> Calibration | None:
    from pydantic import ValidationError

    from stages import calibration

    if path is None:
        return None
    try:
        return calibration.read(path)
    except (OSError, UnicodeDecodeError, ValidationError) as error:
        reason = _first_problem(error.errors()[0]) if isinstance(error, ValidationError) else str(error)
        fail(
            f"--calibration {path}: must be a file that `rung calibrate` wrote ({reason}). "
            "Nothing was simulated. Run `rung calibrate` again, or leave it out.",
            Exit.MISUSED,
        )


def _first_problem(problem: Mapping[str, Any]) -> str:
    return ": ".join([*map(str, problem["loc"]), problem["msg"]])


def _most_rps(stage: Stage, calibration: Calibration | None) -> float:
    """The capacity with as many replicas as an autoscaler may start, in requests per second."""
    from simulator.run import capacity_rps
    from stages.capacity import largest

    return capacity_rps(stage.model_copy(update={"fleet": largest(stage.fleet, stage.scaling)}), calibration)


def _notes(stage: Stage, calibration: Calibration | None, offered_rps: float, capacity_rps: float) -> list[str]:
    from simulator.run import beyond_calibration
    from stages.bill import caveats

    notes = [NO_CALIBRATION] if calibration is None else beyond_calibration(stage, calibration)
    if offered_rps > capacity_rps and stage.traffic.loop == "open" and stage.cache is None:
        notes.append(
            f"{offered_rps:.1f} requests per second are more than the capacity of {capacity_rps:.1f}: "
            + ("the queue fills and the rest is refused." if stage.queue is None else "jobs wait longer and longer.")
        )
    return [*notes, *caveats(stage)]


def _print(stage: Stage, result: dict[str, Any], paid: Bill | None) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from stages.bill import in_words

    table = Table(title=f"{stage.title}, predicted", title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("metric")
    table.add_column("predicted", justify="right")
    for name, value in result["metrics"].items():
        table.add_row(name, "-" if math.isnan(value) else f"{value:.5g}")
    out.print(f"[bold]{stage.name}[/bold] on {result['device']}, seed {result['seed']}")
    of_start = f" at the start, at most {result['capacity_most_rps']:.1f}" if stage.scaling is not None else ""
    out.print(
        f"{result['requests']:,} requests in {result['window_s']:g} s, {result['rate_rps']:.1f} per second; "
        f"capacity {result['capacity_rps']:.1f} per second{of_start}"
    )
    out.print(table)
    if paid is not None:
        out.print(in_words(paid), markup=False, highlight=False)
    for change in result["alerts"]:
        if change["state"] in ("firing", "resolved"):
            what = "fire" if change["state"] == "firing" else "be resolved"
            out.print(f"At {change['at_s']:g} s the alert {change['alert']} would {what} ({change['severity']}).")
    for note in result["notes"]:
        out.print(f"[yellow]![/yellow] {note}")
    out.print(f"{result['simulated_rps']:,.0f} simulated requests per second ({result['wall_s']:.3f} s).")
    if result["out"] is not None:
        out.print(f"Records are in {result['out']}")
