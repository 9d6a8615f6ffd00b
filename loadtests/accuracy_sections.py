"""One kept result as a section of tutorials/accuracy.md: where it comes from, and every load of it.

    report.json ──▶ a row a load      policies.json ──▶ a row a load and policy      spike.json ──▶ a row a figure

No twin: text only. A result of another kind gets its origin and what it says of itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from loadtests.wording import METRICS, NOTHING, number, shown, shown_error

Row = dict[str, Any]

SHOWN = ("throughput_rps", "latency_s_p50", "latency_s_p95", "latency_s_p99", "shed_share", "utilisation", "hit_ratio")


def section(name: str, link: str, document: dict[str, Any]) -> Iterator[str]:
    """The lines of the section of a result; `name` is its file's, `link` leads there."""
    yield f"### {name.replace('-', ' ')}"
    yield ""
    yield f"{_of(document)} [All figures]({link})."
    yield ""
    rows: list[Row] = document.get("rows", [])
    if rows and "policy" in rows[0]:
        yield from _table(rows, ("load", "policy"))
    elif any(row.get("arm") for row in rows):
        yield from _table([{"arm": "both"} | row for row in rows], ("load", "arm"))
    elif rows and "load" in rows[0]:
        yield from _table(rows, ("load",))
    elif rows and "metric" in rows[0]:
        yield from _figures(rows)
    yield ""
    if result := document.get("result"):
        yield str(result)
        yield ""
    void = document.get("void_runs") or []
    if void:
        yield f"Void runs, which count for nothing: {len(void)}. The first: {void[0]['why']}"
        yield ""
    for caveat in document.get("caveats") or []:
        yield f"- {caveat}"


def _of(document: dict[str, Any]) -> str:
    """Device, machine, day and command of a result, in sentences."""
    parts = [f"Device: {document['device']}."] if document.get("device") else []
    where = [str(document[key]) for key in ("machine",) if document.get(key)]
    where += [str(document["made_at"])[:10]] if document.get("made_at") else []
    parts += [f"Measured on: {', '.join(where)}."] if where else []
    parts += [f"By `{document['command']}`."] if document.get("command") else []
    return " ".join(parts)


def _table(rows: Sequence[Row], keys: tuple[str, ...]) -> Iterator[str]:
    """A line for each value of `keys`: what was measured, how far the repeats lay apart, and the error."""
    metrics = [metric for metric in SHOWN if any(row["metric"] == metric for row in rows)]
    yield f"| {' | '.join((*keys, *(METRICS[metric].label for metric in metrics)))} |"
    yield "|---" * (len(keys) + len(metrics)) + "|"
    lines: dict[tuple[Any, ...], dict[str, Row]] = {}
    for row in sorted(rows, key=lambda row: row["load"]):
        lines.setdefault(tuple(row[key] for key in keys), {})[row["metric"]] = row
    for values, of_line in lines.items():
        heads = [f"{value:g}" if isinstance(value, float) else str(value) for value in values]
        cells = [_cell(of_line.get(metric)) for metric in metrics]
        yield f"| {' | '.join((*heads, *cells))} |"


def _cell(row: Row | None) -> str:
    """`14.5 ms (14.3 to 14.5), error 0.0 %`, or that the runs were void."""
    if row is None or row["measured"] is None:
        return NOTHING
    metric, low, high = row["metric"], row["spread_low"], row["spread_high"]
    spread = (
        f" ({number(metric, low)} to {number(metric, high)})" if number(metric, low) != number(metric, high) else ""
    )
    if row["void"]:
        return f"{shown(metric, row['measured'])}{spread}, void"
    error = math.nan if row["error"] is None else row["error"]
    return f"{shown(metric, row['measured'])}{spread}, {shown_error(metric, error)}"


def _figures(rows: Sequence[Row]) -> Iterator[str]:
    """A line a figure, in the units of its name's end: of a run over time."""
    yield "| figure | measured | predicted | spread of the repeats |"
    yield "|---|---|---|---|"
    for row in rows:
        values = [_plain(row.get(key)) for key in ("measured", "predicted", "spread_low", "spread_high")]
        yield f"| {row['metric']} | {values[0]} | {values[1]} | {values[2]} to {values[3]} |"


def _plain(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.4g}"
