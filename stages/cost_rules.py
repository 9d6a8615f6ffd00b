"""Rules over the keys of [cost]: one price for each replica, of a machine that has the replica's device.

Asked by stages/rules.py, like the rules there. A stage without [cost] breaks none of them.
"""

from __future__ import annotations

from collections.abc import Iterator

from stages.catalogue import profiles
from stages.catalogue.prices import gpu_family, prices
from stages.cost import Cost
from stages.fleet import Fleet
from stages.problems import Problem, did_you_mean, shown
from stages.spec import Device


def cost_is_told_once(cost: Cost | None) -> Iterator[Problem]:
    """Of the three ways to tell a price, a stage takes one."""
    if cost is None:
        return
    given = {"machine": cost.machine, "machines": cost.machines, "usd_per_hour": cost.usd_per_hour}
    told = [f"cost.{key}" for key, value in given.items() if value]
    if len(told) != 1:
        yield Problem(
            "cost",
            "must have one of machine, machines and usd_per_hour",
            " and ".join(told) or "none",
            "The price of a replica would be unclear." if told else "Nothing says what a replica costs.",
            "Keep one of them." if told else 'Write machine = "aws-g4dn.xlarge", or another one of `rung prices`.',
        )


def machines_are_known(cost: Cost | None) -> Iterator[Problem]:
    """A price has a source."""
    for key, machine in _machines(cost):
        if machine not in prices():
            yield Problem(
                key,
                "must be a machine of the price list",
                shown(machine),
                "Nothing says what it costs.",
                did_you_mean(machine, prices(), "List them with `rung prices`, or give cost.usd_per_hour instead."),
            )


def machines_match_profiles(cost: Cost | None, fleet: Fleet) -> Iterator[Problem]:
    """Where devices take turns, their machines take the same turns."""
    if cost is not None and cost.machines and len(cost.machines) != len(fleet.profiles):
        yield Problem(
            "cost.machines",
            f"must be as many as fleet.profiles ({len(fleet.profiles)})",
            str(len(cost.machines)),
            "A replica would have the device of one and the price of another.",
            "Give one for each." if fleet.profiles else "Use cost.machine where all replicas are alike.",
        )


def machines_have_the_device(cost: Cost | None, device: Device, fleet: Fleet) -> Iterator[Problem]:
    """An emulated GPU is paid as what it is."""
    if device.kind != "emulated" or cost is None or (cost.machines and len(cost.machines) != len(fleet.profiles)):
        return
    names = fleet.profiles or (device.profile or "",)
    machines = cost.machines or (cost.machine or "",) * len(names)
    for name, machine in dict.fromkeys(zip(names, machines, strict=True)):
        profile, price = profiles().get(name), prices().get(machine)
        if profile is None or price is None or gpu_family(profile.device) == price.gpu_family:
            continue
        fitting = [row.machine for row in prices().values() if row.gpu_family == gpu_family(profile.device)]
        several = "" if cost.machines or len(set(names)) == 1 else " For unequal replicas give cost.machines."
        use = f"Use {fitting[0]}, or give cost.usd_per_hour." if fitting else "Give cost.usd_per_hour."
        yield Problem(
            "cost.machines" if cost.machines else "cost.machine",
            f"must have the GPU of the profile {name} ({gpu_family(profile.device)})",
            f"{shown(machine)} with a {price.gpu}",
            "The dollars would be those of another device.",
            use + several,
        )


def _machines(cost: Cost | None) -> Iterator[tuple[str, str]]:
    if cost is not None and cost.machine:
        yield "cost.machine", cost.machine
    if cost is not None:
        yield from (("cost.machines", machine) for machine in cost.machines)


RULES = (cost_is_told_once, machines_are_known, machines_match_profiles, machines_have_the_device)
