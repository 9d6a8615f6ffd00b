"""The table of a stage that says what its replicas cost.

    [cost] machine, machines or usd_per_hour ──▶ usd_per_hour(cost, replica) ──▶ stages/metrics.py: dollars of a run

A replica is paid from its start to its stop, the cold start included. Not modelled: a least time that is billed,
discounts, traffic, disks, the machine of the gateway, and spot machines that are taken away. Rules are in
stages/cost_rules.py.
"""

from __future__ import annotations

from pydantic import Field

from stages.catalogue.prices import prices
from stages.table import Table


class Cost(Table):
    """What an hour of a replica costs: a machine of the price list, one for each of `fleet.profiles`, or a figure."""

    machine: str | None = Field(None, min_length=1)  # a name out of `rung prices`
    machines: tuple[str, ...] = Field((), strict=False, max_length=100)  # replica i has `machines[i % len(machines)]`
    usd_per_hour: float | None = Field(None, gt=0.0, le=100_000.0)


def usd_per_hour(cost: Cost, replica: int) -> float:
    """US dollars an hour of replica `replica`. Raises KeyError for a machine that is not in the price list."""
    if cost.usd_per_hour is not None:
        return cost.usd_per_hour
    machine = cost.machines[replica % len(cost.machines)] if cost.machines else cost.machine
    return prices()[str(machine)].usd_per_hour


def described(cost: Cost) -> str:
    """What a replica costs, in words: each price with the machine, contract and region that it is of."""
    if cost.usd_per_hour is not None:
        return f"{cost.usd_per_hour:g} US dollars an hour"
    rows = [prices()[name] for name in dict.fromkeys(cost.machines or (str(cost.machine),))]
    parts = ((row.usd_per_hour, ", ".join((row.machine, row.pricing, row.region))) for row in rows)
    return "; ".join(f"{price:g} US dollars an hour ({of})" for price, of in parts)
