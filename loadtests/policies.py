"""The same fleet under one balancing policy after the other: which is best, and do both worlds say so?

    policy ─▶ compare (a folder of its own) ─▶ rows ┐
    policy ─▶ compare …                             ├──▶ orders: policies by p95, a load, in both worlds
                                                    ┘

Each policy is a comparison by itself, with its own report; this puts them side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, get_args

import orjson
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from loadtests import compare, report
from loadtests.calibrate import Launch
from loadtests.report import Comparison, Row
from loadtests.wording import listed, shown, shown_error
from reference_apps.launchers.process import ProcessLauncher
from stages.calibration import Calibration
from stages.fleet import Policy
from stages.spec import Stage, with_overrides

POLICIES: tuple[str, ...] = get_args(Policy)
METRIC = "latency_s_p95"
SAME = 0.02  # predictions that are no further apart than this say nothing about which is better


@dataclass(frozen=True)
class Order:
    """The policies at one load, best p95 first. They agree unless `turned` names pairs that are the other way round.

    A pair counts as turned only when the measured spreads are apart and so are the predictions.
    """

    load: float
    measured: list[str]
    predicted: list[str]
    turned: list[tuple[str, str]]


def under(stage: Stage, policy: str) -> Stage:
    """The stage with another balancing policy. Raises StageError for one that its gateway cannot do."""
    bound = {} if policy == "sticky" else {"gateway.sticky_load_bound": None}
    return with_overrides(stage, {"gateway.policy": policy, **bound})


def compare_all(
    stage: Stage,
    policies: Sequence[str],
    calibration: Calibration,
    plan: compare.Plan,
    folder: Path,
    *,
    command: str,
    launch: Launch = ProcessLauncher,
    on_progress: Callable[[str, float, float], None] = lambda *_: None,
) -> dict[str, Comparison]:
    """Compares the stage under each policy, in folders named after them under `folder`; reports are written there.

    Raises what loadtests.compare.compare raises.
    """
    compare.clear(folder)
    found = {}
    for policy in policies:

        def progress(what: str, done_s: float, total_s: float, policy: str = policy) -> None:
            on_progress(f"{policy}: {what}", done_s, total_s)

        own = folder / policy
        found[policy] = compare.compare(
            *(under(stage, policy), calibration, plan, own), command=command, launch=launch, on_progress=progress
        )
        report.write_report(found[policy], own)
    _write(found, folder)
    return found


def again(folder: Path, calibration: Calibration | None = None) -> dict[str, Comparison]:
    """The comparisons that `compare_all` left in `folder`, each predicted anew. Raises what loadtests.compare.again
    raises, and ValueError or KeyError where there is none."""
    asked = orjson.loads((folder / "policies.json").read_bytes())["reports"]
    found = {}
    for policy in (each for each in POLICIES if each in asked):  # there may be folders of others, left from before
        found[policy] = compare.again(folder / policy, calibration)
        report.write_report(found[policy], folder / policy)
    if not found:
        raise ValueError(f"{folder}: holds no comparison of policies")
    _write(found, folder)
    return found


def orders(found: Mapping[str, Comparison]) -> list[Order]:
    """The policies by p95 at every load at which all of them have a sound figure."""
    result = []
    for load in sorted({load for comparison in found.values() for load in comparison.loads}):
        rows = {policy: _row(comparison.rows, load) for policy, comparison in found.items()}
        sound = {policy: row for policy, row in rows.items() if row is not None and not row.void}
        if len(sound) < len(found):
            continue
        turned = [pair for pair in combinations(sound, 2) if _turned(sound[pair[0]], sound[pair[1]])]
        measured = sorted(sound, key=lambda policy: sound[policy].measured)
        predicted = sorted(sound, key=lambda policy: sound[policy].predicted)
        result.append(Order(load, measured, predicted, turned))
    return result


def in_words(found: Sequence[Order]) -> str:
    """Whether the two worlds agree on the order, in a sentence."""
    if not found:
        return "No load has a sound run of every policy: nothing can be said of their order."
    turned = [f"{one} and {other} at load {order.load:g}" for order in found for one, other in order.turned]
    if turned:
        return f"The order by p95 is the other way round for {listed(turned)}."
    return (
        f"At every load ({listed([f'{order.load:g}' for order in found])}) both worlds agree on the order of the "
        "policies by p95, as far as the repeats tell them apart."
    )


def document(found: Mapping[str, Comparison], folder: Path) -> dict[str, Any]:
    """Rows of all policies, and their order, as policies.json has them and `--json` prints them."""
    order = orders(found)
    one = next(iter(found.values()))
    return {
        "machine": one.machine,
        "device": one.device_label,
        "command": one.command,
        "made_at": one.made_at,
        "rows": [row.document | {"policy": policy} for policy, one in found.items() for row in one.rows],
        "shares": [asdict(share) | {"policy": policy} for policy, one in found.items() for share in one.shares],
        "orders": [asdict(each) for each in order],
        "result": in_words(order),
        "reports": {policy: str(folder / policy / "report.html") for policy in found},
    }


def print_table(found: Mapping[str, Comparison], console: Console) -> None:
    """Prints p95 of every policy, a block a load, best measured first; then whether the worlds agree."""
    table = Table(title="Policies by p95", title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("load", justify="right")
    table.add_column("policy")
    for name in ("measured", "predicted", "error", "place measured", "predicted"):
        table.add_column(name, justify="right")
    for load in sorted({load for comparison in found.values() for load in comparison.loads}):
        table.add_section()
        rows = {policy: row for policy, one in found.items() if (row := _row(one.rows, load)) is not None}
        measured = sorted(rows, key=lambda policy: rows[policy].measured)
        predicted = sorted(rows, key=lambda policy: rows[policy].predicted)
        for place, policy in enumerate(measured, start=1):
            row = rows[policy]
            table.add_row(
                f"{load:g}" if place == 1 else "",
                Text(f"{policy} (void)" if row.void else policy),
                shown(METRIC, row.measured),
                shown(METRIC, row.predicted),
                f"{shown_error(METRIC, row.error)} {row.sign}",
                str(place),
                str(predicted.index(policy) + 1),
            )
    console.print(table)
    console.print(in_words(orders(found)), markup=False, highlight=False)


def _write(found: Mapping[str, Comparison], folder: Path) -> None:
    options = orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE | orjson.OPT_SERIALIZE_NUMPY
    (folder / "policies.json").write_bytes(orjson.dumps(document(found, folder), option=options))


def _row(rows: Sequence[Row], load: float) -> Row | None:
    return next((row for row in rows if row.load == load and row.metric == METRIC), None)


def _turned(one: Row, other: Row) -> bool:
    """Whether measured and predicted clearly say the opposite about which of the two is better."""
    if one.measured > other.measured:
        one, other = other, one
    apart = one.spread_high < other.spread_low
    return apart and one.predicted > (1 + SAME) * other.predicted
