"""The verb `rung prices`: machines, what an hour of each costs, as of when, and who says so."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from stages.terminal import Exit, JsonOption, PricesOption, fail, out, print_json, teaching

if TYPE_CHECKING:
    from stages.prices import Price


def prices(
    gpu: Annotated[
        str | None, typer.Option("--gpu", metavar="GPU", help="Only machines with it: T4, A100; none for no GPU.")
    ] = None,
    spot: Annotated[bool, typer.Option("--spot", help="Only spot prices.")] = False,
    prices_: PricesOption = None,
    json_: JsonOption = False,
) -> None:
    """List the machines that cost.machine can name: what an hour of one costs, as of when, and who says so."""
    from stages.prices import prices as every_row

    with teaching():
        rows = [row for row in every_row() if (gpu is None or _has(row, gpu)) and (not spot or row.pricing == "spot")]
        known = dict.fromkeys(row.gpu_family for row in every_row())
    if not rows:
        fail(_nothing(gpu, spot, list(known)), Exit.MISUSED)
    if json_:
        more = ("machine", "gpu_family", "usd_per_gpu_hour")
        print_json([asdict(row) | {name: getattr(row, name) for name in more} for row in rows])
        return
    _print(rows)


def _has(row: Price, gpu: str) -> bool:
    return gpu.lower() in (row.gpu_family.lower(), row.gpu.lower() or "none")


def _nothing(gpu: str | None, spot: bool, known: list[str]) -> str:
    from stages.problems import did_you_mean

    if gpu is None or gpu.lower() in (family.lower() for family in known):
        of = "" if gpu is None else f" of {gpu}"
        return f"--spot: must leave a price to list, got none{of}. There is nothing to show. Leave --spot out."
    remedy = did_you_mean(gpu, known, f"There are {', '.join(known)}.")
    return f"--gpu {gpu}: must be a GPU of the price list. No machine with it has a price. {remedy}"


def _print(rows: list[Price]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for header in ("machine", "GPU", "contract", "dollars/h", "a GPU", "region"):
        table.add_column(header, overflow="fold", justify="right" if header in ("dollars/h", "a GPU") else "left")
    for column in (0, 2):
        table.columns[column].no_wrap = True
    told: dict[str, list[str]] = {}
    for row in rows:
        gpus = f"{row.gpu_count} x {row.gpu}" if row.gpu_count > 1 else row.gpu or "none"
        share = f"{row.usd_per_gpu_hour:.4g}" if row.gpu_count else "-"
        table.add_row(row.machine, gpus, row.pricing, f"{row.usd_per_hour:g}", share, row.region)
        told.setdefault(f"{row.source}; {row.as_of}", []).append(row.machine)
    out.print(table, soft_wrap=False)
    for source, machines in told.items():
        of = ", ".join(dict.fromkeys(machines))
        out.print(f"Source of {of}: {source}", markup=False, highlight=False)
    out.print(
        "In US dollars. Prices change: a row is a fact of its date. Your own go into a file that RUNG_PRICES or "
        "--prices names, or into cost.usd_per_hour.",
        highlight=False,
    )
