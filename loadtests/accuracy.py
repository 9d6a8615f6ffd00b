"""The tables of the README: the worst errors of every kept result, as Markdown, out of stages/*/measured/*.json.

    python -m loadtests.accuracy

Nothing is measured or predicted here. An error inside the spread of the repeats has the spread beside it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stages.spec import stage_files
from stages.terminal import out

ROOT = Path(__file__).resolve().parents[1]
COLUMNS = ("throughput_rps", "latency_s_p50", "latency_s_p95", "latency_s_p99")
ARRIVALS = {"poisson": "Poisson", "gamma-cv-3": "bursts (gamma, CV 3)", "azure-trace": "Azure trace"}
FLEET_HEAD = "| fleet | policy | loads | throughput | p50 | p95 | p99 |"
HEAD = "| stage | device | arrivals | loads | throughput | p50 | p95 | p99 | at 1.2: throughput, shed share |"

Row = dict[str, Any]


def table() -> Iterator[str]:
    """The lines of the table of comparisons, one each."""
    yield from _head(HEAD)
    for stage, path, document in _kept():
        if path.stem.endswith(tuple(ARRIVALS)):
            yield _line(stage, path, document)


def fleets() -> Iterator[str]:
    """The lines of the table of fleets: one for each policy under which a fleet was compared."""
    yield from _head(FLEET_HEAD)
    for _, path, document in _kept():
        if "orders" in document:
            link = f"[{path.stem.replace('-', ' ')}]({path.relative_to(ROOT).as_posix()})"
            for policy in dict.fromkeys(row["policy"] for row in document["rows"]):
                rows = [row for row in document["rows"] if row["policy"] == policy]
                cells = [link, policy, _loads(rows), *(_told(worst(rows, metric)) for metric in COLUMNS)]
                yield f"| {' | '.join(cells)} |"


def _kept() -> Iterator[tuple[str, Path, dict[str, Any]]]:
    """Stage, file and content of every kept result."""
    for stage, file in stage_files().items():
        for path in sorted((file.parent / "measured").glob("*.json")):
            yield stage, path, json.loads(path.read_text(encoding="utf-8"))


def _head(titles: str) -> Iterator[str]:
    yield titles
    yield "|---" * (titles.count("|") - 1) + "|"


def _loads(rows: list[Row]) -> str:
    """From which load to which there are sound runs, below capacity."""
    sound = sorted({row["load"] for row in rows if not row["void"] and row["load"] < 1.0})
    return f"{sound[0]:g} to {sound[-1]:g}" if sound else "none sound"


def worst(rows: list[Row], metric: str) -> Row | None:
    """The row of a metric with the largest error below capacity, sound runs only; None where there is none."""
    below = [row for row in rows if row["metric"] == metric and row["load"] < 1.0 and not row["void"]]
    return max(below, key=lambda row: abs(row["error"]), default=None)


def _line(stage: str, path: Path, document: dict[str, Any]) -> str:
    rows: list[Row] = document["rows"]
    arrivals = next(words for ending, words in ARRIVALS.items() if path.stem.endswith(ending))
    cells = [stage, document["device"], f"[{arrivals}]({path.relative_to(ROOT).as_posix()})", _loads(rows)]
    cells += [_told(worst(rows, metric)) for metric in COLUMNS]
    above = {row["metric"]: row for row in rows if row["load"] == 1.2 and not row["void"]}
    overload = [_told(above.get("throughput_rps")), _told(above.get("shed_share"), "pt")]
    cells.append(", ".join(overload) if above else "")
    return f"| {' | '.join(cells)} |"


def _told(row: Row | None, unit: str = "%") -> str:
    """An error in per cent or percentage points; in brackets how far the repeats themselves lay apart, if further."""
    if row is None:
        return ""
    text = f"{100 * row['error']:+.1f} {unit}"
    middle = row["measured"] if unit == "%" else 1.0
    low, high = (100 * (row[key] - row["measured"]) / middle for key in ("spread_low", "spread_high"))
    inside = row["spread_low"] <= row["predicted"] <= row["spread_high"]
    return f"{text} ({low:+.0f} to {high:+.0f})" if inside and abs(row["error"]) > 0.01 else text


def main() -> None:
    """Prints the tables."""
    for line in (*table(), "", *fleets()):
        out.print(line, soft_wrap=True, markup=False, highlight=False)


if __name__ == "__main__":
    main()
