"""Who served what: each replica's share of the answers, measured beside predicted.

    runs of both worlds ──▶ shares ──▶ print_shares, report.html

A function of records; of interest where there are several replicas.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import polars as pl
from rich import box
from rich.console import Console
from rich.table import Table

from stages.records import Records


class BothWorlds(Protocol):
    """A real run and its prediction."""

    @property
    def measured(self) -> Records: ...
    @property
    def predicted(self) -> Records: ...


@dataclass(frozen=True)
class Share:
    """One replica at one load: medians over the repeats of its share of all answers, 0 to 1."""

    load: float
    replica: int
    device: str
    measured: float
    predicted: float


def shares(by_load: Mapping[float, Sequence[BothWorlds]]) -> list[Share]:
    """A row for each load and replica, loads in the order given; none where there is one replica."""
    result = []
    for load, runs in by_load.items():
        devices = _devices(runs)
        measured = [_of(run.measured) for run in runs]
        predicted = [_of(run.predicted) for run in runs]
        for replica, device in devices.items():
            middle = [float(np.median([found.get(replica, 0.0) for found in world])) for world in (measured, predicted)]
            result.append(Share(load, replica, device, *middle))
    return result if len({share.replica for share in result}) > 1 else []


def print_shares(found: Sequence[Share], console: Console) -> None:
    """Prints who served what, a block a load; nothing where there is one replica."""
    if not found:
        return
    table = Table(title="Share of the answers", title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("load", justify="right")
    table.add_column("replica")
    for name in ("measured", "predicted", "error"):
        table.add_column(name, justify="right", no_wrap=True)
    before = None
    for share in found:
        if share.load != before:
            table.add_section()
        table.add_row(
            f"{share.load:g}" if share.load != before else "",
            f"{share.replica}, {share.device}",
            f"{share.measured:.1%}",
            f"{share.predicted:.1%}",
            f"{100 * (share.predicted - share.measured):+.1f} pt",
        )
        before = share.load
    console.print(table)


def _devices(runs: Sequence[BothWorlds]) -> dict[int, str]:
    """Replica → device, of every replica that any of the runs had in either world."""
    frames = [records.replicas.select("replica", "device") for run in runs for records in (run.predicted, run.measured)]
    return {} if not frames else dict(pl.concat(frames).unique("replica", keep="first").sort("replica").iter_rows())


def _of(records: Records) -> dict[int, float]:
    """Replica → its share of the answers."""
    answered = records.requests.filter(pl.col("outcome") == "ok").drop_nulls("replica")
    counts = answered.group_by("replica").len()
    return {replica: count / answered.height for replica, count in counts.iter_rows()}
