"""The verb that plans: the cheapest stage for a rate and a promise, its picture, its stage.toml, and its proof.

options ─▶ Workload, offers ─▶ simulator/plan.py ─▶ stage.toml, plan.json, pareto.svg, pareto.png
                                          └─ --verify ─▶ loadtests/plan_verify.py ─▶ verified.json, spike.png
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from loadtests.verbs import ShortOption, bar, calibration_of, failures, read_calibration
from stages.terminal import Exit, JsonOption, PricesOption, err, fail, out, print_json, teaching

if TYPE_CHECKING:
    from loadtests.plan_verify import Verified
    from simulator.plan import Plan
    from stages.spec import Stage

app = typer.Typer()

TrafficName = Literal["steady", "diurnal", "spiky"]


@app.command()
def plan(
    p95: Annotated[float, typer.Option("--p95", metavar="S", help="95 % of the requests are answered within it.")],
    rate: Annotated[
        float | None, typer.Option("--rate", metavar="RPS", help="Mean arrival rate; a trace has its own.")
    ] = None,
    traffic: Annotated[TrafficName, typer.Option(help="How the rate rises and falls.")] = "steady",
    trace: Annotated[Path | None, typer.Option(metavar="FILE", help="Arrivals out of a file instead.")] = None,
    spot: Annotated[bool, typer.Option("--spot", help="Spot machines too.")] = False,
    model: Annotated[str, typer.Option(help="A model of the device catalogue: resnet50, bert-base.")] = "resnet50",
    devices: Annotated[
        str | None, typer.Option(metavar="NAMES", help="Only these, like t4,a100 or profiles of `rung devices`.")
    ] = None,
    provider: Annotated[str | None, typer.Option(help="Only machines of this one.")] = None,
    items: Annotated[
        int | None, typer.Option(metavar="N", help="So many different inputs are asked for: a cache may help.")
    ] = None,
    zipf: Annotated[float | None, typer.Option(metavar="S", help="Zipf's exponent of their popularity; 1.")] = None,
    host_usd_per_hour: Annotated[
        float | None, typer.Option(metavar="USD", help="What the gateway's machine costs an hour.")
    ] = None,
    duration: Annotated[float | None, typer.Option(metavar="S", help="Seconds of each simulated run.")] = None,
    replications: Annotated[int, typer.Option(min=2, max=100, help="Simulated runs of what is left at the end.")] = 10,
    seed: Annotated[int, typer.Option(min=0, help="Of all chance.")] = 1,
    calibration: Annotated[
        Path | None, typer.Option(metavar="FILE", help="What a host takes, from `rung calibrate`.")
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, max=1024, help="Processes that simulate; all cores.")] = None,
    prices: PricesOption = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Run the answer for real, emulated on this machine.")
    ] = False,
    repeat: Annotated[int, typer.Option(min=1, max=20, help="Of --verify: real runs.")] = 1,
    short: ShortOption = False,
    folder: Annotated[Path | None, typer.Option("--out", metavar="FOLDER", help="By default one under runs/.")] = None,
    json_: JsonOption = False,
) -> None:
    """Find the cheapest stage that answers a rate in time, explain it, and write it as a stage.toml."""
    from reference_apps.up import fresh_folder
    from simulator.offers import host_of, offers
    from simulator.plan import Planner
    from simulator.sweep import workers_pool
    from simulator.workload import workload

    _check(host_usd_per_hour, verify, repeat, short)
    names = [name.strip() for name in (devices or "").split(",") if name.strip()]
    with teaching():
        work = workload(
            *(rate, p95, traffic), duration_s=duration, model=model, items=items, zipf=zipf, trace=trace, seed=seed
        )
        rented, host = offers(model, spot=spot, provider=provider, devices=names), host_of(host_usd_per_hour)
    measured = None if calibration is None else read_calibration(calibration)
    with _in_words(), err.status("Starting …") as status, workers_pool(workers) as pool:
        found = Planner(
            *(work, rented),
            replications=replications,
            calibration=measured,
            host=host,
            pool=pool,
            on_progress=lambda text: status.update(f"{text} …"),
        ).plan()
    kept = folder or fresh_folder("plan")
    try:
        written = _write(found, kept)
    except OSError as error:
        fail(
            f"--out {kept}: must be a folder that can be written ({error.strerror}). The plan has no place. Give "
            "another one."
        )
    if not json_:
        _print(found, written)
    if found.choice is None:
        _show(found, None, written, json_)
        fail("No plan: nothing that was tried meets the SLO.")
    verified = _verified(found, kept, repeat, short) if verify else None
    _show(found, verified, written, json_)
    if verified is not None and verified.void:
        fail("Every real run is void: see the reasons above. Quiet the machine, or lower the rate.", Exit.VOID)


def _check(host_usd_per_hour: float | None, verify: bool, repeat: int, short: bool) -> None:
    """Ends the command in words when an option is out of its bounds, or nothing would read it."""
    if host_usd_per_hour is not None and not 0.0 < host_usd_per_hour <= 100_000.0:
        fail(
            f"--host-usd-per-hour: must be above 0 and at most 100000 US dollars, got {host_usd_per_hour:g}. No "
            "machine costs that. Leave it out for the cheapest machine of the list.",
            Exit.MISUSED,
        )
    unread = [option for option, given in (("--repeat", repeat != 1), ("--short", short)) if given and not verify]
    if unread:
        fail(
            f"{unread[0]}: belongs to --verify only, got none. Nothing would be run for real. Add --verify, or leave "
            "it out.",
            Exit.MISUSED,
        )


@contextmanager
def _in_words() -> Iterator[None]:
    """What cannot be simulated ends the command in words."""
    try:
        with teaching():
            yield
    except ValueError as error:
        fail(str(error), Exit.MISUSED)


def _write(found: Plan, folder: Path) -> dict[str, str]:
    """Writes the stage, the plan and its pictures into `folder`; what was written, by its kind."""
    import orjson

    from simulator import plan_plots, plan_words
    from stages.spec import load_stage

    folder.mkdir(parents=True, exist_ok=True)
    options = orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE | orjson.OPT_SERIALIZE_NUMPY
    (folder / "plan.json").write_bytes(orjson.dumps(plan_words.document(found), option=options))
    written = {"plan": str(folder / "plan.json")}
    if found.tried:
        svg, png = plan_plots.write(found, folder)
        written |= {"svg": str(svg), "png": str(png)}
    if found.choice is not None:
        path = folder / "stage.toml"
        path.write_text(plan_words.toml_of(found), encoding="utf-8")
        load_stage(path)  # what cannot be started must not be handed out
        written["stage"] = str(path)
    return written


def _verified(found: Plan, folder: Path, repeat: int, short: bool) -> Verified:
    """Runs the choice for real, on a slower clock where this machine does not carry its rate."""
    from loadtests import plan_verify
    from simulator.planned_stage import stage_of

    assert found.choice is not None
    stage = stage_of(found.workload, found.choice.candidate)
    _launchable(stage)
    slowdown = plan_verify.slowdown_for(stage)
    seconds = plan_verify.seconds_of(stage, slowdown, repeat)
    err.print(
        f"Verifying: {seconds:.0f} s of real traffic, {slowdown:g} times slower, after a calibration of some minutes."
    )
    with _in_words():
        point = plan_verify.stretched(stage, slowdown)
    calibration = calibration_of(point, short, "process", None)
    with failures(), bar() as on_progress:
        return plan_verify.verify(
            *(stage, found.choice.estimate, calibration, folder / "verify"),
            slowdown=slowdown,
            repeat=repeat,
            short=short,
            command=shlex.join(["rung", *sys.argv[1:]]),
            on_progress=on_progress,
        )


def _launchable(stage: Stage) -> None:
    from loadtests.plan_verify import REPLICAS_MOST

    most = stage.fleet.replicas if stage.scaling is None else stage.scaling.max_replicas
    if most > REPLICAS_MOST:
        fail(
            f"--verify: must be of at most {REPLICAS_MOST} replicas, got {most}. Each is a process with a model of its "
            "own, and this machine would only swap. Verify a plan for a lower rate.",
            Exit.MISUSED,
        )


def _show(found: Plan, verified: Verified | None, written: dict[str, str], json_: bool) -> None:
    """Prints the JSON, or what people are still to be told."""
    from loadtests import plan_verify
    from simulator import plan_words

    if json_:
        document: dict[str, Any] = plan_words.document(found) | {"files": written}
        print_json(document | {"verified": None if verified is None else plan_verify.document(verified)})
        return
    if verified is not None:
        plan_verify.print_table(verified, out)


def _print(found: Plan, written: dict[str, str]) -> None:
    """The answer, what lies beside it, what breaks first, and where everything is."""
    from rich.table import Table

    from simulator import plan_words

    out.print(f"[bold]{found.workload.in_words}[/bold]", highlight=False)
    for line in plan_words.answer(found):
        out.print(line, markup=False, highlight=False)
    if found.choice is not None and found.breaks is not None:
        table = Table(title="Beside it", title_justify="left", box=None, padding=(0, 2, 0, 0))
        table.add_column("change", overflow="fold")
        table.add_column("what it does", overflow="fold")
        for near in found.neighbours:
            table.add_row(near.what, plan_words.neighbour(found.choice, near))
        out.print(table, soft_wrap=False)
        out.print(plan_words.breaking(found.breaks, found), markup=False, highlight=False)
    for line in plan_words.assumptions(found):
        out.print(f"[yellow]![/yellow] {line}", highlight=False)
    out.print(
        f"{len(found.tried)} of {len(found.grid.candidates)} stages simulated, {found.requests:,} requests in "
        f"{found.wall_s:.0f} s; {sum(found.grid.refused.values())} kinds refused by arithmetic.",
        highlight=False,
    )
    if "stage" in written:
        out.print(f"Run it: rung up {written['stage']}", markup=False, highlight=False)
    if "png" in written:
        out.print(f"Pictures: {written['png']}, {written['svg']}", markup=False, highlight=False)
