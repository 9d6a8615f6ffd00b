"""What a drill comes to: who was out of rotation and when, what clients saw, measured beside predicted.

    Records, looks at the rotation ──▶ Seen, one a run ──▶ rows: measured │ predicted, least to most

A prediction is made for several phases of the gateway's probes, which nobody can know beforehand: what it says is the
middle of them, and from the least to the most.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import polars as pl

from stages.records import Records

Look = tuple[float, frozenset[int]]  # seconds since the schedule began, the replicas in rotation


@dataclass(frozen=True)
class Phases:
    """The three parts of a run: before `at_s`, then until `ends_s`, when the failure is over, and what comes after."""

    at_s: float
    ends_s: float

    def named(self) -> dict[str, tuple[float, float]]:
        """Name → from when to when requests of that part were due."""
        return {"before": (0.0, self.at_s), "during": (self.at_s, self.ends_s), "after": (self.ends_s, math.inf)}


@dataclass(frozen=True)
class Seen:
    """One run in figures. Times in seconds; NaN for what did not happen within the run."""

    requests: int
    not_answered: int
    retries: int
    worst_second: int  # most requests due within one second that were not answered
    out_s: float  # from the strike until the replica was out of rotation
    back_s: float  # from the strike until it was in rotation for good
    slowest_s: float  # the longest wait for an answer
    p95_s: dict[str, float]  # of the answers to the requests of each part
    reasons: dict[str, int] = field(default_factory=dict)  # of those that were not answered
    done_s: float = math.nan  # from its beginning to the end of a rolling restart
    in_rotation_min: int = 0  # fewest replicas in rotation from the strike on


@dataclass(frozen=True)
class Row:
    """One line of the table. NaN stands for what did not happen; `low` to `high` is what all the predictions say."""

    name: str
    unit: str  # "s", "ms" or ""
    measured: float
    predicted: float
    low: float
    high: float


def seen(
    records: Records, looks: Sequence[Look], replica: int | None, phases: Phases, done_s: float = math.nan
) -> Seen:
    """The figures of one run. `replica` is the one that failed; None where all were restarted."""
    requests = records.requests
    lost = requests.filter(pl.col("outcome") != "ok")
    ok = requests.filter(pl.col("outcome") == "ok").with_columns(
        (pl.col("replied_s") - pl.col("scheduled_s")).alias("s")
    )
    out_s, back_s = (math.nan, math.nan) if replica is None else outage_s(looks, replica, phases.at_s)
    worst = lost.group_by((pl.col("scheduled_s") // 1.0).alias("second")).len()["len"].max()
    reasons = dict(sorted(lost["reason"].cast(pl.String).value_counts().iter_rows()))
    slowest_s = ok["s"].max()
    return Seen(
        requests=requests.height,
        not_answered=lost.height,
        retries=int((requests["tries"].drop_nulls() - 1).clip(0).sum()),
        worst_second=int(worst) if isinstance(worst, int) else 0,
        out_s=out_s,
        back_s=back_s,
        slowest_s=float(slowest_s) if isinstance(slowest_s, float) else math.nan,
        p95_s={name: _p95_s(ok, *span) for name, span in phases.named().items()},
        reasons=reasons,
        done_s=done_s,
        in_rotation_min=min((len(inside) for at_s, inside in looks if at_s >= phases.at_s), default=0),
    )


def outage_s(looks: Sequence[Look], replica: int, at_s: float) -> tuple[float, float]:
    """From `at_s`: until the replica was first out of rotation, and until it was back for good. NaN for never."""
    since = [(look_s, replica in inside) for look_s, inside in looks if look_s >= at_s]
    out_s = next((look_s for look_s, inside in since if not inside), math.nan)
    if math.isnan(out_s) or not since[-1][1]:
        return out_s - at_s, math.nan
    last_out = max(index for index, (_, inside) in enumerate(since) if not inside)
    return out_s - at_s, since[last_out + 1][0] - at_s


def rows(measured: Seen, predicted: Sequence[Seen], *, restart: bool) -> list[Row]:
    """Measured beside predicted, a line a figure; figures that a restart, or a failure, does not have are left out."""
    found = [
        _row("requests", "", measured, predicted, lambda one: one.requests),
        _row("not answered", "", measured, predicted, lambda one: one.not_answered),
    ]
    for reason in sorted({reason for one in (measured, *predicted) for reason in one.reasons}):

        def of_reason(one: Seen, reason: str = reason) -> float:
            return one.reasons.get(reason, 0)

        found.append(_row(f"  {reason}", "", measured, predicted, of_reason))
    found += [
        _row("not answered, worst second", "", measured, predicted, lambda one: one.worst_second),
        _row("tried again", "", measured, predicted, lambda one: one.retries),
    ]
    if restart:
        found.append(_row("the restart took", "s", measured, predicted, lambda one: one.done_s))
        found.append(_row("fewest in rotation", "", measured, predicted, lambda one: one.in_rotation_min))
    else:
        found.append(_row("out of rotation after", "s", measured, predicted, lambda one: one.out_s))
        found.append(_row("back in rotation after", "s", measured, predicted, lambda one: one.back_s))
    for part in measured.p95_s:

        def of_part(one: Seen, part: str = part) -> float:
            return one.p95_s[part]

        found.append(_row(f"latency p95 {part}", "ms", measured, predicted, of_part))
    found.append(_row("slowest answer", "ms", measured, predicted, lambda one: one.slowest_s))
    return found


def _row(name: str, unit: str, measured: Seen, predicted: Sequence[Seen], figure: Callable[[Seen], float]) -> Row:
    values = np.array([figure(one) for one in predicted], dtype=np.float64)
    finite = values[np.isfinite(values)]
    if 2 * finite.size <= values.size:  # most of them say that it does not happen
        return Row(name, unit, float(figure(measured)), math.nan, math.nan, math.nan)
    middle = float(np.median(finite))
    return Row(name, unit, float(figure(measured)), middle, float(finite.min()), float(finite.max()))


def _p95_s(answered: pl.DataFrame, from_s: float, until_s: float) -> float:
    within = answered.filter(pl.col("scheduled_s").is_between(from_s, until_s, "left"))["s"].to_numpy()
    return float(np.percentile(within, 95)) if within.size else math.nan


def by_second(records: Records) -> pl.DataFrame:
    """A row a second of the schedule: second, due, answered, not_answered, p95_s (NaN without an answer)."""
    latency_s = pl.col("replied_s") - pl.col("scheduled_s")
    ok = pl.col("outcome") == "ok"
    frame = (
        records.requests.with_columns((pl.col("scheduled_s") // 1.0).cast(pl.Int64).alias("second"))
        .group_by("second")
        .agg(
            pl.len().alias("due"),
            ok.sum().alias("answered"),
            (~ok).sum().alias("not_answered"),
            latency_s.filter(ok).quantile(0.95, "linear").fill_null(math.nan).alias("p95_s"),
        )
    )
    seconds = pl.DataFrame({"second": range(math.ceil(records.window_s))}, schema={"second": pl.Int64})
    counts = [pl.col(name).fill_null(0) for name in ("due", "answered", "not_answered")]
    return seconds.join(frame, on="second", how="left").with_columns(*counts, pl.col("p95_s").fill_null(math.nan))
