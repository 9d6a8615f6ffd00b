"""`rung simulate STAGE --beside OTHER`: two queued stages on one GPU, as a table or as JSON.

    stage, other ─▶ simulator/one_gpu.py ─▶ Records of each ─▶ metrics side by side, and turns on the card

No twin: `rung up` of both has their workers share the GPU of this machine.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from stages.terminal import Exit, err, fail, out, print_json

if TYPE_CHECKING:
    from stages.calibration import Calibration
    from stages.spec import Stage


def tell(stage: Stage, other: Stage, calibration: Calibration | None, json_: bool) -> None:
    """Simulates both on one GPU, and prints what the clients of each see. Ends the command in words when they cannot
    share one."""
    from simulator.cli import NO_CALIBRATION
    from simulator.one_gpu import on_one_gpu, turns
    from stages.metrics import summarise
    from stages.policies.sharing import TURN_S

    both = [_at_rest(stage), _apart(stage, _at_rest(other))]
    try:
        with err.status(f"Simulating {both[0].name} and {both[1].name} on one GPU …"):
            found = on_one_gpu(both, calibration=calibration)
    except ValueError as error:
        fail(f"{stage.name}: {error}", Exit.MISUSED)
    notes = [] if calibration is not None else [NO_CALIBRATION]
    notes.append(
        f"Workers stay as many as they start. Whoever is on the card keeps it for {TURN_S:g} s while somebody waits, "
        "and goes at once when it has nothing to do; loading a model takes no time here."
    )
    result: dict[str, Any] = {
        "memory_gib": stage.device.memory_gib,
        "stages": [
            {
                "stage": each.name,
                "memory_gib": each.model.memory_gib,
                "seed": each.traffic.seed,
                "window_s": records.window_s,
                "requests": records.requests.height,
                "turns": count,
                "metrics": summarise(records, each.slo.latency_s),
            }
            for each, records, count in zip(both, found, turns(found), strict=True)
        ],
        "notes": notes,
    }
    print_json(result) if json_ else _print(result)


def _at_rest(stage: Stage) -> Stage:
    """The stage with the workers that it starts with."""
    return stage if stage.scaling is None else stage.model_copy(update={"scaling": None})


def _apart(stage: Stage, other: Stage) -> Stage:
    """The other with a name and a seed of its own, where it has those of the first: it is no copy of its requests."""
    if other.name == stage.name:
        other = other.model_copy(update={"name": f"{other.name}-beside"})
    if other.traffic.seed == stage.traffic.seed:
        traffic = other.traffic.model_copy(update={"seed": other.traffic.seed + 1})
        other = other.model_copy(update={"traffic": traffic})
    return other


def _print(result: dict[str, Any]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    stages = result["stages"]
    title = f"On one GPU of {result['memory_gib']:g} GiB, predicted"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("metric")
    for each in stages:
        table.add_column(f"{each['stage']}, {each['memory_gib']:g} GiB", justify="right")
    table.add_row("requests", *(f"{each['requests']:,}" for each in stages))
    table.add_row("turns on the card", *(f"{each['turns']:,}" for each in stages))
    for name in stages[0]["metrics"]:
        values = [each["metrics"][name] for each in stages]
        table.add_row(name, *("-" if math.isnan(value) else f"{value:.5g}" for value in values))
    out.print(table)
    for note in result["notes"]:
        out.print(f"[yellow]![/yellow] {note}")
