"""What a rehearsal says: a table for the terminal, and report.json.

No twin: it stands above both worlds.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import orjson
from rich import box
from rich.console import Console
from rich.table import Table

from loadtests.drill_report import shown, spread
from loadtests.rehearse import Out, Rehearsal

LEGEND = (
    "predicted: with the very inputs that were sent; least to most: with other ones, labels and hops. "
    "Seconds count from the beginning of the ramp; never: not within the run."
)


def print_table(found: Rehearsal, console: Console) -> None:
    """Prints measured beside predicted, then what is to be known about the figures."""
    split = found.stage.split
    head = f"{found.stage.title}: the challenger {split.challenger if split else ''} in production"
    head += ", short run" if found.short else ""
    table = Table(title=head, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("", no_wrap=True)
    for name in ("measured", "predicted", "least to most"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in found.rows:
        table.add_row(row.name, shown(row, row.measured), shown(row, row.predicted), spread(row))
    console.print(table)
    for line in (LEGEND, "", in_words(found), *notes(found)):
        console.print(line, markup=False, highlight=False)


def in_words(found: Rehearsal) -> str:
    """What became of the challenger, in both worlds."""
    return f"Measured: {_ending(found.measured)}. Predicted: {_ending(found.predicted)}."


def notes(found: Rehearsal) -> list[str]:
    """What is to be known about the figures."""
    lines = [f"void: {found.void}"] if found.void else []
    return [*lines, *(f"caveat: {caveat}" for caveat in found.caveats)]


def write(found: Rehearsal, folder: Path) -> Path:
    """Writes report.json; gives back its path."""
    options = orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE | orjson.OPT_SERIALIZE_NUMPY
    path = folder / "report.json"
    path.write_bytes(orjson.dumps(document(found), option=options))
    return path


def document(found: Rehearsal) -> dict[str, Any]:
    """The rehearsal as report.json has it and `--json` prints it; NaN where something did not happen."""
    return {
        "stage": found.stage.name,
        "challenger": found.stage.split.challenger if found.stage.split else "",
        "rows": [asdict(row) for row in found.rows],
        "measured": asdict(found.measured),
        "predicted": asdict(found.predicted),
        "dice": [asdict(out) for out in found.dice],
        "result": in_words(found),
        "void": found.void,
        "notes": notes(found),
        "short": found.short,
        "machine": found.machine,
        "command": found.command,
        "made_at": found.made_at,
    }


def _ending(out: Out) -> str:
    return f"out after {out.at_s:.1f} s, by the guardrail {out.guardrail}: {out.why}" if out.guardrail else out.why
