"""`rung simulate STAGE --backlog`: a night's work, as a table or as JSON.

    options ─▶ Night ─▶ simulator/night.py ─▶ Row … ─▶ table, and which is the cheapest that is done in time

No twin: `rung jobs run` does the work. Not told here: how the work goes on over the night.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from stages.night import Night, seconds_of, workers_of
from stages.terminal import Exit, err, fail, out, print_json

if TYPE_CHECKING:
    from simulator.night import Row
    from stages.bill import Item
    from stages.calibration import Calibration
    from stages.spec import Stage


# Nobody publishes it for single machines: one in twenty hours is what is taken where nothing is said.
ASSUMED_PER_HOUR = 0.05


def night_of(
    stage: Stage,
    backlog: int | None,
    deadline: str | None,
    workers: str | None,
    spot: bool,
    interruptions: float | None,
    beside: bool,
) -> Night:
    """What the options ask for; `beside` says that others, of traffic, were given too.

    Ends the command in words where they cannot be meant.
    """
    if backlog is None:
        fail(
            "--deadline, --workers, --spot, --interruptions: are of a backlog, got no --backlog. There is no night's "
            "work to ask about. Add --backlog 20000.",
            Exit.MISUSED,
        )
    if beside:
        fail(
            "--backlog: stands in for traffic, got --rate, --duration, --out, --beside or --beside-set with it. Nobody "
            "reads them. Leave them out.",
            Exit.MISUSED,
        )
    if stage.queue is None:
        fail(
            f"--backlog: needs a stage with a [queue], got {stage.name}. Nobody else does work that nobody waits for. "
            "Use the stage queued.",
            Exit.MISUSED,
        )
    if interruptions is not None and not spot:
        fail(
            "--interruptions: are of spot machines, got no --spot. Nobody takes others away. Add --spot.", Exit.MISUSED
        )
    most = stage.scaling.max_replicas if stage.scaling else stage.fleet.replicas
    try:
        return Night(
            backlog,
            workers_of(workers or f"1..{most}"),
            None if deadline is None else seconds_of(deadline),
            spot,
            (ASSUMED_PER_HOUR if interruptions is None else interruptions) if spot else 0.0,
        )
    except ValueError as error:
        fail(str(error), Exit.MISUSED)


def tell(stage: Stage, night: Night, calibration: Calibration | None, seed: int | None, json_: bool) -> None:
    """Works the nights through, and prints what they come to."""
    from simulator.night import cheapest, nights

    try:
        with err.status(f"Working off {night.backlog:,} jobs …"):
            rows = nights(stage, night, calibration, seed)
    except ValueError as error:
        fail(f"{stage.name}: {error}", Exit.MISUSED)
    best = cheapest(rows)
    if json_:
        result: dict[str, Any] = {
            "stage": stage.name,
            "night": asdict(night),
            "rows": [asdict(row) for row in rows],
            "cheapest": None if best is None else asdict(best),
            "notes": _notes(stage, night, rows, calibration is not None),
        }
        print_json(result)
    else:
        _print(stage, night, rows, best, calibration is not None)


def bill_in_words(items: Sequence[Item]) -> str:
    """What dollars are of, in a line: every component that is paid, with its machine; "" where nothing is."""
    kinds: dict[str, list[str]] = {}
    for item in items:
        if not math.isnan(item.usd):
            kinds.setdefault(item.machine, []).append(item.component)
    parts = [f"{' and '.join(dict.fromkeys(of))}: {machine}" for machine, of in kinds.items()]
    return f"Dollars are of {'; '.join(parts)}. Cold starts and all that idles are in them." if parts else ""


def _notes(stage: Stage, night: Night, rows: list[Row], calibrated: bool) -> list[str]:
    from stages.bill import caveats

    notes = [] if calibrated else ["No calibration: the host is taken to need no time at all. Give --calibration."]
    if night.spot:
        notes.append(
            f"Spot machines are taken to be interrupted {night.interruptions_per_hour:g} times an hour each, without "
            "notice, and replaced at once after a cold start; a cloud may do better or worse. Set --interruptions."
        )
    if any(row.nights > 1 for row in rows):
        count = max(row.nights for row in rows)
        notes.append(
            f"Latest and most are the worst of {count} nights: another is worse with probability {1 / (count + 1):.2f}."
        )
    if any(row.dead for row in rows):
        notes.append("Some jobs ended as dead letters: their workers were taken away queue.attempts_max times.")
    notes += caveats(stage, taken_away=True)
    if stage.cost is None:
        notes.append("Without [cost] there are no dollars. Use --set cost.machine=aws/g4dn.xlarge.")
    return notes


def _print(stage: Stage, night: Night, rows: list[Row], best: Row | None, calibrated: bool) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    deadline = "" if night.deadline_s is None else f", due in {_time(night.deadline_s)}"
    out.print(f"[bold]{stage.name}[/bold]: {night.backlog:,} jobs{deadline}")
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    shown = [(name, cell) for name, has, cell in _columns(night, rows) if has]
    for name, _ in shown:
        table.add_column(name, justify="left" if name == "pricing" else "right", no_wrap=True)
    for row in rows:
        table.add_row(*(cell(row) for _, cell in shown))
    out.print(table)
    if told := bill_in_words([item for row in rows[-2 if night.spot else -1 :] for item in row.bill]):
        out.print(told, markup=False, highlight=False)
    if best is not None and best.usd is not None:
        out.print(
            f"The cheapest that was in time every night: {best.workers} x {best.pricing}, {best.usd.mean:.3f} dollars."
        )
    elif night.deadline_s is not None and stage.cost is not None:
        out.print("None was in time every night. Add workers, or give it more time.")
    for note in _notes(stage, night, rows, calibrated):
        out.print(f"[yellow]![/yellow] {note}")


def _columns(night: Night, rows: list[Row]) -> list[tuple[str, bool, Callable[[Row], str]]]:
    """Heading, whether there is anything to tell under it, and what."""
    several = any(row.nights > 1 for row in rows)
    paid = any(row.usd is not None for row in rows)
    return [
        ("workers", True, lambda row: str(row.workers)),
        ("pricing", True, lambda row: row.pricing),
        ("done after", True, lambda row: _time(row.done_s.mean)),
        ("latest", several, lambda row: _time(row.done_s.highest) if row.nights > 1 else "-"),
        ("in time", night.deadline_s is not None, lambda row: f"{100 * (row.in_time_share or 0.0):.0f} %"),
        ("dollars", paid, lambda row: "-" if row.usd is None else f"{row.usd.mean:.3f}"),
        ("most", paid and several, lambda row: f"{row.usd.highest:.3f}" if row.usd and row.nights > 1 else "-"),
        ("gone", night.spot, lambda row: f"{row.interruptions:.1f}"),
        ("dead", any(row.dead for row in rows), lambda row: f"{row.dead:.1f}"),
    ]


def _time(seconds: float) -> str:
    """Seconds as a person reads them."""
    if not math.isfinite(seconds):
        return "never"
    if seconds < 120.0:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60.0)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{round(seconds) // 60} min {round(seconds) % 60:02d} s"
