"""The verbs that load, calibrate and compare."""

from __future__ import annotations

import math
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from loadtests.verbs import (
    LONG_DURATION_S,
    QUOTABLE_DURATION_S,
    SHORT_DURATION_S,
    CalibrationOption,
    DeviceOption,
    OnOption,
    RunFolderOption,
    ShortOption,
    at_rest,
    bar,
    calibrated,
    calibration_of,
    failures,
    launch_of,
    read_calibration,
    stage_of,
)
from stages.terminal import Exit, JsonOption, SetOption, StageArgument, err, fail, out, print_json, teaching

if TYPE_CHECKING:
    from reference_apps.up import Stack
    from stages.spec import Stage

app = typer.Typer()


@app.command()
def load(
    stage: StageArgument,
    url: Annotated[str | None, typer.Option(help="Where to send to; without it, the stage that is up.")] = None,
    rate_rps: Annotated[float | None, typer.Option("--rate", help="Mean arrival rate, requests per second.")] = None,
    duration_s: Annotated[float | None, typer.Option("--duration", help="Seconds of traffic.")] = None,
    processes: Annotated[int, typer.Option(min=1, max=64, help="Locust processes that share the schedule.")] = 1,
    folder: Annotated[Path | None, typer.Option("--out", help="Leave the records here.")] = None,
    set_: SetOption = None,
    json_: JsonOption = False,
) -> None:
    """Fire a stage's seeded traffic with Locust at the stage that is up, and check the run itself."""
    from dataclasses import asdict

    from loadtests import checks
    from loadtests.load import fire
    from loadtests.printing import print_metrics
    from reference_apps.up import fresh_folder
    from stages import bill, records
    from stages.metrics import summarise
    from stages.spec import device_label

    resolved = stage_of(stage, set_, duration_s=duration_s, rate_rps=rate_rps, pin=False)
    target, stack = _target(resolved, url)
    kept = folder or fresh_folder(f"load-{resolved.name}")
    with failures(), bar() as on_progress:
        total_s = resolved.traffic.duration_s
        loaded = fire(
            resolved,
            target,
            kept,
            device=device_label(resolved),
            pids=stack.pids if stack is not None else (),
            lives=stack.lives if stack is not None else tuple,
            processes=processes,
            on_second=lambda s: on_progress(f"Loading {resolved.name}", s, total_s),
        )
    records.write(loaded.records, kept)
    metrics = summarise(loaded.records, resolved.slo.latency_s)
    if checks.other_clock(loaded.records):
        metrics |= dict.fromkeys(checks.OF_ONE_CLOCK, math.nan)
        err.print(f"[yellow]![/yellow] {checks.OTHER_CLOCK}", highlight=False)
    paid = bill.bill(resolved, loaded.records)
    one_batch_s = _least_service_s(resolved) or metrics["latency_s_p50"]
    void = checks.why_void(loaded.check, one_batch_s)
    if json_:
        print_json(
            {
                "stage": resolved.name,
                "metrics": metrics,
                "bill": bill.document(paid),
                "check": asdict(loaded.check),
                "void": void,
                "records": str(kept),
            }
        )
    else:
        print_metrics(metrics, f"{resolved.name}, measured")
        if paid is not None:
            out.print(bill.in_words(paid), markup=False, highlight=False)
        out.print(f"Records and logs: {kept}")
    if metrics["failed_share"] > 0:
        fail(f"{metrics['failed_share']:.1%} of the requests failed: the reasons stand in {kept}/requests.parquet.")
    if void:
        fail(f"This run is void. {void}", Exit.VOID)


@app.command()
def calibrate(
    stage: StageArgument,
    device: DeviceOption = None,
    on: OnOption = "process",
    short: ShortOption = False,
    set_: SetOption = None,
    json_: JsonOption = False,
) -> None:
    """Measure this machine for a stage: device time by batch size, and the host's time around it."""
    from loadtests.printing import print_calibration

    resolved = stage_of(stage, set_, device=device, own_rate=False)
    calibration, path = calibrated(resolved, short, on)
    if json_:
        print_json({"calibration": str(path), **calibration.model_dump()})
        return
    print_calibration(calibration)
    out.print(f"Kept in {path}; `rung compare` and `rung simulate --calibration` read it.")


