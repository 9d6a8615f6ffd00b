"""The verb that shows the ladder: every stage at 1 to 10 million users a day, and four questions beside it.

options ─▶ simulator/ladder.py ─▶ tables, ladder.json, ladder.svg, ladder.png
           stages/owned.py ────▶ bought GPUs against rented ones
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from simulator.cli import calibration_of
from stages.terminal import Exit, JsonOption, PricesOption, err, fail, out, print_json, teaching

if TYPE_CHECKING:
    from simulator.ladder import Beside, Ladder, Step
    from stages.owned import Against, Assumptions

app = typer.Typer()


@app.command()
def ladder(
    p95: Annotated[
        float, typer.Option("--p95", metavar="S", help="95 % of the requests are answered within it.")
    ] = 0.25,
    requests: Annotated[float, typer.Option(help="Requests of a user a day.")] = 20.0,
    model: Annotated[str, typer.Option(help="A model of the device catalogue: resnet50, bert-base.")] = "resnet50",
    devices: Annotated[str, typer.Option(metavar="NAMES", help="The devices of all stages, of `rung devices`.")] = "t4",
    users: Annotated[int, typer.Option(metavar="N", help="Up to so many users a day.")] = 10_000_000,
    buy: Annotated[
        list[str] | None, typer.Option(metavar="GPU=USD", help="What a GPU costs to buy, like T4=700; may be repeated.")
    ] = None,
    years: Annotated[float, typer.Option(help="Of a bought GPU: until it is worth nothing.")] = 4.0,
    kwh: Annotated[float, typer.Option(help="US dollars a kWh.")] = 0.15,
    used: Annotated[float, typer.Option(help="The share of its hours that a bought GPU is used.")] = 1.0,
    host_usd_per_hour: Annotated[
        float | None, typer.Option(metavar="USD", help="What the gateway's machine costs an hour.")
    ] = None,
    calibration: Annotated[
        Path | None, typer.Option(metavar="FILE", help="What a host takes, from `rung calibrate`.")
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, max=1024, help="Processes that simulate; all cores.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of all chance.")] = 1,
    prices: PricesOption = None,
    folder: Annotated[
        Path | None, typer.Option("--out", metavar="FOLDER", help="Where ladder.svg, .png and .json go.")
    ] = None,
    json_: JsonOption = False,
) -> None:
    """Show every stage at 1 to 10 million users a day: cost, latency, and where it stops being enough."""
    from simulator.ladder import LEVELS, Climb, User
    from simulator.offers import host_of, offers
    from simulator.sweep import workers_pool
    from stages.owned import Assumptions, against, bought_of

    _check(p95, requests, users, years, kwh, used, host_usd_per_hour)
    assumed = replace(Assumptions(), years=years, usd_per_kwh=kwh, used=used)
    with teaching():
        names = [name.strip() for name in devices.split(",") if name.strip()]
        own, all_ = offers(model, devices=names), offers(model)
        bought = [one for each in bought_of(buy or ()) if (one := against(each, assumed)) is not None]
    measured = calibration_of(calibration)
    levels = [level for level in LEVELS if level <= users]
    with teaching(), err.status("Starting …") as status, workers_pool(workers) as pool:
        climb = Climb(
            *(User(requests), p95, own, all_),
            host=host_of(host_usd_per_hour),
            calibration=measured,
            seed=seed,
            pool=pool,
            on_progress=lambda text: status.update(f"{text} …"),
        )
        try:
            found = climb.ladder(levels)
        except ValueError as error:
            fail(str(error), Exit.MISUSED)
    kept = folder or Path(os.environ.get("RUNG_RUNS", "runs")) / "ladder"
    try:
        written = _write(found, bought, assumed, kept, devices)
    except OSError as error:
        fail(
            f"--out {kept}: must be a folder that can be written ({error.strerror}). The ladder has no place. Give "
            "another one."
        )
    if json_:
        print_json(document(found, bought, assumed) | {"files": written})
        return
    _print(found, bought, assumed, devices)
    out.print(f"Pictures: {written['png']}, {written['svg']}", markup=False, highlight=False)


def document(found: Ladder, bought: list[Against], assumed: Assumptions) -> dict[str, Any]:
    """The ladder as ladder.json has it and `--json` prints it."""
    from simulator.plan_words import told

    return {
        "user": asdict(found.user) | {"in_words": found.user.in_words},
        "p95_s": found.p95_s,
        "steps": [
            {name: value for name, value in vars(step).items() if name != "tried"}
            | {"tried": None if step.tried is None else told(step.tried)}
            for step in found.steps
        ],
        "limits": [asdict(limit) for limit in found.limits],
        "beside": [
            {name: value for name, value in vars(each).items() if name not in ("up", "out")}
            | {"up": None if each.up is None else told(each.up), "out": None if each.out is None else told(each.out)}
            for each in found.beside
        ],
        "bought": [
            {
                "gpu": each.bought.gpu,
                "usd": each.bought.usd,
                "source": each.bought.source,
                "watts": each.bought.watts,
                "watts_source": each.bought.watts_source,
                "owned_usd_per_hour": each.owned_usd_per_hour,
                "cheapest": asdict(each.cheapest),
                "ratio": each.ratio,
                "ratio_large_clouds": each.ratio_large,
                "break_even_share": each.break_even(assumed),
            }
            for each in bought
        ],
        "assumed": asdict(assumed),
    }


def caption(found: Ladder, devices: str) -> Iterator[str]:
    """What the picture rests on."""
    prices = {step.tried.candidate.price for step in found.steps if step.tried is not None}
    told = "; ".join(
        f"{price.usd_per_hour:g} US dollars an hour for {price.machine} ({price.pricing}; {price.as_of})"
        for price in sorted(prices, key=lambda price: price.usd_per_hour)
    )
    yield f"Every stage on {devices.upper()}, with the batches and as many replicas as are cheapest. {told}."
    yield (
        "A cross: with more users a day no stage of the kind meets the SLO. The queued stage is due within 8 hours; "
        "its p95 is the wait for its workers, fewer than noon would take. A cache begins each day empty."
    )
    if not found.calibrated:
        yield "No calibration: sockets, decoding and the one gateway take no time, and never are what is not enough."


def _check(p95: float, requests: float, users: int, years: float, kwh: float, used: float, host: float | None) -> None:
    """Ends the command in words when an option is out of its bounds."""
    bounds: tuple[tuple[str, float | None, float, str], ...] = (
        ("--p95", p95, 60.0, "Use 0.25 for 250 ms."),
        ("--requests", requests, 1e4, "Use 20."),
        ("--users", float(users), 1e7, "Use 10000000."),
        ("--years", years, 100.0, "Use 4."),
        ("--kwh", kwh, 100.0, "Use 0.15."),
        ("--used", used, 1.0, "Use 1.0 for a GPU that never rests."),
        ("--host-usd-per-hour", host, 1e5, "Leave it out for the cheapest machine of the list."),
    )
    for option, value, most, remedy in bounds:
        if value is not None and not 0.0 < value <= most:
            rule = f"{option}: must be above 0 and at most {most:g}, got {value:g}."
            fail(f"{rule} There would be no ladder. {remedy}", Exit.MISUSED)
    if requests < 2.0:
        fail("--requests: must be at least 2 a day, got fewer. One user would bring none. Use 20.", Exit.MISUSED)


def _write(found: Ladder, bought: list[Against], assumed: Assumptions, folder: Path, devices: str) -> dict[str, str]:
    import orjson

    from simulator import ladder_plots

    folder.mkdir(parents=True, exist_ok=True)
    options = orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE | orjson.OPT_SERIALIZE_NUMPY
    (folder / "ladder.json").write_bytes(orjson.dumps(document(found, bought, assumed), option=options))
    svg, png = ladder_plots.write(found, folder, list(caption(found, devices)))
    return {"ladder": str(folder / "ladder.json"), "svg": str(svg), "png": str(png)}


def _print(found: Ladder, bought: list[Against], assumed: Assumptions, devices: str) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    out.print(found.user.in_words, highlight=False)
    table = Table(box=SIMPLE_HEAD, pad_edge=False, title=f"Every stage on {devices}", title_justify="left")
    for name in ("users a day", "stage", "cheapest", "US dollars a day", "per 1,000 answers", "p95"):
        table.add_column(name, overflow="fold", justify="left" if name in ("stage", "cheapest") else "right")
    table.columns[1].no_wrap = True
    for step in found.steps:
        table.add_row(f"{step.users:,}", step.stage, *_cells(step))
    out.print(table, soft_wrap=False)
    for limit in found.limits:
        out.print(_limit_in_words(limit.stage, limit.enough, limit.beyond), highlight=False)
    table = Table(box=SIMPLE_HEAD, pad_edge=False, title="What else, in US dollars a day", title_justify="left")
    for name in ("users a day", "on demand", "spot", "one machine", "several"):
        table.add_column(name, overflow="fold", justify="right")
    for each in found.beside:
        table.add_row(*_beside_cells(each))
    out.print(table, soft_wrap=False)
    out.print("Spot: the same stage; how often machines are taken away is not counted.", highlight=False)
    for line in bought_in_words(bought, assumed):
        out.print(line, markup=False, highlight=False)
    for line in caption(found, devices):
        out.print(f"[yellow]![/yellow] {line}", highlight=False)


def bought_in_words(bought: list[Against], assumed: Assumptions) -> Iterator[str]:
    """Whether buying is ten times cheaper, GPU by GPU."""
    from stages.owned import CLAIM

    for each in bought:
        large = each.ratio_large
        most = "" if large is None else f", {large:.1f} times what the dearest of the large clouds asks"
        break_even = each.break_even(assumed)
        when = f"in use for {break_even:.0%} of its hours" if break_even <= 1 else "at no use"
        verdict = "at least" if max(each.ratio, large or 0.0) >= CLAIM else "not"
        yield (
            f"Bought {each.bought.gpu} for {each.bought.usd:,.0f} US dollars ({each.bought.source}): "
            f"{each.owned_usd_per_hour:.2f} an hour of use against {each.cheapest.usd_per_gpu_hour:.2f} rented "
            f"({each.cheapest.machine}): {each.ratio:.1f} times cheaper{most}; {verdict} {CLAIM:g} times. It costs as "
            f"much as the cheapest rent {when}. At most {each.bought.watts:g} W ({each.bought.watts_source})."
        )
    yield f"Owning: {assumed.in_words}. Prices of other GPUs are for you to give: --buy T4=700."


def _cells(step: Step) -> tuple[str, str, str, str]:
    from simulator.plan_plots import short_name

    if step.tried is None:
        return f"not enough: {step.why}", "–", "–", "–"
    batch, name = step.tried.candidate.max_batch_size, short_name(step.tried).partition(",")[0]
    cheapest = f"{name}, batches of {batch}" if batch > 1 else name
    return cheapest, f"{step.usd_per_day:,.2f}", f"{step.usd_per_1000:.3g}", _time(step.p95_s)


def _beside_cells(each: Beside) -> tuple[str, str, str, str, str]:
    from simulator.plan_plots import short_name

    def money(usd: float, of: str = "") -> str:
        return f"{usd:,.2f}{of}" if math.isfinite(usd) else "–"

    up = "" if each.up is None else f" ({each.up.candidate.gpu})"
    several = "" if each.out is None else f" ({short_name(each.out)})"
    costs = money(each.on_demand_usd), money(each.spot_usd), money(each.up_usd, up), money(each.out_usd, several)
    return f"{each.users:,}", *costs


def _limit_in_words(stage: str, enough: int, beyond: int | None) -> str:
    if beyond is None:
        return f"{stage}: enough for all that was tried ({enough:,} users a day)."
    if not enough:
        return f"{stage}: not enough for {beyond:,} users a day, nor for more."
    return f"{stage}: enough for {enough:,} users a day, not for {beyond:,}."


def _time(seconds: float) -> str:
    if seconds < 1.0:
        return f"{1e3 * seconds:.3g} ms"
    return f"{seconds:.3g} s" if seconds < 120.0 else f"{seconds / 3600:.2g} h"
