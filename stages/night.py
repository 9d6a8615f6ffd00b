"""Work for a night: so many jobs in the evening, a deadline in the morning, and machines that cost money meanwhile.

    --backlog 20000 --deadline 8h --workers 1..8 --spot ──▶ Night ──▶ simulator/night.py: done when, for how much

A spot machine is cheaper and may be taken away at any moment. How often is no fact of the price list, and differs by
machine, region and week: it is assumed, and said. Not here: a spot price that moves, and a region that has none left.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from stages.cost import Cost
from stages.prices import find, prices

WORKERS_MAX = 1000
BACKLOG_MAX = 10_000_000
DEADLINE_MAX_S = 115 * 86_400.0
INTERRUPTIONS_PER_HOUR_MAX = 60.0
_UNITS_S = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}


@dataclass(frozen=True)
class Night:
    """What is to be done, and with how many workers it is tried. `interruptions_per_hour` are of each spot machine."""

    backlog: int
    workers: tuple[int, ...]
    deadline_s: float | None = None
    spot: bool = False
    interruptions_per_hour: float = 0.0

    def __post_init__(self) -> None:
        if not 1 <= self.backlog <= BACKLOG_MAX:
            follows = "There would be no night's work" if self.backlog < 1 else "They would not fit into memory"
            raise ValueError(f"--backlog: must be 1 to {BACKLOG_MAX:,} jobs, got {self.backlog}. {follows}. Use 20000.")
        if not 0.0 <= self.interruptions_per_hour <= INTERRUPTIONS_PER_HOUR_MAX:
            raise ValueError(
                f"--interruptions: must be 0 to {INTERRUPTIONS_PER_HOUR_MAX:g} an hour of each machine, got "
                f"{self.interruptions_per_hour:g}. Machines would hardly live until they work. Use 0.05."
            )


def seconds_of(text: str) -> float:
    """Seconds of "8h", "30m", "45s", "1d" or "90". Raises ValueError in words."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhd]?)", text.strip())
    seconds = float(found[1]) * _UNITS_S[found[2]] if found else 0.0
    if not 0.0 < seconds <= DEADLINE_MAX_S:
        raise ValueError(
            "--deadline: must be a time of more than 0 seconds and at most 115 days, "
            f"got {text!r}. Nothing could be late. Use 8h, 30m or 45s."
        )
    return seconds


def workers_of(text: str) -> tuple[int, ...]:
    """The numbers of workers of "4" or "1..8". Raises ValueError in words."""
    found = re.fullmatch(r"(\d{1,5})(?:\.\.(\d{1,5}))?", text.strip())
    first, last = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
    if not 1 <= first <= last <= WORKERS_MAX:
        raise ValueError(
            f"--workers: must be a number or a range from 1 to {WORKERS_MAX}, got {text!r}. Nobody would work. "
            "Use 4, or 1..8."
        )
    return tuple(range(first, last + 1))


def contracted(cost: Cost, spot: bool) -> Cost:
    """The cost with the workers' machines on spot contracts, or on demand, whatever the stage itself says.

    A figure of the stage's own stays. Raises ValueError where a machine has no price of that kind.
    """
    if cost.usd_per_hour is not None and not spot:
        return cost
    pricing = "spot" if spot else "on-demand"
    for machine in dict.fromkeys(cost.machines or (cost.machine,)):
        if machine is None or find(machine, pricing, cost.region) is None:
            known = ", ".join(dict.fromkeys(row.machine for row in prices() if row.pricing == pricing))
            what = "a spot price for --spot" if spot else "an on-demand price"
            remedy = f"Use one of {known}" + (", or leave --spot out." if spot else ".")
            raise ValueError(
                f"cost.machine: must be a machine with {what}, got {machine or 'none'}. "
                f"Nothing says what it costs. {remedy}"
            )
    return cost.model_copy(update={"pricing": pricing})