@app.command()
def compare(
    stage: StageArgument,
    loads: Annotated[str, typer.Option(help="Shares of the predicted capacity.")] = "0.2,0.5,0.7,0.85,0.95,1.2",
    repeat: Annotated[int, typer.Option(min=1, max=100, help="Real runs of each load.")] = 3,
    duration_s: Annotated[float | None, typer.Option("--duration", help="Seconds of each run.")] = None,
    void_retries: Annotated[
        int | None,
        typer.Option(min=0, max=20, help="How often a void run is made again: 2, or 1 where runs are short."),
    ] = None,
    policies: Annotated[
        str | None, typer.Option(help="Balancing policies to hold against each other, like round-robin,random.")
    ] = None,
    device: DeviceOption = None,
    on: OnOption = "process",
    calibration_file: CalibrationOption = None,
    short: ShortOption = False,
    folder: RunFolderOption = None,
    set_: SetOption = None,
    json_: JsonOption = False,
) -> None:
    """Run a stage for real and in simulation over the same arrivals, and hold the two against each other."""
    from loadtests import report
    from loadtests.compare import Plan
    from loadtests.compare import compare as run_both
    from loadtests.policies import compare_all
    from loadtests.printing import print_comparisons
    from reference_apps.up import fresh_folder

    resolved = stage_of(stage, set_, device=device, own_rate=False)
    if resolved.traffic.loop == "closed":
        fail(
            'traffic.loop: must be "open" to compare, got "closed". A closed loop slows down with its server, and '
            "would hide what is to be seen. Use --set traffic.loop=open, or `rung load` for the real side alone.",
            Exit.MISUSED,
        )
    if resolved.scaling is not None:
        from stages.spec import with_overrides

        resolved = with_overrides(resolved, {"scaling": None, "overload": True})
        err.print("The fleet stays as it starts: steady loads are compared. `rung spike` has the autoscaler at work.")
    resolved = at_rest(resolved, "steady loads are compared")
    chosen = None if policies is None else _policies(resolved, policies)
    seconds = duration_s if duration_s is not None else SHORT_DURATION_S if short else LONG_DURATION_S
    _check_duration(resolved, seconds)
    plan = Plan(_loads(loads), repeat, seconds, short or seconds < QUOTABLE_DURATION_S, void_retries)
    calibration = calibration_of(resolved, short, on, calibration_file)
    kept = folder or fresh_folder(f"compare-{resolved.name}")
    command = shlex.join(["rung", *sys.argv[1:]])
    with failures(), bar() as on_progress:
        launch = launch_of(on)
        if chosen is None:
            plain = (resolved, calibration, plan, kept)
            found = {"": run_both(*plain, command=command, launch=launch, on_progress=on_progress)}
            report.write_report(found[""], kept)
        else:
            several = (resolved, chosen, calibration, plan, kept)
            found = compare_all(*several, command=command, launch=launch, on_progress=on_progress)
    print_comparisons(found, kept, json_)
    if all(run.void for comparison in found.values() for run in comparison.runs):
        fail("Every run is void: see the reasons in the report. Quiet the machine, or lower the loads.", Exit.VOID)


@app.command(name="report")
def report_(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="A run folder that `rung compare` or `rung spike` left.")
    ],
    calibration_file: Annotated[
        Path | None, typer.Option("--calibration", help="Predict with this one instead of the folder's own.")
    ] = None,
    json_: JsonOption = False,
) -> None:
    """Predict the runs of a finished comparison again, with the simulator of today, and write its report anew."""
    from loadtests import policies, report, spike, spike_cli
    from loadtests.compare import again
    from loadtests.printing import print_comparisons

    calibration = None if calibration_file is None else read_calibration(calibration_file)
    spiked, found = None, {}
    try:
        with failures(), err.status(f"Predicting {folder} again …"):
            if (folder / "spike.json").is_file():
                spiked = spike.again(folder, calibration)
            elif (folder / "policies.json").is_file():
                found = policies.again(folder, calibration)
            else:
                found = {"": again(folder, calibration)}
                report.write_report(found[""], folder)
    except (OSError, ValueError, KeyError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        fail(
            f"{folder}: is not a run folder that `rung compare` finished ({reason}). Name one under runs/.",
            Exit.MISUSED,
        )
    if spiked is not None:
        spike_cli.show(spiked, folder, json_)
    else:
        print_comparisons(found, folder, json_)


def _target(stage: Stage, url: str | None) -> tuple[str, Stack | None]:
    """Where to send, and the stack if it runs here."""
    from reference_apps.up import Stack, list_up

    if url is not None:
        return url.rstrip("/"), None
    found = [up for up in list_up() if up.stage == stage.name]
    if not found:
        fail(f"{stage.name}: is not up. Start it with `rung up {stage.name}`, or give --url.", Exit.MISUSED)
    return found[0].url, Stack(found[0])


def _check_duration(stage: Stage, duration_s: float) -> None:
    """Ends the command in words where no run can last so long, before anything is calibrated for it."""
    from stages.spec import with_overrides

    with teaching():
        with_overrides(stage, {"traffic.duration_s": duration_s, "overload": True})


def _loads(text: str) -> list[float]:
    """The loads in `a,b,c`, each once: to the six digits that a run's folder is named after."""
    try:
        loads = list(dict.fromkeys(float(f"{float(part):g}") for part in text.split(",")))
    except ValueError:
        loads = []
    if not loads or not all(0.0 < load <= 10.0 for load in loads):
        fail(
            f"--loads: must be shares of capacity above 0 and up to 10, got {text}. Write them like 0.2,0.5,0.95.",
            Exit.MISUSED,
        )
    return loads


def _policies(stage: Stage, text: str) -> list[str]:
    """The names in `a,b,c`, each once."""
    from loadtests.policies import POLICIES, under

    names = list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    unknown = [name for name in names if name not in POLICIES]
    if unknown or not names:
        fail(
            f"--policies: must be balancing policies, got {', '.join(unknown) or 'none'}. There are "
            f"{', '.join(POLICIES)}. Write them like round-robin,least-outstanding.",
            Exit.MISUSED,
        )
    if stage.gateway is None:
        fail(
            f"--policies: must be asked of a stage with a [gateway], got {stage.name}. It has nobody who chooses. "
            "Try load-balanced, or --set gateway.policy=round-robin --set fleet.replicas=2.",
            Exit.MISUSED,
        )
    with teaching():
        for name in names:
            under(stage, name)
    return names


def _least_service_s(stage: Stage) -> float | None:
    """Device time in seconds of one request on the quickest of the emulated devices; None where one takes its time."""
    from loadtests.calibrate import kinds
    from stages import catalogue

    profiles = [kind.device.profile for kind in kinds(stage)]
    known = catalogue.profiles()
    times_s = [known[profile].service_time_s(1) for profile in profiles if profile is not None]
    return min(times_s) * stage.device.slowdown if len(times_s) == len(profiles) else None
