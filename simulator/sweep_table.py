"""What a sweep found, as a frame with a row a point, and in words: who meets the promise, and who does so for least.

    points, estimates ──▶ frame: axes, metric, metric_low, metric_high … ──▶ Parquet, plots
                     └──▶ verdict: met, missed, or either ──▶ cheapest, and those that may be as cheap
    columns of text ──▶ fitting: those that a terminal is wide enough for

No twin.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import polars as pl

from simulator.estimate import Estimate
from simulator.grid import Point
from stages.problems import shown
from stages.spec import Stage

Verdict = Literal["met", "missed", "either"]


def frame(points: Sequence[Point], estimates: Sequence[Estimate]) -> pl.DataFrame:
    """A row a point: what was changed, whether it is overloaded, and each metric with its 95 % interval."""
    columns: dict[str, list[Any] | pl.Series] = {"point": list(range(len(points)))}
    for key in points[0].changes if points else ():
        values = [point.changes[key] for point in points]
        numbers = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values)
        columns[key] = pl.Series(values, strict=False) if numbers else [text_of(value) for value in values]
    columns["overloaded"] = [bool(point.overloaded) for point in points]
    for metric in estimates[0].values if estimates else ():
        found = [estimate[metric] for estimate in estimates]
        columns[metric] = [interval.mean for interval in found]
        columns[f"{metric}_low"] = [interval.low for interval in found]
        columns[f"{metric}_high"] = [interval.high for interval in found]
    return pl.DataFrame(columns)


def verdict(stage: Stage, estimate: Estimate) -> Verdict:
    """Whether the promise of the stage is kept: a share of the requests within its latency; "either" where the
    interval has both in it."""
    share = estimate["slo_share"]
    low, high = (share.mean, share.mean) if math.isnan(share.low) else (share.low, share.high)
    if low >= stage.slo.share:
        return "met"
    return "missed" if high < stage.slo.share or math.isnan(share.mean) else "either"


def cheapest(points: Sequence[Point], estimates: Sequence[Estimate]) -> tuple[int, list[int]] | None:
    """Number of the point that meets its promise for the least dollars per 1,000 good answers, and of those that
    cannot be told from it: the interval of the paired difference has 0 in it. None where no point does, or no dollars
    are known."""
    meeting = [
        number
        for number, (point, estimate) in enumerate(zip(points, estimates, strict=True))
        if verdict(point.stage, estimate) == "met" and math.isfinite(estimate["cost_usd_per_1000"].mean)
    ]
    if not meeting:
        return None
    best = min(meeting, key=lambda number: estimates[number]["cost_usd_per_1000"].mean)
    others = [number for number in meeting if number != best and _like(estimates[number], estimates[best])]
    return best, others


def _like(one: Estimate, best: Estimate) -> bool:
    difference = one.difference(best, "cost_usd_per_1000")
    return difference.low <= 0.0 <= difference.high


def text_of(value: Any) -> str:
    """A value of an axis as a person writes it."""
    return value if isinstance(value, str) else shown(value) if not isinstance(value, list) else str(value)


@dataclass(frozen=True)
class Column:
    """A column of the printed table. `spare`: 0 is always shown; of the others the smallest comes in first."""

    heading: str
    cells: list[str]
    spare: int = 0


def fitting(columns: Sequence[Column], width: int) -> tuple[list[Column], list[str]]:
    """Those that lines of `width` characters hold, and the headings of the others: what can be spared least comes in
    first."""
    kept = [column for column in columns if not column.spare]
    for column in sorted((each for each in columns if each.spare), key=lambda each: each.spare):
        with_it = [each for each in columns if each in kept or each is column]
        if _characters(with_it) <= width:
            kept = with_it
    return kept, [column.heading for column in columns if column not in kept]


def _characters(columns: Sequence[Column]) -> int:
    """How wide a table is: its columns, three characters between two of them, and one at each end."""
    widest = [max(len(text) for text in (column.heading, *column.cells)) for column in columns]
    return sum(widest) + 3 * (len(widest) - 1) + 2
