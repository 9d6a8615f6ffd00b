"""The table of a stage that says what its machines cost.

    [cost] machine, machines or usd_per_hour ──▶ usd_per_hour(cost, replica)          replicas, workers
    [cost] challenger_machine … ──▶ paid_by(cost, challenger) ──▶ the same            replicas of a challenger
    [cost] host_machine or host_usd_per_hour ──▶ host_usd_per_hour(cost)              gateway, jobs API, Redis servers
                                     all ──▶ stages/bill.py: dollars of a run

Machines are those of stages/prices.py, on demand unless `pricing` says spot. Rules are in stages/cost_rules.py. Not
modelled: a least time that is billed, discounts, traffic, disks, and spot machines that are taken away.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from stages.prices import Price, find
from stages.table import Table

Pricing = Literal["on-demand", "spot"]


class Cost(Table):
    """What an hour of a replica costs: a machine of the price list, one for each of `fleet.profiles`, or a figure.

    `pricing` and `region` are of the replicas' machines, a challenger's too. Beside the replicas stand other
    components, each on a machine of its own that is rented on demand: whoever takes that away takes the service away.
    """

    machine: str | None = Field(None, min_length=1)  # a name out of `rung prices`
    machines: tuple[str, ...] = Field((), strict=False, max_length=100)  # replica i has `machines[i % len(machines)]`
    pricing: Pricing | None = None  # of machine or machines; without it on demand
    region: str | None = Field(None, min_length=1)  # of machine or machines; without it the first in the list
    usd_per_hour: float | None = Field(None, gt=0.0, le=100_000.0)
    challenger_machine: str | None = Field(None, min_length=1)  # of [split]; without it that of the champion
    challenger_usd_per_hour: float | None = Field(None, gt=0.0, le=100_000.0)  # the same as a figure
    host_machine: str | None = Field(None, min_length=1)  # of the gateway, or the jobs API; of a Redis server, too
    host_usd_per_hour: float | None = Field(None, gt=0.0, le=100_000.0)  # the same as a figure


def paid_by(cost: Cost, challenger: bool) -> Cost:
    """[cost] as the replicas of one arm are paid by it: a challenger's machine, where it has one of its own."""
    if not challenger or (cost.challenger_machine is None and cost.challenger_usd_per_hour is None):
        return cost
    own = {"machine": cost.challenger_machine, "machines": (), "usd_per_hour": cost.challenger_usd_per_hour}
    return cost.model_copy(update=own)


def machine_of(cost: Cost, replica: int) -> str | None:
    """The name of replica `replica`'s machine; None where the stage gives a figure instead."""
    return cost.machines[replica % len(cost.machines)] if cost.machines else cost.machine


def price_of(cost: Cost, replica: int) -> Price | None:
    """The price of replica `replica`'s machine, all of it; None where the stage gives a figure instead.

    Raises KeyError for a machine that is not in the price list.
    """
    machine = machine_of(cost, replica)
    return None if machine is None else _known(machine, cost.pricing, cost.region)


def usd_per_hour(cost: Cost, replica: int) -> float:
    """US dollars an hour of replica `replica`; of a machine with several GPUs, its share.

    Raises KeyError for a machine that is not in the price list.
    """
    if cost.usd_per_hour is not None:
        return cost.usd_per_hour
    price = price_of(cost, replica)
    assert price is not None  # one of the two is there: a rule asks for it
    return price.usd_per_gpu_hour


def host_usd_per_hour(cost: Cost) -> float | None:
    """US dollars an hour of each component beside the replicas; None where the stage does not say.

    Raises KeyError for a machine that is not in the price list.
    """
    if cost.host_machine is None:
        return cost.host_usd_per_hour
    return _known(cost.host_machine).usd_per_hour


def described(cost: Cost) -> str:
    """What a replica costs, in words: each price with the machine, contract and region that it is of."""
    challenger = paid_by(cost, challenger=True)
    own = _replicas_described(cost)
    return own if challenger is cost else f"{own}; one of the challenger {_replicas_described(challenger)}"


def hosts_described(cost: Cost) -> str:
    """The same of a component beside the replicas; "not said" where nothing says it."""
    if cost.host_machine is not None:
        return _in_words(_known(cost.host_machine))
    return "not said" if cost.host_usd_per_hour is None else f"{cost.host_usd_per_hour:g} US dollars an hour"


def _replicas_described(cost: Cost) -> str:
    if cost.usd_per_hour is not None:
        return f"{cost.usd_per_hour:g} US dollars an hour"
    names = dict.fromkeys(cost.machines or (str(cost.machine),))
    return "; ".join(_in_words(_known(name, cost.pricing, cost.region)) for name in names)


def _in_words(row: Price) -> str:
    gpus = f"; {row.gpu_count} GPUs" if row.gpu_count > 1 else ""
    return f"{row.usd_per_hour:g} US dollars an hour ({row.machine}, {row.pricing}, {row.region}{gpus})"


def _known(machine: str, pricing: str | None = None, region: str | None = None) -> Price:
    price = find(machine, pricing, region)
    if price is None:
        raise KeyError(machine)
    return price
