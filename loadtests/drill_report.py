"""What a drill says: a table for the terminal, report.json, and one picture over time.

No twin: it stands above both worlds.
"""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import orjson
from rich import box
from rich.console import Console
from rich.table import Table

from loadtests.drill import Drill, turns
from loadtests.drill_figures import Row, by_second
from loadtests.drill_picture import over_time
from loadtests.wording import digits
from simulator.plot_frame import png

TITLES = {
    "kill": "Replica {replica} was killed",
    "hang": "Replica {replica} hung",
    "slow": "Replica {replica} was {factor:g} times as slow",
    "refuse": "Replica {replica} refused connections",
    "cut": "Replica {replica} was cut off the network",
    "restart": "Every replica was replaced, one after the other",
}
NEVER = "never"
LEGEND = (
    "predicted: the middle and, from the least to the most, all moments at which the gateway's probes may be due. "
    "Seconds count from the failure, measured by a look every 0.05 s; never: not within the run."
)


def title(found: Drill) -> str:
    """What happened, in a few words."""
    return TITLES[found.plan.failure].format(replica=found.plan.replica, factor=found.plan.factor)


def print_table(found: Drill, console: Console) -> None:
    """Prints measured beside predicted, then what is to be known about the figures."""
    plan, phases = found.plan, found.phases
    lasts = f" for {phases.ends_s - phases.at_s:.3g} s" if plan.failure not in ("kill", "restart") else ""
    head = f"{found.stage.title}: {title(found).lower()} at {plan.at_s:g} s{lasts}, load {plan.load:g}"
    head += ", short run" if plan.short else ""
    table = Table(title=head, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("", no_wrap=True)
    for name in ("measured", "predicted", "least to most"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in found.rows:
        table.add_row(row.name, shown(row, row.measured), shown(row, row.predicted), spread(row))
    console.print(table)
    for line in (LEGEND, "", in_words(found), *notes(found)):
        console.print(line, markup=False, highlight=False)


def shown(row: Row, value: float) -> str:
    """A figure in the unit that people read."""
    if not math.isfinite(value):
        return NEVER if row.unit == "s" else "–"
    if row.unit == "":
        return f"{value:,.0f}"
    return f"{digits(1e3 * value)} ms" if row.unit == "ms" else f"{value:.2f} s"


def spread(row: Row) -> str:
    """From the least to the most that was predicted."""
    least, most = shown(row, row.low), shown(row, row.high)
    return most if least == most else f"{least.removesuffix(f' {row.unit}')} to {most}"


def in_words(found: Drill) -> str:
    """What clients saw, in a sentence or two."""
    rows = {row.name: row for row in found.rows}
    lost, total = rows["not answered"], rows["requests"]
    many = f"{lost.measured:,.0f} of {total.measured:,.0f} requests were not answered"
    words = f"{title(found)}: {many} (predicted: {shown(lost, lost.predicted)})."
    if found.plan.restart:
        took = rows["the restart took"]
        return f"{words} It took {shown(took, took.measured)} (predicted: {shown(took, took.predicted)})."
    out, back = rows["out of rotation after"], rows["back in rotation after"]
    if not math.isfinite(out.measured):
        return f"{words} It never left the rotation (predicted: {shown(out, out.predicted)})."
    return (
        f"{words} It was out of rotation after {shown(out, out.measured)} (predicted: {shown(out, out.predicted)}), "
        f"and back after {shown(back, back.measured)} ({shown(back, back.predicted)})."
    )


def notes(found: Drill) -> list[str]:
    """What is to be known about the figures."""
    lines = [f"caveat: {caveat}" for caveat in found.caveats]
    if found.plan.failure in ("kill", "restart"):
        lines.append(
            f"A replica of this stack took {found.start_s:.2f} s to start before the run; the prediction goes by that. "
            "What a starting process takes from its neighbours' processors is not predicted."
        )
    return [*([f"void: {found.void}"] if found.void else []), *lines]


def write(found: Drill, folder: Path) -> Path:
    """Writes report.json and the picture; gives back the picture's path."""
    folder.mkdir(parents=True, exist_ok=True)
    picture = folder / "over_time.png"
    middle = found.predicted[len(found.predicted) // 2]
    worlds = {"measured": found.measured, "predicted": middle}
    about = f"{found.stage.title}, load {found.plan.load:g} of capacity; shaded: while it lasts"
    figure = over_time({w: (run.records, run.looks) for w, run in worlds.items()}, found.phases, title(found), about)
    picture.write_bytes(png(figure))
    options = orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE | orjson.OPT_SERIALIZE_NUMPY
    (folder / "report.json").write_bytes(orjson.dumps(document(found, picture), option=options))
    return picture


def document(found: Drill, picture: Path) -> dict[str, Any]:
    """The drill as report.json has it and `--json` prints it; NaN where something did not happen."""
    middle = found.predicted[len(found.predicted) // 2]
    worlds = {"measured": found.measured, "predicted": middle}
    return {
        "stage": found.stage.name,
        "plan": asdict(found.plan),
        "phases": asdict(found.phases),
        "rows": [asdict(row) for row in found.rows],
        "result": in_words(found),
        "void": found.void,
        "notes": notes(found),
        "picture": str(picture),
        "start_s": found.start_s,
        "seconds": {world: by_second(run.records).to_dicts() for world, run in worlds.items()},
        "rotation": {
            world: [{"at_s": at_s, "replicas": sorted(inside)} for at_s, inside in turns(run.looks)]
            for world, run in worlds.items()
        },
        "machine": found.machine,
        "command": found.command,
        "made_at": found.made_at,
    }
