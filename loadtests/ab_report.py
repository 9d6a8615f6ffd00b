"""What the verbs of `rung ab` print: plans, simulated experiments, and how a real one stands.

    Plan, Stops, Status ──▶ document: plain values, as --json prints them ──▶ table

No twin: text only.
"""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from loadtests.ab_status import Arm, Figure, Status, duration
from loadtests.wording import NOTHING, digits
from simulator.experiments import NEVER, Design, Plan, Stops
from stages.policies.fixed_horizon import duration_s, power, wilson

_Z_SQUARED = 1.96**2  # of the intervals of simulated shares
_SEEN = (0.5, 0.8, 0.95)  # of the experiments


def plan_document(
    found: Plan, traffic: tuple[float, float, float, float], question: tuple[float, float, float, float]
) -> dict[str, Any]:
    """A plan as plain values. `traffic`: rate, the challenger's share, the share of labels, their delay in seconds.
    `question`: baseline, effect, alpha, power."""
    rate_rps, share, labelled_share, delay_s = traffic
    baseline, effect, alpha, wanted = question

    def row(name: str, requests: float) -> dict[str, Any]:
        seconds = duration_s(requests, rate_rps, labelled_share, delay_s)
        return {"test": name, "requests": requests, "challenger_requests": requests * share, "duration_s": seconds}

    rows = [row("fixed", float(found.fixed))]
    rows += [row(f"sequential_p{100 * level:g}", found.quantile(level)) for level in _SEEN]
    rows.append(row("sequential_by_formula", float(found.at_latest)))
    stopped = found.found
    return {
        "baseline": baseline,
        "effect": effect,
        "alpha": alpha,
        "power": wanted,
        "rate_rps": rate_rps,
        "share": share,
        "labelled_share": labelled_share,
        "delay_s": delay_s,
        "tuned_at": found.tuned_at,
        "rows": rows,
        "experiments": int(found.stops.size),
        "found_share": float(stopped.size / found.stops.size),
        "mean_requests": float(_or(found.stops, found.given_up_at).mean()),
    }


