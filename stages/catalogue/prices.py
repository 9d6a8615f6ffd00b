"""The price list: what a machine with one GPU costs an hour, read by others, with its date and source in every row.

    prices.csv ──▶ prices() ──▶ stages/cost.py, `rung prices`

Prices change and differ by region; a row is a fact of its date, and `cost.usd_per_hour` takes any other.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cache
from pathlib import Path


@dataclass(frozen=True)
class Price:
    """One machine with one GPU, under one kind of contract."""

    machine: str
    provider: str
    instance: str
    gpu: str  # "T4 16GB"
    pricing: str  # "on-demand" or "spot"
    usd_per_hour: float
    region: str
    as_of: str
    source: str

    @property
    def gpu_family(self) -> str:
        """The GPU without its memory: "T4", "A100"."""
        return gpu_family(self.gpu)


def gpu_family(name: str) -> str:
    """The family of a GPU by a catalogue's name for it: "A100" of "A100-SXM4-40GB" and of "A100 80GB PCIe"."""
    return name.replace("-", " ").split(" ")[0]


@cache
def prices() -> dict[str, Price]:
    """Every price by the machine's name, in the order of the file."""
    with (Path(__file__).parent / "prices.csv").open(encoding="utf-8", newline="") as file:
        rows = [row | {"usd_per_hour": float(row["usd_per_hour"])} for row in csv.DictReader(file)]
    return {str(row["machine"]): Price(**row) for row in rows}  # type: ignore[arg-type]
