"""One kept result as a section of tutorials/accuracy.md: where it comes from, and every load of it.

    report.json ──▶ a row a load      policies.json ──▶ a row a load and policy      spikes, drills ──▶ a row a figure

No twin: text only. A result of another kind gets its origin and what it says of itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from loadtests import drill_figures, drill_report
from loadtests.wording import METRICS, NOTHING, number, shown, shown_error

Row = dict[str, Any]

SHOWN = ("throughput_rps", "latency_s_p50", "latency_s_p95", "latency_s_p99", "shed_share", "utilisation", "hit_ratio")


def section(name: str, link: str, document: dict[str, Any], drawn: bool = False) -> Iterator[str]:
    """The lines of the section of a result: `name` is of its file, `link` leads there, and to a picture if `drawn`."""
    void = document.get("void_runs") or []
    picture = f" [Picture]({link.removesuffix('.json')}.png)." if drawn else ""
    parts = (
        [f"### {name.replace('-', ' ')}"],
        [f"{_of(document)} [All figures]({link}).{picture}"],
        [*_rows(document.get("rows", []))],
        [str(document["result"])] if document.get("result") else [],
        [f"Void runs, which count for nothing: {len(void)}. The first: {void[0]['why']}"] if void else [],
        [f"Void: {document['void']}"] if document.get("void") else [],
        [f"- {caveat}" for caveat in document.get("caveats") or document.get("notes") or []],
    )
    for part in parts:
        if part:
            yield from part
            yield ""


def _rows(rows: Sequence[Row]) -> Iterator[str]:
    """The table of a result, in the form of its kind."""
    first = rows[0] if rows else {}
    if "policy" in first:
        yield from _table(rows, ("load", "policy"))
    elif any(row.get("arm") for row in rows):
        yield from _table([{"arm": "both"} | row for row in rows], ("load", "arm"))
    elif "load" in first:
        yield from _table(rows, ("load",))
    elif "metric" in first:
        yield from _figures(rows)
    elif "name" in first:
        yield from _ranges(rows)


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


def _ranges(rows: Sequence[Row]) -> Iterator[str]:
    """A line a figure of a run whose prediction has a range: a drill, a rehearsal."""
    yield "| figure | measured | predicted | least to most |"
    yield "|---|---|---|---|"
    for row in rows:
        values = {key: math.nan if row[key] is None else row[key] for key in ("measured", "predicted", "low", "high")}
        figure = drill_figures.Row(row["name"], row["unit"], **values)
        told = (drill_report.shown(figure, figure.measured), drill_report.shown(figure, figure.predicted))
        yield f"| {' | '.join((figure.name.strip(), *told, drill_report.spread(figure)))} |"


def _plain(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.4g}"