def print_plan(told: dict[str, Any], out: Console) -> None:
    """A plan as a table."""
    out.print(
        f"To see {100 * told['effect']:+g} points at {100 * told['baseline']:g} % right answers with probability "
        f"{told['power']:g}, and find nothing where there is nothing with {1 - told['alpha']:g}:"
    )
    table = Table("looked at", "labelled requests", "of the challenger", "time", box=SIMPLE_HEAD, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    names = {
        "fixed": "once, at the end",
        "sequential_by_formula": f"always: {100 * told['power']:g} %, at most (formula)",
    }
    for level in _SEEN:
        names[f"sequential_p{100 * level:g}"] = f"always: {100 * level:g} % are over"
    for row in told["rows"]:
        seconds = row["duration_s"]
        counts = (_count(row["requests"]), _count(row["challenger_requests"]))
        table.add_row(names[row["test"]], *counts, duration(seconds) if math.isfinite(seconds) else "later")
    out.print(table)
    out.print(
        f"Always: of {told['experiments']:,} simulated experiments {100 * told['found_share']:.0f} % found it, after "
        f"{told['mean_requests']:,.0f} requests in the mean.",
        highlight=False,
    )


def simulated_document(
    design: Design, size: int, null: Stops, there: Stops, looked: tuple[NDArray[np.bool_], NDArray[np.bool_]]
) -> dict[str, Any]:
    """Simulated experiments as plain values: `null` without a difference, `there` with it, `looked` once at the end."""
    once_null, once_there = looked
    rows = [
        _test("z test, one look", once_null, once_there, None, design.requests),
        _test(
            "z test, peeks",
            null.naive != NEVER,
            _by(there.naive, size),
            there.naive,
            design.requests,
        ),
        _test(
            "sequential, peeks",
            null.sequential != NEVER,
            _by(there.sequential, size),
            there.sequential,
            design.requests,
        ),
    ]
    return {
        "baseline": design.baseline,
        "effect": design.effect,
        "share": design.share,
        "alpha": design.alpha,
        "experiments": int(null.naive.size),
        "requests": size,
        "longest_requests": design.requests,
        "tests": rows,
        "one_look_power_by_formula": power(design.baseline, design.effect, design.share, design.alpha, size),
        "wrong_sign_share": there.wrong_sign / there.sequential.size,
    }


def print_simulated(told: dict[str, Any], out: Console) -> None:
    """Simulated experiments as a table."""
    out.print(
        f"{told['experiments']:,} experiments of {told['requests']:,} labelled requests each, "
        f"{100 * told['baseline']:g} % right, {100 * told['share']:g} % for the challenger:",
        highlight=False,
    )
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("test", no_wrap=True)
    for name in ("false positives", "95 % interval", f"finds {100 * told['effect']:+g} pt", "mean requests"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in told["tests"]:
        low, high = row["false_positive_interval"]
        mean = row["mean_requests"]
        table.add_row(
            row["test"],
            f"{100 * row['false_positive_share']:.2f} %",
            f"{100 * low:.2f} to {100 * high:.2f}",
            f"{100 * row['found_share']:.1f} %",
            NOTHING if mean is None else _count(mean),
        )
    out.print(table)
    tests = {row["test"].split(",")[0]: row for row in told["tests"]}
    out.print(
        f"Peeks: a look after every request. Nominal: {100 * told['alpha']:g} %. Within {told['longest_requests']:,} "
        f"requests the sequential test finds it in {100 * tests['sequential']['found_in_the_end_share']:.1f} %. "
        "The mean is of the requests until it is found, or given up there.",
        highlight=False,
    )


def print_status(found: Status, out: Console) -> None:
    """How a real experiment stands, as tables and a verdict."""
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(found.since_at))
    length = duration(max(0.0, found.until_at - found.since_at))
    out.print(f"[bold]{found.stage}[/bold] since {when}, {length}", highlight=False)
    arms = [arm for arm in (found.champion, found.challenger) if arm is not None]
    table = Table("", *(f"{arm.arm or 'all'}: {arm.version}" for arm in arms), box=SIMPLE_HEAD, pad_edge=False)
    for name, cells in zip(_LINES, zip(*(_cells(arm) for arm in arms), strict=True), strict=True):
        table.add_row(name, *cells)
    out.print(table)
    if found.difference is not None and found.one_look is not None and found.one_look_p is not None:
        out.print(f"Difference: {_points(found.difference)}, at every look", highlight=False)
        out.print(
            f"            {_points(found.one_look)}, at one look (p = {found.one_look_p:.3g}): holds if this one, at "
            f"about {found.planned or 0:,} labels, is the only one",
            highlight=False,
        )
    if found.decided_after is not None:
        gone = duration(found.decided_after_s or 0.0)
        out.print(f"First told apart after {found.decided_after:,} labels, {gone} from the beginning.", highlight=False)
    if (slower := found.latency_difference_s) is not None:
        out.print(f"Latency:    {_of(slower, 1e3, ' ms', signed=True)}, of the means, at every look", highlight=False)
    out.print(f"[bold]{found.verdict}[/bold]", highlight=False)
    if any(math.isfinite(arm.latency_s_mean.low) for arm in arms):
        out.print("Each interval holds by itself. Those of times take requests for independent, and are too narrow.")


_LINES = (
    *("predictions", "labels in time", "labels late", "right answers"),
    *("latency mean", "latency p95", "on the device", "dollars per 1000"),
)


def _cells(arm: Arm) -> list[str]:
    counts = arm.counts
    dollars = NOTHING if arm.usd_per_1000 is None else _of(arm.usd_per_1000, 1.0, "")
    return [
        *(f"{count:,}" for count in (counts.predictions, counts.labelled, counts.late)),
        _of(arm.accuracy, 100.0, " %"),
        *(_of(each, 1e3, " ms") for each in (arm.latency_s_mean, arm.latency_s_p95, arm.device_s_mean)),
        dollars,
    ]


def _points(figure: Figure) -> str:
    return _of(figure, 100.0, " points", signed=True)


def _of(figure: Figure, factor: float, unit: str, signed: bool = False) -> str:
    """A value with its interval; only as much as there is to tell."""

    def shown(value: float) -> str:
        if not math.isfinite(value):
            return NOTHING
        return f"{factor * value:+.2f}" if signed else digits(factor * value) if unit else f"{factor * value:.3g}"

    if math.isnan(figure.value):
        return NOTHING
    return f"{shown(figure.value)}{unit} ({shown(figure.low)} to {shown(figure.high)})"


def _test(
    name: str, null: NDArray[np.bool_], there: NDArray[np.bool_], stops: NDArray[np.int64] | None, given_up_at: int
) -> dict[str, Any]:
    wrong = int(null.sum())
    low, high = wilson(wrong, null.size, _Z_SQUARED)
    return {
        "test": name,
        "false_positive_share": wrong / null.size,
        "false_positive_interval": [float(low), float(high)],
        "found_share": float(there.mean()),
        "found_in_the_end_share": float((there if stops is None else stops != NEVER).mean()),
        "mean_requests": None if stops is None else float(_or(stops, given_up_at).mean()),
        "median_requests": None if stops is None else float(np.median(_or(stops, given_up_at))),
    }


def _by(stops: NDArray[np.int64], requests: int) -> NDArray[np.bool_]:
    return np.asarray((stops != NEVER) & (stops <= requests), dtype=np.bool_)


def _or(stops: NDArray[np.int64], given_up_at: int) -> NDArray[np.int64]:
    """The requests that an experiment took: those until it was given up, where nothing was found."""
    return np.where(stops == NEVER, given_up_at, stops)


def _count(requests: float) -> str:
    return f"{requests:,.0f}" if math.isfinite(requests) else NOTHING
